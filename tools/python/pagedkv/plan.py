"""Plans: writing keys and values into pages and attending over them."""

from __future__ import annotations

import ctypes as C
from operator import index
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._checks import U32_MAX, integers
from ._library import lib
from ._structs import PlanOptionsStruct
from .arrays import Rows, RowsOut, address
from .batch import Batch
from .cache import Cache
from .errors import check

#: Anything :func:`pagedkv.arrays.view_of` takes: an array, a DLPack tensor, a buffer.
Array = Any


class _Shapes(NamedTuple):
    """Shapes of a group's arrays in the step that the plan was built for."""

    k: tuple[int, int, int]
    v: tuple[int, int, int]
    q: tuple[int, int, int]
    out: tuple[int, int, int]
    lse: tuple[int, int]


class Plan:
    """The partition of a step's attention work (``pkv_plan``): built once per step from a reserved
    batch, used by every layer and thread.

    options: scale, softcap, concurrent_layers, cascade, mass, max_threads, alibi_slopes
    ``[q_heads]`` float32, sinks ``[layers, q_heads]`` float32.

    :meth:`write` and :meth:`attend` release the GIL: call them from several threads with the same
    arrays and ``ith = 0 .. nth - 1``. All writes of a layer must return before its attend begins.
    Every array must have a row for each of the step's new tokens: what does not fit the plan is a
    ValueError before the library is called, and nothing is touched.
    """

    def __init__(self, cache: Cache, **options: Any) -> None:
        self._handle: int | None = None
        self.cache = cache
        struct = PlanOptionsStruct()
        check(lib.pkv_plan_options_init(struct, C.sizeof(struct)), "pkv_plan_options_init")
        known = {name for name, *_ in PlanOptionsStruct._fields_} - {"struct_size", "reserved"}
        keep = []
        geometry = [cache.group_info(group) for group in range(cache.n_groups)]
        heads = max(info.q_heads for info in geometry)
        for name, value in options.items():
            if name not in known or name == "sinks_stride":
                raise TypeError(f"pkv_plan_options has no option {name!r}")
            if name in ("alibi_slopes", "sinks"):
                table = np.ascontiguousarray(value, dtype=np.float32)
                shape = (heads,) if name == "alibi_slopes" else (max(cache.layer_groups) + 1, heads)
                if table.shape != shape:
                    raise ValueError(f"{name} must have shape {shape}, not {table.shape}")
                keep.append(table)
                if name == "sinks":
                    struct.sinks_stride = heads
                value = C.cast(table.ctypes.data, C.POINTER(C.c_float))
            setattr(struct, name, value)
        handle = C.c_void_p()
        cache.check(
            lib.pkv_plan_create(cache.handle, C.byref(struct), C.byref(handle)), "pkv_plan_create"
        )
        self._handle = handle.value
        self._write, self._attend = lib.pkv_write, lib.pkv_attend
        self._geometry = geometry
        self._entries = C.c_uint32()
        self._tokens = C.c_uint64()
        self._size_refs = (C.byref(self._entries), C.byref(self._tokens))
        #: Per group what the arrays of the step must look like; None before the first build.
        self._shapes: list[_Shapes] | None = None
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

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and not self.cache.closed:
            self.cache._dropped.append((_release_plan, handle))

    def __repr__(self) -> str:
        if self._handle is None:
            return "<Plan, closed>"
        if self._shapes is None:
            return "<Plan, not built>"
        return f"<Plan of {self._entries.value} entries, {self._tokens.value} new tokens>"

    def build(self, batch: Batch) -> None:
        """Builds the plan of a reserved batch, replacing what it held."""
        status = lib.pkv_plan_build(self._handle, batch.handle)
        if status:
            self.cache.check(status, "pkv_plan_build")
        self.cache.check(lib.pkv_batch_size(batch.handle, *self._size_refs), "pkv_batch_size")
        n = self._tokens.value
        if self._shapes is None or self._shapes[0].lse[0] != n:
            self._shapes = [
                _Shapes(
                    (n, g.kv_heads, g.head_dim_k),
                    (n, g.kv_heads, g.head_dim_v),
                    (n, g.q_heads, g.head_dim_k),
                    (n, g.q_heads, g.head_dim_v),
                    (n, g.q_heads),
                )
                for g in self._geometry
            ]

    def _expected(self, layer: int) -> _Shapes | None:
        """Shapes of a layer's arrays; None before the first build, which the library reports."""
        if self._shapes is None:
            return None
        group = self.cache.layer_groups.get(layer)
        if group is None:
            raise ValueError(f"layer {layer} is not one of the cache's")
        return self._shapes[group]

    def set_tree(
        self, entry: int, visible: npt.ArrayLike, positions: npt.ArrayLike | None = None
    ) -> None:
        """Mask inside entry's new tokens: visible ``[n, n]`` bool, row i sees token j. positions
        ``[n]`` are the tokens' depths. Before :meth:`build`."""
        mask = np.ascontiguousarray(visible, dtype=bool)
        n = mask.shape[0] if mask.ndim == 2 else 0
        if mask.shape != (n, n):
            raise ValueError("visible must be square")
        bits = np.packbits(mask, axis=1, bitorder="little")
        depths = None if positions is None else integers(positions, np.uint32, "positions")
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
        layer = index(layer)
        k = k if isinstance(k, Rows) else Rows(k)
        v = v if isinstance(v, Rows) else Rows(v)
        expected = self._expected(layer)
        if expected is not None:
            if k.shape != expected.k:
                raise _mismatch("k", k.shape, expected.k)
            if v.shape != expected.v:
                raise _mismatch("v", v.shape, expected.v)
        if not 0 <= ith < nth <= U32_MAX:
            raise ValueError(f"ith = {ith} is not in 0 to nth - 1 = {nth - 1}")
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
        """Attention of q ``[tokens, q_heads, dim]`` into out ``[tokens, q_heads, dim_v]``; lse
        ``[tokens, q_heads]`` float32 receives the log-sum-exp."""
        layer = index(layer)
        q = q if isinstance(q, Rows) else Rows(q)
        out = out if isinstance(out, RowsOut) else RowsOut(out)
        expected = self._expected(layer)
        where = None
        if expected is not None:
            if q.shape != expected.q:
                raise _mismatch("q", q.shape, expected.q)
            if out.shape != expected.out:
                raise _mismatch("out", out.shape, expected.out)
            if lse is not None:
                where = address(lse, np.float32, expected.lse, "lse", writable=True)
        if not 0 <= ith < nth <= U32_MAX:
            raise ValueError(f"ith = {ith} is not in 0 to nth - 1 = {nth - 1}")
        status = self._attend(self._handle, layer, q.ref, out.ref, where, ith, nth)
        if status:
            self.cache.check(status, "pkv_attend")

    def attend_reference(
        self, layer: int, q: Rows | Array
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The same in double precision, slowly: out ``[tokens, q_heads, dim_v]`` and lse."""
        layer = index(layer)
        q = q if isinstance(q, Rows) else Rows(q)
        expected = self._expected(layer)
        if expected is not None and q.shape != expected.q:
            raise _mismatch("q", q.shape, expected.q)
        out = np.zeros(expected.out if expected else (1, 1, 1))
        lse = np.zeros(expected.lse if expected else (1, 1))
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


def _mismatch(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> ValueError:
    return ValueError(f"{name} has shape {shape}, but the plan's step has {wanted}")


def _release_plan(cache: Cache, handle: Any) -> int:
    lib.pkv_plan_destroy(handle)
    return 0


def merge_states(
    out_a: Array,
    lse_a: Array,
    out_b: Array,
    lse_b: Array,
) -> None:
    """Merges two attention states over disjoint keys into the first: out ``[rows, dim]``, lse
    ``[rows]``, all contiguous float32."""
    if len(out_a.shape) != 2:
        raise ValueError(f"out_a must be [rows][dim], not {len(out_a.shape)}-dimensional")
    rows, dim = out_a.shape
    check(
        lib.pkv_merge_states(
            address(out_a, np.float32, (rows, dim), "out_a", writable=True),
            address(lse_a, np.float32, (rows,), "lse_a", writable=True),
            address(out_b, np.float32, (rows, dim), "out_b"),
            address(lse_b, np.float32, (rows,), "lse_b"),
            rows,
            dim,
        ),
        "pkv_merge_states",
    )
