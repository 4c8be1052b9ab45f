"""pagedkv: a paged KV cache for inference runtimes. A thin ctypes binding of the C library.

    import numpy as np, pagedkv

    with pagedkv.Cache([pagedkv.Group(n_layers=2, kv_heads=2, head_dim=64, q_heads=4)]) as cache:
        plan, seq = cache.plan(), cache.sequence()
        with cache.batch() as batch:
            batch.add(seq, [11, 12, 13])
            batch.reserve()
            plan.build(batch)
            for layer in range(2):
                plan.write(layer, k, v)       # [3, 2, 64] each
                plan.attend(layer, q, out)    # [3, 4, 64] each
            batch.commit()

Names follow the C API; every failure raises a :class:`PagedKVError` and changes nothing.
"""

from ._library import API_VERSION, LibraryNotFound, lib
from ._structs import (
    CONSTANTS,
    CopyStruct,
    Event,
    EvictInfo,
    EvictRun,
    GroupInfo,
    GroupStats,
    IndexStats,
    PrefixStats,
    SeqInfo,
    Stats,
)
from .arrays import Rows, RowsOut, from_bf16, to_bf16
from .batch import Batch
from .cache import Cache, Group, Magazine, RopeInfo, config_bounds, kernels
from .errors import (
    Busy,
    Corrupt,
    Dropped,
    ForeignHandle,
    InvalidArgument,
    NoMemory,
    NotSupported,
    OSFailure,
    OutOfOrder,
    OutOfPages,
    OutOfRange,
    PagedKVError,
    StaleHandle,
    Unsafe,
    VersionMismatch,
)
from .evict import POLICIES, EvictPolicy
from .plan import Plan, merge_states
from .prefix import BlockIndex, Match, PrefixIndex, digest_tokens, prefix_policies
from .sequence import Sequence

__version__ = "0.2.0"


def library_version() -> str:
    """Version of the loaded library."""
    return str(lib.pkv_version_string().decode())


__all__ = [
    "API_VERSION",
    "Batch",
    "BlockIndex",
    "Busy",
    "CONSTANTS",
    "Cache",
    "CopyStruct",
    "Corrupt",
    "Dropped",
    "Event",
    "EvictInfo",
    "EvictPolicy",
    "EvictRun",
    "ForeignHandle",
    "Group",
    "GroupInfo",
    "GroupStats",
    "IndexStats",
    "InvalidArgument",
    "LibraryNotFound",
    "Magazine",
    "Match",
    "NoMemory",
    "NotSupported",
    "OSFailure",
    "OutOfOrder",
    "OutOfPages",
    "OutOfRange",
    "POLICIES",
    "PagedKVError",
    "Plan",
    "PrefixIndex",
    "PrefixStats",
    "RopeInfo",
    "Rows",
    "RowsOut",
    "SeqInfo",
    "Sequence",
    "StaleHandle",
    "Stats",
    "Unsafe",
    "VersionMismatch",
    "config_bounds",
    "digest_tokens",
    "from_bf16",
    "kernels",
    "lib",
    "library_version",
    "merge_states",
    "prefix_policies",
    "to_bf16",
]
