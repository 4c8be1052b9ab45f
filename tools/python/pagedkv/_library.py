"""Finds and loads ``libpagedkv.so`` and declares every public function's argument types."""

from __future__ import annotations

import ctypes as C
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ._checks import checked
from ._structs import (
    AdmitOutlook,
    BatchHandle,
    BlockTableStruct,
    ConfigStruct,
    CopyStruct,
    Event,
    EvictConfigStruct,
    EvictInfo,
    EvictRun,
    GroupInfo,
    GroupStats,
    IndexConfigStruct,
    IndexStats,
    LimitShortfall,
    MatchStruct,
    NamespaceStruct,
    OpenPageStruct,
    PlanOptionsStruct,
    PrefixQuotaStruct,
    PrefixStats,
    RowsOutStruct,
    RowsStruct,
    SeqHandle,
    SeqInfo,
    SlotCopyStruct,
    StateInfo,
    Stats,
    i32,
    ptr,
    size,
    text,
    u32,
    u64,
)

#: Version of the C API that this binding speaks (major, minor).
API_VERSION = (0, 2)

_P = C.POINTER
_BUF = ptr  # arrays are passed by address: numpy's is an int, and no object is built for it
_SEQ, _BATCH = SeqHandle, BatchHandle

#: name -> (result, arguments). "status" results are checked by the callers.
SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    # version.h, status.h, types.h
    "pkv_version": (u32, ()),
    "pkv_version_string": (text, ()),
    "pkv_status_text": (text, (i32,)),
    "pkv_status_name": (text, (i32,)),
    "pkv_dtype_size": (size, (i32,)),
    "pkv_dtype_name": (text, (i32,)),
    # config.h
    "pkv_config_init": (i32, (_P(ConfigStruct), size)),
    "pkv_config_bounds": (i32, (text, _P(u64), _P(u64))),
    "pkv_config_check": (i32, (_P(ConfigStruct), _BUF, size)),
    # cache.h
    "pkv_cache_create": (i32, (_P(ConfigStruct), _P(ptr))),
    "pkv_cache_destroy": (None, (ptr,)),
    "pkv_cache_set_limit": (i32, (ptr, u64)),
    "pkv_cache_trim": (i32, (ptr, _P(u64))),
    "pkv_cache_compact": (i32, (ptr, u64, _P(u64))),
    "pkv_cache_compact_with": (i32, (ptr, u64, ptr, ptr, _P(u64))),
    "pkv_cache_limit_shortfall": (i32, (ptr, u64, _P(LimitShortfall))),
    "pkv_cache_verify": (i32, (ptr, _BUF, size)),
    "pkv_cache_last_error": (i32, (ptr, _BUF, size)),
    "pkv_cache_group_info": (i32, (ptr, u32, _P(GroupInfo))),
    "pkv_cache_group_count": (i32, (ptr, _P(u32))),
    "pkv_cache_layer_group": (i32, (ptr, u32, _P(u32), _P(u32))),
    # page.h
    "pkv_page_alloc": (i32, (ptr, u32, u32, _BUF)),
    "pkv_page_ref": (i32, (ptr, u32, u32, _BUF)),
    "pkv_page_unref": (i32, (ptr, u32, u32, _BUF)),
    "pkv_page_refs": (i32, (ptr, u32, u64, _P(u32))),
    "pkv_page_address": (i32, (ptr, u32, u64, u32, _P(ptr))),
    "pkv_magazine_create": (i32, (ptr, u32, u32, _P(ptr))),
    "pkv_magazine_destroy": (None, (ptr,)),
    "pkv_magazine_alloc": (i32, (ptr, _P(u64))),
    "pkv_magazine_free": (i32, (ptr, u64)),
    # sequence.h
    "pkv_seq_create": (i32, (ptr, _P(_SEQ))),
    "pkv_seq_destroy": (i32, (_SEQ,)),
    "pkv_seq_fork": (i32, (_SEQ, _P(_SEQ))),
    "pkv_seq_truncate": (i32, (_SEQ, u64)),
    "pkv_seq_length": (i32, (_SEQ, _P(u64))),
    "pkv_seq_pin": (i32, (_SEQ, u64, u64)),
    "pkv_seq_unpin": (i32, (_SEQ, u64, u64)),
    "pkv_seq_get_info": (i32, (_SEQ, u32, _P(SeqInfo))),
    "pkv_seq_pages": (i32, (_SEQ, u32, u32, u32, _BUF)),
    # batch.h
    "pkv_batch_begin": (i32, (ptr, _P(_BATCH))),
    "pkv_batch_add": (i32, (_BATCH, _SEQ, _BUF, u32)),
    "pkv_batch_set_tokens": (i32, (_BATCH, u32, _BUF, u32)),
    "pkv_batch_remove": (i32, (_BATCH, u32)),
    "pkv_batch_reserve": (i32, (_BATCH,)),
    "pkv_batch_shortfall": (i32, (_BATCH, _BUF, u32)),
    "pkv_batch_commit": (i32, (_BATCH,)),
    "pkv_batch_commit_partial": (i32, (_BATCH, _BUF, u32)),
    "pkv_batch_commit_paths": (i32, (_BATCH, _BUF, _BUF, u32)),
    "pkv_batch_path_copies": (
        i32,
        (_BATCH, u32, u32, _BUF, u32, _P(SlotCopyStruct), u32, _P(u32)),
    ),
    "pkv_batch_abort": (i32, (_BATCH,)),
    "pkv_batch_size": (i32, (_BATCH, _P(u32), _P(u64))),
    "pkv_batch_copies": (i32, (_BATCH, _P(CopyStruct), u32, _P(u32))),
    "pkv_batch_open_pages": (i32, (_BATCH, u32, u32, _P(OpenPageStruct), u32, _P(u32))),
    # state.h
    "pkv_cache_state_count": (i32, (ptr, _P(u32))),
    "pkv_cache_state_info": (i32, (ptr, u32, _P(StateInfo))),
    "pkv_state_address": (i32, (ptr, u32, u64, u32, _P(ptr))),
    "pkv_batch_keep_states": (i32, (_BATCH, u32, u32)),
    "pkv_batch_states": (i32, (_BATCH, u32, u32, _P(u64), _BUF, u32, _P(u32))),
    "pkv_seq_state": (i32, (_SEQ, u32, _P(u64))),
    "pkv_seq_state_stop": (i32, (_SEQ, u64, _P(u64))),
    "pkv_seq_checkpoint": (i32, (_SEQ,)),
    "pkv_seq_drop_checkpoint": (i32, (_SEQ, u64)),
    "pkv_seq_checkpoints": (i32, (_SEQ, _BUF, u32, _P(u32))),
    # export.h
    "pkv_export_csr": (i32, (_BATCH, u32, _BUF, _BUF, _P(u32), _BUF)),
    "pkv_export_block_table": (i32, (_BATCH, u32, _P(BlockTableStruct))),
    "pkv_export_slot_mapping": (i32, (_BATCH, u32, _BUF, u64)),
    # admission.h
    "pkv_admit_probe": (i32, (ptr, u64, u64, _P(u32), _BUF, u32)),
    "pkv_admit_probe_match": (
        i32,
        (ptr, _P(MatchStruct), u64, _P(AdmitOutlook), _BUF, u32),
    ),
    "pkv_admit": (i32, (_SEQ, u64)),
    "pkv_admit_attach": (i32, (_SEQ, _P(MatchStruct), u64)),
    "pkv_admit_release": (i32, (_SEQ,)),
    "pkv_admit_check_batch": (i32, (_BATCH, _P(u32))),
    # attention.h
    "pkv_plan_options_init": (i32, (_P(PlanOptionsStruct), size)),
    "pkv_plan_create": (i32, (ptr, _P(PlanOptionsStruct), _P(ptr))),
    "pkv_plan_destroy": (None, (ptr,)),
    "pkv_plan_set_tree": (i32, (ptr, u32, u32, _BUF, _BUF)),
    "pkv_plan_build": (i32, (ptr, _BATCH)),
    "pkv_write": (i32, (ptr, u32, _P(RowsStruct), _P(RowsStruct), u32, u32)),
    "pkv_attend": (i32, (ptr, u32, _P(RowsStruct), _P(RowsOutStruct), _BUF, u32, u32)),
    "pkv_plan_mass": (i32, (ptr, u32, u32, u32, _BUF, u32)),
    "pkv_read": (i32, (_SEQ, u32, u64, u32, _P(RowsOutStruct), _P(RowsOutStruct))),
    "pkv_merge_states": (i32, (_BUF, _BUF, _BUF, _BUF, size, size)),
    "pkv_page_unpack": (i32, (ptr, u32, _BUF, i32, _BUF, size)),
    "pkv_page_pack": (i32, (ptr, u32, _BUF, i32, _BUF, size)),
    "pkv_layout_tag": (i32, (ptr, u32, _P(u64))),
    "pkv_kernel_name": (i32, (ptr, _P(text))),
    "pkv_kernel_list": (i32, (u32, _P(text))),
    "pkv_attend_reference": (i32, (ptr, u32, _P(RowsStruct), _BUF, _BUF)),
    # evict.h
    "pkv_evict_config_init": (i32, (_P(EvictConfigStruct), size, i32, u64)),
    "pkv_evict_config_named": (i32, (_P(EvictConfigStruct), size, text, u64)),
    "pkv_evict_kind_name": (text, (i32,)),
    "pkv_evict_check": (i32, (ptr, u32, _P(EvictConfigStruct), _BUF, size)),
    "pkv_cache_set_evict": (i32, (ptr, u32, _P(EvictConfigStruct))),
    "pkv_seq_set_evict": (i32, (_SEQ, u32, _P(EvictConfigStruct))),
    "pkv_seq_get_evict": (i32, (_SEQ, u32, _P(EvictConfigStruct))),
    "pkv_seq_position": (i32, (_SEQ, u32, _P(u64))),
    "pkv_seq_runs": (i32, (_SEQ, u32, _P(EvictRun), u32, _P(u32))),
    "pkv_seq_evict_info": (i32, (_SEQ, u32, _P(EvictInfo))),
    "pkv_seq_tainted": (i32, (_SEQ, _P(u32))),
    "pkv_seq_page_scores": (i32, (_SEQ, u32, _BUF, _BUF, u32, _P(u32))),
    "pkv_seq_feed_mass": (i32, (_SEQ, u32, _BUF, u32)),
    "pkv_seq_wants_mass": (i32, (_SEQ, u32, _P(u32))),
    # prefix.h
    "pkv_prefix_match": (i32, (ptr, _P(NamespaceStruct), _BUF, u64, _P(MatchStruct))),
    "pkv_seq_match": (i32, (_SEQ, _BUF, u64, _P(MatchStruct))),
    "pkv_seq_attach": (i32, (_SEQ, _P(MatchStruct))),
    "pkv_seq_set_namespace": (i32, (_SEQ, _P(NamespaceStruct))),
    "pkv_seq_missing_tokens": (i32, (_SEQ, _P(u64), _P(u64))),
    "pkv_seq_set_tokens": (i32, (_SEQ, u64, _BUF, u32)),
    "pkv_seq_set_retention": (i32, (_SEQ, u32, u64)),
    "pkv_prefix_pin": (i32, (ptr, _P(MatchStruct), u32, u64, _P(u64))),
    "pkv_prefix_unpin": (i32, (ptr, u64)),
    "pkv_prefix_drop": (i32, (ptr, _P(NamespaceStruct), _P(u64))),
    "pkv_prefix_set_quota": (i32, (ptr, _P(NamespaceStruct), _P(PrefixQuotaStruct))),
    "pkv_prefix_get_stats": (i32, (ptr, _P(NamespaceStruct), _P(PrefixStats))),
    "pkv_prefix_list": (i32, (ptr, _P(NamespaceStruct), _BUF, _BUF, u32, _P(u32))),
    "pkv_prefix_reclaim": (i32, (ptr, u32, u64, _P(u64))),
    "pkv_prefix_digests": (i32, (ptr, _P(MatchStruct), _BUF, u32)),
    "pkv_digest_tokens": (i32, (_P(NamespaceStruct), u32, _BUF, u64, _BUF, u64)),
    # index.h
    "pkv_index_config_init": (i32, (_P(IndexConfigStruct), size)),
    "pkv_index_create": (i32, (_P(IndexConfigStruct), _P(ptr))),
    "pkv_index_destroy": (None, (ptr,)),
    "pkv_index_replay": (i32, (ptr, _BUF, u32, _BUF, i32, _P(u32))),
    "pkv_index_match": (i32, (ptr, _BUF, u32, _P(u32))),
    "pkv_index_get_stats": (i32, (ptr, _P(IndexStats))),
    "pkv_index_verify": (i32, (ptr, _BUF, size)),
    "pkv_policy_name": (text, (u32, _P(u32))),
    # stats.h
    "pkv_cache_stats": (i32, (ptr, _P(Stats))),
    "pkv_cache_group_stats": (i32, (ptr, u32, _P(GroupStats))),
    "pkv_cache_events": (i32, (ptr, _P(Event), u32, _P(u32))),
}


