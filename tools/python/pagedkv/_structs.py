"""The C structures of the public headers, field by field. ``tests/test_abi.py`` compares every one
of them (sizes, offsets) and every constant with what a C compiler says."""

from __future__ import annotations

import ctypes as C
from typing import Any, ClassVar

from ._checks import BOUNDS, integer

u32, u64, i32, i64 = C.c_uint32, C.c_uint64, C.c_int32, C.c_int64
size, diff, f32, f64, ptr, text = (
    C.c_size_t,
    C.c_ssize_t,
    C.c_float,
    C.c_double,
    C.c_void_p,
    C.c_char_p,
)

#: Named constants: ``PKV_`` + name in the headers.
CONSTANTS: dict[str, int] = {
    "OK": 0,
    "EINVAL": -1,
    "ENOMEM": -2,
    "ENOPAGES": -3,
    "ESTALE": -4,
    "EFOREIGN": -5,
    "EBUSY": -6,
    "ESTATE": -7,
    "ERANGE": -8,
    "ENOTSUP": -9,
    "EDROPPED": -10,
    "ECORRUPT": -11,
    "EVERSION": -12,
    "EUNSAFE": -13,
    "EIO": -14,
    "DTYPE_F32": 1,
    "DTYPE_F16": 2,
    "DTYPE_BF16": 3,
    "DTYPE_K8": 4,
    "DTYPE_K4": 5,
    "DTYPE_V8": 6,
    "DTYPE_V4": 7,
    "STORAGE_DEFAULT": 0,
    "STORAGE_HOST": 1,
    "STORAGE_EXTERNAL": 2,
    "STORAGE_NONE": 3,
    "SIGNAL_BOUNDS": 1,
    "SIGNAL_KEYSUM": 2,
    "DEBUG_POISON": 1,
    "DEBUG_CHECKSUM": 2,
    "LAYOUT_NHD": 1,
    "LAYOUT_HND": 2,
    "EVENT_PAGE_ALLOC": 1,
    "EVENT_PAGE_FREE": 2,
    "EVENT_PAGE_SHARE": 3,
    "EVENT_PAGE_COPY": 4,
    "EVENT_PAGE_SEAL": 5,
    "EVENT_PAGE_PUBLISH": 6,
    "EVENT_PAGE_EVICT": 7,
    "EVENT_PAGE_RECLAIM": 8,
    "EVENT_PAGE_WINDOW": 9,
    "EVENT_REGION_MAP": 10,
    "EVENT_REGION_UNMAP": 11,
    "EVENT_LIMIT": 12,
    "EVENT_EVICT_REGRET": 13,
    "EVICT_NONE": 0,
    "EVICT_WINDOW": 1,
    "EVICT_SINK": 2,
    "EVICT_MASS": 3,
    "EVICT_OBS": 4,
    "EVICT_KEYDIFF": 5,
    "EVICT_LRU_MASS": 6,
    "EVICT_RANDOM": 7,
    "EVICT_CALLBACK": 8,
    "EVICT_TOPK": 9,
    "EVICT_FULL_GROUPS": 0xFFFFFFFF,
    "EVICT_AUTO": 0xFFFFFFFF,
    "BUDGET_TOKENS": 0,
    "BUDGET_PAGES": 1,
    "BUDGET_BYTES": 2,
    "POSITION_ORIGINAL": 0,
    "POSITION_COMPACT": 1,
}


def _is_reserved(name: str) -> bool:
    return name.startswith("reserved")


class Struct(C.Structure):
    """A C structure that prints its fields, and whose integers take no value that does not fit."""

    #: Name in the headers.
    c_name: ClassVar[str] = ""

    def __setattr__(self, name: str, value: Any) -> None:
        bounds = _bounds_of(type(self)).get(name)
        if bounds is not None:
            value = integer(value, *bounds, f"{self.c_name}.{name}")
        super().__setattr__(name, value)

    def as_dict(self) -> dict[str, int | float]:
        """Public scalar fields by name."""
        return {
            name: getattr(self, name)
            for name, *_ in self._fields_
            if name != "struct_size" and not _is_reserved(name)
        }

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value}" for key, value in self.as_dict().items())
        return f"{type(self).__name__}({inner})"


_field_bounds: dict[type[Struct], dict[str, tuple[int, int]]] = {}


def _bounds_of(struct: type[Struct]) -> dict[str, tuple[int, int]]:
    """What the integer fields of a structure hold, by name."""
    found = _field_bounds.get(struct)
    if found is None:
        found = {name: BOUNDS[kind] for name, kind, *_ in struct._fields_ if kind in BOUNDS}
        _field_bounds[struct] = found
    return found


class SeqHandle(Struct):
    c_name = "pkv_seq"
    _fields_ = [("cache", ptr), ("id", u64)]


