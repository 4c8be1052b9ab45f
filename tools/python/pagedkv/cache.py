"""The cache: layer groups, limits, statistics."""

from __future__ import annotations

import ctypes as C
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._checks import BOUNDS, integer, integers
from ._library import lib
from ._structs import (
    CONSTANTS,
    AdmitOutlook,
    ConfigStruct,
    Event,
    GroupConfigStruct,
    GroupInfo,
    GroupStats,
    LimitShortfall,
    RopeConfigStruct,
    Stats,
)
from .arrays import DTYPES, PAGE_FORMATS, address
from .errors import InvalidArgument, check, make_error
from .evict import EvictPolicy
from .prefix import Match, PrefixIndex

if TYPE_CHECKING:
    from .batch import Batch
    from .plan import Plan
    from .sequence import Sequence

_STORAGE = {
    "none": CONSTANTS["STORAGE_NONE"],
    "host": CONSTANTS["STORAGE_HOST"],
    "external": CONSTANTS["STORAGE_EXTERNAL"],
}


_LAYOUTS = {"nhd": CONSTANTS["LAYOUT_NHD"], "hnd": CONSTANTS["LAYOUT_HND"]}
#: A release that a finaliser left to its cache: a function of (cache, payload) giving a status.
Dropped = tuple[Callable[["Cache", Any], int], Any]


@dataclass(frozen=True)
class RopeInfo:
    """The rotary embedding that the model applies before keys reach the cache (for "compact")."""

    rotary_dims: int
    theta: float = 10000.0
    interleaved: bool = False
    position_scale: float = 1.0
    frequencies: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Group:
    """Layers with the same geometry and attention span.

    ``layers`` are the model's layer numbers (None: the next ``n_layers``); ``window`` 0 is full
    attention; ``dtype`` is the pages' element type; ``external`` the buffer of "external" storage.
    ``dtype_k`` ("k8", "k4") and ``dtype_v`` ("v8", "v4") quantise full pages; pages that are not
    full stay in ``dtype``.

    With ``state_bytes`` it is a state group: ``n_layers`` recurrent layers that each keep a state
    of so many bytes; ``kv_heads`` and ``head_dim`` are 0, and it stands behind those with pages.
    """

    n_layers: int
    kv_heads: int
    head_dim: int
    q_heads: int = 0
    head_dim_v: int = 0
    window: int = 0
    dtype: str = "f16"
    dtype_k: str | None = None
    dtype_v: str | None = None
    max_pages: int = 0
    layers: SequenceOf[int] | None = None
    rope: RopeInfo | None = None
    external: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    state_bytes: int = 0


def _fill_group(target: GroupConfigStruct, group: Group, keep: list[Any]) -> None:
    target.n_layers = group.n_layers
    target.kv_heads = group.kv_heads
    target.q_heads = group.q_heads
    target.head_dim_k = group.head_dim
    target.head_dim_v = group.head_dim_v
    target.window = group.window
    target.max_pages = group.max_pages
    if group.dtype not in DTYPES:
        raise ValueError(f"dtype {group.dtype!r} is not one of {', '.join(DTYPES)}")
    target.state_bytes = group.state_bytes
    if not group.state_bytes:
        target.dtype = DTYPES[group.dtype]
    for name, value in (("dtype_k", group.dtype_k), ("dtype_v", group.dtype_v)):
        if value is None:
            continue
        if value not in PAGE_FORMATS:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(PAGE_FORMATS)}")
        setattr(target, name, PAGE_FORMATS[value])
    if group.layers is not None:
        if len(group.layers) != group.n_layers:
            raise ValueError(f"{len(group.layers)} layer numbers for {group.n_layers} layers")
        low, high = BOUNDS[C.c_uint32]
        numbers = (C.c_uint32 * len(group.layers))(
            *(integer(n, low, high, "a layer number") for n in group.layers)
        )
        keep.append(numbers)
        target.layers = C.cast(numbers, C.POINTER(C.c_uint32))
    if group.external is not None:
        buffer = group.external
        target.external_base = address(buffer, np.uint8, (buffer.size,), "external", writable=True)
        target.external_bytes = buffer.nbytes