#: Called once per layer and thread; :class:`Plan` checks what they are given.
_UNCHECKED = ("pkv_write", "pkv_attend")


class LibraryNotFound(ImportError):
    """``libpagedkv.so`` was not found, or is of another version than this binding."""


def _candidates() -> Iterator[str]:
    """Where the library may be, most specific first."""
    given = os.environ.get("PAGEDKV_LIBRARY")
    if given:
        yield given
        return
    beside = Path(__file__).resolve().parents[1] / ".pagedkv.mesonpy.libs"  # where wheels have it
    yield from sorted(map(str, beside.glob("libpagedkv.so*")))
    try:
        answer = subprocess.run(
            ["pkg-config", "--variable=libdir", "pagedkv"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        yield str(Path(answer.stdout.strip()) / "libpagedkv.so")
    except (OSError, subprocess.SubprocessError):
        pass
    yield "libpagedkv.so.1"
    yield "libpagedkv.so"


def load() -> C.CDLL:
    """Loads the library: ``PAGEDKV_LIBRARY`` (a path), the one in the wheel, pkg-config's libdir,
    the system's loader."""
    tried = []
    for name in _candidates():
        try:
            library = C.CDLL(name)
            break
        except OSError as error:
            tried.append(f"{name}: {error}")
    else:
        raise LibraryNotFound(
            "libpagedkv.so was not found: this installation has no library in it; set"
            " PAGEDKV_LIBRARY to its path or install it (meson install, then ldconfig):\n  "
            + "\n  ".join(tried)
        )
    for name, (result, arguments) in SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            continue  # this library lacks it: whoever calls it gets an AttributeError
        function.restype = result
        function.argtypes = arguments
        if name not in _UNCHECKED:
            setattr(library, name, checked(name, function, arguments))
    version = library.pkv_version()
    if (version >> 16, version >> 8 & 0xFF) != API_VERSION:
        raise LibraryNotFound(
            f"libpagedkv is version {library.pkv_version_string().decode()}, this binding needs"
            f" {API_VERSION[0]}.{API_VERSION[1]}.x"
        )
    return library


#: The loaded library.
lib = load()
