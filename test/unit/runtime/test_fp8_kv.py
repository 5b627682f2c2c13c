"""FP8 keys and values on every CPU runtime, against fp32 ones that are rounded to the same numbers in plain torch.

With scales that are powers of two, as calibration makes them, every product with one is exact: plain torch gives the
oracle's logits to the bit. The fused operations and the kernels round otherwise before a key is stored, so a few codes
are the next ones; each is a difference of 6 % in one number of a key.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen36_neuron.checkpoint.kv_scales import KVScales, calibrated, save_kv_scales
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError
from qwen36_neuron.model.attention import Attention
from qwen36_neuron.ops.fp8 import STORAGE
from qwen36_neuron.runtime import Commit, DraftRequest, Output, Row, RuntimeConfig, Step, open_runtime
from qwen36_neuron.runtime.cpu import CpuRuntime
from qwen36_neuron.runtime.kv_calibration import KVObserver

LANES = 5
TOLERANCE = 2e-3
"""On logits of about one, where a few codes in a thousand are the next ones."""
INTERPRETED = pytest.param("interpreter", marks=pytest.mark.interpreter)


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 4000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def scales(tiny_checkpoint: Path) -> KVScales:
    """Calibrated, of the draft layer too."""
    observer = KVObserver(tiny_checkpoint, 256, draft_layer=True)
    assert list(observer.observe(ids(300)))[-1] == 300
    return calibrated(observer.largest, "random tokens")


@pytest.fixture(scope="module")
def file(tiny_checkpoint: Path, scales: KVScales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("scales") / "kv.safetensors"
    save_kv_scales(scales, ModelConfig.from_pretrained(tiny_checkpoint), written, {})
    return written


def opened(folder: Path, kernels: str, file: Path | None, **changes: Any) -> CpuRuntime:
    kv = {"kv_cache_dtype": "float32" if file is None else "fp8", "kv_scales": file}
    settings = {"max_model_len": 512, "num_blocks": 65, "num_slots": 4, "num_lanes": LANES, **kv, **changes}
    made = open_runtime(RuntimeConfig(folder, kernels=kernels, **settings))  # type: ignore[arg-type]
    assert isinstance(made, CpuRuntime)
    return made


def oracle(folder: Path, scales: KVScales, **changes: Any) -> CpuRuntime:
    """fp32 keys and values, each the nearest of what FP8 times its scale can be."""
    runtime = opened(folder, "torch", None, **changes)

    def nearest(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x / scale[:, None]).clamp(-240, 240).to(STORAGE).float() * scale[:, None]

    for block in runtime.model.modules():
        if isinstance(block, Attention):
            keys, values = scales.keys[block.index], scales.values[block.index]
            block.kept = lambda k, v, keys=keys, values=values: (nearest(k, keys), nearest(v, values))  # type: ignore[method-assign]
    return runtime


def steps(count: int, seed: int, longest: int = 512) -> list[Step]:
    """Prompts to a block's edge and one either side, decoded tokens, checkpoints, lanes that are used again."""
    draw, held, made = random.Random(seed), dict[int, int](), []
    blocks = {lane: [12 * (lane - 1) + n for n in draw.sample(range(1, 13), 8)] for lane in range(1, LANES + 1)}
    for _ in range(count):
        rows = []
        for lane in draw.sample(range(1, LANES + 1), draw.randint(1, LANES)):
            start = held.get(lane, 0)
            tokens = 1 if start and draw.random() < 0.7 else draw.choice((1, 2, 33, 63, 64, 65, 130))
            if start + tokens > longest or (start and draw.random() < 0.05):
                start = 0
            boundary = (start + tokens) // 64 * 64
            commits = (Commit(boundary, 1 + len(rows)),) if boundary > start and len(rows) < 4 else ()
            text = [draw.randrange(4000) for _ in range(tokens)]
            rows.append(Row(str(lane), lane, text, start, blocks[lane], commits=commits, output=Output.LOGITS))
            held[lane] = start + tokens
        made.append(Step(tuple(rows), tuple(row.lane for row in rows if row.start == 0)))
    return made