class BatchHandle(Struct):
    c_name = "pkv_batch"
    _fields_ = [("cache", ptr), ("id", u64)]


class GroupConfigStruct(Struct):
    c_name = "pkv_group_config"
    _fields_ = [
        ("n_layers", u32),
        ("kv_heads", u32),
        ("q_heads", u32),
        ("head_dim_k", u32),
        ("head_dim_v", u32),
        ("window", u32),
        ("dtype", i32),
        ("max_pages", u32),
        ("layers", C.POINTER(u32)),
        ("external_base", ptr),
        ("external_bytes", size),
        ("dtype_k", i32),
        ("dtype_v", i32),
        ("storage", i32),
        ("page_tokens", u32),
        ("v_in_k", u32),
        ("chunk", u32),
        ("state_bytes", u64),
        ("reserved", u64 * 8),
    ]


class RopeConfigStruct(Struct):
    c_name = "pkv_rope_config"
    _fields_ = [
        ("rotary_dims", u32),
        ("interleaved", u32),
        ("theta", f64),
        ("position_scale", f64),
        ("frequencies", C.POINTER(f64)),
        ("reserved", u64 * 4),
    ]


class ConfigStruct(Struct):
    c_name = "pkv_config"
    _fields_ = [
        ("struct_size", size),
        ("group_size", size),
        ("rope_size", size),
        ("groups", C.POINTER(GroupConfigStruct)),
        ("n_groups", u32),
        ("page_tokens", u32),
        ("storage", i32),
        ("debug", u32),
        ("memory_limit", u64),
        ("region_bytes", u64),
        ("max_sequences", u32),
        ("max_batches", u32),
        ("event_capacity", u32),
        ("prefix", u32),
        ("huge_pages", u32),
        ("numa_node", i32),
        ("watermark_pages", u32),
        ("fork_policy", u32),
        ("allocator", ptr),
        ("log", ptr),
        ("log_user", ptr),
        ("clock", ptr),
        ("clock_user", ptr),
        ("isa", text),
        ("rope", C.POINTER(RopeConfigStruct)),
        ("signals", u32),
        ("prefix_policy", text),
        ("prefix_key", u64 * 2),
        ("reserved", u64 * 8),
    ]


class GroupInfo(Struct):
    """What a layer group looks like after creation (``pkv_group_info``)."""

    c_name = "pkv_group_info"
    _fields_ = [
        ("struct_size", size),
        ("n_layers", u32),
        ("kv_heads", u32),
        ("q_heads", u32),
        ("head_dim_k", u32),
        ("head_dim_v", u32),
        ("window", u32),
        ("dtype", i32),
        ("pages_per_region", u32),
        ("page_bytes", u64),
        ("layer_bytes", u64),
        ("token_bytes", u64),
        ("dtype_k", i32),
        ("dtype_v", i32),
        ("storage", i32),
        ("page_tokens", u32),
        ("open_page_bytes", u64),
    ]


class StateInfo(Struct):
    c_name = "pkv_state_info"
    _fields_ = [
        ("struct_size", size),
        ("n_layers", u32),
        ("group", u32),
        ("state_bytes", u64),
        ("layer_bytes", u64),
        ("slot_bytes", u64),
        ("slots_used", u64),
        ("slots_free", u64),
        ("slots_total", u64),
        ("slots_cached", u64),
        ("reserved", u64 * 3),
    ]


class SeqInfo(Struct):
    """State of a sequence in one group (``pkv_seq_info``)."""

    c_name = "pkv_seq_info"
    _fields_ = [
        ("struct_size", size),
        ("length", u64),
        ("resident_tokens", u64),
        ("resident_pages", u32),
        ("shared_pages", u32),
        ("dropped_pages", u32),
        ("in_batch", u32),
    ]


class CopyStruct(Struct):
    """A page to copy before the step (``pkv_copy``)."""

    c_name = "pkv_copy"
    _fields_ = [("group", u32), ("n_tokens", u32), ("src", u64), ("dst", u64), ("reserved", u64)]


class OpenPageStruct(Struct):
    """An open page that gets new tokens in a step (``pkv_open_page``)."""

    c_name = "pkv_open_page"
    _fields_ = [
        ("logical", u32),
        ("n_tokens", u32),
        ("open", u64),
        ("sealed", u64),
        ("from", u64),
        ("fill", u32),
        ("reserved", u32 * 3),
    ]


class SlotCopyStruct(Struct):
    """Slots that a kept path of a tree moves (``pkv_slot_copy``)."""

    c_name = "pkv_slot_copy"
    _fields_ = [
        ("group", u32),
        ("open", u32),
        ("src", u64),
        ("dst", u64),
        ("src_slot", u32),
        ("dst_slot", u32),
        ("n_tokens", u32),
        ("reserved", u32 * 3),
    ]


