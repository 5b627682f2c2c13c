"""The rules of the real compiler: for each a kernel that breaks it, and the nearest one that does not."""

import re
from collections.abc import Callable
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest

from nki_kernels.interpreter import RULES, KernelError, RuleError, Target, compiling_for

F32, BF16, I32 = nl.float32, nl.bfloat16, nl.int32


def sb(*shape, dtype=F32, value=0):
    tile = nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)
    nisa.memset(tile, value)
    return tile


def ps(*shape, dtype=F32):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.psum)


def read(x, index):
    nisa.dma_copy(sb(4, 4), x.ap([[8, 4], [1, 4]], scalar_offset=index, indirect_dim=1))


def turn(rows, dtype, at=0):
    bank = ps(8, 16, dtype=dtype)
    nisa.nc_transpose(bank[:, at : at + rows], sb(rows, 8, dtype=dtype))


def products(x, *accumulate):
    """One product a value into the same tile, which is read after each."""
    bank, out = ps(8, 8), sb(8, 8)
    for how in accumulate:
        nisa.nc_matmul(bank, sb(4, 8), sb(4, 8), **({} if how is None else {"accumulate": how}))
        nisa.tensor_copy(out, bank)


def exchange(x, part):
    whole = sb(4, 8)
    mine = whole[:, 0:4] if part else whole
    into = sb(4, 4) if part else sb(4, 8)
    other = 1 - nl.program_id(0)
    nisa.sendrecv(mine, into, other, other, 0)


def scratch(shape):
    return nl.ndarray(shape, dtype=F32, buffer=nl.hbm)


