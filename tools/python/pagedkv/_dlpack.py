"""DLPack tensors as the C API sees them: an address, a shape, strides. Nothing is copied and the
capsule is not consumed: holding it is what keeps the tensor alive."""

from __future__ import annotations

import ctypes as C
from typing import Any

_CPU_DEVICES = {1: "CPU", 3: "CUDA pinned", 11: "ROCm pinned"}
_READ_ONLY = 1
#: (type code, bits) of elements: float, bfloat, and the integers that hold bfloat16 bits.
_ELEMENTS = {
    (2, 32): "float32",
    (2, 16): "float16",
    (4, 16): "bfloat16",
    (1, 16): "uint16",
    (0, 16): "int16",
}


class _Device(C.Structure):
    _fields_ = [("kind", C.c_int32), ("number", C.c_int32)]


class _Type(C.Structure):
    _fields_ = [("code", C.c_uint8), ("bits", C.c_uint8), ("lanes", C.c_uint16)]


class _Tensor(C.Structure):
    _fields_ = [
        ("data", C.c_void_p),
        ("device", _Device),
        ("ndim", C.c_int32),
        ("dtype", _Type),
        ("shape", C.POINTER(C.c_int64)),
        ("strides", C.POINTER(C.c_int64)),
        ("byte_offset", C.c_uint64),
    ]


class _Versioned(C.Structure):
    _fields_ = [
        ("major", C.c_uint32),
        ("minor", C.c_uint32),
        ("context", C.c_void_p),
        ("deleter", C.c_void_p),
        ("flags", C.c_uint64),
        ("tensor", _Tensor),
    ]


_is_valid = C.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = C.c_int, [C.py_object, C.c_char_p]
_pointer = C.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = C.c_void_p, [C.py_object, C.c_char_p]


class TensorView:
    """What an object that speaks DLPack holds: as much of numpy's interface as rows need."""

    __slots__ = ("address", "element", "itemsize", "owner", "shape", "strides", "writeable")

    def __init__(self, source: Any) -> None:
        device = int(source.__dlpack_device__()[0])
        if device not in _CPU_DEVICES:
            raise ValueError(f"a tensor on DLPack device {device} is not in host memory")
        try:
            capsule = source.__dlpack__(max_version=(1, 1))
        except TypeError:  # a producer from before versions
            capsule = source.__dlpack__()
        #: Keeps the memory alive.
        self.owner = (source, capsule)
        self.writeable = True
        if _is_valid(capsule, b"dltensor_versioned"):
            managed = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
            if managed.major != 1:
                raise ValueError(f"DLPack version {managed.major} is not known")
            self.writeable = not managed.flags & _READ_ONLY
            tensor = managed.tensor
        elif _is_valid(capsule, b"dltensor"):
            tensor = _Tensor.from_address(_pointer(capsule, b"dltensor"))
            # jax's arrays are immutable, which this form of the protocol cannot say
            self.writeable = not type(source).__module__.partition(".")[0].startswith("jax")
        else:
            raise TypeError("__dlpack__ gave something else than a fresh DLPack capsule")
        kind = (tensor.dtype.code, tensor.dtype.bits)
        if tensor.dtype.lanes != 1 or kind not in _ELEMENTS:
            raise TypeError(f"DLPack elements of code {kind[0]}, {kind[1]} bits are not supported")
        self.element = _ELEMENTS[kind]
        self.itemsize = tensor.dtype.bits // 8
        self.shape = tuple(tensor.shape[: tensor.ndim])
        if tensor.strides:
            self.strides = tuple(s * self.itemsize for s in tensor.strides[: tensor.ndim])
        else:
            self.strides = _dense(self.shape, self.itemsize)
        self.address = (tensor.data or 0) + tensor.byte_offset

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        want = _dense(self.shape, self.itemsize)
        return all(n <= 1 or a == b for n, a, b in zip(self.shape, self.strides, want))


def _dense(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))
