"""Integers on their way into C: refused where ctypes and numpy would cut them to size."""

from __future__ import annotations

import array
import ctypes as C
from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

#: Smallest and largest value of ctypes' integers.
BOUNDS: dict[Any, tuple[int, int]] = {
    kind: (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for kind, bits, unsigned in (
        (C.c_uint8, 8, True),
        (C.c_uint32, 32, True),
        (C.c_uint64, 64, True),
        (C.c_size_t, 8 * C.sizeof(C.c_size_t), True),
        (C.c_int32, 32, False),
        (C.c_int64, 64, False),
    )
}
U32_MAX = 2**32 - 1
_TYPECODES = {"int32": "i", "uint32": "I", "int64": "q", "uint64": "Q"}


def integer(value: Any, low: int, high: int, what: str) -> int:
    """value as an int in [low, high]; TypeError for what is no integer, ValueError beyond."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{what} = {number} is not in {low} to {high}")
    return number


def checked(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The function behind a check of its integer arguments, which ctypes would truncate."""
    bounds = [(i, *BOUNDS[kind]) for i, kind in enumerate(arguments) if kind in BOUNDS]
    if not bounds:
        return function

    def call(*given: Any) -> Any:
        for i, low, high in bounds:
            value = given[i]
            if type(value) is not int or not low <= value <= high:
                number = integer(value, low, high, f"{name}: argument {i + 1}")
                given = (*given[:i], number, *given[i + 1 :])
        return function(*given)

    call.__name__ = name
    return call


def integers(values: Any, dtype: npt.DTypeLike, what: str) -> npt.NDArray[Any]:
    """values as a contiguous vector of an integer dtype: no copy if they are one already. Floats
    are a TypeError and values that do not fit a ValueError, never rounded or wrapped."""
    kind = np.dtype(dtype)
    if not isinstance(values, np.ndarray):
        if isinstance(values, (list, tuple, range)):
            return _from_list(values, kind, what)
        values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, not {values.ndim}-dimensional")
    if values.dtype != kind:
        if values.dtype.kind not in "iu" and values.size:
            raise TypeError(f"{what} must be integers, not {values.dtype}")
        limits = np.iinfo(kind)
        if values.size:
            low, high = int(values.min()), int(values.max())
            if low < limits.min or high > limits.max:
                worst = low if low < limits.min else high
                raise ValueError(f"{what}: {worst} is not in {limits.min} to {limits.max}")
        values = values.astype(kind)
    return np.ascontiguousarray(values)


def _from_list(
    values: list[Any] | tuple[Any, ...] | range, kind: np.dtype[Any], what: str
) -> npt.NDArray[Any]:
    if not len(values):
        return np.empty(0, kind)
    try:
        return np.frombuffer(array.array(_TYPECODES[kind.name], values), kind)
    except OverflowError:
        limits = np.iinfo(kind)
        raise ValueError(f"{what}: a value is not in {limits.min} to {limits.max}") from None
    except TypeError:
        raise TypeError(f"{what} must be integers") from None
