"""The prefix index: matches, pins, quotas and digests, and the index on its own for block ids."""

from __future__ import annotations

import ctypes as C
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ._checks import U32_MAX, integer, integers
from ._library import lib
from ._structs import (
    IndexConfigStruct,
    IndexStats,
    MatchStruct,
    NamespaceStruct,
    PrefixQuotaStruct,
    PrefixStats,
)
from .errors import check, make_error

if TYPE_CHECKING:
    from .cache import Cache

#: Priority of a pin that never gives way.
PIN_FIRM = 101


def namespace_of(namespace: bytes) -> NamespaceStruct | None:
    """The C form of a namespace; b"" is the default one. The bytes are kept alive by it."""
    if not namespace:
        return None
    buffer = C.create_string_buffer(namespace, len(namespace))
    struct = NamespaceStruct(C.addressof(buffer), len(namespace))
    struct._buffer = buffer
    return struct


class Match:
    """What a match found: plain data, nothing is held by it."""

    __slots__ = ("ref", "struct")

    def __init__(self) -> None:
        self.struct = MatchStruct(struct_size=C.sizeof(MatchStruct))
        self.ref = C.byref(self.struct)

    @property
    def n_tokens(self) -> int:
        """Tokens that attaching would give; 0 = no hit."""
        return int(self.struct.n_tokens)

    @property
    def n_pages(self) -> int:
        """Full pages among them."""
        return int(self.struct.n_pages)

    @property
    def partial_tokens(self) -> int:
        """Tokens of one more, partly usable page."""
        return int(self.struct.partial_tokens)

    def __repr__(self) -> str:
        return (
            f"Match(n_tokens={self.n_tokens}, n_pages={self.n_pages},"
            f" partial_tokens={self.partial_tokens})"
        )


class PrefixIndex:
    """A cache's prefix index (``cache.prefix``)."""

    def __init__(self, cache: Cache) -> None:
        import weakref

        self._cache_ref = weakref.ref(cache)

    @property
    def _cache(self) -> Cache:
        cache = self._cache_ref()
        if cache is None:
            raise ValueError("the cache is gone")
        return cache

    def __repr__(self) -> str:
        cache = self._cache_ref()
        return f"<PrefixIndex of {cache!r}>"

    def match(self, tokens: npt.ArrayLike, namespace: bytes = b"") -> Match:
        """The longest known prefix of tokens ``[n]`` in a namespace."""
        ids = integers(tokens, np.int32, "tokens")
        match = Match()
        cache = self._cache
        cache.check(
            lib.pkv_prefix_match(
                cache.handle, namespace_of(namespace), ids.ctypes.data, len(ids), match.ref
            ),
            "pkv_prefix_match",
        )
        return match

    def pin(self, match: Match, priority: int = 50, ttl_ns: int = 0) -> int:
        """Keeps matched pages from being reclaimed; returns the pin."""
        pin, cache = C.c_uint64(), self._cache
        cache.check(
            lib.pkv_prefix_pin(cache.handle, match.ref, priority, ttl_ns, C.byref(pin)),
            "pkv_prefix_pin",
        )
        return pin.value

    def unpin(self, pin: int) -> None:
        """Releases a pin; :class:`StaleHandle` if it ran out or gave way."""
        cache = self._cache
        cache.check(lib.pkv_prefix_unpin(cache.handle, pin), "pkv_prefix_unpin")

    def drop(self, namespace: bytes = b"") -> int:
        """Forgets everything published in a namespace; returns the pages freed."""
        pages, cache = C.c_uint64(), self._cache
        cache.check(
            lib.pkv_prefix_drop(cache.handle, namespace_of(namespace), C.byref(pages)),
            "pkv_prefix_drop",
        )
        return pages.value

    def set_quota(self, namespace: bytes, share: int, maximum: int = 0) -> None:
        """Pages per group that a namespace may keep (share) and may have published (maximum)."""
        quota = PrefixQuotaStruct(C.sizeof(PrefixQuotaStruct), share, maximum)
        cache = self._cache
        cache.check(
            lib.pkv_prefix_set_quota(cache.handle, namespace_of(namespace), C.byref(quota)),
            "pkv_prefix_set_quota",
        )

    def stats(self, namespace: bytes = b"") -> PrefixStats:
        """Counters of a namespace."""
        stats, cache = PrefixStats(struct_size=C.sizeof(PrefixStats)), self._cache
        cache.check(
            lib.pkv_prefix_get_stats(cache.handle, namespace_of(namespace), C.byref(stats)),
            "pkv_prefix_get_stats",
        )
        return stats

    def reclaim(self, group: int, n: int) -> int:
        """Frees up to n cached pages that nobody holds; returns how many."""
        freed, cache = C.c_uint64(), self._cache
        cache.check(
            lib.pkv_prefix_reclaim(cache.handle, group, n, C.byref(freed)), "pkv_prefix_reclaim"
        )
        return freed.value

    def digests(self, match: Match) -> list[bytes]:
        """Stable 32-byte digests of the full pages of a match."""
        out = np.zeros((match.n_pages, 32), np.uint8)
        cache = self._cache
        cache.check(
            lib.pkv_prefix_digests(cache.handle, match.ref, out.ctypes.data, match.n_pages),
            "pkv_prefix_digests",
        )
        return [row.tobytes() for row in out]


