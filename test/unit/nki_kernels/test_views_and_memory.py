"""Views alias memory as numpy views do; addresses reuse memory; two cores share it only across a rendezvous."""

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nki_kernels.interpreter import KernelError, RaceError

F32, BF16, I32 = nl.float32, nl.bfloat16, nl.int32


def inside(body, *arrays, lnc=None):
    """Run ``body`` as a kernel for what it does to Python objects."""
    seen = []

    def kernel(x, *more):
        seen.append(body(x, *more))
        return x

    jitted = nki.jit(kernel)
    (jitted[lnc] if lnc else jitted)(*(arrays or (np.zeros((4, 8), np.float32),)))
    return seen[0]


def counted(*shape, dtype=F32):
    tile = nl.ndarray(shape, dtype=dtype)
    nisa.iota(tile, [[1, int(np.prod(shape[1:]))]], channel_multiplier=int(np.prod(shape[1:])))
    return tile, np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_slices_and_indices_match_numpy(data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple))
    key: list[object] = []
    for d, n in enumerate(shape):
        start = data.draw(st.integers(0, n - 1))
        stop = data.draw(st.integers(start + 1, n))
        step = 1 if d == 0 else data.draw(st.integers(1, 3))
        choice = data.draw(st.sampled_from(["slice", "ds", "int"]))
        if choice == "int":
            key.append(start - n if data.draw(st.booleans()) else start)
        elif choice == "ds":
            key.append(("ds", start, stop - start))
        else:
            key.append(slice(start, stop, step))

    def body(x):
        tile, want = counted(*shape)
        ours = tuple(nl.ds(k[1], k[2]) if isinstance(k, tuple) else k for k in key)
        theirs = tuple(slice(k[1], k[1] + k[2]) if isinstance(k, tuple) else k for k in key)
        view = tile[ours]
        assert view.shape[0] == (1 if isinstance(key[0], int) else want[theirs[0]].shape[0])
        assert len(view.shape) >= 2
        np.testing.assert_array_equal(view.array.ravel(), want[theirs].ravel())

    inside(body)


@settings(max_examples=40, deadline=None)
@given(
    parts=st.integers(1, 4),
    free=st.permutations([2, 3, 4]),
    split=st.sampled_from([(24,), (6, 4), (2, 12), (4, 3, 2), (1, 24), (24, 1)]),
)
def test_reshape_matches_numpy(parts, free, split):
    def body(x):
        tile, want = counted(parts, *free)
        np.testing.assert_array_equal(tile.reshape((parts, *split)).array, want.reshape((parts, *split)))

    inside(body)


def test_reshape_of_a_slice_keeps_its_place():
    def body(x):
        tile, want = counted(4, 6, 8)
        view = tile[:, 2:4, :].reshape((4, 16))
        np.testing.assert_array_equal(view.array, want[:, 2:4, :].reshape(4, 16))
        nisa.memset(view, -1.0)
        assert (tile.array[:, 2:4] == -1).all()
        assert (tile.array[:, 4:] == want[:, 4:]).all()

    inside(body)


def test_integer_indices_drop_free_dimensions_but_not_the_partition():
    def body(x):
        tile = nl.ndarray((128, 64, 32), dtype=F32)
        hbm = nl.ndarray((4, 128, 32), dtype=F32, buffer=nl.hbm)
        return (
            tile[0].shape,
            tile[:, :, 0].shape,
            tile[:, 3, 4].shape,
            tile[..., 5].shape,
            hbm[0].shape,
            hbm[0, 1, 2].shape,
        )

    assert inside(body) == ((1, 64, 32), (128, 64), (128, 1), (128, 64), (128, 32), (1,))


def test_view_reinterprets_bytes():
    def body(x):
        tile = nl.ndarray((4, 8), dtype=F32)
        nisa.memset(tile, 1.0)
        halves = tile.view(nl.uint16)
        assert halves.shape == (4, 16)
        np.testing.assert_array_equal(halves.array[0, :4], [0, 0x3F80, 0, 0x3F80])
        nisa.memset(halves[:, 1:2], 0x4000)
        assert tile.array[0, 0] == 2.0
        assert halves.view(F32).shape == (4, 8)

    inside(body)


def test_half_written_elements_are_undefined():
    def body(x):
        tile = nl.ndarray((4, 8), dtype=F32)
        nisa.memset(tile.view(nl.uint16)[:, 0:16:2], 0)
        out = nl.ndarray((4, 8), dtype=F32)
        nisa.tensor_copy(out, tile)
        assert not out.defined_mask().any()
        nisa.memset(tile.view(nl.uint16)[:, 1:16:2], 0)
        nisa.tensor_copy(out, tile)
        assert out.defined_mask() is None

    inside(body)


