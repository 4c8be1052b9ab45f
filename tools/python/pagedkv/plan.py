"""Plans: writing keys and values into pages and attending over them."""

from __future__ import annotations

import ctypes as C
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ._library import lib
from ._structs import PlanOptionsStruct
from .arrays import Rows, RowsOut, address
from .batch import Batch
from .cache import Cache
from .errors import check

Array = npt.NDArray[Any]


class Plan:
    """The partition of a step's attention work (``pkv_plan``): built once per step from a reserved
    batch, used by every layer and thread.

    options: scale, softcap, concurrent_layers, cascade, mass, max_threads, alibi_slopes
    ``[q_heads]`` float32, sinks ``[layers, q_heads]`` float32.

    :meth:`write` and :meth:`attend` release the GIL: call them from several threads with the same
    arrays and ``ith = 0 .. nth - 1``. All writes of a layer must return before its attend begins.
    """

    def __init__(self, cache: Cache, **options: Any) -> None:
        self._handle: int | None = None
        self.cache = cache
        struct = PlanOptionsStruct()
        check(lib.pkv_plan_options_init(struct, C.sizeof(struct)), "pkv_plan_options_init")
        known = {name for name, *_ in PlanOptionsStruct._fields_} - {"struct_size", "reserved"}
        keep = []
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"pkv_plan_options has no option {name!r}")
            if name in ("alibi_slopes", "sinks"):
                table = np.ascontiguousarray(value, dtype=np.float32)
                keep.append(table)
                if name == "sinks" and "sinks_stride" not in options:
                    struct.sinks_stride = table.shape[-1]
                value = C.cast(table.ctypes.data, C.POINTER(C.c_float))
            setattr(struct, name, value)
        handle = C.c_void_p()
        cache.check(
            lib.pkv_plan_create(cache.handle, C.byref(struct), C.byref(handle)), "pkv_plan_create"
        )
        self._handle = handle.value
        self._write, self._attend = lib.pkv_write, lib.pkv_attend
        cache._plans.add(self)

    def close(self) -> None:
        """Destroys the plan. May be called again."""
        if self._handle is not None:
            lib.pkv_plan_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Plan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def build(self, batch: Batch) -> None:
        """Builds the plan of a reserved batch, replacing what it held."""
        status = lib.pkv_plan_build(self._handle, batch.handle)
        if status:
            self.cache.check(status, "pkv_plan_build")

    def set_tree(
        self, entry: int, visible: npt.ArrayLike, positions: npt.ArrayLike | None = None
    ) -> None:
        """Mask inside entry's new tokens: visible ``[n, n]`` bool, row i sees token j. positions
        ``[n]`` are the tokens' depths. Before :meth:`build`."""
        mask = np.ascontiguousarray(visible, dtype=bool)
        n = len(mask)
        if mask.shape != (n, n):
            raise ValueError("visible must be square")
        bits = np.packbits(mask, axis=1, bitorder="little")
        depths = None if positions is None else np.ascontiguousarray(positions, dtype=np.uint32)
        if depths is not None and depths.shape != (n,):
            raise ValueError("positions must have one entry per token")
        self.cache.check(
            lib.pkv_plan_set_tree(
                self._handle,
                entry,
                n,
                bits.ctypes.data,
                None if depths is None else depths.ctypes.data,
            ),
            "pkv_plan_set_tree",
        )

    def write(
        self, layer: int, k: Rows | Array, v: Rows | Array, ith: int = 0, nth: int = 1
    ) -> None:
        """Writes the new tokens' keys and values ``[tokens, kv_heads, dim]`` of one layer."""
        k = k if isinstance(k, Rows) else Rows(k)
        v = v if isinstance(v, Rows) else Rows(v)
        status = self._write(self._handle, layer, k.ref, v.ref, ith, nth)
        if status:
            self.cache.check(status, "pkv_write")

    def attend(
        self,
        layer: int,
        q: Rows | Array,
        out: RowsOut | Array,
        lse: Array | None = None,
        ith: int = 0,
        nth: int = 1,
    ) -> None:
        """Attention of q ``[tokens, q_heads, dim]`` into out of the same shape; lse
        ``[tokens, q_heads]`` float32 receives the log-sum-exp."""
        q = q if isinstance(q, Rows) else Rows(q)
        out = out if isinstance(out, RowsOut) else RowsOut(out)
        where = None if lse is None else address(lse, np.float32, q.array.shape[:2], "lse")
        status = self._attend(self._handle, layer, q.ref, out.ref, where, ith, nth)
        if status:
            self.cache.check(status, "pkv_attend")

    def attend_reference(
        self, layer: int, q: Rows | Array
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The same in double precision, slowly: out ``[tokens, q_heads, dim_v]`` and lse."""
        q = q if isinstance(q, Rows) else Rows(q)
        group, _ = self.cache.layer_group(layer)
        tokens, heads, _ = q.array.shape
        out = np.zeros((tokens, heads, self.cache.group_info(group).head_dim_v))
        lse = np.zeros((tokens, heads))
        self.cache.check(
            lib.pkv_attend_reference(self._handle, layer, q.ref, out.ctypes.data, lse.ctypes.data),
            "pkv_attend_reference",
        )
        return out, lse

    def mass(self, layer: int, entry: int, kv_head: int, n_pages: int) -> npt.NDArray[np.float32]:
        """Attention mass per resident page ``[n_pages]`` (plan option mass=1)."""
        mass = np.zeros(n_pages, np.float32)
        self.cache.check(
            lib.pkv_plan_mass(self._handle, layer, entry, kv_head, mass.ctypes.data, n_pages),
            "pkv_plan_mass",
        )
        return mass


def merge_states(
    out_a: npt.NDArray[np.float32],
    lse_a: npt.NDArray[np.float32],
    out_b: npt.NDArray[np.float32],
    lse_b: npt.NDArray[np.float32],
) -> None:
    """Merges two attention states over disjoint keys into the first: out ``[rows, dim]``, lse
    ``[rows]``, all contiguous float32."""
    rows, dim = out_a.shape
    check(
        lib.pkv_merge_states(
            address(out_a, np.float32, (rows, dim), "out_a"),
            address(lse_a, np.float32, (rows,), "lse_a"),
            address(out_b, np.float32, (rows, dim), "out_b"),
            address(lse_b, np.float32, (rows,), "lse_b"),
            rows,
            dim,
        ),
        "pkv_merge_states",
    )
