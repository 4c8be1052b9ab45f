"""The KV cache of a model on pagedkv: layer groups from the model's geometry, steps, attention."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

import pagedkv
from pagedkv import Rows, RowsOut
from pagedkv.arrays import integers

from .model import StepTimer
from .weights import F32, ModelConfig
from .workers import Workers, default_threads

#: Below this many bytes of K and V a layer is attended by one thread: waking another costs more.
_PARALLEL_BYTES = 1 << 18
_ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


#: Names of ``kv_type``: formats of full pages of keys and of values, None = as ``dtype``.
KV_TYPES: dict[str, tuple[str | None, str | None]] = {
    f"{k or ''}{v or ''}": (k, v) for k in (None, "k8", "k4") for v in (None, "v8", "v4") if k or v
}


def groups_of(
    config: ModelConfig, dtype: str, kv_type: str | None = None, plain_ends: int = 0
) -> list[pagedkv.Group]:
    """One cache group per attention span: full layers, and Gemma's window layers apart. With
    ``kv_type`` the first and last ``plain_ends`` layers of the model stay in ``dtype``."""
    formats = (None, None) if kv_type is None else KV_TYPES[kv_type]
    ends = {*range(plain_ends), *range(config.n_layers - plain_ends, config.n_layers)}
    groups = []
    for span, layers in config.groups:
        inner = [layer for layer in layers if layer not in ends]
        outer = [layer for layer in layers if layer in ends]
        for part, (dtype_k, dtype_v) in ((inner, formats), (outer, (None, None))):
            if not part:
                continue
            groups.append(
                pagedkv.Group(
                    n_layers=len(part),
                    kv_heads=config.n_kv_heads,
                    head_dim=config.head_dim,
                    q_heads=config.n_heads,
                    window=span.window,
                    dtype=dtype,
                    dtype_k=dtype_k,
                    dtype_v=dtype_v,
                    layers=part,
                    rope=pagedkv.RopeInfo(config.rotary_dims, span.theta, config.rope_interleaved),
                )
            )
    return groups


class Blocked(Exception):
    """Growing entry ``entry`` now could strand an admitted sequence: leave it out of this step."""

    def __init__(self, entry: int) -> None:
        super().__init__(entry)
        self.entry = entry

    def __str__(self) -> str:
        return f"entry {self.entry} must wait"


class PagedStore:
    """A pagedkv cache for one model, its plan and the threads that attend.

    dtype         element type of the pages: "f32", "f16", "bf16"
    kv_type       formats of full pages, one of KV_TYPES ("k8v8", …), or None: as dtype
    plain_ends    so many first and last layers stay in dtype (for models that 4 bits break)
    memory        the cache's memory limit in bytes
    policy        eviction policy of every sequence's full-attention layers, or None
    options       further pkv_config fields (prefix, event_capacity, isa, …)
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: str = "f32",
        kv_type: str | None = None,
        plain_ends: int = 0,
        page_tokens: int = 16,
        memory: int = 1 << 30,
        policy: pagedkv.EvictPolicy | None = None,
        threads: int | None = None,
        signals: int = 0,
        **options: Any,
    ) -> None:
        self.config = config
        self.dtype = dtype
        if policy is not None:
            signals |= policy.signals
        self.cache = pagedkv.Cache(
            groups_of(config, dtype, kv_type, plain_ends),
            page_tokens=page_tokens,
            memory_limit=memory,
            signals=signals,
            **options,
        )
        self.policy = policy
        if policy is not None:
            self.cache.set_evict(policy)
        self.plan = self.cache.plan()
        self.workers = Workers(default_threads() if threads is None else threads)
        self.timer: StepTimer | None = None
        self._layer_token_bytes = 2 * config.n_kv_heads * config.head_dim * _ELEMENT_BYTES[dtype]
        self._out = np.empty((0, config.n_heads, config.head_dim), np.float32)
        self._parallel = False

    def close(self) -> None:
        """Ends the threads and destroys the cache."""
        self.workers.close()
        self.cache.close()

    def __enter__(self) -> PagedStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def step(
        self, entries: Iterable[tuple[pagedkv.Sequence, SequenceOf[int]]], safe: bool = False
    ) -> Step:
        """Reserves a step for (sequence, new token ids) pairs; see :class:`Step`. safe: raise
        :class:`Blocked` instead of leaving the safe states of admission."""
        return Step(self, list(entries), safe)

    def prepare(self, n_rows: int, context_tokens: int) -> None:
        """Sizes the output rows of a step and decides whether its attention is worth threads."""
        if len(self._out) < n_rows:
            shape = (max(n_rows, 2 * len(self._out)), *self._out.shape[1:])
            self._out = np.empty(shape, np.float32)
        self._parallel = (
            self.workers.n > 1 and context_tokens * self._layer_token_bytes > _PARALLEL_BYTES
        )

    def attention(self, layer: int, q: F32, k: F32, v: F32) -> F32:
        """Writes and attends one layer of the current step (the model's Attention protocol)."""
        plan, timer = self.plan, self.timer
        clock = perf_counter if timer is None else timer.clock
        start = clock()
        plan.write(layer, Rows(k), Rows(v))
        written = clock()
        out = self._out[: len(q)]
        query, result = Rows(q), RowsOut(out)
        if self._parallel:
            n = self.workers.n
            self.workers.run(lambda ith: plan.attend(layer, query, result, None, ith, n))
        else:
            plan.attend(layer, query, result)
        if timer is not None:
            timer.add("write", written - start)
            timer.add("attend", clock() - written)
        return out