def test_ap_addresses_the_storage():
    def body(x):
        tile, want = counted(4, 24)
        np.testing.assert_array_equal(tile.ap([[24, 2], [6, 4], [1, 2]], offset=25).array[1, 2], want[2, 13:15])
        np.testing.assert_array_equal(tile.ap([[24, 4], [0, 3], [1, 2]]).array[:, 2], want[:, :2])
        beyond = tile.ap([[24, 4], [1, 30]])
        with pytest.raises(KernelError, match="past the 24 elements"):
            nisa.memset(beyond, 0.0)
        # An explicit offset comes on top of the view's own, in elements of the pattern's type.
        np.testing.assert_array_equal(tile[:, 2:].ap([[24, 4], [1, 2]], offset=4).array, want[:, 6:8])
        np.testing.assert_array_equal(tile[1:, 2:].ap([[24, 2], [1, 2]]).array, want[1:3, 2:4])
        halves = tile[:, 2:].ap([[48, 4], [1, 2]], offset=2, dtype=nl.bfloat16)
        np.testing.assert_array_equal(halves.array.view(np.float32).ravel(), want[:, 3])

    inside(body)


def test_methods_of_later_versions():
    def body(x):
        tile, want = counted(4, 6, 8)
        eq = np.testing.assert_array_equal
        eq(tile.slice(1, 1, 5, 2).array, want[:, 1:5:2])
        eq(tile.select(2, 3).array, want[:, :, 3])
        eq(tile.permute((0, 2, 1)).array, want.transpose(0, 2, 1))
        eq(tile.expand_dim(1).broadcast(1, 3).array, np.broadcast_to(want[:, None], (4, 3, 6, 8)))
        eq(tile.expand_dim(3).squeeze_dim(3).array, want)
        eq(tile.reshape_dim(1, (2, 3)).array, want.reshape(4, 2, 3, 8))
        eq(tile.flatten_dims(1, 2).array, want.reshape(4, 48))
        at = nl.ndarray((1, 1), dtype=I32)
        nisa.memset(at, 5)
        out = nl.ndarray((4, 8), dtype=F32)
        nisa.tensor_copy(out, tile.select(1, at))
        eq(out.array, want[:, 5])
        for wrong in (
            lambda: tile.permute((1, 0, 2)),
            lambda: tile.broadcast(1, 3),
            lambda: tile.expand_dim(0),
            lambda: tile.squeeze_dim(1),
            lambda: tile[:, 0:3, :].permute((0, 2, 1)).flatten_dims(1, 2),
        ):
            with pytest.raises(KernelError):
                wrong()

    inside(body)


def test_assignment_copies():
    def body(x):
        tile, want = counted(4, 8)
        out = nl.ndarray((4, 8), dtype=F32)
        out[:, 0:4] = tile[:, 4:8]
        out[:, 4:8] = nl.load(x[:, 0:4])
        np.testing.assert_array_equal(out.array, np.concatenate([want[:, 4:], np.zeros((4, 4))], axis=1))

    inside(body)


def test_an_address_written_through_another_tensor_is_lost():
    def body(x):
        a = nl.ndarray((64, 16), dtype=F32, address=(0, 0))
        b = nl.ndarray((64, 16), dtype=F32, address=(0, 32))
        c = nl.ndarray((64, 16), dtype=F32, address=(64, 0))
        out = nl.ndarray((64, 16), dtype=F32)
        nisa.memset(a, 1.0)
        nisa.memset(c, 1.0)
        nisa.tensor_copy(out, a)
        nisa.memset(b, 2.0)
        nisa.tensor_copy(out, c)
        nisa.tensor_copy(out[:, 0:8], a[:, 0:8])
        assert out.defined_mask() is None
        nisa.tensor_copy(out, a)
        np.testing.assert_array_equal(np.flatnonzero(~out.defined_mask()[0]), range(8, 16))
        nisa.memset(a, 3.0)
        nisa.tensor_copy(out, a)
        assert out.defined_mask() is None
        nisa.tensor_copy(out, b)
        np.testing.assert_array_equal(np.flatnonzero(~out.defined_mask()[0]), range(8))

    inside(body)


def _shared(barrier):
    def body(x):
        me = nl.program_id(0)
        shared = nl.ndarray((2, 8), dtype=F32, buffer=nl.shared_hbm)
        tile = nl.ndarray((1, 8), dtype=F32)
        nisa.memset(tile, float(me))
        nisa.dma_copy(shared[me : me + 1, :], tile)
        if barrier:
            nisa.core_barrier(shared, (0, 1))
        if me == 1:
            nisa.dma_copy(tile, shared[0:1, :])
            assert (tile.array == 0).all()

    return body


def test_reading_the_other_cores_data_needs_a_barrier():
    inside(_shared(barrier=True), lnc=2)
    with pytest.raises(RaceError, match=r"dma_copy.*'src'.*core 0 wrote with no core_barrier"):
        inside(_shared(barrier=False), lnc=2)