class BlockRow(Struct):
    c_name = "pkv_block_row"
    _fields_ = [("opaque", u64 * 4)]


class BlockTableStruct(Struct):
    c_name = "pkv_block_table"
    _fields_ = [
        ("struct_size", size),
        ("data", ptr),
        ("n_rows", u32),
        ("row_stride", u32),
        ("rows", ptr),
        ("state", ptr),
        ("hole", i32),
        ("reserved32", u32),
        ("reserved", u64 * 4),
    ]


class RowsStruct(Struct):
    """Made once per array and call, so without a check: plans compare whole shapes."""

    c_name = "pkv_rows"
    __setattr__ = C.Structure.__setattr__
    _fields_ = [
        ("data", ptr),
        ("dtype", i32),
        ("heads", u32),
        ("dim", u32),
        ("token_stride", diff),
        ("head_stride", diff),
        ("reserved", u64 * 2),
    ]


class RowsOutStruct(Struct):
    c_name = "pkv_rows_out"
    __setattr__ = C.Structure.__setattr__
    _fields_ = RowsStruct._fields_


class PlanOptionsStruct(Struct):
    c_name = "pkv_plan_options"
    _fields_ = [
        ("struct_size", size),
        ("scale", f32),
        ("softcap", f32),
        ("alibi_slopes", C.POINTER(f32)),
        ("sinks", C.POINTER(f32)),
        ("sinks_stride", u32),
        ("concurrent_layers", u32),
        ("cascade", u32),
        ("mass", u32),
        ("max_threads", u32),
        ("reserved", u64 * 8),
    ]


class Stats(Struct):
    """Counters of a cache (``pkv_stats``)."""

    c_name = "pkv_stats"
    _fields_ = (
        [("struct_size", size)]
        + [
            (name, u64)
            for name in (
                "memory_limit",
                "region_bytes",
                "metadata_bytes",
                "metadata_bytes_allocator",
                "metadata_bytes_peak",
                "region_bytes_peak",
                "pages_total",
                "pages_used",
                "pages_cached",
                "pages_free",
                "pages_shared",
                "bytes_used",
                "bytes_live",
                "sequences",
                "batches",
                "tokens",
                "page_allocs",
                "page_frees",
                "page_copies",
                "pages_sealed",
                "pages_evicted",
                "pages_reclaimed",
                "pages_window_released",
                "reserve_failures",
                "events_dropped",
                "prefix_lookups",
                "prefix_tokens_asked",
                "prefix_tokens_hit",
                "prefix_nodes",
                "evict_regret_steps",
                "evict_regret_checks",
                "bytes_held",
                "pages_unbacked",
                "regions",
                "regions_split",
            )
        ]
        + [("reserved", u64 * 4)]
        + [
            (name, u64)
            for name in ("pages_open", "bytes_open", "vectors_flagged", "pages_unsealed")
        ]
    )


class LimitShortfall(Struct):
    """What stands in the way of a limit, in bytes (``pkv_limit_shortfall``)."""

    c_name = "pkv_limit_shortfall"
    _fields_ = (
        [("struct_size", size)]
        + [
            (name, u64)
            for name in (
                "bytes",
                "needed",
                "sequences",
                "host",
                "magazines",
                "metadata",
                "cached",
            )
        ]
        + [("reserved", u64 * 4)]
    )


class GroupStats(Struct):
    """One group's share of the counters (``pkv_group_stats``)."""

    c_name = "pkv_group_stats"
    _fields_ = [("struct_size", size)] + [
        (name, u64)
        for name in (
            "pages_total",
            "pages_used",
            "pages_cached",
            "pages_free",
            "page_bytes",
            "regions",
            "pages_open",
            "open_page_bytes",
        )
    ]


class Event(Struct):
    """One entry of the event ring (``pkv_event``)."""

    c_name = "pkv_event"
    _fields_ = [
        ("number", u64),
        ("time_ns", u64),
        ("aux", u64),
        ("page", u64),
        ("seq", u64),
        ("group", u32),
        ("kind", i32),
        ("reserved", u64 * 2),
    ]


#: float score callback of PKV_EVICT_CALLBACK: (user, seq, group, n_tokens, logical, scores, n).
SCORE_FN = C.CFUNCTYPE(None, ptr, SeqHandle, u32, u64, C.POINTER(u32), C.POINTER(f32), u32)


class EvictConfigStruct(Struct):
    c_name = "pkv_evict_config"
    _fields_ = [
        ("struct_size", size),
        ("kind", i32),
        ("budget_unit", i32),
        ("budget", u64),
        ("sinks", u32),
        ("window", u32),
        ("position_mode", i32),
        ("gamma", f32),
        ("normalize_age", u32),
        ("obs_rows", u32),
        ("epsilon", f32),
        ("pool", u32),
        ("seed", u64),
        ("score", SCORE_FN),
        ("score_user", ptr),
        ("journal_steps", u32),
        ("regret", u32),
        ("regret_pages", u32),
        ("regret_every", u32),
        ("regret_rank", u32),
        ("mass_every", u32),
        ("reserved", u64 * 8),
    ]