# Rule: [(what breaks it, match)], [what does not]. Each runs with the argument x, float32 [4, 8].
CASES: dict[str, tuple[list[tuple[Callable, str]], list[Callable]]] = {
    "index-tile": (
        [
            (lambda x: read(x, sb(1, 4, dtype=I32)[0:1, 1:2]), r"dma_copy: operand 'src.scalar_offset'.*element 1 of"),
            (lambda x: read(x, sb(1, 4, dtype=I32)[0:1, 0:1]), r"element 0 of '.*' \(1, 4\).*\(1, 1\) tile of its own"),
            (lambda x: read(x, sb(4, 1, dtype=I32).ap([[1, 1], [1, 1]], offset=2)), r"element 2 of"),
        ],
        [lambda x: read(x, sb(1, 1, dtype=I32)), lambda x: read(x, nisa.register_alloc(1))],
    ),
    "odd-transpose": (
        [
            (lambda x: turn(1, BF16), r"nc_transpose: operand 'dst'.*1 elements a partition of bfloat16"),
            (lambda x: turn(3, BF16), r"3 elements.*even number of rows, or through a float32 tile"),
            (lambda x: turn(2, BF16, at=1), r"from byte 2 of a 4-byte word"),
            (
                lambda x: nisa.nc_matmul(
                    ps(8, 3, dtype=BF16), sb(3, 8, dtype=BF16), sb(3, 3, dtype=BF16), is_transpose=True
                ),
                r"nc_matmul: operand 'dst'.*3 elements",
            ),
        ],
        [
            lambda x: turn(2, BF16), lambda x: turn(4, BF16, at=6), lambda x: turn(1, F32),
            lambda x: turn(3, F32, at=1),
            lambda x: nisa.nc_transpose(sb(8, 3, dtype=BF16), sb(3, 8, dtype=BF16)),
        ],
    ),
    "psum-view": (
        [
            (lambda x: ps(8, 8).view(BF16), r"view: .*'psum.*float32 PSUM tile is viewed as bfloat16.*of the type"),
            (lambda x: ps(8, 8, dtype=BF16).view(F32), r"bfloat16 PSUM tile is viewed as float32"),
            (lambda x: ps(8, 8).ap([[16, 8], [1, 16]], dtype=BF16), r"ap: .*viewed as bfloat16"),
        ],
        [lambda x: ps(8, 8).view(I32), lambda x: sb(8, 8).view(BF16), lambda x: ps(8, 8, dtype=BF16)],
    ),
    "psum-tile": (
        [
            (lambda x: ps(128, 1024), r"ndarray: operand 'shape'.*4096 bytes a partition.*one tile a bank"),
            (lambda x: ps(4, 2, 513, dtype=BF16), r"2052 bytes"),
        ],
        [lambda x: ps(128, 512), lambda x: ps(128, 1024, dtype=BF16)],
    ),
    "dma-leading": (
        [
            (lambda x: nisa.dma_copy(sb(8, 4), x.reshape((4, 2, 4))), r"dma_copy: .*'src'.*\(4, 2, 4\).*\(8, 4\)"),
            (lambda x: nisa.dma_copy(x.reshape((2, 16)), sb(4, 8)), r"src is \(4, 8\), dst is \(2, 16\)"),
            (lambda x: nisa.dma_copy(sb(1, 32), x.reshape((32,))), r"\(32,\).*reshape or .ap"),
        ],
        [
            lambda x: nisa.dma_copy(sb(8, 4), x.reshape((8, 4))), lambda x: nisa.dma_copy(sb(4, 2, 4), x),
            lambda x: nisa.dma_copy(scratch((2, 16)), x),
        ],
    ),
    "constant-argument": (
        [(lambda x: nl.shared_constant(np.eye(4, dtype=np.float32)), r"shared_constant.*is a ndarray.*an argument")],
        [lambda x: x],
    ),
    "accumulate": (
        [
            (lambda x: products(x, None, None), r"nc_matmul: operand 'dst'.*finished sum.*accumulate=False"),
            (lambda x: products(x, False, None), r"finished sum"),
        ],
        [lambda x: products(x, None), lambda x: products(x, None, False), lambda x: products(x, False, True, False)],
    ),
    "dynamic-copy": (
        [
            (
                lambda x: nisa.dma_copy(
                    scratch((8, 8)).ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32)),
                    x.ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32)),
                ),
                r"dma_copy: operand 'dst': 'x' and 'private_hbm.*' both have a dynamic offset: read into SBUF",
            )
        ],
        [
            lambda x: nisa.dma_copy(scratch((2, 8)), x.ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32))),
            lambda x: nisa.dma_copy(sb(2, 8), x.ap([[8, 2], [1, 8]], scalar_offset=sb(1, 1, dtype=I32))),
        ],
    ),
    "sendrecv-tile": (
        [(lambda x: exchange(x, True), r"sendrecv: operand 'src'.*part of each partition.*tiles of their own")],
        [lambda x: exchange(x, False)],
    ),
}  # fmt: skip
BREAKS = [(rule, act, match) for rule, (bad, _) in CASES.items() for act, match in bad]
KEEPS = [(rule, act) for rule, (_, good) in CASES.items() for act in good]


def launch(act: Callable, target: Target) -> None:
    def kernel(x):
        act(x)
        return x

    with compiling_for(target):
        nki.jit(kernel)[2](np.zeros((4, 8), dtype=np.float32))


def names(rules: list[Any]) -> list[str]:
    return [f"{r[0]}-{i}" for i, r in enumerate(rules)]


@pytest.mark.parametrize(("rule", "act", "match"), BREAKS, ids=names(BREAKS))
def test_what_breaks_a_rule_is_refused(rule, act, match):
    with pytest.raises(RuleError) as caught:
        launch(act, Target(checks="cautious"))
    assert caught.value.broken is RULES[rule]
    message = str(caught.value)
    assert re.search(match, message), message
    assert f"[rule {rule}, SDK 2.31, " in message
    assert RULES[rule].remedy in message
    assert "test_compiler_rules.py:" in message


@pytest.mark.parametrize(("rule", "act", "match"), BREAKS, ids=names(BREAKS))
def test_a_rule_is_off_where_its_target_does_not_have_it(rule, act, match):
    launch(act, Target(checks="instruction"))
    if RULES[rule].disputed:
        launch(act, Target(checks="compiler"))
    else:
        with pytest.raises(RuleError):
            launch(act, Target(checks="compiler"))


@pytest.mark.parametrize(("rule", "act"), KEEPS, ids=names(KEEPS))
def test_what_keeps_a_rule_runs(rule, act):
    launch(act, Target(checks="cautious"))


