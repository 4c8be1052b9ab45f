"""The reference of the tests: Llama and Gemma 3 once more, and nothing shared with the runtime.

Written from the models' published definitions (Hugging Face's ``LlamaForCausalLM`` and
``Gemma3ForCausalLM``): separate projections, half-split rotation (the rows that GGUF files permute
for interleaved rotation are put back), key and value heads repeated, one contiguous cache per
layer, norms and softmax in double precision. It reads the GGUF file by itself. Slow and plain on
purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Observer(Protocol):
    """What a simulation of eviction does inside the attention of a layer."""

    def hidden(self, layer: int, q: Array, keys: Array, first: int) -> Array | None:
        """Keys that rows must not see beyond causality: bool, broadcast to ``[heads, n, m]``. q
        ``[heads, n, d]`` and keys ``[kv_heads, m, d]`` are rotated; row i stands at first + i."""
        ...

    def attended(self, layer: int, probabilities: Array) -> None:
        """The layer's attention ``[heads, n, m]``."""
        ...


class PlainCache:
    """Keys and values of one sequence, contiguous, one array per layer."""

    def __init__(self, n_layers: int, kv_heads: int, dim: int, capacity: int) -> None:
        self.k = np.zeros((n_layers, kv_heads, capacity, dim), np.float32)
        self.v = np.zeros_like(self.k)
        self.length = 0


