"""Gated delta rule, one chunk of one head a call: the plain form of the fused kernel, for reading and comparison."""

import nki
import nki.isa as nisa
import nki.language as nl

from .delta_rule_tiles import L2_EPS, TILE, identity, product, sbuf, square_sums, to_power


@nki.jit
def gated_delta_rule_chunk(
    q: nl.ndarray, k: nl.ndarray, v: nl.ndarray, g: nl.ndarray, beta: nl.ndarray, state: nl.ndarray
) -> tuple:
    """One chunk of the gated delta rule for one value head.

    T = (I + A)^-1, A strictly lower, A_ij = beta_i e^(G_i - G_j) <k_i, k_j>, is found by the masked 2x2 recursion: with
    the diagonal blocks of width w inverted, those of width 2w follow from products of T with the blocks M_w o A between
    them. No power of A is ever formed, so nothing grows when keys are correlated.

    Dimensions:
        C: tokens of the chunk, 1 to 128
        D: key and value head size, 128

    Args:
        q (nl.ndarray): [C, D], queries, not normalised; float32 or bfloat16, operands are float32 either way
        k (nl.ndarray): [C, D], keys, not normalised, of q's type
        v (nl.ndarray): [C, D], values, of q's type
        g (nl.ndarray): [C, 1], float32, log of the decay, <= 0; 0 where a row is padding
        beta (nl.ndarray): [C, 1], float32, write strength; 0 where a row is padding
        state (nl.ndarray): [D, D], float32, key dimension first

    Returns:
        o (nl.ndarray): [C, D], float32
        new_state (nl.ndarray): [D, D], float32

    Notes:
        nc_matmul gives stationary^T @ moving. T and T^T are carried together, so that each is at hand as the other's
        transpose, and A^T comes from k k^T, which is symmetric: the recursion needs no transpose.

    Pseudocode:
        q, k = q / sqrt(|q|^2 + eps) / sqrt(D), k / sqrt(|k|^2 + eps)
        D_ij = e^(G_i - G_j) for j <= i, else 0
        A^T = (k k^T o D^T) diag(beta) below the diagonal
        T = I - M_1 o A
        for w in 2, 4 ... 64: T = T - T ((M_w o A) T)
        V' = T (beta v) - T (beta e^G k) S
        o = (e^G q) S + (q k^T o D) V'
        S = e^(G_C) S + (e^(G_C - G) k)^T V'
    """
    rows, size = k.shape
    assert rows <= TILE, f"{rows} tokens, at most {TILE}"
    assert size == TILE, f"head size is {size}, must be {TILE}"
    o = nl.ndarray((rows, TILE), dtype=nl.float32, buffer=nl.shared_hbm)
    new_state = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.shared_hbm)

    q_sb, k_sb, v_sb = _load(q), _load(k), _load(v)
    gate, strength = _load(g), _load(beta)
    s = _tile()
    nisa.dma_copy(dst=s, src=state)
    _l2norm(q_sb, float(TILE))
    _l2norm(k_sb, 1.0)
    q_t, k_t = _transposed(q_sb), _transposed(k_sb)

    # Sums of gates over ranges of tokens are products with 0/1 triangles, exact where a difference of sums is not.
    upto = _triangle(-1, 0)  # [k, i]: k <= i
    after = _triangle(1, -1)  # [k, j]: k > j
    ones = _tile()
    nisa.memset(dst=ones, value=1.0)
    upto_g = _tile()
    nisa.tensor_scalar(dst=upto_g, data=upto, op0=nl.multiply, operand0=gate)
    # [k, j] x [k, i] -> [j, i]: sum of g over j < k <= i; zero above, where the triangle below removes it
    decay_t = _tile()
    nisa.activation(dst=decay_t, op=nl.exp, data=product(after, upto_g))
    nisa.tensor_tensor(dst=decay_t, data1=decay_t, data2=upto, op=nl.multiply)
    # [k, i] x [k, 1] -> [i, 1]: G_i; [k, j] x [k, 1] -> [j, 1]: G_C - G_j; [k, m] x [k, 1] -> [m, 1]: G_C everywhere
    grow, fade, keep = _tile(1), _tile(1), _tile(1)
    nisa.activation(dst=grow, op=nl.exp, data=product(upto, gate))
    nisa.activation(dst=fade, op=nl.exp, data=product(after, gate))
    nisa.activation(dst=keep, op=nl.exp, data=product(ones, gate))

    # A^T[j, i] without beta: [d, j] x [d, i] -> [j, i]. beta_j goes on its rows: that is the inverse of I + A~ with
    # A~ = diag(beta)^-1 A diag(beta), and T diag(beta) = diag(beta) T~, so that beta is applied to V' instead.
    a_t, scores_t = _tile(), _tile()
    nisa.tensor_tensor(dst=a_t, data1=product(k_t, k_t), data2=decay_t, op=nl.multiply)
    nisa.tensor_scalar(dst=a_t, data=a_t, op0=nl.multiply, operand0=strength)
    nisa.tensor_tensor(dst=scores_t, data1=product(k_t, q_t), data2=decay_t, op=nl.multiply)
    t_t = _inverse(a_t)

    # W^T: [j, d] x [j, i] -> [d, i], negated so that U - W S accumulates in PSUM.
    grown_k, w_t = _tile(), _tile()
    nisa.tensor_scalar(dst=grown_k, data=k_sb, op0=nl.multiply, operand0=grow)
    nisa.tensor_scalar(dst=w_t, data=product(grown_k, t_t), op0=nl.multiply, operand0=-1.0)
    fresh = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=fresh, stationary=t_t, moving=v_sb, accumulate=False)  # [j, i] x [j, v] -> [i, v]
    nisa.nc_matmul(dst=fresh, stationary=w_t, moving=s, accumulate=True)  # [d, i] x [d, v] -> [i, v]
    v_new = _tile()
    nisa.tensor_scalar(dst=v_new, data=fresh, op0=nl.multiply, operand0=strength)

    grown_q = _tile()
    nisa.tensor_scalar(dst=grown_q, data=q_sb, op0=nl.multiply, operand0=grow)
    grown_q_t = _transposed(grown_q)
    out = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=out, stationary=grown_q_t, moving=s, accumulate=False)  # [d, i] x [d, v] -> [i, v]
    nisa.nc_matmul(dst=out, stationary=scores_t, moving=v_new, accumulate=True)  # [j, i] x [j, v] -> [i, v]
    out_sb = _tile()
    nisa.tensor_copy(dst=out_sb, src=out)
    nisa.dma_copy(dst=o, src=out_sb[0:rows])

    faded_k, s_new = _tile(), _tile()
    nisa.tensor_scalar(dst=faded_k, data=k_sb, op0=nl.multiply, operand0=fade)
    written = product(faded_k, v_new)  # [j, d] x [j, v] -> [d, v]
    nisa.scalar_tensor_tensor(dst=s_new, data=s, op0=nl.multiply, operand0=keep, op1=nl.add, operand1=written)
    nisa.dma_copy(dst=new_state, src=s_new)
    return o, new_state


