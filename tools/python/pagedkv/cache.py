"""The cache: layer groups, limits, statistics."""

from __future__ import annotations

import ctypes as C
import weakref
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._library import lib
from ._structs import (
    CONSTANTS,
    ConfigStruct,
    Event,
    GroupConfigStruct,
    GroupInfo,
    GroupStats,
    RopeConfigStruct,
    Stats,
)
from .arrays import DTYPES
from .errors import InvalidArgument, check, make_error
from .evict import EvictPolicy
from .prefix import PrefixIndex

if TYPE_CHECKING:
    from .batch import Batch
    from .plan import Plan
    from .sequence import Sequence

_STORAGE = {
    "none": CONSTANTS["STORAGE_NONE"],
    "host": CONSTANTS["STORAGE_HOST"],
    "external": CONSTANTS["STORAGE_EXTERNAL"],
}


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
    """

    n_layers: int
    kv_heads: int
    head_dim: int
    q_heads: int = 0
    head_dim_v: int = 0
    window: int = 0
    dtype: str = "f16"
    max_pages: int = 0
    layers: SequenceOf[int] | None = None
    rope: RopeInfo | None = None
    external: npt.NDArray[np.uint8] | None = None


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
    target.dtype = DTYPES[group.dtype]
    if group.layers is not None:
        if len(group.layers) != group.n_layers:
            raise ValueError(f"{len(group.layers)} layer numbers for {group.n_layers} layers")
        numbers = (C.c_uint32 * group.n_layers)(*group.layers)
        keep.append(numbers)
        target.layers = C.cast(numbers, C.POINTER(C.c_uint32))
    if group.external is not None:
        target.external_base = group.external.ctypes.data
        target.external_bytes = group.external.nbytes


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
            setattr(config, name, tuple(value) if name == "prefix_key" else value)
        handle = C.c_void_p()
        status = lib.pkv_cache_create(config, C.byref(handle))
        if status:
            reason = C.create_string_buffer(512)
            lib.pkv_config_check(config, reason, len(reason))
            raise make_error(status, "pkv_cache_create", detail=reason.value.decode())
        self._handle = handle.value
        self.page_tokens = page_tokens
        self.n_groups = len(self.groups)
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

    def close(self) -> None:
        """Destroys the cache with everything in it, its plans first. May be called again."""
        if self._handle is not None:
            for plan in list(self._plans):
                plan.close()
            lib.pkv_cache_destroy(self._handle)
            self._handle = None

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

    def check(self, status: int, call: str) -> None:
        """Raises the exception of a status with the cache's detail unless it is PKV_OK."""
        if status:
            raise make_error(status, call, self._handle)

    # objects

    def sequence(self) -> Sequence:
        """A new, empty sequence."""
        from .sequence import Sequence

        return Sequence.create(self)

    def batch(self) -> Batch:
        """Opens a batch: ``with cache.batch() as batch: …``."""
        from .batch import Batch

        return Batch(self)

    def plan(self, **options: Any) -> Plan:
        """A reusable plan; options are the fields of pkv_plan_options."""
        from .plan import Plan

        return Plan(self, **options)

    # limits and checks

    def set_limit(self, n_bytes: int) -> None:
        """Changes the memory limit; :class:`Busy` if what is in use does not fit."""
        self.check(lib.pkv_cache_set_limit(self.handle, n_bytes), "pkv_cache_set_limit")

    def trim(self) -> int:
        """Gives wholly free regions back to the OS; returns the bytes."""
        given = C.c_uint64()
        self.check(lib.pkv_cache_trim(self.handle, C.byref(given)), "pkv_cache_trim")
        return given.value

    def verify(self) -> None:
        """Walks every invariant; :class:`Corrupt` names the first broken one."""
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
        safe, missing = C.c_uint32(), (C.c_uint32 * self.n_groups)()
        self.check(
            lib.pkv_admit_probe(
                self.handle, max_tokens, shared_tokens, C.byref(safe), missing, self.n_groups
            ),
            "pkv_admit_probe",
        )
        return bool(safe.value), list(missing)

    # single pages

    def page_alloc(self, group: int, n: int) -> npt.NDArray[np.uint64]:
        """n pages of a group, all or nothing, one reference each: handles ``[n]``."""
        pages = np.zeros(n, np.uint64)
        self.check(lib.pkv_page_alloc(self.handle, group, n, pages.ctypes.data), "pkv_page_alloc")
        return pages

    def _page_call(self, name: str, group: int, pages: npt.ArrayLike) -> None:
        array = np.ascontiguousarray(pages, dtype=np.uint64)
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
        """The bytes of one layer's part of a page (a view, valid while the page is held)."""
        where = C.c_void_p()
        self.check(
            lib.pkv_page_address(self.handle, group, page, layer, C.byref(where)),
            "pkv_page_address",
        )
        size = self.group_info(group).layer_bytes
        return np.ctypeslib.as_array(C.cast(where, C.POINTER(C.c_uint8)), (size,))


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
