"""Sequences: the tokens of one request."""

from __future__ import annotations

import ctypes as C
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import integers
from ._library import lib
from ._structs import CONSTANTS, EvictConfigStruct, EvictInfo, EvictRun, SeqHandle, SeqInfo
from .arrays import STORAGE_DTYPES, RowsOut
from .cache import Cache
from .evict import EvictPolicy
from .prefix import Match, namespace_of

_FULL_GROUPS = CONSTANTS["EVICT_FULL_GROUPS"]


class Sequence:
    """A sequence (``pkv_seq``). Close it, or use a ``with`` block: pages are held until then. One
    that is dropped is released by a later call of its cache (:meth:`Cache.release_dropped`).

    Made by ``cache.sequence()`` and :meth:`fork`. Built from a handle by hand it is a second name
    of a sequence that somebody else owns, and dropping it releases nothing."""

    __slots__ = (
        "__weakref__",
        "_claimed",
        "_length",
        "_length_ref",
        "_open",
        "_owner",
        "_policy",
        "cache",
        "handle",
    )

    def __init__(self, cache: Cache, handle: SeqHandle, owner: bool = False) -> None:
        self.cache = cache
        self.handle = handle
        self._length = C.c_uint64()
        self._length_ref = C.byref(self._length)
        self._policy: EvictPolicy | None = None
        self._open = True
        self._owner = owner
        self._claimed = False
        cache._handles.add(self)

    @classmethod
    def create(cls, cache: Cache) -> Sequence:
        """A new, empty sequence."""
        handle = SeqHandle()
        cache.check(lib.pkv_seq_create(cache.handle, C.byref(handle)), "pkv_seq_create")
        return cls(cache, handle, owner=True)

    def close(self) -> None:
        """Releases the sequence's pages; published ones stay matchable. May be called again."""
        if self._open and not self.cache.closed:
            self.cache.check(lib.pkv_seq_destroy(self.handle), "pkv_seq_destroy")
        self._open = False

    def __del__(self) -> None:
        if getattr(self, "_owner", False) and self._open and not self.cache.closed:
            queue = self.cache._claimed if self._claimed else self.cache._dropped
            queue.append((_release_sequence, self.handle))

    def __repr__(self) -> str:
        if self.closed:
            return "<Sequence, closed>"
        status = lib.pkv_seq_length(self.handle, self._length_ref)
        state = f"{self._length.value} tokens" if status == 0 else "stale"
        return f"<Sequence {self.handle.id:#x}, {state}>"

    def __bool__(self) -> bool:
        return True  # a sequence without tokens is still a sequence

    @property
    def closed(self) -> bool:
        return not self._open or self.cache.closed

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fork(self) -> Sequence:
        """A child with the same tokens, sharing every page."""
        child = SeqHandle()
        self.cache.check(lib.pkv_seq_fork(self.handle, C.byref(child)), "pkv_seq_fork")
        made = Sequence(self.cache, child, owner=True)
        made._policy = self._policy
        return made

    def truncate(self, n_tokens: int) -> None:
        """Keeps the first n_tokens only (speculative rollback)."""
        self.cache.check(lib.pkv_seq_truncate(self.handle, n_tokens), "pkv_seq_truncate")

    def state_stop(self, n_tokens: int) -> int:
        """Where the next step towards n_tokens (a prompt) should end, for the sake of states."""
        stop = C.c_uint64()
        self.cache.check(
            lib.pkv_seq_state_stop(self.handle, n_tokens, C.byref(stop)), "pkv_seq_state_stop"
        )
        return stop.value

    def checkpoint(self) -> None:
        """Keeps the present recurrent state, so that :meth:`truncate` can come back to here."""
        self.cache.check(lib.pkv_seq_checkpoint(self.handle), "pkv_seq_checkpoint")

    def drop_checkpoint(self, n_tokens: int) -> None:
        """Gives up the checkpoint at n_tokens."""
        self.cache.check(
            lib.pkv_seq_drop_checkpoint(self.handle, n_tokens), "pkv_seq_drop_checkpoint"
        )

    def checkpoints(self) -> list[int]:
        """Positions of the checkpoints, ascending."""
        n = C.c_uint32()
        lib.pkv_seq_checkpoints(self.handle, None, 0, C.byref(n))
        found = (C.c_uint64 * max(1, n.value))()
        self.cache.check(
            lib.pkv_seq_checkpoints(self.handle, C.addressof(found), n.value, C.byref(n)),
            "pkv_seq_checkpoints",
        )
        return list(found[: n.value])

    def state(self, state: int = 0) -> int | None:
        """The slot of the present state in a state group; None if the sequence is empty."""
        slot = C.c_uint64()
        self.cache.check(lib.pkv_seq_state(self.handle, state, C.byref(slot)), "pkv_seq_state")
        return slot.value or None

    @property
    def length(self) -> int:
        """Committed tokens."""
        status = lib.pkv_seq_length(self.handle, self._length_ref)
        if status:
            self.cache.check(status, "pkv_seq_length")
        return self._length.value

    def __len__(self) -> int:
        return self.length

    def pin(self, begin: int, end: int) -> None:
        """Keeps tokens [begin, end) from being dropped by eviction."""
        self.cache.check(lib.pkv_seq_pin(self.handle, begin, end), "pkv_seq_pin")

    def unpin(self, begin: int, end: int) -> None:
        """Takes one earlier pin back."""
        self.cache.check(lib.pkv_seq_unpin(self.handle, begin, end), "pkv_seq_unpin")

    def info(self, group: int = 0) -> SeqInfo:
        """Resident, shared and dropped pages in one group."""
        info = SeqInfo(struct_size=C.sizeof(SeqInfo))
        self.cache.check(
            lib.pkv_seq_get_info(self.handle, group, C.byref(info)), "pkv_seq_get_info"
        )
        return info

    def pages(self, group: int, first: int, n: int) -> npt.NDArray[np.uint64]:
        """Physical pages of logical pages [first, first + n): ``[n]``, 0 where not held."""
        pages = np.zeros(n, np.uint64)
        self.cache.check(
            lib.pkv_seq_pages(self.handle, group, first, n, pages.ctypes.data), "pkv_seq_pages"
        )
        return pages

    def read(
        self, layer: int, first: int, n: int, dtype: str = "f32"
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Keys and values of tokens [first, first + n) of a layer: two ``[n, kv_heads, dim]``.

        ``bf16`` comes as uint16 bits.
        """
        group, _ = self.cache.layer_group(layer)
        info = self.cache.group_info(group)
        storage = STORAGE_DTYPES[dtype]
        k = np.empty((n, info.kv_heads, info.head_dim_k), storage)
        v = np.empty((n, info.kv_heads, info.head_dim_v), storage)
        self.cache.check(
            lib.pkv_read(
                self.handle, layer, first, n, RowsOut(k, dtype).ref, RowsOut(v, dtype).ref
            ),
            "pkv_read",
        )
        return k, v

    # prefix index

    def match(self, tokens: npt.ArrayLike) -> Match:
        """The longest known prefix in the sequence's namespace (and under its eviction policy)."""
        ids = integers(tokens, np.int32, "tokens")
        match = Match()
        self.cache.check(
            lib.pkv_seq_match(self.handle, ids.ctypes.data, len(ids), match.ref), "pkv_seq_match"
        )
        return match

    def attach(self, match: Match) -> None:
        """Makes an empty sequence hold the matched tokens."""
        self.cache.check(lib.pkv_seq_attach(self.handle, match.ref), "pkv_seq_attach")

    def attach_prefix(
        self, tokens: npt.ArrayLike, namespace: bytes = b"", claim: int | None = None
    ) -> int:
        """Finds and attaches the longest known prefix of tokens: how many it is. Pass all tokens
        but the last, on which the model must run anyway. With a claim the sequence is admitted,
        too, or nothing is attached and it is :class:`Unsafe`."""
        if namespace:
            self.set_namespace(namespace)
        match = self.match(tokens)
        if claim is not None and match.n_tokens:
            self.admit_attach(match, claim)
        elif claim is not None:
            self.admit(claim)
        elif match.n_tokens:
            self.attach(match)
        return match.n_tokens

    def set_namespace(self, namespace: bytes) -> None:
        """The namespace that this (empty) sequence matches in and publishes to."""
        struct = namespace_of(namespace)
        self.cache.check(lib.pkv_seq_set_namespace(self.handle, struct), "pkv_seq_set_namespace")

    def missing_tokens(self) -> range:
        """Positions of committed tokens whose ids the prefix index still lacks; empty if it wants
        none."""
        first, n = C.c_uint64(), C.c_uint64()
        self.cache.check(
            lib.pkv_seq_missing_tokens(self.handle, C.byref(first), C.byref(n)),
            "pkv_seq_missing_tokens",
        )
        return range(first.value, first.value + n.value)

    def set_tokens(self, first: int, tokens: npt.ArrayLike) -> None:
        """Gives ids of committed tokens from position ``first`` on, the first that is missing."""
        ids = integers(tokens, np.int32, "tokens")
        self.cache.check(
            lib.pkv_seq_set_tokens(self.handle, first, ids.ctypes.data, len(ids)),
            "pkv_seq_set_tokens",
        )

    def set_retention(self, priority: int, ttl_ns: int = 0) -> None:
        """How long pages published from now on are worth keeping (policy "priority")."""
        self.cache.check(
            lib.pkv_seq_set_retention(self.handle, priority, ttl_ns), "pkv_seq_set_retention"
        )

    # admission

    def admit(self, max_tokens: int) -> None:
        """Claims room for max_tokens; :class:`Unsafe` if the state would not stay safe."""
        self.cache.release_dropped(claims=True)
        self.cache.check(lib.pkv_admit(self.handle, max_tokens), "pkv_admit")
        self._claimed = True

    def admit_attach(self, match: Match, max_tokens: int) -> None:
        """:meth:`attach` and :meth:`admit` in one: both, or nothing changes."""
        self.cache.release_dropped(claims=True)
        self.cache.check(
            lib.pkv_admit_attach(self.handle, match.ref, max_tokens), "pkv_admit_attach"
        )
        self._claimed = True

    def admit_release(self) -> None:
        """Gives the claim back."""
        self.cache.check(lib.pkv_admit_release(self.handle), "pkv_admit_release")
        self._claimed = False

    # eviction

    def set_evict(self, policy: EvictPolicy | None, group: int = _FULL_GROUPS) -> None:
        """The sequence's own policy from its next commit on; None = nothing is dropped."""
        self.cache.check(
            lib.pkv_seq_set_evict(self.handle, group, policy.struct if policy else None),
            "pkv_seq_set_evict",
        )
        self._policy = policy
        self.cache.keep(policy)

    def get_evict(self, group: int = 0) -> EvictConfigStruct:
        """The policy in force, with the library's choices filled in."""
        config = EvictConfigStruct(struct_size=C.sizeof(EvictConfigStruct))
        self.cache.check(
            lib.pkv_seq_get_evict(self.handle, group, C.byref(config)), "pkv_seq_get_evict"
        )
        return config

    def position(self, group: int = 0) -> int:
        """Where the next query and key of this group's layers are rotated."""
        position = C.c_uint64()
        self.cache.check(
            lib.pkv_seq_position(self.handle, group, C.byref(position)), "pkv_seq_position"
        )
        return position.value

    def runs(self, group: int = 0) -> list[EvictRun]:
        """Consecutive resident tokens with the same shift, ascending."""
        n = C.c_uint32()
        capacity = 16
        while True:
            runs = (EvictRun * capacity)()
            status = lib.pkv_seq_runs(self.handle, group, runs, capacity, C.byref(n))
            if status == CONSTANTS["ERANGE"] and n.value > capacity:
                capacity = n.value
                continue
            self.cache.check(status, "pkv_seq_runs")
            return list(runs[: n.value])

    def evict_info(self, group: int = 0) -> EvictInfo:
        """Budget, dropped tokens, taint, regret of one group."""
        info = EvictInfo(struct_size=C.sizeof(EvictInfo))
        self.cache.check(
            lib.pkv_seq_evict_info(self.handle, group, C.byref(info)), "pkv_seq_evict_info"
        )
        return info

    @property
    def tainted(self) -> bool:
        """Whether the sequence publishes no further pages."""
        tainted = C.c_uint32()
        self.cache.check(lib.pkv_seq_tainted(self.handle, C.byref(tainted)), "pkv_seq_tainted")
        return bool(tainted.value)

    def page_scores(self, group: int = 0) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """Logical numbers and scores of the resident pages."""
        n = C.c_uint32()
        capacity = self.info(group).resident_pages
        logical, scores = np.zeros(capacity, np.uint32), np.zeros(capacity, np.float32)
        self.cache.check(
            lib.pkv_seq_page_scores(
                self.handle, group, logical.ctypes.data, scores.ctypes.data, capacity, C.byref(n)
            ),
            "pkv_seq_page_scores",
        )
        return logical[: n.value], scores[: n.value]

    def feed_mass(self, mass: npt.ArrayLike, group: int = 0) -> None:
        """Attention mass per resident page, for hosts with their own kernels."""
        array = np.ascontiguousarray(mass, dtype=np.float32)
        self.cache.check(
            lib.pkv_seq_feed_mass(self.handle, group, array.ctypes.data, len(array)),
            "pkv_seq_feed_mass",
        )

    def wants_mass(self, group: int = 0) -> bool:
        """Whether the policy wants attention mass for the next commit."""
        wants = C.c_uint32()
        self.cache.check(
            lib.pkv_seq_wants_mass(self.handle, group, C.byref(wants)), "pkv_seq_wants_mass"
        )
        return bool(wants.value)


def _release_sequence(cache: Cache, handle: SeqHandle) -> int:
    return int(lib.pkv_seq_destroy(handle))
