"""Operators of the engines: ALU operators of VectorE and GpSimd, activation functions of ScalarE.

Every operator is one object that serves as an ``op=`` token of an instruction and, called, as the ``nki.language``
function of the same name. Arithmetic is float32, whatever the operands were stored as.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import fail

_F = np.float32


class Op:
    """An operator.

    Attributes:
        name: As in ``nl``.
        alu: float32 function of two arrays (one for unary operators), or None if the ALU lacks it.
        act: float32 function of one array, or None if ScalarE has no such activation.
        bitvec: Works on integer bits without a cast.
        unary: Takes one operand; a second one is ignored.
        reduces: May fold elements together.
        identity: Value a fold starts from.
    """

    __slots__ = ("act", "alu", "bitvec", "identity", "name", "reduces", "unary", "wrapper")

    def __init__(
        self,
        name: str,
        alu: Callable[..., np.ndarray] | None = None,
        act: Callable[[np.ndarray], np.ndarray] | None = None,
        bitvec: bool = False,
        unary: bool = False,
        reduces: bool = False,
        identity: float = 0.0,
    ) -> None:
        self.name = name
        self.alu = alu
        self.act = act
        self.bitvec = bitvec
        self.unary = unary
        self.reduces = reduces
        self.identity = identity
        self.wrapper: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.wrapper is None:
            fail(f"nl.{self.name}", "", "is only an operator token, not a function")
        return self.wrapper(*args, **kwargs)

    def __repr__(self) -> str:
        return f"nl.{self.name}"


def _compare(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda a, b: f(a, b).astype(_F)


def _logical(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda a, b: f(np.not_equal(a, 0), np.not_equal(b, 0)).astype(_F)


def _shift_right(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    return (a.view(unsigned) >> np.asarray(b).astype(unsigned)).view(a.dtype)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, _F(1) / (_F(1) + e), e / (_F(1) + e))


def _erf(x: np.ndarray) -> np.ndarray:
    import torch

    return torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def _gauss(x: np.ndarray) -> np.ndarray:
    return np.exp(_F(-0.5) * x * x) * _F(0.3989422804014327)


def _phi(x: np.ndarray) -> np.ndarray:
    return _F(0.5) * (_F(1) + _erf(x * _F(0.7071067811865476)))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, _F(0)) + np.log1p(np.exp(-np.abs(x)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return _F(0.5) * x * (_F(1) + np.tanh(_F(0.7978845608028654) * (x + _F(0.044715) * x * x * x)))


def _gelu_sigmoid_dx(x: np.ndarray) -> np.ndarray:
    s = _sigmoid(_F(1.702) * x)
    return s + _F(1.702) * x * s * (_F(1) - s)


def _silu_dx(x: np.ndarray) -> np.ndarray:
    s = _sigmoid(x)
    return s * (_F(1) + x * (_F(1) - s))


def _sin(x: np.ndarray) -> np.ndarray:
    """sin on [-pi, pi]; outside, the device's polynomial leaves the circle, so the result is not a sine there."""
    inside = np.abs(x) <= _F(np.pi)
    x2 = x * x
    odd = x * (1 - x2 / 6 * (1 - x2 / 20 * (1 - x2 / 42 * (1 - x2 / 72))))
    return np.where(inside, np.sin(x), odd).astype(_F)


