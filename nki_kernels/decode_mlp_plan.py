"""How a core's intermediate channels are divided into parts: what the decode MLP and its packing agree on."""

TILE = 128


def parts(blocks: int) -> list:
    """(chunks, blocks a chunk) of each part of a core's intermediate channels, of `blocks` of 128.

    A part's gates and ups are done together, one or two chunks of at most four blocks each, so that a part's
    activation and its exchange with the other core pass while TensorE does the next part, and the last part, whose
    own have only the products before it in `down` to pass behind, is small.
    """
    out = []
    left = blocks
    while left > 0:
        if left >= 8:
            out.append((2, 4))
        elif left > 1 and (left % 2 == 0 or left > 4):
            out.append((2, left // 2))
        else:
            out.append((1, left))
        left = left - out[-1][0] * out[-1][1]
    return out
