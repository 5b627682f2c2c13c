"""The kernels under every rule of the compiler that is known, on every SDK, on one core and on two."""

from pathlib import Path

import numpy as np
import pytest

import nki_kernels
from nki_kernels import examples
from nki_kernels.interpreter import Target, compiling_for
from nki_kernels.interpreter.static_check import check_file
from nki_kernels.interpreter.target import SDKS

FILES = [
    "causal_conv1d", "causal_conv1d_verify", "decode_attention", "decode_attention_context",
    "decode_attention_heads", "decode_delta_net", "decode_delta_net_parts", "decode_delta_net_plan", "decode_head",
    "decode_head_plan", "decode_mlp", "decode_mlp_parts", "decode_mlp_plan", "decode_mlp_projection",
    "decode_projection", "decode_router", "decode_sums", "delta_rule_advance", "delta_rule_gates",
    "delta_rule_masks", "delta_rule_outputs", "delta_rule_scan", "delta_rule_solve", "delta_rule_step",
    "delta_rule_system", "delta_rule_tiles", "delta_rule_verify", "fp8_mlp", "gated_delta_rule_chunk",
    "gated_delta_rule_decode", "gated_delta_rule_prefill", "gated_delta_rule_verify", "gated_rms_norm",
    "paged_attention", "paged_attention_chunk", "paged_attention_decode", "paged_attention_plan",
    "paged_attention_prefill", "paged_attention_turns", "paged_gather", "state_copy", "weight_stream",
]  # fmt: skip
EXAMPLES = {
    "a tile that is not full, checkpoints": lambda: examples.prefill(300, (1, 3)),
    "float32": lambda: examples.prefill(65, (1,), dtype=np.float32),
    "chunk": examples.chunk,
    "decode": lambda: examples.decode(1),
    "drafts, a state each": lambda: examples.decode(3, 3),
    "drafts of a sequence": lambda: examples.verify(1, 2),
    "drafts of more than a group of sequences, a checkpoint": lambda: examples.verify(5, 5, 1),
    "convolution": examples.conv,
    "convolution of odd rows": lambda: examples.conv_step(3),
    "convolution of drafts": lambda: examples.conv_verify(1, 2),
    "convolution of drafts, float32, a checkpoint": lambda: examples.conv_verify(5, 5, 1, dtype=np.float32),
    "copy": examples.copy,
    "attention of a prompt": lambda: examples.attention(128, 576, heads=2),
    "attention of a prompt, float32": lambda: examples.attention(384, 192, heads=2, dtype=np.float32),
    "attention of a prompt, turned by TensorE": lambda: examples.attention(256, 576, heads=2, turns_by_dma=False),
    "attention of a token": lambda: examples.attention(1, 192, batch=2, heads=2),
    "attention of drafts": lambda: examples.attention(3, 64, heads=6),
    "attention of few tokens, float32": lambda: examples.attention(64, 64, heads=2, dtype=np.float32),
    "MLP of a token": lambda: examples.mlp(1, 512, 256),
    "MLP of odd rows": lambda: examples.mlp(131, 512, 256),
    "gated norm": lambda: examples.norm(130),
    "l2 norm": examples.l2norm,
}


def target(sdk, lnc):
    return Target(sdk=sdk, lnc=lnc, checks="cautious", transposes_dma_on_tensor_engine=True)


@pytest.mark.parametrize("sdk", SDKS)
def test_source(sdk):
    folder = Path(nki_kernels.__file__).parent
    assert [f for name in FILES for f in check_file(folder / f"{name}.py", target=target(sdk, 2))] == []


@pytest.mark.parametrize(("name", "lnc"), [
    (name, lnc) for name in EXAMPLES for lnc in (1, 2) if (name, lnc) != ("chunk", 2)  # of one head, for one core
])  # fmt: skip
def test_instructions(name, lnc):
    example = EXAMPLES[name]()
    for sdk in (SDKS[0], SDKS[-1]):
        with compiling_for(target(sdk, lnc)):
            example.kernel[lnc](*example.args, **example.kwargs)
