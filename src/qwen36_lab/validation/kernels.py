"""Every NKI kernel against its torch twin, on hostile inputs of one logical core's share of Qwen3.6-27B at TP=4.

The same calls run on a Neuron device and in the interpreter: only where the tensors are differs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

D, BLOCK = 128, 64
BARS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest error allowed, as a part of the largest value; those of the unit tests."""
REPEATS = 10


@dataclass(frozen=True, slots=True)
class Case:
    """One call.

    Attributes:
        name: what is special about it.
        kernel, twin: called with the same arguments; those written in place are returned by both.
        bar: largest relative error.
        parts: whether the kernel's result is one part of a sum a core.
    """

    name: str
    kernel: Any
    twin: Callable[..., Any]
    args: tuple[Any, ...]
    bar: float
    parts: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call went.

    Attributes:
        error: largest error as a part of the largest value; None if the call failed.
        call_us: median wall time of a call on the device, the host's part included; None in the interpreter.
        problem: why it failed.
    """

    kernel: str
    case: str
    error: float | None
    bar: float
    call_us: float | None
    problem: str | None

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.bar


def cases(cores: int, seed: int = 0) -> Iterator[Case]:
    """All of them, for one physical core or for the two of a logical core."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    yield from _delta_rule(cores, normal)
    yield from _attention(cores, normal)
    yield from _small(cores, normal)
    yield _mlp(cores, random)
    from .decode_kernels import decode_cases

    yield from decode_cases(cores, random)