def difference(one: CpuRuntime, other: CpuRuntime, run: list[Step]) -> float:
    """Largest of all logits."""
    worst = 0.0
    for step in run:
        for a, b in zip(one.run(step).rows, other.run(step).rows, strict=True):
            assert a.logits is not None
            assert b.logits is not None
            worst = max(worst, (a.logits - b.logits).abs().max().item())
    return worst


def test_plain_torch_gives_the_oracles_logits_to_the_bit(tiny_checkpoint: Path, scales: KVScales, file: Path) -> None:
    found = opened(tiny_checkpoint, "torch", file)
    assert difference(found, oracle(tiny_checkpoint, scales), steps(40, 0)) == 0.0
    assert difference(found, opened(tiny_checkpoint, "torch", None), steps(5, 1)) > 1e-4, "rounding makes no difference"


def test_scales_of_any_size(tiny_checkpoint: Path, scales: KVScales, tmp_path: Path) -> None:
    """Not powers of two, others for each head; some numbers are cut off."""
    draw = torch.Generator().manual_seed(1)
    uneven = [
        {layer: scale * (0.2 + torch.rand(scale.shape, generator=draw)) for layer, scale in kind.items()}
        for kind in (scales.keys, scales.values)
    ]
    other, file = KVScales(*uneven, "uneven"), tmp_path / "kv.safetensors"
    save_kv_scales(other, ModelConfig.from_pretrained(tiny_checkpoint), file, {})
    found = opened(tiny_checkpoint, "torch", file)
    assert difference(found, oracle(tiny_checkpoint, other), steps(20, 2)) <= TOLERANCE
    pytest.importorskip("numba")
    assert difference(found, opened(tiny_checkpoint, "fused", file), steps(20, 3)) <= TOLERANCE


