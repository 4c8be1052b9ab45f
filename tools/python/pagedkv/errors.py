"""Exceptions: one class per status code, all derived from :class:`PagedKVError`."""

from __future__ import annotations

import ctypes as C
from typing import Any

from ._library import lib
from ._structs import CONSTANTS


class PagedKVError(Exception):
    """A call failed; everything is as it was before it.

    ``status`` is the code, ``name`` its symbol ("PKV_ENOPAGES"), ``detail`` what the library said
    about this very failure ("batch: sequence 7 is listed twice") or "".
    """

    def __init__(self, status: int, call: str = "", detail: str = "") -> None:
        self.status = status
        self.name = lib.pkv_status_name(status).decode()
        self.call = call
        self.detail = detail
        message = f"{call}: " if call else ""
        message += lib.pkv_status_text(status).decode()
        if detail:
            message += f" ({detail})"
        super().__init__(f"{message} [{self.name}]")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.call, self.detail), dict(self.__dict__)


class InvalidArgument(PagedKVError, ValueError):
    """PKV_EINVAL."""


class NoMemory(PagedKVError, MemoryError):
    """PKV_ENOMEM: the allocator or the OS refused."""


class OutOfPages(PagedKVError):
    """PKV_ENOPAGES; ``missing`` is the shortfall per group where it is known."""

    missing: tuple[int, ...] = ()


class StaleHandle(PagedKVError):
    """PKV_ESTALE."""


class ForeignHandle(PagedKVError):
    """PKV_EFOREIGN."""


class Busy(PagedKVError):
    """PKV_EBUSY."""


class OutOfOrder(PagedKVError):
    """PKV_ESTATE."""


class OutOfRange(PagedKVError):
    """PKV_ERANGE."""


class NotSupported(PagedKVError):
    """PKV_ENOTSUP."""


class Dropped(PagedKVError):
    """PKV_EDROPPED: the tokens concerned were evicted."""


class Corrupt(PagedKVError):
    """PKV_ECORRUPT."""


class VersionMismatch(PagedKVError):
    """PKV_EVERSION."""


class Unsafe(PagedKVError):
    """PKV_EUNSAFE: admission refused."""


class OSFailure(PagedKVError, OSError):
    """PKV_EIO."""


_BY_STATUS: dict[int, type[PagedKVError]] = {
    CONSTANTS[name]: cls
    for name, cls in (
        ("EINVAL", InvalidArgument),
        ("ENOMEM", NoMemory),
        ("ENOPAGES", OutOfPages),
        ("ESTALE", StaleHandle),
        ("EFOREIGN", ForeignHandle),
        ("EBUSY", Busy),
        ("ESTATE", OutOfOrder),
        ("ERANGE", OutOfRange),
        ("ENOTSUP", NotSupported),
        ("EDROPPED", Dropped),
        ("ECORRUPT", Corrupt),
        ("EVERSION", VersionMismatch),
        ("EUNSAFE", Unsafe),
        ("EIO", OSFailure),
    )
}


def make_error(
    status: int, call: str, cache: int | None = None, detail: str | None = None
) -> PagedKVError:
    """The exception for a status; asks the cache for the detail if none is given."""
    if detail is None:
        detail = ""
        if cache:
            buffer = C.create_string_buffer(512)
            if lib.pkv_cache_last_error(cache, buffer, len(buffer)) == status:
                detail = buffer.value.decode("utf-8", "replace")
    return _BY_STATUS.get(status, PagedKVError)(status, call, detail)


def check(status: int, call: str, cache: int | None = None) -> None:
    """Raises unless the status is PKV_OK."""
    if status:
        raise make_error(status, call, cache)
