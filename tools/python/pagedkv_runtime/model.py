"""The forward pass of Llama and Gemma 3 on numpy. Attention and KV cache are an injected object.

The pass works on N rows: the new tokens of every sequence of the step, one after the other. It does
not know which row belongs to which sequence; positions say where each row stands, and the attention
object keeps keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .weights import F32, ModelConfig, ModelWeights

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class Attention(Protocol):
    """What the forward pass asks of a KV cache."""

    def __call__(self, layer: int, q: F32, k: F32, v: F32) -> F32:
        """Stores k and v ``[N, kv_heads, d]`` of the new tokens and returns the attention of q
        ``[N, heads, d]`` over everything each row's sequence holds (causal): ``[N, heads, d]``."""
        ...


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """x / rms(x) * weight over the last axis."""
    scale = np.einsum("...i,...i->...", x, x)
    scale /= x.shape[-1]
    scale += eps
    np.sqrt(scale, out=scale)
    return np.asarray(x / scale[..., None] * weight)


def silu_mul(gate: F32, up: F32) -> F32:
    """silu(gate) * up."""
    work = np.negative(gate)
    with np.errstate(over="ignore"):
        np.exp(work, out=work)
    work += 1.0
    np.divide(gate, work, out=work)
    work *= up
    return work


def gelu_mul(gate: F32, up: F32) -> F32:
    """gelu(gate) * up, the tanh form."""
    work = gate * gate
    work *= 0.044715
    work += 1.0
    work *= gate
    work *= np.float32(np.sqrt(2.0 / np.pi))
    np.tanh(work, out=work)
    work += 1.0
    work *= gate
    work *= 0.5
    work *= up
    return work


def rope_frequencies(theta: float, rotary_dims: int) -> npt.NDArray[np.float64]:
    """Angular frequencies in radians per token, ``[rotary_dims / 2]``."""
    exponents = -np.arange(0, rotary_dims, 2, dtype=np.float64) / rotary_dims
    return np.asarray(theta**exponents)


class Rope:
    """Rotation of one step's rows: angles in double, applied in float32."""

    def __init__(
        self, positions: npt.ArrayLike, theta: float, rotary_dims: int, interleaved: bool
    ) -> None:
        angles = np.asarray(positions, dtype=np.float64)[:, None] * rope_frequencies(
            theta, rotary_dims
        )
        self._dims = rotary_dims
        self._interleaved = interleaved
        if interleaved:
            self._turn = np.exp(1j * angles).astype(np.complex64)[:, None, :]
        else:
            self._cos = np.cos(angles).astype(np.float32)[:, None, :]
            self._sin = np.sin(angles).astype(np.float32)[:, None, :]

    def __call__(self, x: F32) -> F32:
        """Rotated copy of ``[N, heads, d]``, contiguous."""
        n = self._dims
        out = np.empty(x.shape, np.float32)
        if n < x.shape[-1]:
            out[..., n:] = x[..., n:]
        if self._interleaved:
            pairs = np.ascontiguousarray(x[..., :n]).view(np.complex64)
            out[..., :n] = (pairs * self._turn).view(np.float32)
        else:
            half = n // 2
            first, second = x[..., :half], x[..., half:n]
            np.subtract(first * self._cos, second * self._sin, out=out[..., :half])
            np.add(second * self._cos, first * self._sin, out=out[..., half:n])
        return out


class StepTimer:
    """Where a step's time goes, in seconds: matmul, write, attend, bookkeeping, step setup."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def clear(self) -> None:
        self.seconds.clear()


class Model:
    """A loaded model: weights and the forward pass."""

    def __init__(self, weights: ModelWeights) -> None:
        self.weights = weights
        self.config: ModelConfig = weights.config
        self.timer: StepTimer | None = None

    def _matmul(self, x: F32, matrix: F32) -> F32:
        """x ``[N, in]`` times matrix ``[out, in]`` transposed: ``[N, out]``."""
        if self.timer is None:
            return x @ matrix.T
        start = self.timer.clock()
        result = x @ matrix.T
        self.timer.add("matmul", self.timer.clock() - start)
        return result

    def forward(
        self,
        tokens: npt.ArrayLike,
        positions: npt.ArrayLike,
        attention: Attention,
        rows: npt.ArrayLike | None = None,
    ) -> F32:
        """Logits ``[len(rows), vocab]`` (all rows if None) of one step.

        tokens ``[N]`` ids and positions ``[N]`` of the new tokens of all sequences of the step.
        """
        hidden = self.hidden(tokens, positions, attention)
        if rows is not None:
            hidden = hidden[np.asarray(rows, dtype=np.intp)]
        return self.logits(hidden)

    def logits(self, hidden: F32) -> F32:
        """Output layer of normalised hidden rows ``[n, n_embd]``: ``[n, vocab]``."""
        return self._matmul(np.ascontiguousarray(hidden), self.weights.output)

    def hidden(self, tokens: npt.ArrayLike, positions: npt.ArrayLike, attention: Attention) -> F32:
        """Normalised hidden state of every row after the last layer, ``[N, n_embd]``."""
        config, weights = self.config, self.weights
        ids = np.asarray(tokens, dtype=np.intp)
        n, d, hq, hk = len(ids), config.head_dim, config.n_heads, config.n_kv_heads
        act = gelu_mul if config.architecture == "gemma3" else silu_mul
        ropes = {
            theta: Rope(positions, theta, config.rotary_dims, config.rope_interleaved)
            for theta in {span.theta for span in config.spans}
        }
        eps = config.rms_eps
        x = weights.embedding[ids]
        if config.embedding_scale != 1.0:
            x = x * np.float32(config.embedding_scale)
        for number, w in enumerate(weights.layers):
            rope = ropes[config.spans[number].theta]
            qkv = self._matmul(rms_norm(x, w.attn_norm, eps), w.qkv)
            q = qkv[:, : hq * d].reshape(n, hq, d)
            k = qkv[:, hq * d : (hq + hk) * d].reshape(n, hk, d)
            v = qkv[:, (hq + hk) * d :].reshape(n, hk, d)
            if w.q_norm is not None and w.k_norm is not None:
                q, k = rms_norm(q, w.q_norm, eps), rms_norm(k, w.k_norm, eps)
            mixed = attention(number, rope(q), rope(k), v).reshape(n, hq * d)
            out = self._matmul(mixed, w.attn_out)
            if w.post_attn_norm is not None:
                out = rms_norm(out, w.post_attn_norm, eps)
            x = x + out
            gate_up = self._matmul(rms_norm(x, w.ffn_norm, eps), w.gate_up)
            out = self._matmul(act(gate_up[:, : config.n_ff], gate_up[:, config.n_ff :]), w.down)
            if w.post_ffn_norm is not None:
                out = rms_norm(out, w.post_ffn_norm, eps)
            x += out
        return rms_norm(x, weights.output_norm, eps)