class EvictRun(Struct):
    """Consecutive resident tokens with the same shift (``pkv_evict_run``)."""

    c_name = "pkv_evict_run"
    _fields_ = [("first", u64), ("n_tokens", u64), ("shift", u64), ("reserved", u64)]


class EvictInfo(Struct):
    """Eviction state of a sequence in one group (``pkv_evict_info``)."""

    c_name = "pkv_evict_info"
    _fields_ = [
        ("struct_size", size),
        ("kind", i32),
        ("position_mode", i32),
        ("budget_pages", u32),
        ("sink_pages", u32),
        ("window_pages", u32),
        ("resident_pages", u32),
        ("journal_pages", u32),
        ("tainted", u32),
    ] + [
        (name, u64)
        for name in (
            "dropped_tokens",
            "pages_evicted",
            "pages_restored",
            "salt",
            "mass_steps",
            "regret_checks",
            "regrets",
            "regret_steps",
        )
    ]


class NamespaceStruct(Struct):
    c_name = "pkv_namespace"
    _fields_ = [("bytes", ptr), ("size", size)]


class MatchStruct(Struct):
    c_name = "pkv_match"
    _fields_ = [
        ("struct_size", size),
        ("cache", ptr),
        ("n_tokens", u64),
        ("n_pages", u32),
        ("partial_tokens", u32),
        ("opaque", u64 * 9),
    ]


class AdmitOutlook(Struct):
    """What admitting a sequence would mean: ``safe``, and bytes of pages that everybody may still
    take (``claimed_bytes``) beside those that there are for it (``available_bytes``)."""

    c_name = "pkv_admit_outlook"
    _fields_ = [
        ("struct_size", size),
        ("safe", u32),
        ("reserved32", u32),
        ("claimed_bytes", u64),
        ("available_bytes", u64),
        ("reserved", u64 * 4),
    ]


class PrefixQuotaStruct(Struct):
    c_name = "pkv_prefix_quota"
    _fields_ = [("struct_size", size), ("share", u64), ("max", u64), ("reserved", u64 * 2)]


class PrefixNodeStruct(Struct):
    c_name = "pkv_prefix_node"
    _fields_ = [
        ("id", u64),
        ("groups", u64),
        ("salt", u64),
        ("parent", u32),
        ("depth", u32),
        ("reserved", u64 * 2),
    ]


class PrefixStats(Struct):
    """Counters of a namespace (``pkv_prefix_stats``)."""

    c_name = "pkv_prefix_stats"
    _fields_ = (
        [("struct_size", size)]
        + [
            (name, u64)
            for name in (
                "lookups",
                "tokens_asked",
                "tokens_hit",
                "pages",
                "pages_published",
                "pages_reclaimed",
                "pages_duplicate",
                "pins",
            )
        ]
        + [("reserved", u64 * 6)]
    )


class DigestStruct(Struct):
    c_name = "pkv_digest"
    _fields_ = [("bytes", C.c_uint8 * 32)]


class IndexConfigStruct(Struct):
    c_name = "pkv_index_config"
    _fields_ = [
        ("struct_size", size),
        ("pages", u64),
        ("policy", text),
        ("memory_limit", u64),
        ("allocator", ptr),
        ("key", u64 * 2),
        ("dense_ids", size),
        ("reserved", u64 * 7),
    ]


class IndexStats(Struct):
    """Counters of a free-standing index (``pkv_index_stats``)."""

    c_name = "pkv_index_stats"
    _fields_ = [
        ("struct_size", size),
        ("pages", u64),
        ("nodes", u64),
        ("metadata_bytes", u64),
        ("requests", u64),
        ("reserved", u64 * 4),
    ]


#: Every structure the tests compare with the headers.
STRUCTS: tuple[type[Struct], ...] = (
    SeqHandle,
    BatchHandle,
    GroupConfigStruct,
    RopeConfigStruct,
    ConfigStruct,
    GroupInfo,
    SeqInfo,
    CopyStruct,
    OpenPageStruct,
    SlotCopyStruct,
    StateInfo,
    BlockRow,
    BlockTableStruct,
    RowsStruct,
    RowsOutStruct,
    PlanOptionsStruct,
    Stats,
    LimitShortfall,
    GroupStats,
    Event,
    EvictConfigStruct,
    EvictRun,
    EvictInfo,
    NamespaceStruct,
    MatchStruct,
    AdmitOutlook,
    PrefixQuotaStruct,
    PrefixNodeStruct,
    PrefixStats,
    DigestStruct,
    IndexConfigStruct,
    IndexStats,
)