@pytest.mark.parametrize("short", [1024, 128])
def test_fused_operations(short: int, tiny_checkpoint: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All prefill attention in one call, and only that of sequences of up to 128 tokens."""
    pytest.importorskip("numba")
    from qwen36_neuron.runtime import fused

    monkeypatch.setattr(fused, "SHORT", short)
    plain, found = opened(tiny_checkpoint, "torch", file), opened(tiny_checkpoint, "fused", file)
    assert difference(plain, found, steps(40, 4)) <= TOLERANCE
    for layer, halves in plain.cache.kv.items():
        for half, other in zip(halves, found.cache.kv[layer], strict=True):
            assert other.dtype == STORAGE
            codes = (half.view(torch.uint8)[1:] != other.view(torch.uint8)[1:]).float().mean()
            assert codes <= 1e-3


@pytest.mark.interpreter
def test_interpreted_kernels(tiny_checkpoint: Path, file: Path) -> None:
    plain, found = opened(tiny_checkpoint, "torch", file), opened(tiny_checkpoint, "interpreter", file)
    assert difference(plain, found, steps(4, 5, longest=200)) <= TOLERANCE


def test_bfloat16(tiny_checkpoint: Path, file: Path) -> None:
    """Codes are exact in bfloat16; the model is not: logits of about one are off by a few hundredths either way."""
    found = opened(tiny_checkpoint, "torch", file, dtype="bfloat16")
    assert difference(opened(tiny_checkpoint, "torch", file), found, steps(10, 6)) <= 0.1


@pytest.mark.parametrize("kernels", ["torch", "fused"])
def test_warm_is_cold_cut_at_the_same_places(kernels: str, tiny_checkpoint: Path, file: Path) -> None:
    """To the bit: blocks that another sequence wrote, and a checkpoint, give what an own prompt gives."""
    if kernels == "fused":
        pytest.importorskip("numba")
    runtime, text = opened(tiny_checkpoint, kernels, file), ids(150, 1)
    for cut in (64, 128):
        cold = opened(tiny_checkpoint, kernels, file)
        parts = [cold.run(Step((Row("cold", 1, text[:cut], 0, range(1, 5)),)))]
        parts = [cold.run(Step((Row("cold", 1, text[cut:], cut, range(1, 5), output=Output.LOGITS),)))]
        runtime.run(Step((Row("first", 2, text[:cut], 0, range(10, 14), commits=(Commit(cut, 3),)),), (2,)))
        own = [*range(10, 10 + cut // 64), 20, 21]
        warm = runtime.run(Step((Row("warm", 3, text[cut:], cut, own, restore=3, output=Output.LOGITS),), (2, 3)))
        assert torch.equal(parts[0].rows[0].logits, warm.rows[0].logits)


@pytest.mark.parametrize("kernels", ["torch", "fused", INTERPRETED])
def test_drafts_rejected_at_each_place(kernels: str, tiny_checkpoint: Path, file: Path) -> None:
    """What a wrong draft stored is written over: the tokens are those of a run without drafts."""
    if kernels == "fused":
        pytest.importorskip("numba")
    runtime = opened(tiny_checkpoint, kernels, file, max_drafts=3)
    text, blocks = ids(62, 2), range(1, 9)
    first = runtime.run(Step((Row("plain", 1, text, 0, blocks),))).rows[0].tokens
    plain = list(first)
    while len(plain) < 14:
        start = 62 + len(plain) - 1
        plain += runtime.run(Step((Row("plain", 1, plain[-1:], start, blocks),))).rows[0].tokens
    for wrong in range(4):
        found = list(runtime.run(Step((Row("drafted", 2, text, 0, range(10, 18)),), (1, 2))).rows[0].tokens)
        while len(found) < 10:
            drafts = plain[len(found) : len(found) + 3]
            drafts = [(token + 1) % 4000 if place == wrong else token for place, token in enumerate(drafts)]
            row = Row("drafted", 2, found[-1:], 62 + len(found) - 1, range(10, 18), drafts=tuple(drafts))
            found += runtime.run(Step((row,))).rows[0].tokens
        assert found[:10] == plain[:10]


def test_the_draft_layer_drafts_the_same(tiny_checkpoint: Path, scales: KVScales, file: Path) -> None:
    pytest.importorskip("numba")
    sizes = {"max_drafts": 3, "max_proposals": 3}
    made = []
    for runtime in (
        oracle(tiny_checkpoint, scales, **sizes),
        *(opened(tiny_checkpoint, kernels, file, **sizes) for kernels in ("torch", "fused")),
    ):
        first = runtime.run(Step((Row("test", 1, ids(70, 3), 0, range(1, 5)),))).rows[0].tokens
        made.append((first, runtime.draft([DraftRequest("test", 1, first, range(1, 5), 3)])))
    assert made[0] == made[1] == made[2]


def test_memory_is_a_quarter(tiny_checkpoint: Path, file: Path) -> None:
    def size(runtime: CpuRuntime) -> int:
        return sum(half.nbytes for halves in runtime.cache.kv.values() for half in halves)

    found, plain = (opened(tiny_checkpoint, "torch", each) for each in (file, None))
    assert 4 * size(found) == size(plain)
    assert found.cache.spec.total_bytes == plain.cache.spec.total_bytes - 3 * size(found)
    assert found.cache.banks[0].recurrent.dtype == torch.float32, "the recurrent state is never quantised"


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype", "corrupted from some 526 tokens.*qwen36 calibrate-kv"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype", "is not known"),
        ({"kv_cache_dtype": "bfloat16"}, "kv_cache_dtype", "which is float32"),
        ({"kv_cache_dtype": "float32", "kv_scales": Path("x")}, "kv_scales", "is for FP8"),
        ({"kv_cache_dtype": "fp8", "kv_scales": Path("nowhere")}, "kv_scales", "cannot be read"),
    ],
)
def test_what_is_refused(tiny_checkpoint: Path, changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_runtime(RuntimeConfig(tiny_checkpoint, **changes))
    assert caught.value.field == field


def test_calibration_leaves_room_and_takes_powers_of_two(scales: KVScales) -> None:
    assert sorted(scales.keys) == [3, 4], "the attention layer's and, behind it, the draft layer's"
    made: Callable[..., KVScales] = calibrated
    peaks = {0: (torch.tensor([240.0, 121.0, 0.0]), torch.tensor([1e-20, 60.0, 7.3]))}
    found = made(peaks, "test")
    assert found.keys[0].tolist() == [2.0, 2.0, 1.0]
    for peak, scale in zip(peaks[0][1].tolist(), found.values[0].tolist(), strict=True):
        assert 60 <= peak / scale <= 120
        assert scale == 2.0 ** round(torch.tensor(scale).log2().item())
    with pytest.raises(ConfigError, match="not numbers"):
        made({0: (torch.tensor([torch.inf]), torch.ones(1))}, "test")
