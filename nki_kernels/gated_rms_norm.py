"""The norms around the delta rule: RMSNorm gated by SiLU on its output, l2 norm of queries and keys."""

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import square_sums, to_power

TILE = 128


@nki.jit
def gated_rms_norm(x: nl.ndarray, gate: nl.ndarray, weight: nl.ndarray, eps: float = 1e-6) -> nl.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight * silu(gate), a head at a time.

    Dimensions:
        N: tokens
        H: heads; with two cores each takes half
        D: head size

    Args:
        x (nl.ndarray): [N, H, D], float32
        gate (nl.ndarray): [N, H, D], float32 or bfloat16
        weight (nl.ndarray): [1, D], of gate's type, the full factor
        eps (float): added to the mean

    Returns:
        y (nl.ndarray): [N, H, D], of gate's type

    Pseudocode:
        y = x * rsqrt(mean(x * x) + eps) * (weight * silu(gate))
    """
    tokens, heads, size = x.shape
    first, own = _share_of_heads(heads)
    f32, dt = nl.float32, gate.dtype
    y = nl.ndarray((tokens, heads, size), dtype=dt, buffer=nl.shared_hbm)
    scale = nl.ndarray((TILE, size), dtype=dt, buffer=nl.sbuf)
    nisa.dma_copy(dst=scale, src=weight.ap(pattern=[[0, TILE], [1, size]]))
    for start in range(0, tokens, TILE):
        rows = min(TILE, tokens - start)
        data, open_gate = _sbuf(f32, rows, own, size), _sbuf(dt, rows, own, size)
        nisa.dma_copy(dst=data, src=x[start : start + rows, first : first + own])
        nisa.dma_copy(dst=open_gate, src=gate[start : start + rows, first : first + own])
        factor, root = _sbuf(f32, rows, own, size), _root(data, 1.0 / size, eps)
        nisa.activation(dst=factor, op=nl.silu, data=open_gate)
        nisa.tensor_tensor(
            dst=factor, data1=factor, data2=scale.ap(pattern=[[size, rows], [0, own], [1, size]]), op=nl.multiply,
            engine=nisa.engine.vector,
        )  # fmt: skip
        out = _sbuf(dt, rows, own, size)
        for h in range(own):
            nisa.scalar_tensor_tensor(
                dst=out[:, h : h + 1], data=data[:, h : h + 1], op0=nl.multiply, operand0=root[:, h : h + 1],
                op1=nl.multiply, operand1=factor[:, h : h + 1],
            )  # fmt: skip
        nisa.dma_copy(dst=y[start : start + rows, first : first + own], src=out)
    return y


@nki.jit
def qk_l2norm(x: nl.ndarray, scale: float = 1.0, eps: float = 1e-6) -> nl.ndarray:
    """scale * x / sqrt(sum(x^2) + eps), a head at a time: queries take scale = 1 / sqrt(D), keys 1.

    The delta rule kernels do this themselves; it stands alone for graphs that want normalised keys.

    Dimensions:
        N: tokens
        H: heads; with two cores each takes half
        D: head size

    Args:
        x (nl.ndarray): [N, H, D], float32 or bfloat16
        scale (float): factor of the result, positive
        eps (float): added to the sum

    Returns:
        y (nl.ndarray): [N, H, D], of x's type

    Pseudocode:
        y = x * rsqrt((sum(x * x) + eps) / scale^2)
    """
    tokens, heads, size = x.shape
    first, own = _share_of_heads(heads)
    y = nl.ndarray((tokens, heads, size), dtype=x.dtype, buffer=nl.shared_hbm)
    shrink = 1.0 / (scale * scale)
    for start in range(0, tokens, TILE):
        rows = min(TILE, tokens - start)
        data, out = _sbuf(x.dtype, rows, own, size), _sbuf(x.dtype, rows, own, size)
        nisa.dma_copy(dst=data, src=x[start : start + rows, first : first + own])
        root = _root(data, shrink, eps * shrink)
        for h in range(own):
            nisa.tensor_scalar(
                dst=out[:, h : h + 1], data=data[:, h : h + 1], op0=nl.multiply, operand0=root[:, h : h + 1],
                engine=nisa.engine.vector,
            )  # fmt: skip
        nisa.dma_copy(dst=y[start : start + rows, first : first + own], src=out)
    return y


def _share_of_heads(heads: int) -> tuple:
    """(first, count) of this core's heads."""
    cores = nl.num_programs()
    assert heads % cores == 0, f"{heads} heads do not divide among {cores} cores"
    own = heads // cores
    return (nl.program_id(0) * own if cores > 1 else 0), own


def _sbuf(dtype: nl.dtype, rows: int, heads: int, size: int) -> nl.ndarray:
    return nl.ndarray((rows, heads, size), dtype=dtype, buffer=nl.sbuf)


def _root(x: nl.ndarray, scale: float, eps: float) -> nl.ndarray:
    """rsqrt(scale * sum(x^2) + eps) of every head: fp32 [rows, heads]."""
    rows, heads = x.shape[0], x.shape[1]
    sums, root = _sbuf(nl.float32, rows, heads, 1), nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf)
    square_sums(sums, x)
    nisa.tensor_scalar(dst=root, data=sums, op0=nl.multiply, operand0=scale, engine=nisa.engine.vector)
    to_power(root, root, eps, -0.5)
    return root
