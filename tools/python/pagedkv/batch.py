"""Batches: what one model step works on, reserved all-or-nothing, and the page-table exports."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import integers
from ._library import lib
from ._structs import CONSTANTS, BatchHandle, BlockTableStruct, CopyStruct
from .arrays import address
from .cache import Cache
from .errors import OutOfPages, make_error
from .sequence import Sequence

_ENOPAGES, _ERANGE, _EUNSAFE = (CONSTANTS[name] for name in ("ENOPAGES", "ERANGE", "EUNSAFE"))


class Batch:
    """A batch (``pkv_batch``). Leaving a ``with`` block that did not commit aborts it.

    with cache.batch() as batch:
        batch.add(seq, tokens)
        batch.reserve()
        plan.build(batch)
        …
        batch.commit()
    """

    __slots__ = ("__weakref__", "_open", "_sequences", "cache", "handle")

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.handle = BatchHandle()
        self._open = False
        self._sequences: list[Sequence] = []  # in the order of entries: kept alive until the end
        status = lib.pkv_batch_begin(cache.handle, C.byref(self.handle))
        if status:
            cache.check(status, "pkv_batch_begin")
        self._open = True
        cache._handles.add(self)

    def add(self, seq: Sequence, tokens: npt.ArrayLike | None, n: int | None = None) -> None:
        """Adds new tokens of a sequence: ids (any integer array-like), or None and their number n
        if they are not to be published for prefix matching."""
        if tokens is None:
            if n is None:
                raise TypeError("without token ids their number n is needed")
            status = lib.pkv_batch_add(self.handle, seq.handle, None, n)
        else:
            ids = integers(tokens, np.int32, "tokens")
            if n is not None and n != len(ids):
                raise ValueError(f"{len(ids)} token ids, but n = {n}")
            status = lib.pkv_batch_add(self.handle, seq.handle, ids.ctypes.data, len(ids))
        if status:
            self.cache.check(status, "pkv_batch_add")
        self._sequences.append(seq)

    def set_tokens(self, entry: int, tokens: npt.ArrayLike) -> None:
        """Gives the ids of an entry's new tokens that were not known when it was added."""
        ids = integers(tokens, np.int32, "tokens")
        status = lib.pkv_batch_set_tokens(self.handle, entry, ids.ctypes.data, len(ids))
        if status:
            self.cache.check(status, "pkv_batch_set_tokens")

    def remove(self, entry: int) -> None:
        """Takes an entry out again before it is reserved; those behind it move up by one."""
        status = lib.pkv_batch_remove(self.handle, entry)
        if status:
            self.cache.check(status, "pkv_batch_remove")
        del self._sequences[entry]

    def keep_states(self, entry: int, n: int) -> None:
        """The entry wants the recurrent states after each of its last n new tokens, which
        :meth:`commit_partial` may then stop at."""
        self.cache.check(lib.pkv_batch_keep_states(self.handle, entry, n), "pkv_batch_keep_states")

    def states(self, entry: int, state: int = 0) -> tuple[int | None, list[int]]:
        """Slots of a state group in a reserved batch's entry: the state it starts from (None: the
        initial one), and those that it writes to, in the order of tokens."""
        n, start = C.c_uint32(), C.c_uint64()
        lib.pkv_batch_states(self.handle, entry, state, None, None, 0, C.byref(n))
        slots = (C.c_uint64 * max(1, n.value))()
        self.cache.check(
            lib.pkv_batch_states(
                self.handle, entry, state, C.byref(start), C.addressof(slots), n.value, C.byref(n)
            ),
            "pkv_batch_states",
        )
        return start.value or None, list(slots[: n.value])

    def reserve(self) -> None:
        """Reserves pages for every new token; :class:`OutOfPages` with ``missing`` per group."""
        status = lib.pkv_batch_reserve(self.handle)
        if status:
            error = make_error(status, "pkv_batch_reserve", self.cache.handle)
            if isinstance(error, OutOfPages):
                error.missing = tuple(self.shortfall())
            raise error

    def shortfall(self) -> list[int]:
        """Pages missing per group after the last failed reserve."""
        missing = (C.c_uint32 * self.cache.n_groups)()
        self.cache.check(
            lib.pkv_batch_shortfall(self.handle, missing, self.cache.n_groups),
            "pkv_batch_shortfall",
        )
        return list(missing)

    def commit(self) -> None:
        """Ends the step: lengths advance, pages are sealed and published, eviction runs."""
        status = lib.pkv_batch_commit(self.handle)
        if status:
            self.cache.check(status, "pkv_batch_commit")
        self._ended()

    def commit_partial(self, accepted: npt.ArrayLike) -> None:
        """As commit, but entry i keeps only its first accepted[i] new tokens."""
        counts = integers(accepted, np.uint32, "accepted")
        status = lib.pkv_batch_commit_partial(self.handle, counts.ctypes.data, len(counts))
        if status:
            self.cache.check(status, "pkv_batch_commit_partial")
        self._ended()

    def commit_paths(self, kept: Iterable[npt.ArrayLike]) -> None:
        """As commit, but entry i keeps the new tokens whose ascending indices are kept[i]."""
        paths = [integers(path, np.uint32, "kept") for path in kept]
        counts = np.array([len(path) for path in paths], np.uint32)
        flat = np.concatenate([np.empty(0, np.uint32), *paths])
        status = lib.pkv_batch_commit_paths(
            self.handle, flat.ctypes.data, counts.ctypes.data, len(counts)
        )
        if status:
            self.cache.check(status, "pkv_batch_commit_paths")
        self._ended()

    def _ended(self) -> None:
        self._open = False
        policies = [seq._policy for seq in self._sequences if seq._policy is not None]
        self._sequences = []
        for policy in policies:
            failure, policy.failure = policy.failure, None
            if failure is not None:
                raise failure

    def abort(self) -> None:
        """Ends the batch as if it had never begun."""
        status = lib.pkv_batch_abort(self.handle)
        if status:
            self.cache.check(status, "pkv_batch_abort")
        self._open = False
        self._sequences = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open and not self.cache.closed:
            self.abort()

    def __del__(self) -> None:
        if getattr(self, "_open", False) and not self.cache.closed:
            self.cache._dropped.append((_release_batch, self.handle))

    def __len__(self) -> int:
        return len(self._sequences)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        if not self._open or self.cache.closed:
            return "<Batch, ended>"
        return f"<Batch {self.handle.id:#x} of {len(self)} entries>"

    def size(self) -> tuple[int, int]:
        """Entries, and new tokens over all of them."""
        entries, tokens = C.c_uint32(), C.c_uint64()
        self.cache.check(
            lib.pkv_batch_size(self.handle, C.byref(entries), C.byref(tokens)), "pkv_batch_size"
        )
        return entries.value, tokens.value

    def copies(self) -> list[CopyStruct]:
        """Copy-on-write pages of a reserved batch, in order."""
        n = C.c_uint32()
        status = lib.pkv_batch_copies(self.handle, None, 0, C.byref(n))
        if status and status != _ERANGE:
            self.cache.check(status, "pkv_batch_copies")
        copies = (CopyStruct * max(1, n.value))()
        self.cache.check(
            lib.pkv_batch_copies(self.handle, copies, n.value, C.byref(n)), "pkv_batch_copies"
        )
        return list(copies[: n.value])

    def admit_check(self) -> int | None:
        """None if reserving keeps the state safe, else the first entry to leave out."""
        self.cache.release_dropped(claims=True)
        blocked = C.c_uint32()
        status = lib.pkv_admit_check_batch(self.handle, C.byref(blocked))
        if status == _EUNSAFE:
            return blocked.value
        self.cache.check(status, "pkv_admit_check_batch")
        return None

    # exports for other kernels

    def csr(
        self, group: int = 0
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """FlashInfer's table: indptr ``[entries + 1]``, indices, last_page_len ``[entries]``."""
        indptr = np.zeros(len(self) + 1, np.int32)
        last = np.zeros(len(self), np.int32)
        n = C.c_uint32(0)
        status = lib.pkv_export_csr(
            self.handle, group, indptr.ctypes.data, None, C.byref(n), last.ctypes.data
        )
        if status and status != _ERANGE:
            self.cache.check(status, "pkv_export_csr")
        indices = np.zeros(n.value, np.int32)
        self.cache.check(
            lib.pkv_export_csr(
                self.handle,
                group,
                indptr.ctypes.data,
                indices.ctypes.data,
                C.byref(n),
                last.ctypes.data,
            ),
            "pkv_export_csr",
        )
        return indptr, indices, last

    def block_table(
        self, row_stride: int, group: int = 0, *, hole: int = -1
    ) -> npt.NDArray[np.int32]:
        """vLLM's padded block table ``[entries, row_stride]``, `hole` where no page is held."""
        table = np.zeros((len(self), row_stride), np.int32)
        self._export_table(table.ctypes.data, table.shape, group, None, None, hole)
        return table

    def block_table_update(
        self,
        table: Any,
        state: Any,
        group: int = 0,
        *,
        rows: npt.ArrayLike | None = None,
        hole: int = -1,
    ) -> None:
        """Brings a table int32 ``[n, row_stride]`` up to date in place; writes what changed since.

        state  uint64 ``[n, 4]``, zeros at first: what the library knows of each row
        rows   row of each entry; None = entry i in row i
        """
        shape = tuple(table.shape)
        if len(shape) != 2:
            raise ValueError("table must be [n, row_stride]")
        numbers = None if rows is None else integers(rows, np.uint32, "rows")
        if numbers is not None and len(numbers) != len(self):
            raise ValueError("rows must have one number for each entry")
        self._export_table(
            address(table, np.int32, shape, "table", writable=True),
            shape,
            group,
            address(state, np.uint64, (shape[0], 4), "state", writable=True),
            numbers,
            hole,
        )

    def _export_table(
        self,
        table: int,
        shape: tuple[int, ...],
        group: int,
        state: int | None,
        rows: npt.NDArray[np.uint32] | None,
        hole: int,
    ) -> None:
        to = BlockTableStruct(
            struct_size=C.sizeof(BlockTableStruct),
            data=table,
            n_rows=shape[0],
            row_stride=shape[1],
            rows=None if rows is None else rows.ctypes.data,
            state=state,
            hole=hole,
        )
        self.cache.check(
            lib.pkv_export_block_table(self.handle, group, to), "pkv_export_block_table"
        )

    def slot_mapping(self, group: int = 0) -> npt.NDArray[np.int64]:
        """vLLM's slot of every new token ``[tokens]``: index * page_tokens + offset."""
        n = self.size()[1]
        slots = np.zeros(n, np.int64)
        self.cache.check(
            lib.pkv_export_slot_mapping(self.handle, group, slots.ctypes.data, n),
            "pkv_export_slot_mapping",
        )
        return slots


def _release_batch(cache: Cache, handle: BatchHandle) -> int:
    return int(lib.pkv_batch_abort(handle))