class Step:
    """One reserved model step. Leaving the block without a commit aborts it.

        with store.step([(seq, ids), …]) as step:
            logits = model.forward(step.tokens, step.positions, step.attention, step.last_rows)
            step.commit()

    ``tokens`` and ``positions`` are ``[N]`` over all entries; ``starts`` ``[entries + 1]`` are the
    entries' first rows. Raises :class:`pagedkv.OutOfPages` when the pages are not there; nothing
    has changed then.
    """

    def __init__(
        self,
        store: PagedStore,
        entries: list[tuple[pagedkv.Sequence, SequenceOf[int]]],
        safe: bool = False,
    ) -> None:
        self._store = store
        self._timer = store.timer
        self._clock = perf_counter if store.timer is None else store.timer.clock
        start = self._clock()
        lengths = [seq.length for seq, _ in entries]
        counts = [len(ids) for _, ids in entries]
        ids = [integers(part, np.int32, "token ids") for _, part in entries]
        self.tokens: npt.NDArray[np.int32] = np.concatenate(ids) if ids else np.empty(0, np.int32)
        self.starts = np.zeros(len(entries) + 1, np.int64)
        np.cumsum(counts, out=self.starts[1:])
        offsets = np.repeat(np.asarray(lengths, np.int64) - self.starts[:-1], counts)
        self.positions: npt.NDArray[np.int64] = offsets + np.arange(len(self.tokens))
        self.last_rows = self.starts[1:] - 1
        self.attention = store.attention
        python = self._clock()
        self._batch = store.cache.batch()
        try:
            for (seq, _), part in zip(entries, ids):
                self._batch.add(seq, part)
            if safe and (blocked := self._batch.admit_check()) is not None:
                raise Blocked(blocked)
            self._batch.reserve()
            store.plan.build(self._batch)
        except BaseException:
            self._batch.abort()
            raise
        reserved = self._clock()
        store.prepare(len(self.tokens), sum(lengths) + len(self.tokens))
        if self._timer is not None:
            self._timer.add("step setup", python - start)
            self._timer.add("bookkeeping", reserved - python)

    def commit(self) -> None:
        """Keeps every new token."""
        start = self._clock()
        self._batch.commit()
        if self._timer is not None:
            self._timer.add("bookkeeping", self._clock() - start)

    def commit_partial(self, accepted: SequenceOf[int]) -> None:
        """Keeps the first accepted[i] new tokens of entry i."""
        start = self._clock()
        self._batch.commit_partial(accepted)
        if self._timer is not None:
            self._timer.add("bookkeeping", self._clock() - start)

    def __enter__(self) -> Step:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._batch.__exit__(kind, error, trace)