def _fill_ropes(config: ConfigStruct, groups: list[Group], keep: list[Any]) -> None:
    if not any(group.rope for group in groups):
        return
    ropes = (RopeConfigStruct * len(groups))()
    for target, group in zip(ropes, groups):
        if group.rope is None:
            continue
        target.rotary_dims = group.rope.rotary_dims
        target.interleaved = group.rope.interleaved
        target.theta = group.rope.theta
        target.position_scale = group.rope.position_scale
        if group.rope.frequencies is not None:
            table = np.ascontiguousarray(group.rope.frequencies, dtype=np.float64)
            if table.shape != (group.rope.rotary_dims // 2,):
                raise ValueError("frequencies must have rotary_dims / 2 entries")
            keep.append(table)
            target.frequencies = C.cast(table.ctypes.data, C.POINTER(C.c_double))
    keep.append(ropes)
    config.rope = ropes


class Cache:
    """A KV cache (``pkv_cache``). Use it in a ``with`` block or call :meth:`close`.

    groups        one :class:`Group` per kind of layer
    memory_limit  bytes of pages and metadata together
    storage       "host" (the library owns the bytes), "none" (ids only) or "external"
    options       any other scalar field of pkv_config: max_sequences, event_capacity, prefix,
                  signals, isa, debug, region_bytes, watermark_pages, prefix_policy, …
    """

    def __init__(
        self,
        groups: Iterable[Group],
        *,
        page_tokens: int = 16,
        memory_limit: int = 1 << 30,
        storage: str = "host",
        **options: Any,
    ) -> None:
        self._handle: int | None = None
        self.groups = list(groups)
        self._keep: list[Any] = [group.external for group in self.groups]
        self._plans: weakref.WeakSet[Plan] = weakref.WeakSet()
        # sequences and batches: they hold the address of the C object
        self._handles: weakref.WeakSet[Sequence | Batch] = weakref.WeakSet()
        self._dropped: deque[Dropped] = deque()  # what finalisers left to be released
        self._claimed: deque[Dropped] = deque()  # the same of sequences with a claim
        self._leases: dict[int, tuple[int, int]] = {}  # views of pages: (group, page) by number
        self._retired: list[int] = []  # the C object of a closed cache that views still show
        self._callbacks: set[EvictPolicy] = set()  # may be called as long as the cache lives
        config = ConfigStruct()
        check(lib.pkv_config_init(config, C.sizeof(config)), "pkv_config_init")
        temporary: list[Any] = []
        structs = (GroupConfigStruct * max(1, len(self.groups)))()
        for target, group in zip(structs, self.groups):
            _fill_group(target, group, temporary)
        config.groups = structs
        config.n_groups = len(self.groups)
        config.page_tokens = page_tokens
        config.memory_limit = memory_limit
        if storage not in _STORAGE:
            raise ValueError(f"storage {storage!r} is not one of {', '.join(_STORAGE)}")
        config.storage = _STORAGE[storage]
        _fill_ropes(config, self.groups, temporary)
        known = {name for name, *_ in ConfigStruct._fields_} - {
            "struct_size",
            "group_size",
            "rope_size",
            "groups",
            "n_groups",
            "rope",
            "allocator",
            "log",
            "log_user",
            "clock",
            "clock_user",
            "reserved",
        }
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"pkv_config has no option {name!r}")
            if isinstance(value, str):
                value = value.encode()
            if name == "prefix_key":
                value = tuple(integer(n, 0, 2**64 - 1, name) for n in value)
                if len(value) != 2:
                    raise ValueError("prefix_key must be two numbers")
            setattr(config, name, value)
        handle = C.c_void_p()
        status = lib.pkv_cache_create(config, C.byref(handle))
        if status:
            reason = C.create_string_buffer(512)
            lib.pkv_config_check(config, reason, len(reason))
            raise make_error(status, "pkv_cache_create", detail=reason.value.decode())
        self._handle = handle.value
        self.page_tokens = page_tokens
        self.n_groups = sum(not group.state_bytes for group in self.groups)
        #: Group of every model layer.
        self.layer_groups = self._map_layers()
        #: The cache's prefix index: matches, pins, quotas, digests.
        self.prefix = PrefixIndex(self)

    @property
    def handle(self) -> int:
        """Address of the C object."""
        if self._handle is None:
            raise ValueError("the cache is closed")
        return self._handle

    @property
    def closed(self) -> bool:
        return self._handle is None

    def _map_layers(self) -> dict[int, int]:
        """Group by layer number, as the library counts layers."""
        found: dict[int, int] = {}
        for number, group in enumerate(self.groups[: self.n_groups]):
            first = len(found)
            layers = group.layers
            if layers is None:
                layers = range(first, first + group.n_layers)
            found.update({int(layer): number for layer in layers})
        return found

    def close(self) -> None:
        """Destroys the cache with everything in it, its plans first. May be called again. Views of
        page memory stay valid: what they show is released with the last of them."""
        if self._handle is None:
            return
        self.release_dropped(claims=True)
        for plan in list(self._plans):
            plan.close()
        for holder in list(self._handles):
            holder.handle.cache = None
        handle, self._handle = self._handle, None
        self._retired.append(handle)
        self._destroy_retired()

    def _destroy_retired(self) -> None:
        if not self._leases:
            try:
                lib.pkv_cache_destroy(self._retired.pop())
            except IndexError:  # still open, or somebody else was quicker
                pass

    def release_dropped(self, claims: bool = False) -> None:
        """Releases sequences, batches, plans and page views that were dropped without close().

        A finaliser may run on any thread at any moment, also beside :meth:`verify`, so it only
        queues; the next call that makes an object, changes a limit or asks for statistics releases
        (of sequences with a claim: the next call of admission, whose functions read them all)."""
        for queue in (self._dropped, self._claimed) if claims else (self._dropped,):
            for _ in range(len(queue)):
                try:
                    release, payload = queue.popleft()
                except IndexError:
                    break
                if release(self, payload) == CONSTANTS["EBUSY"]:
                    queue.append((release, payload))  # in a batch that was dropped with it

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def __repr__(self) -> str:
        if self._handle is None:
            return f"<Cache of {len(self.groups)} groups, closed>"
        stats = self.stats()
        return (
            f"<Cache of {self.n_groups} groups, {self.page_tokens} tokens per page:"
            f" {stats.sequences} sequences, {stats.pages_used} pages used,"
            f" {stats.pages_cached} cached, limit {stats.memory_limit} bytes>"
        )

    def check(self, status: int, call: str) -> None:
        """Raises the exception of a status with the cache's detail unless it is PKV_OK."""
        if status:
            raise make_error(status, call, self.handle)

    # objects

    def sequence(self) -> Sequence:
        """A new, empty sequence."""
        from .sequence import Sequence

        self.release_dropped()
        return Sequence.create(self)

    def batch(self) -> Batch:
        """Opens a batch: ``with cache.batch() as batch: …``."""
        from .batch import Batch

        self.release_dropped()
        return Batch(self)

    def plan(self, **options: Any) -> Plan:
        """A reusable plan; options are the fields of pkv_plan_options."""
        from .plan import Plan

        self.release_dropped()
        return Plan(self, **options)

    # limits and checks

    def set_limit(self, n_bytes: int) -> None:
        """Changes the memory limit; :class:`Busy` if what is in use does not fit."""
        self.release_dropped()
        self.check(lib.pkv_cache_set_limit(self.handle, n_bytes), "pkv_cache_set_limit")

    def trim(self) -> int:
        """Gives wholly free regions back to the OS; returns the bytes."""
        self.release_dropped()
        given = C.c_uint64()
        self.check(lib.pkv_cache_trim(self.handle, C.byref(given)), "pkv_cache_trim")
        return given.value

    def compact(self, max_bytes: int = 2**64 - 1) -> int:
        """Moves pages together (at most max_bytes of them); returns the bytes moved."""
        self.release_dropped()
        moved = C.c_uint64()
        self.check(
            lib.pkv_cache_compact(self.handle, max_bytes, C.byref(moved)), "pkv_cache_compact"
        )
        return moved.value

    def limit_shortfall(self, n_bytes: int) -> LimitShortfall:
        """What stands in the way of a limit; ``bytes`` is 0 if it would be accepted."""
        self.release_dropped()
        found = LimitShortfall(struct_size=C.sizeof(LimitShortfall))
        self.check(
            lib.pkv_cache_limit_shortfall(self.handle, n_bytes, C.byref(found)),
            "pkv_cache_limit_shortfall",
        )
        return found

    def verify(self) -> None:
        """Walks every invariant; :class:`Corrupt` names the first broken one."""
        self.release_dropped()
        text = C.create_string_buffer(512)
        status = lib.pkv_cache_verify(self.handle, text, len(text))
        if status:
            raise make_error(status, "pkv_cache_verify", detail=text.value.decode())

    def last_error(self) -> tuple[int, str]:
        """Status and detail of the most recent failure."""
        text = C.create_string_buffer(512)
        return lib.pkv_cache_last_error(self.handle, text, len(text)), text.value.decode()

    # inspection

    def stats(self) -> Stats:
        """All counters."""
        self.release_dropped()
        stats = Stats(struct_size=C.sizeof(Stats))
        self.check(lib.pkv_cache_stats(self.handle, C.byref(stats)), "pkv_cache_stats")
        return stats

    def group_stats(self, group: int) -> GroupStats:
        """One group's page counters."""
        stats = GroupStats(struct_size=C.sizeof(GroupStats))
        self.check(
            lib.pkv_cache_group_stats(self.handle, group, C.byref(stats)), "pkv_cache_group_stats"
        )
        return stats

    def group_info(self, group: int) -> GroupInfo:
        """Geometry and byte sizes of a group."""
        info = GroupInfo(struct_size=C.sizeof(GroupInfo))
        self.check(
            lib.pkv_cache_group_info(self.handle, group, C.byref(info)), "pkv_cache_group_info"
        )
        return info

    def _state(self, state: int, slot: int, layer: int) -> npt.NDArray[np.uint8]:
        """The bytes of one layer's state, for as long as the slot is held."""
        where = C.c_void_p()
        self.check(
            lib.pkv_state_address(self.handle, state, slot, layer, C.byref(where)),
            "pkv_state_address",
        )
        size = self.groups[self.n_groups + state].state_bytes
        return np.ctypeslib.as_array((C.c_uint8 * size).from_address(where.value or 0))

    def read_state(self, state: int, slot: int, layer: int) -> npt.NDArray[np.uint8]:
        """A copy of one layer's recurrent state in a slot, as bytes."""
        return self._state(state, slot, layer).copy()

    def write_state(self, state: int, slot: int, layer: int, value: npt.NDArray[Any]) -> None:
        """Writes one layer's recurrent state into a slot that :meth:`Batch.states` gave."""
        target = self._state(state, slot, layer)
        if value.nbytes != target.nbytes:
            raise ValueError(f"{value.nbytes} bytes for a state of {target.nbytes}")
        target[:] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    def layer_group(self, layer: int) -> tuple[int, int]:
        """Group of a model layer and its index inside the group."""
        group, index = C.c_uint32(), C.c_uint32()
        self.check(
            lib.pkv_cache_layer_group(self.handle, layer, C.byref(group), C.byref(index)),
            "pkv_cache_layer_group",
        )
        return group.value, index.value

    def events(self, capacity: int = 1024) -> list[Event]:
        """Takes up to ``capacity`` events out of the ring, oldest first."""
        ring, n = (Event * max(1, capacity))(), C.c_uint32()
        self.check(
            lib.pkv_cache_events(self.handle, ring, capacity, C.byref(n)), "pkv_cache_events"
        )
        return list(ring[: n.value])

    @property
    def kernel(self) -> str:
        """Name of the attention kernel in use."""
        name = C.c_char_p()
        self.check(lib.pkv_kernel_name(self.handle, C.byref(name)), "pkv_kernel_name")
        return (name.value or b"").decode()

    def layout_tag(self, group: int) -> int:
        """Tag of the group's page layout."""
        tag = C.c_uint64()
        self.check(lib.pkv_layout_tag(self.handle, group, C.byref(tag)), "pkv_layout_tag")
        return tag.value

    # eviction

    def set_evict(
        self, policy: EvictPolicy | None, group: int = CONSTANTS["EVICT_FULL_GROUPS"]
    ) -> None:
        """Policy of sequences created from now on; None = nothing is dropped."""
        status = lib.pkv_cache_set_evict(self.handle, group, policy.struct if policy else None)
        if status and policy:
            text = C.create_string_buffer(512)
            lib.pkv_evict_check(self.handle, group, policy.struct, text, len(text))
            raise make_error(status, "pkv_cache_set_evict", detail=text.value.decode())
        self.check(status, "pkv_cache_set_evict")
        self.keep(policy)

    def keep(self, policy: EvictPolicy | None) -> None:
        """Keeps a policy's score function alive as long as the cache."""
        if policy is not None and policy.name == "callback":
            self._callbacks.add(policy)

    # admission

    def admit_probe(self, max_tokens: int, shared_tokens: int = 0) -> tuple[bool, list[int]]:
        """Whether admitting a sequence of max_tokens is safe now; pages missing per group."""
        self.release_dropped(claims=True)
        safe, missing = C.c_uint32(), (C.c_uint32 * self.n_groups)()
        self.check(
            lib.pkv_admit_probe(
                self.handle, max_tokens, shared_tokens, C.byref(safe), missing, self.n_groups
            ),
            "pkv_admit_probe",
        )
        return bool(safe.value), list(missing)

    def admit_probe_match(
        self, match: Match | None, max_tokens: int
    ) -> tuple[AdmitOutlook, list[int]]:
        """What admitting a sequence of max_tokens that attaches a match (None = nothing) would mean
        now: pages of it that others hold cost nothing. Pages missing per group."""
        self.release_dropped(claims=True)
        outlook = AdmitOutlook(struct_size=C.sizeof(AdmitOutlook))
        missing = (C.c_uint32 * self.n_groups)()
        self.check(
            lib.pkv_admit_probe_match(
                self.handle,
                match.ref if match else None,
                max_tokens,
                C.byref(outlook),
                missing,
                self.n_groups,
            ),
            "pkv_admit_probe_match",
        )
        return outlook, list(missing)

    # single pages

    def page_alloc(self, group: int, n: int) -> npt.NDArray[np.uint64]:
        """n pages of a group, all or nothing, one reference each: handles ``[n]``."""
        pages = np.zeros(n, np.uint64)
        self.check(lib.pkv_page_alloc(self.handle, group, n, pages.ctypes.data), "pkv_page_alloc")
        return pages

    def _page_call(self, name: str, group: int, pages: npt.ArrayLike) -> None:
        array = integers(pages, np.uint64, "pages")
        self.check(getattr(lib, name)(self.handle, group, len(array), array.ctypes.data), name)

    def page_ref(self, group: int, pages: npt.ArrayLike) -> None:
        """One more reference to each page, all or nothing."""
        self._page_call("pkv_page_ref", group, pages)

    def page_unref(self, group: int, pages: npt.ArrayLike) -> None:
        """One reference of each page less, all or nothing."""
        self._page_call("pkv_page_unref", group, pages)

    def page_refs(self, group: int, page: int) -> int:
        """References of a page."""
        refs = C.c_uint32()
        self.check(lib.pkv_page_refs(self.handle, group, page, C.byref(refs)), "pkv_page_refs")
        return refs.value

    def page_memory(self, group: int, page: int, layer: int) -> npt.NDArray[np.uint8]:
        """The bytes of one layer's part of a page: a view. It holds a reference to the page, and so
        stays valid, until it and everything made from it is gone."""
        where = C.c_void_p()
        page = int(page)
        self.page_ref(group, [page])
        try:
            self.check(
                lib.pkv_page_address(self.handle, group, page, layer, C.byref(where)),
                "pkv_page_address",
            )
        except BaseException:
            self.page_unref(group, [page])
            raise
        lease = _PageLease(self, group, page, where.value or 0, self.group_info(group).layer_bytes)
        return np.asarray(lease)

    def magazine(self, group: int, capacity: int = 64) -> Magazine:
        """A stack of free pages that one thread at a time uses without locks."""
        self.release_dropped()
        return Magazine(self, group, capacity)

    def page_unpack(self, group: int, page: int, layer: int, layout: str = "nhd") -> bytes:
        """One layer's part of a page in a plain layout: K, then V, ``[token][head][dim]`` ("nhd")
        or ``[head][token][dim]`` ("hnd"), in the page's element type."""
        part, plain = self._page_part(group, page, layer, layout)
        self.check(
            lib.pkv_page_unpack(
                self.handle, group, part.ctypes.data, _LAYOUTS[layout], plain, len(plain)
            ),
            "pkv_page_unpack",
        )
        return bytes(plain)

    def page_pack(self, group: int, page: int, layer: int, data: Any, layout: str = "nhd") -> None:
        """Stores what :meth:`page_unpack` gave (any bytes-like of that size)."""
        part, plain = self._page_part(group, page, layer, layout)
        source = memoryview(data).cast("B")
        if len(source) != len(plain):
            raise ValueError(f"a page's part has {len(plain)} bytes, not {len(source)}")
        plain[:] = source.tobytes()
        self.check(
            lib.pkv_page_pack(
                self.handle, group, part.ctypes.data, _LAYOUTS[layout], plain, len(plain)
            ),
            "pkv_page_pack",
        )

    def _page_part(
        self, group: int, page: int, layer: int, layout: str
    ) -> tuple[npt.NDArray[np.uint8], Any]:
        if layout not in _LAYOUTS:
            raise ValueError(f"layout {layout!r} is not one of {', '.join(_LAYOUTS)}")
        info = self.group_info(group)
        n_bytes = info.token_bytes // info.n_layers * self.page_tokens
        return self.page_memory(group, page, layer), (C.c_uint8 * n_bytes)()


