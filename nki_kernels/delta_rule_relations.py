"""Which token counts for which: the table of zeros and ones that `gated_delta_rule_verify` takes.

Its rows are tokens: the new ones of every sequence in turn, then pending drafts of every sequence, then those of the
checkpoints, then none. A token has a number in its sequence, pending drafts from 1 to N and new tokens from N + 1 on. A
column counts tokens of one sequence, or of any, with numbers above one and up to another.
"""

import torch

LEAST, MOST, FRESH = 65, 128, 64
"""Rows at least, since a float32 product over 64 rows or fewer takes twice the time of one over more; at most, one a
partition; new tokens at most, since what they write and give out is turned together."""
ROOM, BESIDE, BANK = 192, 3, 512
"""KiB of SBUF for states: one of a head takes one, old and new, and what is beside them as much as so many more; and
columns of a bank of PSUM."""


def sequences_at_once(tokens: int, drafts: int, checks: int, heads: int) -> int:
    """Sequences that one launch takes, of so many value heads a core; 0 if it takes none with the checkpoints."""
    if heads * (1 + drafts + tokens) > BANK:
        return 0
    rows = (MOST - checks * drafts) // (tokens + drafts)
    return max(0, min(rows, FRESH // tokens, ROOM // heads - BESIDE - checks))


def relations(batch: int, tokens: int, drafts: int, row: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The table for B sequences of M new tokens and N pending drafts each, and for C checkpoints.

    Args:
        row: int [C], the sequence of each checkpoint.
        whole: bool [C], it counts the sequence's first new token, beside pending drafts of its own.
    Returns:
        fp32 [max(65, B (M + N) + C N), columns], one where the row's token counts for the column, in this order:
            after: N + M + 1, tokens of numbers above 0, 1 ... N + M
            upto: M, tokens up to each new one
            total: B + C, what the state of each sequence and checkpoint is to hold
            block: B, all tokens of a sequence
            own: M, tokens of each new number; same: B M, the identity on new tokens
            past: B, minus one for pending drafts of a sequence
            until: B M, tokens of a new one's sequence up to it
            later: one a row, tokens of its sequence behind it; of a checkpoint's drafts its new token too
    """
    checks, most = len(row), drafts + tokens + 1

    def numbers(first: int, count: int) -> torch.Tensor:
        return torch.arange(first, first + count, dtype=torch.int32, device=row.device)

    def rows(first: int, count: int, each: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequence and number of the tokens of `count` sequences."""
        pairs = numbers(first, count).view(-1, 1).expand(-1, len(each)), each.expand(count, -1)
        return pairs[0].reshape(-1), pairs[1].reshape(-1)

    new, held = numbers(drafts + 1, tokens), numbers(1, drafts)
    parts = [rows(0, batch, new), rows(0, batch, held), rows(batch, checks, held)]
    filled = sum(len(part[0]) for part in parts)
    parts.append((numbers(0, max(0, LEAST - filled)) * 0 - 2, numbers(0, max(0, LEAST - filled)) * 0 - 1))
    sequence, number = (torch.cat(part) for part in zip(*parts, strict=True))
    fresh, every, one = (sequence[: batch * tokens], number[: batch * tokens]), numbers(0, batch), numbers(0, batch) * 0

    def columns(of: torch.Tensor, above: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        counts = (sequence.view(-1, 1) == of) | (of == -1)
        return (counts & (number.view(-1, 1) > above) & (number.view(-1, 1) <= to)).float()

    first = numbers(0, len(sequence)).view(-1, 1) == row * tokens
    first = (first & whole).float()
    own, later = numbers(batch, checks), columns(sequence, number, number * 0 + most)
    behind, end = first.repeat_interleave(drafts, dim=1), filled - checks * drafts
    later = torch.cat((later[:, :end], later[:, end:filled] + behind, later[:, filled:]), dim=1)
    after = numbers(0, most)
    return torch.cat(
        (
            columns(after * 0 - 1, after, after * 0 + most),
            columns(new * 0 - 1, new * 0, new),
            columns(every, one, one + drafts + 1),
            columns(own, own * 0, own * 0 + most) + first,
            columns(every, one, one + most),
            columns(new * 0 - 1, new - 1, new),
            columns(fresh[0], fresh[1] - 1, fresh[1]),
            -columns(every, one, one + drafts),
            columns(fresh[0], fresh[1] * 0, fresh[1]),
            later,
        ),
        dim=1,
    )