def _tile(columns: int = TILE) -> nl.ndarray:
    return sbuf(nl.float32, (TILE, columns))


def _load(src: nl.ndarray) -> nl.ndarray:
    """[C, n] of HBM as fp32 [128, n], zeros below."""
    rows, columns = src.shape
    tile = _tile(columns)
    if rows < TILE:
        nisa.memset(dst=tile, value=0.0)
    if src.dtype == nl.float32:
        nisa.dma_copy(dst=tile[0:rows], src=src)
    else:
        raw = sbuf(src.dtype, (rows, columns))
        nisa.dma_copy(dst=raw, src=src)
        nisa.tensor_copy(dst=tile[0:rows], src=raw)
    return tile


def _triangle(step: int, offset: int) -> nl.ndarray:
    """[128, 128]: ones where step * (row - column) + offset >= 0."""
    tile = _tile()
    nisa.memset(dst=tile, value=1.0)
    nisa.affine_select(
        dst=tile, pattern=[[-step, TILE]], channel_multiplier=step, on_true_tile=tile, on_false_value=0.0,
        cmp_op=nl.greater_equal, offset=offset,
    )  # fmt: skip
    return tile


def _transposed(x: nl.ndarray) -> nl.ndarray:
    out, back = nl.ndarray((TILE, TILE), dtype=nl.float32, buffer=nl.psum), _tile()
    nisa.nc_transpose(dst=out, data=x)
    nisa.tensor_copy(dst=back, src=out)
    return back


def _l2norm(x: nl.ndarray, scale: float) -> None:
    """x / sqrt(scale * (|x|^2 + eps)) a row, in place."""
    total = _tile(1)
    square_sums(total, x.reshape((TILE, 1, TILE)))
    nisa.tensor_scalar(dst=total, data=total, op0=nl.multiply, operand0=scale)
    to_power(total, total, scale * L2_EPS, -0.5)
    nisa.tensor_scalar(dst=x, data=x, op0=nl.multiply, operand0=total)


def _inverse(a_t: nl.ndarray) -> nl.ndarray:
    """T^T for T = (I + A)^-1, from A^T [j, i] whose entries with j >= i are ignored."""
    t, t_t, p = identity(nl.float32), identity(nl.float32), _tile()
    for level in range(7):
        width = 1 << level
        # P = M_w o (A T): [j, i] x [j, c] -> [i, c]. T is block diagonal, so masking A T is masking A.
        nisa.tensor_copy(dst=p, src=product(a_t, t))
        _keep_level(p, width)
        step, step_t = product(t_t, p), product(p, t_t)  # T P and (T P)^T
        nisa.tensor_tensor(dst=t, data1=t, data2=step, op=nl.subtract)
        nisa.tensor_tensor(dst=t_t, data1=t_t, data2=step_t, op=nl.subtract)
    return t_t


def _keep_level(p: nl.ndarray, width: int) -> None:
    """Zero p outside M_w: odd row blocks, the even column block just left of the diagonal."""
    blocks = TILE // (2 * width)
    for side in range(2):
        half = p.reshape((TILE, blocks, 2, width))[:, :, side : side + 1, :]
        if side == 1:
            nisa.memset(dst=half, value=0.0)
        else:
            pattern = [[-2 * width, blocks], [0, width]]
            nisa.affine_select(
                dst=half, pattern=pattern, channel_multiplier=1, on_true_tile=half, on_false_value=0.0,
                cmp_op=nl.greater_equal, offset=-width,
            )  # fmt: skip
            nisa.affine_select(
                dst=half, pattern=pattern, channel_multiplier=1, on_true_tile=half, on_false_value=0.0,
                cmp_op=nl.less, offset=-2 * width,
            )  # fmt: skip
