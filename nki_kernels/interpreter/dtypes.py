"""Element types: the device's names, their numpy forms, and rounding on write."""

from typing import Any

import ml_dtypes
import numpy as np

F32 = np.dtype(np.float32)


class DType(str):
    """A device element type. It is its own name (``str(nl.float32) == "float32"``), as in NKI 0.6.

    Attributes:
        numpy: numpy dtype of the stored form. ``tfloat32`` is stored as float32 and rounded on write; packed ``_x4``
            types are opaque 32- or 16-bit words.
        itemsize: Bytes an element.
        kind: ``f`` float, ``i`` signed, ``u`` unsigned, ``x`` packed.
    """

    numpy: np.dtype
    itemsize: int
    kind: str
    is_float: bool
    is_int: bool

    def __new__(cls, name: str, np_type: Any, kind: str) -> "DType":
        self = super().__new__(cls, name)
        self.numpy = np.dtype(np_type)
        self.itemsize = self.numpy.itemsize
        self.kind = kind
        self.is_float = kind == "f"
        self.is_int = kind in "iu"
        return self

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return as_dtype, (str(self),)

    def __repr__(self) -> str:
        return f"nl.{self!s}"


bool_ = DType("bool_", np.uint8, "u")
int8 = DType("int8", np.int8, "i")
int16 = DType("int16", np.int16, "i")
int32 = DType("int32", np.int32, "i")
uint8 = DType("uint8", np.uint8, "u")
uint16 = DType("uint16", np.uint16, "u")
uint32 = DType("uint32", np.uint32, "u")
float16 = DType("float16", np.float16, "f")
float32 = DType("float32", np.float32, "f")
tfloat32 = DType("tfloat32", np.float32, "f")
bfloat16 = DType("bfloat16", ml_dtypes.bfloat16, "f")
float8_e4m3 = DType("float8_e4m3", ml_dtypes.float8_e4m3, "f")
float8_e4m3fn = DType("float8_e4m3fn", ml_dtypes.float8_e4m3fn, "f")
float8_e5m2 = DType("float8_e5m2", ml_dtypes.float8_e5m2, "f")
float8_e8m0fnu = DType("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, "f")
float8_e5m2_x4 = DType("float8_e5m2_x4", np.uint32, "x")
float8_e4m3fn_x4 = DType("float8_e4m3fn_x4", np.uint32, "x")
float4_e2m1fn_x4 = DType("float4_e2m1fn_x4", np.uint16, "x")

ALL: tuple[DType, ...] = (
    bool_, int8, int16, int32, uint8, uint16, uint32, float16, float32, tfloat32, bfloat16, float8_e4m3, float8_e4m3fn,
    float8_e5m2, float8_e8m0fnu, float8_e5m2_x4, float8_e4m3fn_x4, float4_e2m1fn_x4,
)  # fmt: skip
BY_NAME: dict[str, DType] = {str(d): d for d in ALL} | {"bool": bool_}
FP8 = (float8_e4m3, float8_e5m2)
_BY_NP: dict[np.dtype, DType] = {d.numpy: d for d in ALL if d.kind != "x" and d not in (bool_, tfloat32)}
_BY_NP[np.dtype(np.bool_)] = bool_


def as_dtype(value: Any) -> DType:
    """Device type for an ``nl`` dtype, its name, or a numpy type.

    Raises:
        TypeError: the type does not exist on the device (int64, float64 ...).
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in BY_NAME:
        return BY_NAME[value]
    try:
        found = _BY_NP.get(np.dtype(value))
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"{value!r} is not an element type of the device (no int64, no float64)")
    return found


def to_f32(array: np.ndarray) -> np.ndarray:
    """Values as float32; exact for every float type of 16 bits or fewer. May return ``array`` itself."""
    if array.dtype == F32:
        return array
    if array.dtype == bfloat16.numpy:
        wide = array.view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return array.astype(np.float32)


def round_to(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Cast computed values to a stored type: floats to nearest even, float to integer to nearest even and saturating.

    Args:
        values: float32 (or already integer) array.
        dtype: Type written.
    Returns:
        Array of ``dtype.numpy``; may be ``values`` itself.
    """
    target = dtype.numpy
    if dtype is tfloat32:
        # 10 mantissa bits, nearest even: an estimate, the device's rounding of this type is not published.
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = bits + np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))
        return (rounded & np.uint32(0xFFFFE000)).view(np.float32)
    if values.dtype == target:
        return values
    if dtype.is_int:
        if values.dtype.kind in "iub":
            info = np.iinfo(target)
            return np.clip(values.astype(np.int64), info.min, info.max).astype(target)
        info = np.iinfo(target)
        wide = np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=info.max, neginf=info.min))
        return np.clip(wide, info.min, info.max).astype(np.int64).astype(target)
    if target == bfloat16.numpy and values.dtype == F32:
        return _round_bf16(values)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(target)


def _round_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    bias = (bits >> np.uint32(16)) & np.uint32(1)
    bias += np.uint32(0x7FFF)
    rounded = bits + bias
    rounded >>= np.uint32(16)
    out = rounded.astype(np.uint16)
    special = ~np.isfinite(values)
    if special.any():
        out[special] = values[special].astype(bfloat16.numpy).view(np.uint16)
    return out.view(bfloat16.numpy)
