"""The rules of the real compiler: for each a kernel that breaks it, and the nearest one that does not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl
import numpy as np
import pytest
from compiler_rule_cases import BF16, BREAKS, CASES, F32, I32, KEEPS, ps, read, sb

from nki_kernels.interpreter import RULES, KernelError, RuleError, Target, compiling_for


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
    assert rule in ("mixed-placement", "dma-scratch") or "compiler_rule_cases.py:" in message


@pytest.mark.parametrize(("rule", "act", "match"), BREAKS, ids=names(BREAKS))
def test_a_rule_is_off_where_its_target_does_not_have_it(rule, act, match):
    if rule == "tensor-truth":
        with pytest.raises(KernelError, match="cannot steer"):
            launch(act, Target(checks="instruction"))
    else:
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


def send(rows):
    other = 1 - nl.program_id(0)
    nisa.sendrecv(sb(rows, 4), sb(rows, 4), other, other, 0)


def by_loop_register(x):
    for i in nl.dynamic_range(1):
        nisa.dma_copy(sb(4, 4), x.ap([[8, 4], [1, 4]], scalar_offset=i, indirect_dim=1))


def hardware_transpose(x):
    wide = sb(16, 64, dtype=BF16)
    nisa.dma_transpose(sb(64, 16, dtype=BF16), wide, dge_mode=nisa.dge_mode.hwdge)


def reduce_rank(dims):
    shape = (4, *[2] * (dims - 1))
    nisa.tensor_scalar_reduce(sb(*shape), sb(*shape), nl.add, 1.0, nl.add, sb(4, 1))


BY_RELEASE: list[tuple[str, Callable, str, str, str]] = [
    ("sendrecv-partitions", lambda x: send(4), "2.29", "2.30", r"sendrecv: operand 'src'.*has 4 partitions"),
    ("loop-register", by_loop_register, "2.29", "2.30", r"'src.scalar_offset'.*register of a loop: copy it"),
    (
        "hwdge-transpose",
        hardware_transpose,
        "2.31",
        "2.32",
        r"dma_transpose: .*'src'.*\(16, 64\).*dge_mode.swdge",
    ),
    ("reduce-rank", lambda x: reduce_rank(5), "2.33", "2.32", r"tensor_scalar_reduce.*5 dimensions"),
    ("none-compare", lambda x: x == None, "2.33", "2.32", r"operand 'x'.*compared with None"),  # noqa: E711
]


@pytest.mark.parametrize(("rule", "act", "refused", "taken", "match"), BY_RELEASE)
def test_rules_of_some_releases(rule, act, refused, taken, match):
    with pytest.raises(RuleError, match=match) as caught:
        launch(act, Target(refused, checks="cautious"))
    assert caught.value.broken is RULES[rule]
    launch(act, Target(taken, checks="cautious"))


def test_an_exponential_that_overflows_is_seen_at_the_output():
    def kernel(x, mask):
        y, e = nl.ndarray((4, 8), dtype=F32, buffer=nl.shared_hbm), sb(4, 8)
        tile, keep = sb(4, 8), sb(4, 8)
        nisa.dma_copy(tile, x)
        nisa.dma_copy(keep, mask)
        nisa.activation(e, nl.exp, tile)
        nisa.tensor_tensor(e, e, keep, nl.multiply)
        nisa.dma_copy(y, e)
        return y

    hot = np.full((4, 8), 100.0, dtype=np.float32)
    zero = np.zeros_like(hot)
    with compiling_for(Target(checks="compiler")):
        with pytest.raises(RuleError, match=r"return.*holds NaN, and no argument does: mask before"):
            nki.jit(kernel)(hot, zero)
        nki.jit(kernel)(zero, zero)
        nki.jit(kernel)(np.full_like(hot, np.nan), zero)


def test_a_kernel_of_too_many_instructions_is_refused(monkeypatch):
    monkeypatch.setattr("nki_kernels.interpreter.rules.MAX_INSTRUCTIONS", 10)
    launch(lambda x: [sb(4, 4) for _ in range(10)], Target(checks="compiler"))
    with pytest.raises(RuleError, match=r"11 instructions.*NCC_EBVF030"):
        launch(lambda x: [sb(4, 4) for _ in range(11)], Target(checks="compiler"))


def test_every_rule_has_a_test_that_breaks_it():
    elsewhere = {
        "collective-hbm",
        "launch-grid",
        "returned-handles",
        "nan-output",
        "instruction-count",
        "sdk-api",
        "front-end",
        "old-package",
    }
    tested = set(CASES) | {r for r, *_ in BY_RELEASE} | elsewhere
    assert tested == set(RULES)


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
    nki.simulate(nki.jit(kernel), target=Target(checks="instruction"))(x)
    with pytest.raises(RuleError, match="index-tile"):
        nki.simulate(nki.jit(kernel), target=Target(checks="cautious"))(x)


def test_the_documents_list_every_rule():
    text = (Path(__file__).parents[3] / "docs" / "kernels.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 9}
    assert set(rows) == set(RULES)
    for rule in RULES.values():
        cells = [c.strip() for c in rows[rule.id].split("|")[2:-1]]
        span = f"{rule.since} to {rule.until}" if rule.until != "2.33" else f"from {rule.since}"
        span = "all" if span == "from 2.29" else span
        level = "cautious" if rule.disputed else "compiler"
        code = f"NCC_{rule.code}" if rule.code else "-"
        assert cells == [rule.says, rule.remedy, rule.effect, code, span, level, rule.source], rule.id