def _delta_rule(cores: int, normal: Callable[..., torch.Tensor]) -> Iterator[Case]:
    from nki_kernels import examples
    from nki_kernels.gated_delta_rule_chunk import gated_delta_rule_chunk
    from nki_kernels.gated_delta_rule_chunk_torch import gated_delta_rule_chunk_torch
    from nki_kernels.gated_delta_rule_decode import gated_delta_rule_decode
    from nki_kernels.gated_delta_rule_decode_torch import gated_delta_rule_decode_torch
    from nki_kernels.gated_delta_rule_prefill import gated_delta_rule_prefill
    from nki_kernels.gated_delta_rule_prefill_torch import gated_delta_rule_prefill_torch
    from nki_kernels.gated_delta_rule_verify import gated_delta_rule_verify
    from nki_kernels.gated_delta_rule_verify_torch import gated_delta_rule_verify_torch

    keys, heads, boundaries = 2 * cores, 6 * cores, (1, 6)
    entries = examples.prefill(512, boundaries).args[8].shape[1]  # of the bank that these checkpoints fill

    def inputs(rows: tuple[int, ...], correlation: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """q, k, v, g, beta; keys share `correlation` of their variance, and with much of it are written in full."""
        k = correlation**0.5 * normal(*[1] * len(rows), keys, D) + (1 - correlation) ** 0.5 * normal(*rows, keys, D)
        v, spread = normal(*rows, heads, D), normal(*rows, heads)
        g, beta = (-1e-3 - 1e-4 * spread.abs(), 0.99) if correlation else (-(spread - 2).exp(), spread.sigmoid())
        beta = beta if isinstance(beta, torch.Tensor) else torch.full_like(g, beta)
        return normal(*rows, keys, D).to(dtype), k.to(dtype), v.to(dtype), g, beta

    for dtype in BARS:
        for correlation in (0.0, 0.99):
            name = f"{str(dtype).removeprefix('torch.')}, keys correlated {correlation}"
            valid = torch.tensor([[37, 500]], dtype=torch.int32)
            bank, slots = (
                torch.zeros(entries, heads, D, D),
                torch.arange(entries, dtype=torch.int32).flip(0).view(1, -1),
            )
            args = (*inputs((512,), correlation, dtype), normal(heads, D, D), valid, bank, slots, boundaries)
            yield Case(name, gated_delta_rule_prefill, gated_delta_rule_prefill_torch, args, BARS[dtype])
            lanes = normal(20, heads, D, D)
            read = torch.arange(1, 9, dtype=torch.int32).view(1, 8)
            args = (*inputs((8, 1), correlation, dtype), lanes, read, read + 9)
            yield Case(name, gated_delta_rule_decode, gated_delta_rule_decode_torch, args, BARS[dtype])
            args = (*inputs((4, 5), correlation, dtype), *_drafted(keys, heads, normal))
            yield Case(name, gated_delta_rule_verify, gated_delta_rule_verify_torch, args, BARS[dtype])
    if cores == 1:
        q, k, v, g, beta = (x[:, 0] for x in inputs((D,), 0.99, torch.float32))
        args = (q, k, v, g[:, None], beta[:, None], normal(D, D))
        yield Case("float32", gated_delta_rule_chunk, gated_delta_rule_chunk_torch, args, BARS[torch.float32])


def _drafted(keys: int, heads: int, normal: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """States, records, relations, places and held of four rows of a token and four drafts, behind 0 to 3 right drafts.

    The third row leaves a checkpoint after its first token.
    """
    from nki_kernels.delta_rule_relations import relations

    states, parts = normal(6, heads, D, D), [normal(5, 4, keys, n) for n in (D, heads // keys * D, heads // keys)]
    records = torch.cat((parts[0] * D**-0.5, parts[1], -parts[2].abs()), dim=-1)
    states[0], records[0] = 0.0, 0.0
    table = relations(4, 5, 4, torch.tensor([2], dtype=torch.int32), torch.tensor([True]))
    places = torch.tensor([[1, 2, 3, 4, 3, 1, 2, 3, 4, 5, 1, 2, 3, 4]], dtype=torch.int32)
    behind = ((1, 0), (2, 1), (3, 2), (4, 3), (3, 2))
    held = [4 * lane + n if n < right else 0 for lane, right in behind for n in range(4)]
    return states, records, table, places, torch.tensor(held, dtype=torch.int32).view(-1, 1)


def _attention(cores: int, normal: Callable[..., torch.Tensor]) -> Iterator[Case]:
    from nki_kernels.paged_attention import paged_attention
    from nki_kernels.paged_attention_torch import paged_attention_torch

    for dtype in BARS:
        for tokens, held in ((1, (0, 63, 64, 200)), (128, (130,))):
            blocks = max(held) // BLOCK + 1
            total, batch = len(held) * blocks + 1, len(held)
            q, k, v = normal(batch, tokens, 3 * cores, 256), *(normal(batch, tokens, 1, 256) for _ in range(2))
            caches = [normal(total, BLOCK, 1, 256) for _ in range(2)]
            table = torch.arange(total - 1, 0, -1, dtype=torch.int32)[: batch * blocks].view(batch, blocks)
            args = (*(x.to(dtype) for x in (q, k, v, *caches)), table, torch.tensor([held], dtype=torch.int32))
            name = f"{str(dtype).removeprefix('torch.')}, {tokens} new tokens after {held}"
            yield Case(name, paged_attention, paged_attention_torch, args, BARS[dtype])
            codes = (cache.to(torch.float8_e4m3fn) for cache in args[3:5])
            args = (*args[:3], *codes, *args[5:])
            yield Case(f"{name}, FP8 in the cache", paged_attention, paged_attention_torch, args, BARS[dtype])


def _small(cores: int, normal: Callable[..., torch.Tensor]) -> Iterator[Case]:
    from nki_kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
    from nki_kernels.causal_conv1d_torch import causal_conv1d_step_torch, causal_conv1d_torch
    from nki_kernels.causal_conv1d_verify import causal_conv1d_verify
    from nki_kernels.causal_conv1d_verify_torch import causal_conv1d_verify_torch
    from nki_kernels.gated_rms_norm import gated_rms_norm, qk_l2norm
    from nki_kernels.gated_rms_norm_torch import gated_rms_norm_torch, qk_l2norm_torch
    from nki_kernels.state_copy import state_copy
    from nki_kernels.state_copy_torch import state_copy_torch

    dtype, bar, channels = torch.bfloat16, BARS[torch.bfloat16], 1280 * cores
    x, window, weight = normal(256, channels), normal(3, channels), normal(channels, 4)
    bounds = torch.tensor([[5, 250]], dtype=torch.int32), torch.tensor([[64, 250]], dtype=torch.int32)
    args: tuple[torch.Tensor, ...] = (x.to(dtype), window.to(dtype), weight.to(dtype), *bounds)
    yield Case("bfloat16", causal_conv1d, causal_conv1d_torch, args, bar)
    index = torch.arange(8, dtype=torch.int32).view(1, 8)
    args = (normal(8, 1, channels).to(dtype), normal(9, 3, channels).to(dtype), weight.to(dtype), index, index)
    yield Case("bfloat16", causal_conv1d_step, causal_conv1d_step_torch, args, bar)
    args = (normal(4, 5, channels).to(dtype), *_kept(channels, weight.to(dtype), normal))
    yield Case("bfloat16", causal_conv1d_verify, causal_conv1d_verify_torch, args, bar)
    heads = 6 * cores
    args = (normal(256, heads, D), normal(256, heads, D).to(dtype), normal(1, D).to(dtype))
    yield Case("bfloat16", gated_rms_norm, gated_rms_norm_torch, args, bar)
    yield Case("bfloat16", qk_l2norm, qk_l2norm_torch, (normal(256, 2 * cores, D).to(dtype),), bar)
    pairs = torch.tensor([[1, 2, 0], [3, 0, 9]], dtype=torch.int32)
    args = (normal(4, heads, D, D), normal(4, heads, D, D), pairs)
    yield Case("one pair without a place", state_copy, state_copy_torch, args, 0.0)


def _kept(channels: int, weight: torch.Tensor, normal: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Windows, pending drafts, weight, relations, held and places of four rows as in `_drafted`."""
    from nki_kernels.causal_conv1d_relations import PAST, relations

    windows, drafts = normal(6, PAST, channels).to(weight.dtype), normal(5, 4, channels).to(weight.dtype)
    windows[0], drafts[0] = 0.0, 0.0
    right, row = torch.arange(4, dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    table = relations(right, 5, 4, row, row + 1).to(weight.dtype)
    held = [*range(PAST, 5 * PAST), *(4 * (n + 1) + place if place < n else 0 for n in range(4) for place in range(4))]
    places = torch.tensor([[1, 2, 3, 4, 5, 1, 2, 3, 4]], dtype=torch.int32)
    return windows, drafts, weight, table, torch.tensor(held, dtype=torch.int32).view(-1, 1), places


def _mlp(cores: int, random: torch.Generator) -> Case:
    from nki_kernels.fp8_mlp import fp8_mlp
    from nki_kernels.fp8_mlp_torch import fp8_mlp_torch

    hidden, inner = 1024, 512 * cores

    def codes(rows: int, columns: int) -> torch.Tensor:
        """Every finite code of float8_e4m3, either sign."""
        magnitude = torch.randint(0, 0x78, (rows, columns), generator=random, dtype=torch.uint8)
        return magnitude | torch.randint(0, 2, (rows, columns), generator=random, dtype=torch.uint8) << 7

    scales = torch.full((inner, 1), 1e-3), torch.full((inner, 1), 1e-3), torch.full((1, hidden), 1e-3)
    x = torch.randn(8, hidden, generator=random).to(torch.bfloat16)
    args = (x, codes(hidden, inner), codes(hidden, inner), codes(inner, hidden), *scales)
    return Case("all finite codes", fp8_mlp, fp8_mlp_torch, args, 1e-2, parts=True)


def run(case: Case, cores: int, device: torch.device | None) -> Outcome:
    """Run one case on the device, or in the interpreter if there is none, and compare it with the twin on the host.

    Whatever the kernel raises is the outcome: the others are to run as well.
    """
    name = case.twin.__name__.removesuffix("_torch")
    kernel = case.kernel[cores]
    expected = _flat(case.twin(*_copied(case.args, None)), case.parts)
    try:
        found = _flat(kernel(*_copied(case.args, device)), case.parts)
        call_us = None if device is None else _time(kernel, case.args, device)
    except Exception as error:
        return Outcome(name, case.name, None, case.bar, None, f"{type(error).__name__}: {error}"[:500])
    if [x.shape for x in found] != [x.shape for x in expected]:
        shapes = f"gave {[tuple(x.shape) for x in found]}, the twin {[tuple(x.shape) for x in expected]}"
        return Outcome(name, case.name, None, case.bar, call_us, shapes)
    inside = _inside(case, expected)
    errors = [_error(a[here], b[here]) for a, b, here in zip(found, expected, inside, strict=True)]
    return Outcome(name, case.name, max(errors), case.bar, call_us, None)


def _copied(args: tuple[Any, ...], device: torch.device | None) -> tuple[Any, ...]:
    """The arguments, tensors as copies of their own, on the device if there is one."""
    return tuple(
        arg if not isinstance(arg, torch.Tensor) else arg.clone() if device is None else arg.clone().to(device)
        for arg in args
    )


def _flat(result: Any, parts: bool) -> list[torch.Tensor]:
    """Results as fp64 on the host."""
    listed = result if isinstance(result, tuple) else (result,)
    tensors = [torch.as_tensor(x).cpu().double() for x in listed]
    return [x.sum(0) for x in tensors] if parts else tensors


def _inside(case: Case, outputs: list[torch.Tensor]) -> list[slice]:
    """Rows of each output that mean something: those of a prompt's padded tokens do not."""
    place = {"gated_delta_rule_prefill_torch": 6, "causal_conv1d_torch": 3}.get(case.twin.__name__)
    if place is None:
        return [slice(None)] * len(outputs)
    first, last = case.args[place][0].tolist()
    return [slice(first, last), *[slice(None)] * (len(outputs) - 1)]


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    return float("inf") if error.isnan() else float(error)


def _time(kernel: Any, args: tuple[Any, ...], device: torch.device) -> float:
    """Median microseconds of a call whose results are waited for."""
    import torch_xla.core.xla_model as xm

    moved, times = _copied(args, device), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        kernel(*moved)
        xm.mark_step()
        xm.wait_device_ops()
        times.append(1e6 * (time.perf_counter() - started))
    return statistics.median(times)


def neuron_device() -> torch.device:
    """The first Neuron core, by torch_xla.

    Raises:
        RuntimeError: there is none, or the Neuron SDK is not installed.
    """
    try:
        import torch_neuronx  # noqa: F401  makes the device known to torch_xla
        import torch_xla.core.xla_model as xm

        return torch.device(xm.xla_device())
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(f"no Neuron device for torch_xla: {error}") from error
