"""Arrays as the C API sees them: addresses, element types and strided rows, never copies.

Wherever an array is taken, so is any object in host memory that speaks DLPack (torch, jax) or the
buffer protocol.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import integers
from ._dlpack import TensorView
from ._structs import CONSTANTS, RowsOutStruct, RowsStruct

__all__ = ["Rows", "RowsOut", "address", "from_bf16", "integers", "to_bf16", "view_of"]

#: Element type codes by name.
DTYPES = {
    "f32": CONSTANTS["DTYPE_F32"],
    "f16": CONSTANTS["DTYPE_F16"],
    "bf16": CONSTANTS["DTYPE_BF16"],
}
#: Formats of full pages: element types, and codes of keys and of values.
PAGE_FORMATS = DTYPES | {
    name: CONSTANTS[f"DTYPE_{name.upper()}"] for name in ("k8", "k4", "v8", "v4")
}
#: The numpy type that holds an element. bf16 travels as its bits.
STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
}
_F32, _F32_CODE = np.dtype(np.float32), DTYPES["f32"]
_CODE_OF_NAME = {"float32": DTYPES["f32"], "float16": DTYPES["f16"], "bfloat16": DTYPES["bf16"]}
_NAMES = {code: name for name, code in DTYPES.items()}


def dtype_code(array: npt.NDArray[Any] | TensorView, name: str | None = None) -> int:
    """Code of an array's elements. ``name`` is needed for bf16 held as uint16."""
    element = _element(array)
    if name is not None:
        if name not in DTYPES:
            raise ValueError(f"element type {name!r} is not one of {', '.join(DTYPES)}")
        held = _CODE_OF_NAME.get(element)
        bits = name == "bf16" and element in ("uint16", "int16")
        if held != DTYPES[name] and not bits:
            raise TypeError(f"an array of {element} does not hold {name}")
        return DTYPES[name]
    code = _CODE_OF_NAME.get(element)  # bfloat16: the ml_dtypes package, torch, jax
    if code is None:
        raise TypeError(
            f"arrays of {element} are not supported: float32, float16, bfloat16, or uint16"
            " with dtype='bf16'"
        )
    return code


def _element(array: npt.NDArray[Any] | TensorView) -> str:
    """Name of an array's element type: "float32"; ">f4" and the like for foreign byte order."""
    if isinstance(array, TensorView):
        return array.element
    return array.dtype.name if array.dtype.isnative else array.dtype.str


def view_of(source: Any) -> npt.NDArray[Any] | TensorView:
    """An object's memory without a copy: an array as it is, or what DLPack or the buffer protocol
    give; TypeError for anything else (a list would have to be copied)."""
    if isinstance(source, np.ndarray):
        return source
    if hasattr(source, "__dlpack__") and hasattr(source, "__dlpack_device__"):
        return TensorView(source)
    try:
        return np.asarray(memoryview(source))
    except TypeError:
        raise TypeError(
            f"{type(source).__name__} is neither an array nor speaks DLPack or the buffer protocol"
        ) from None


class _RowsBase:
    """Shared by Rows and RowsOut: the structure and the array that it points into."""

    _struct: type[RowsStruct] | type[RowsOutStruct]
    __slots__ = ("array", "ref", "shape", "struct")

    def __init__(self, array: Any, dtype: str | None = None) -> None:
        if type(array) is np.ndarray:
            where = array.ctypes.data
            # the usual case fast: numpy has one object for the native float32
            code = _F32_CODE if array.dtype is _F32 and dtype is None else dtype_code(array, dtype)
        else:
            array = view_of(array)
            code = dtype_code(array, dtype)
            where = array.address if isinstance(array, TensorView) else array.ctypes.data
        shape = array.shape
        if len(shape) != 3:
            raise ValueError(f"rows are [token][head][dim], not {len(shape)}-dimensional")
        token_stride, head_stride, element = array.strides
        tokens, heads, dim = shape
        if element != array.itemsize and dim > 1 and tokens and heads:
            raise ValueError("the last axis (dim) of rows must be contiguous")
        #: The array, or the view of a DLPack tensor.
        self.array = array
        #: (tokens, heads, dim)
        self.shape = shape
        self.struct = self._struct(where, code, heads, dim, token_stride, head_stride)
        self.ref = C.byref(self.struct)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {_NAMES[self.struct.dtype]!r})"


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

    def __init__(self, array: Any, dtype: str | None = None) -> None:
        super().__init__(array, dtype)
        held = self.array
        if not (held.writeable if isinstance(held, TensorView) else held.flags.writeable):
            raise ValueError("the output array is read-only")


def address(
    source: Any,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    what: str,
    writable: bool = False,
) -> int:
    """Address of an array that must be C-contiguous, of this type and shape, and writable if the
    library is to write it."""
    array = source if type(source) is np.ndarray else view_of(source)
    if isinstance(array, TensorView):
        where, element, flat = array.address, _element(array), array.contiguous
        read_only = not array.writeable
    else:
        where, element, flat = array.ctypes.data, _element(array), array.flags.c_contiguous
        read_only = not array.flags.writeable
    wanted = np.dtype(dtype).name
    if element != wanted or array.shape != shape or not flat:
        raise ValueError(
            f"{what} must be a contiguous array of {wanted} with shape"
            f" {shape}, not {element} {array.shape}{'' if flat else ', not contiguous'}"
        )
    if writable and read_only:
        raise ValueError(f"{what} is read-only")
    return int(where)


def to_bf16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 to bfloat16 bits, round to nearest even. NaNs stay NaNs."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
