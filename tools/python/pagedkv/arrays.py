"""Numpy arrays as the C API sees them: addresses, element types and strided rows, never copies."""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np
import numpy.typing as npt

from ._structs import CONSTANTS, RowsOutStruct, RowsStruct

#: Element type codes by name.
DTYPES = {
    "f32": CONSTANTS["DTYPE_F32"],
    "f16": CONSTANTS["DTYPE_F16"],
    "bf16": CONSTANTS["DTYPE_BF16"],
}
#: The numpy type that holds an element. bf16 travels as its bits.
STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
}
_CODE_OF = {np.dtype(np.float32): DTYPES["f32"], np.dtype(np.float16): DTYPES["f16"]}


def dtype_code(array: npt.NDArray[Any], name: str | None = None) -> int:
    """Code of an array's elements. ``name`` is needed for bf16 held as uint16."""
    dtype = array.dtype
    if name is not None:
        if name not in DTYPES:
            raise ValueError(f"element type {name!r} is not one of {', '.join(DTYPES)}")
        if dtype.itemsize != STORAGE_DTYPES[name].itemsize:
            raise TypeError(f"an array of {dtype} does not hold {name}")
        return DTYPES[name]
    code = _CODE_OF.get(dtype)
    if code is not None:
        return code
    if dtype.name == "bfloat16":  # the ml_dtypes package
        return DTYPES["bf16"]
    raise TypeError(
        f"arrays of {dtype} are not supported: float32, float16, bfloat16, or uint16"
        " with dtype='bf16'"
    )


class _RowsBase:
    """Shared by Rows and RowsOut: the structure and the array that it points into."""

    _struct: type[RowsStruct] | type[RowsOutStruct]
    __slots__ = ("array", "ref", "struct")

    def __init__(self, array: npt.NDArray[Any], dtype: str | None = None) -> None:
        if array.ndim != 3:
            raise ValueError(f"rows are [token][head][dim], not {array.ndim}-dimensional")
        token_stride, head_stride, element = array.strides
        _, heads, dim = array.shape
        code = dtype_code(array, dtype)
        if element != array.itemsize and dim > 1:
            raise ValueError("the last axis (dim) of rows must be contiguous")
        self.array = array
        self.struct = self._struct(array.ctypes.data, code, heads, dim, token_stride, head_stride)
        self.ref = C.byref(self.struct)


class Rows(_RowsBase):
    """Input rows: a view of an array ``[token][head][dim]`` of any strides, last axis contiguous.

    Make one and reuse it where the same array is passed again and again: the array is looked at
    once. The array must stay alive and unmoved, which holding the object takes care of.
    """

    _struct = RowsStruct
    __slots__ = ()


class RowsOut(_RowsBase):
    """Output rows, as :class:`Rows` but writable."""

    _struct = RowsOutStruct
    __slots__ = ()

    def __init__(self, array: npt.NDArray[Any], dtype: str | None = None) -> None:
        if not array.flags.writeable:
            raise ValueError("the output array is read-only")
        super().__init__(array, dtype)


def address(
    array: npt.NDArray[Any], dtype: npt.DTypeLike, shape: tuple[int, ...], what: str
) -> int:
    """Address of an array that must be C-contiguous, of this type and shape."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{what} must be a contiguous array of {np.dtype(dtype)} with shape"
            f" {shape}, not {array.dtype} {array.shape}"
        )
    return array.ctypes.data


def to_bf16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 to bfloat16 bits, round to nearest even. NaNs stay NaNs."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