class PlainModel:
    """A model from named tensors (GGUF's names) and its metadata."""

    def __init__(self, meta: Mapping[str, Any], tensor: Callable[[str], Array | None]) -> None:
        self.arch = str(meta["general.architecture"])

        def number(key: str, default: float | None = None) -> float:
            value = meta.get(f"{self.arch}.{key}", default)
            if value is None:
                raise ValueError(f"the file lacks {self.arch}.{key}")
            return float(value)

        self.gemma = self.arch == "gemma3"
        self.n_layers = int(number("block_count"))
        self.heads = int(number("attention.head_count"))
        self.kv_heads = int(number("attention.head_count_kv", self.heads))
        self.width = int(number("embedding_length"))
        self.dim = int(number("attention.key_length", self.width // self.heads))
        self.rotary = int(number("rope.dimension_count", self.dim))
        self.eps = number("attention.layer_norm_rms_epsilon")
        self.theta = number("rope.freq_base", 10000.0)
        self.window = int(number("attention.sliding_window", 0)) if self.gemma else 0
        #: Every so many layers of Gemma 3 attend globally.
        self.every = int(number("attention.sliding_window_pattern", 6))
        self.weights: dict[str, Array] = {}
        names = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"]
        names += ["ffn_gate", "ffn_up", "ffn_down"]
        if self.gemma:
            names += ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"]
        for name in ["token_embd", "output_norm"] + [
            f"blk.{i}.{name}" for i in range(self.n_layers) for name in names
        ]:
            value = tensor(f"{name}.weight")
            if value is None:
                raise ValueError(f"the file lacks {name}.weight")
            if not self.gemma and name.endswith(("attn_q", "attn_k")):
                value = self._unpermuted(value)
            self.weights[name] = value
        output = tensor("output.weight")
        self.output = self.weights["token_embd"] if output is None else output

    @classmethod
    def from_gguf(cls, path: str | Path) -> PlainModel:
        """Reads a GGUF file."""
        reader = gguf.GGUFReader(str(path))
        meta = {name: field.contents() for name, field in reader.fields.items()}
        found = {tensor.name: tensor for tensor in reader.tensors}

        def tensor(name: str) -> Array | None:
            if name not in found:
                return None
            data = gguf.dequantize(found[name].data, found[name].tensor_type)
            return np.ascontiguousarray(data, np.float32)

        return cls(meta, tensor)

    def _unpermuted(self, weight: Array) -> Array:
        """Rows of a projection as they were before GGUF's converter interleaved each head's
        halves."""
        rows, columns = weight.shape
        heads = rows // self.dim
        split = weight.reshape(heads, self.dim // 2, 2, columns)
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows, columns))

    def _norm(self, x: Array, name: str) -> Array:
        wide = x.astype(np.float64)
        wide /= np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return np.asarray((wide * self.weights[name]).astype(np.float32))

    def _rotate(self, x: Array, positions: Array, theta: float) -> Array:
        """x ``[n, heads, d]``: x cos + rotate_half(x) sin."""
        n = self.rotary
        angles = np.outer(positions, theta ** -(np.arange(0, n, 2) / n))
        angles = np.concatenate([angles, angles], axis=1)[:, None, :]
        turned = x.astype(np.float64)
        part = turned[..., :n]
        half = np.concatenate([-part[..., n // 2 :], part[..., : n // 2]], axis=-1)
        turned[..., :n] = part * np.cos(angles) + half * np.sin(angles)
        return np.asarray(turned.astype(np.float32))

    def _activation(self, x: Array) -> Array:
        wide = x.astype(np.float64)
        if self.gemma:  # gelu_pytorch_tanh
            inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
            return np.asarray((0.5 * wide * (1 + np.tanh(inner))).astype(np.float32))
        with np.errstate(over="ignore"):
            return np.asarray((wide / (1 + np.exp(-wide))).astype(np.float32))

    def cache(self, capacity: int) -> PlainCache:
        """Room for a sequence of up to ``capacity`` tokens."""
        return PlainCache(self.n_layers, self.kv_heads, self.dim, capacity)

    def _attend(
        self, layer: int, x: Array, cache: PlainCache, positions: Array, observer: Observer | None
    ) -> Array:
        n, d = len(x), self.dim
        prefix = f"blk.{layer}."
        q, k, v = (
            np.asarray(x @ self.weights[f"{prefix}attn_{part}"].T).reshape(n, -1, d)
            for part in "qkv"
        )
        local = self.gemma and (layer + 1) % self.every != 0
        if self.gemma:
            q, k = self._norm(q, prefix + "attn_q_norm"), self._norm(k, prefix + "attn_k_norm")
        theta = 10000.0 if local else self.theta
        q, k = self._rotate(q, positions, theta), self._rotate(k, positions, theta)
        first, last = cache.length, cache.length + n
        cache.k[layer, :, first:last] = k.swapaxes(0, 1)
        cache.v[layer, :, first:last] = v.swapaxes(0, 1)
        keys, values = cache.k[layer, :, :last], cache.v[layer, :, :last]
        queries = q.swapaxes(0, 1)
        at = np.arange(first, last)[:, None]
        hidden = np.arange(last)[None, :] > at
        if local and self.window:
            hidden = hidden | (np.arange(last)[None, :] <= at - self.window)
        repeated = self.heads // self.kv_heads
        scores = queries @ np.repeat(keys, repeated, axis=0).swapaxes(1, 2)
        scores = scores.astype(np.float64) / np.sqrt(d)
        scores[:, hidden] = -np.inf
        if observer is not None:
            more = observer.hidden(layer, queries, keys, first)
            if more is not None:
                scores[np.broadcast_to(more, scores.shape)] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        if observer is not None:
            observer.attended(layer, scores)
        mixed = scores.astype(np.float32) @ np.repeat(values, repeated, axis=0)
        return np.asarray(
            mixed.swapaxes(0, 1).reshape(n, -1) @ self.weights[f"{prefix}attn_output"].T
        )

    def extend(
        self,
        cache: PlainCache,
        ids: npt.ArrayLike,
        rows: npt.ArrayLike | None = None,
        observer: Observer | None = None,
    ) -> Array:
        """Logits ``[len(rows), vocab]`` (all rows if None) of further tokens of a sequence."""
        tokens = np.asarray(ids, dtype=np.int64)
        positions = np.arange(cache.length, cache.length + len(tokens))
        x = self.weights["token_embd"][tokens]
        if self.gemma:
            x = x * np.float32(np.sqrt(self.width))
        for layer in range(self.n_layers):
            prefix = f"blk.{layer}."
            out = self._attend(
                layer, self._norm(x, prefix + "attn_norm"), cache, positions, observer
            )
            if self.gemma:
                out = self._norm(out, prefix + "post_attention_norm")
            x = x + out
            h = self._norm(x, prefix + "ffn_norm")
            gate = self._activation(h @ self.weights[prefix + "ffn_gate"].T)
            out = (gate * (h @ self.weights[prefix + "ffn_up"].T)) @ self.weights[
                prefix + "ffn_down"
            ].T
            if self.gemma:
                out = self._norm(out, prefix + "post_ffw_norm")
            x = x + out
        cache.length += len(tokens)
        if rows is not None:
            x = x[np.asarray(rows, dtype=np.int64)]
        return np.asarray(self._norm(x, "output_norm") @ self.output.T)

    def logits(self, ids: list[int], rows: npt.ArrayLike | None = None) -> Array:
        """Logits of a whole sequence in one pass: nothing is cached."""
        return self.extend(self.cache(len(ids)), ids, rows)

    def generate(self, prompt: list[int], n: int) -> list[int]:
        """Greedy tokens, recomputing the whole sequence for each."""
        ids = list(prompt)
        for _ in range(n):
            ids.append(int(self.logits(ids, [len(ids) - 1])[0].argmax()))
        return ids[len(prompt) :]