def digest_tokens(tokens: npt.ArrayLike, page_tokens: int, namespace: bytes = b"") -> list[bytes]:
    """Digests of the full pages of tokens, whether published or not."""
    ids = integers(tokens, np.int32, "tokens")
    page_tokens = integer(page_tokens, 1, U32_MAX, "page_tokens")
    out = np.zeros((len(ids) // page_tokens, 32), np.uint8)
    check(
        lib.pkv_digest_tokens(
            namespace_of(namespace),
            page_tokens,
            ids.ctypes.data,
            len(ids),
            out.ctypes.data,
            len(out),
        ),
        "pkv_digest_tokens",
    )
    return [row.tobytes() for row in out]


def prefix_policies() -> dict[str, bool]:
    """Replacement policies by name, and whether each is offline (needs the future)."""
    found: dict[str, bool] = {}
    offline = C.c_uint32()
    while (name := lib.pkv_policy_name(len(found), C.byref(offline))) is not None:
        found[name.decode()] = bool(offline.value)
    return found


class BlockIndex:
    """The prefix index without a cache, for replaying traces of block ids."""

    def __init__(self, pages: int | None = None, policy: str | None = None) -> None:
        self._handle: int | None = None
        config = IndexConfigStruct()
        check(lib.pkv_index_config_init(config, C.sizeof(config)), "pkv_index_config_init")
        if pages is not None:
            config.pages = pages
        if policy is not None:
            config.policy = policy.encode()
        handle = C.c_void_p()
        check(lib.pkv_index_create(config, C.byref(handle)), "pkv_index_create")
        self._handle = handle.value

    def __repr__(self) -> str:
        if self._handle is None:
            return "<BlockIndex, closed>"
        stats = self.stats()
        return f"<BlockIndex of {stats.pages} pages, {stats.nodes} nodes>"

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def close(self) -> None:
        """Destroys the index. May be called again."""
        if self._handle is not None:
            lib.pkv_index_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> BlockIndex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def replay(
        self, ids: npt.ArrayLike, next_use: npt.ArrayLike | None = None, partial_last: bool = False
    ) -> int:
        """One request of block ids ``[n]``: how many leading ones were resident."""
        blocks = integers(ids, np.uint64, "ids")
        future = None if next_use is None else integers(next_use, np.uint32, "next_use")
        if future is not None and future.shape != blocks.shape:
            raise ValueError("next_use must have one entry per block")
        hits = C.c_uint32()
        check(
            lib.pkv_index_replay(
                self._handle,
                blocks.ctypes.data,
                len(blocks),
                None if future is None else future.ctypes.data,
                int(partial_last),
                C.byref(hits),
            ),
            "pkv_index_replay",
        )
        return hits.value

    def match(self, ids: npt.ArrayLike) -> int:
        """Leading blocks that are resident; changes nothing."""
        blocks, hits = integers(ids, np.uint64, "ids"), C.c_uint32()
        check(
            lib.pkv_index_match(self._handle, blocks.ctypes.data, len(blocks), C.byref(hits)),
            "pkv_index_match",
        )
        return hits.value

    def stats(self) -> IndexStats:
        """Resident pages, remembered nodes, metadata."""
        stats = IndexStats(struct_size=C.sizeof(IndexStats))
        check(lib.pkv_index_get_stats(self._handle, C.byref(stats)), "pkv_index_get_stats")
        return stats

    def verify(self) -> None:
        """Walks every invariant; :class:`Corrupt` names the first broken one."""
        text = C.create_string_buffer(512)
        status = lib.pkv_index_verify(self._handle, text, len(text))
        if status:
            raise make_error(status, "pkv_index_verify", detail=text.value.decode())