class _PageLease:
    """Owner of a page view: holds one reference to the page and keeps the cache's memory."""

    __slots__ = ("__array_interface__", "_cache", "_number")

    def __init__(self, cache: Cache, group: int, page: int, where: int, size: int) -> None:
        self._cache = cache
        self._number = where if where not in cache._leases else -id(self)
        cache._leases[self._number] = (group, page)
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (where, False),
        }

    def __del__(self) -> None:
        cache = self._cache
        held = cache._leases.pop(self._number, None)
        if held is None:
            return
        if cache.closed:
            cache._destroy_retired()
        else:
            cache._dropped.append((_release_page, held))


def _release_page(cache: Cache, held: Any) -> int:
    group, page = held
    return int(lib.pkv_page_unref(cache.handle, group, 1, C.byref(C.c_uint64(page))))


class Magazine:
    """A magazine of single pages (``pkv_magazine``); one thread at a time."""

    __slots__ = ("__weakref__", "_handle", "cache", "group")

    def __init__(self, cache: Cache, group: int, capacity: int) -> None:
        self._handle: int | None = None
        self.cache, self.group = cache, group
        handle = C.c_void_p()
        cache.check(
            lib.pkv_magazine_create(cache.handle, group, capacity, C.byref(handle)),
            "pkv_magazine_create",
        )
        self._handle = handle.value

    def close(self) -> None:
        """Returns the parked pages. May be called again."""
        if self._handle is not None and not self.cache.closed:
            lib.pkv_magazine_destroy(self._handle)
        self._handle = None

    def __enter__(self) -> Magazine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and not self.cache.closed:
            self.cache._dropped.append((_release_magazine, handle))

    def __repr__(self) -> str:
        closed = self._handle is None or self.cache.closed
        return f"<Magazine of group {self.group}{', closed' if closed else ''}>"

    def _held(self) -> int | None:
        self.cache.handle  # raises if closed
        return self._handle

    def alloc(self) -> int:
        """One page."""
        page = C.c_uint64()
        self.cache.check(lib.pkv_magazine_alloc(self._held(), C.byref(page)), "pkv_magazine_alloc")
        return page.value

    def free(self, page: int) -> None:
        """Releases one reference of a page."""
        self.cache.check(lib.pkv_magazine_free(self._held(), page), "pkv_magazine_free")


def _release_magazine(cache: Cache, handle: Any) -> int:
    lib.pkv_magazine_destroy(handle)
    return 0


def config_bounds(field: str) -> tuple[int, int]:
    """Smallest and largest value of a numeric config field."""
    low, high = C.c_uint64(), C.c_uint64()
    status = lib.pkv_config_bounds(field.encode(), C.byref(low), C.byref(high))
    if status:
        raise InvalidArgument(status, "pkv_config_bounds", f"unknown field {field!r}")
    return low.value, high.value


def kernels() -> list[str]:
    """Attention kernels that this build and CPU can run."""
    found: list[str] = []
    name = C.c_char_p()
    while lib.pkv_kernel_list(len(found), C.byref(name)) == 0:
        found.append((name.value or b"").decode())
    return found