def _rsqrt(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _F(1) / np.sqrt(x)


def _reciprocal(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return _F(1) / x


def _quiet(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def run(*args: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return f(*args)

    return run


_TABLE: tuple[Op, ...] = (
    Op("add", np.add, reduces=True),
    Op("subtract", np.subtract, reduces=True),
    Op("multiply", np.multiply, reduces=True, identity=1.0),
    Op("maximum", np.maximum, reduces=True, identity=-np.inf),
    Op("minimum", np.minimum, reduces=True, identity=np.inf),
    Op("equal", _compare(np.equal)),
    Op("not_equal", _compare(np.not_equal)),
    Op("greater_equal", _compare(np.greater_equal)),
    Op("greater", _compare(np.greater)),
    Op("less_equal", _compare(np.less_equal)),
    Op("less", _compare(np.less)),
    Op("logical_and", _logical(np.logical_and), reduces=True, identity=1.0),
    Op("logical_or", _logical(np.logical_or), reduces=True),
    Op("logical_xor", _logical(np.logical_xor), reduces=True),
    Op("power", _quiet(np.power)),
    Op("abs_max", lambda a, b: np.maximum(np.abs(a), np.abs(b))),
    Op("abs_min", lambda a, b: np.minimum(np.abs(a), np.abs(b))),
    Op("invert", np.invert, bitvec=True, unary=True),
    Op("bitwise_and", np.bitwise_and, bitvec=True, reduces=True),
    Op("bitwise_or", np.bitwise_or, bitvec=True, reduces=True),
    Op("bitwise_xor", np.bitwise_xor, bitvec=True, reduces=True),
    Op("left_shift", np.left_shift, bitvec=True),
    Op("right_shift", _shift_right, bitvec=True),
    Op("average"),
    Op("bypass", lambda a: a, unary=True),
    Op("abs", np.abs, np.abs, unary=True),
    Op("square", np.square, np.square, unary=True),
    Op("relu", lambda x: np.maximum(x, _F(0)), lambda x: np.maximum(x, _F(0)), unary=True),
    Op("rsqrt", _rsqrt, _rsqrt, unary=True),
    Op("reciprocal", _reciprocal, _reciprocal, unary=True),
    Op("copy", act=lambda x: x),
    Op("prelu"),
    Op("sigmoid", act=_quiet(_sigmoid)),
    Op("gelu", act=lambda x: x * _phi(x)),
    Op("gelu_dx", act=lambda x: _phi(x) + x * _gauss(x)),
    Op("gelu_apprx_tanh", act=_quiet(_gelu_tanh)),
    Op("gelu_apprx_sigmoid", act=_quiet(lambda x: x * _sigmoid(_F(1.702) * x))),
    Op("gelu_apprx_sigmoid_dx", act=_quiet(_gelu_sigmoid_dx)),
    Op("silu", act=_quiet(lambda x: x * _sigmoid(x))),
    Op("silu_dx", act=_quiet(_silu_dx)),
    Op("tanh", act=np.tanh),
    Op("softplus", act=_quiet(_softplus)),
    Op("mish", act=_quiet(lambda x: x * np.tanh(_softplus(x)))),
    Op("erf", act=_erf),
    Op("erf_dx", act=_quiet(lambda x: _F(1.1283791670955126) * np.exp(-x * x))),
    Op("exp", act=_quiet(np.exp)),
    Op("sign", act=np.sign),
    Op("log", act=_quiet(np.log)),
    Op("sin", act=_sin),
    Op("arctan", act=np.arctan),
    Op("sqrt", act=_quiet(np.sqrt)),
)
OPS: dict[str, Op] = {op.name: op for op in _TABLE}

# Ranges in which the documents say an activation is valid; outside, the device's answer is not specified.
# ``reciprocal`` is valid on both signs of its range.
ACT_RANGE: dict[str, tuple[float, float]] = {
    "log": (2.0**-64, 2.0**64),
    "reciprocal": (2.0**-42, 2.0**42),
    "sin": (-float(np.pi), float(np.pi)),
    "arctan": (-float(np.pi) / 2, float(np.pi) / 2),
    "sqrt": (2.0**-116, 2.0**118),
    "rsqrt": (2.0**-87, 2.0**97),
}


def require_alu(ins: str, operand: str, op: Any) -> Op:
    """The operator, if the ALU has it."""
    if not isinstance(op, Op):
        fail(ins, operand, f"must be an nl operator such as nl.add, not {op!r}")
    if op.alu is None:
        fail(ins, operand, f"{op!r} is not an ALU operator")
    return op


def require_act(ins: str, op: Any) -> Op:
    """The operator, if ScalarE has it as an activation function."""
    if not isinstance(op, Op):
        fail(ins, "op", f"must be an nl activation function such as nl.exp, not {op!r}")
    if op.act is None:
        fail(ins, "op", f"{op!r} is not an activation function of trn2")
    return op


def apply(op: Op, a: np.ndarray, b: Any, reverse: bool = False) -> np.ndarray:
    """``op(a, b)`` on the ALU, operands swapped if ``reverse``; a unary operator ignores ``b``."""
    assert op.alu is not None
    if op.unary:
        return op.alu(a)
    return op.alu(b, a) if reverse else op.alu(a, b)