def test_a_launch_names_the_logical_core():
    kernel = nki.jit(lambda x: x)
    x = np.zeros((4, 8), dtype=np.float32)
    for lnc, launched in ((2, kernel), (2, kernel[1]), (1, kernel[2])):
        refusal = pytest.raises(RuleError, match=rf"of a logical core's {lnc} cores.*NCC_ILLC059")
        with compiling_for(Target(lnc=lnc, checks="compiler")), refusal:
            launched(x)
        with compiling_for(Target("2.30", lnc=lnc, checks="compiler")):
            launched(x)
    for lnc, launched in ((2, kernel[2]), (1, kernel[1]), (None, kernel[2]), (None, kernel)):
        with compiling_for(Target(lnc=lnc, checks="compiler")):
            launched(x)


def test_every_tensor_written_is_returned():
    def kernel(x, y, both):
        nisa.dma_copy(y, x)
        return (x, y) if both else x

    x = np.ones((4, 8), dtype=np.float32)
    with compiling_for(Target(checks="compiler")):
        with pytest.raises(RuleError, match=r"return: operand 'y'.*written, first by dma_copy, and not returned"):
            nki.jit(kernel)(x, np.zeros_like(x), False)
        nki.jit(kernel)(x, np.zeros_like(x), True)


@pytest.mark.parametrize(
    ("reserved", "tiles", "fits"), [(False, 8, True), (False, 9, False), (True, 7, True), (True, 8, False)]
)
def test_psum_has_a_bank_less_where_dma_transposes_take_one(reserved, tiles, fits):
    def kernel(x):
        banks = [ps(8, 8) for _ in range(tiles)]
        assert nl.tile_size.psum_num_banks == 8 - reserved
        for bank in banks:
            nisa.nc_matmul(bank, sb(4, 8), sb(4, 8))
        for bank in banks:
            nisa.tensor_copy(sb(8, 8), bank)
        return x

    with compiling_for(Target(transposes_dma_on_tensor_engine=reserved)):
        if fits:
            nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32))
        else:
            with pytest.raises(KernelError, match=f"there are {8 - reserved}"):
                nki.jit(kernel)(np.zeros((4, 8), dtype=np.float32))


SPANS: list[tuple[Callable, str, str, str]] = [
    (lambda x: sb(2, 4, 8).permute((0, 2, 1)), "2.30", "2.31", "permute came with SDK 2.31"),
    (lambda x: sb(2, 4).slice(1, 0, 2), "2.29", "2.31", "slice came with SDK 2.31"),
    (lambda x: nl.fori_loop(0, 2, lambda i: None), "2.31", "2.32", "fori_loop came with SDK 2.32"),
    (lambda x: nl.while_loop(0, lambda i: i), "2.31", "2.33", "while_loop came with SDK 2.32"),
    (lambda x: list(nl.dynamic_range(2)), "2.33", "2.32", "dynamic_range went after SDK 2.32"),
    (lambda x: bool(nisa.register_alloc(0)), "2.33", "2.32", "not known while a kernel is traced"),
]


@pytest.mark.parametrize(("act", "without", "having", "match"), SPANS)
def test_what_a_release_lacks_is_refused(act, without, having, match):
    with pytest.raises(RuleError, match=match):
        launch(act, Target(without, checks="compiler"))
    launch(act, Target(having, checks="compiler"))
    launch(act, Target(without, checks="instruction"))


@pytest.mark.parametrize("wrong", [{"sdk": "2.28"}, {"lnc": 3}, {"checks": "all"}])
def test_a_target_is_one_that_is_known(wrong):
    field = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{field}=.*Use "):
        Target(**wrong)


def test_simulate_takes_a_target():
    def kernel(x):
        read(x, sb(1, 4, dtype=I32)[0:1, 1:2])
        return x

    x = np.zeros((4, 8), dtype=np.float32)
    nki.simulate(nki.jit(kernel))(x)
    with pytest.raises(RuleError, match="index-tile"):
        nki.simulate(nki.jit(kernel), target=Target(checks="cautious"))(x)
