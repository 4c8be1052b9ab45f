"""Models of a few kilobytes with random weights: for what does not depend on what a model says."""

from __future__ import annotations

import math

import numpy as np

from pagedkv_runtime.model import Model
from pagedkv_runtime.weights import LayerSpan, LayerWeights, ModelConfig, ModelWeights


def tiny_model(architecture: str = "llama", window: int = 32, seed: int = 1) -> Model:
    """A model of two (llama) or four layers (gemma3: every other one through a window)."""
    gemma = architecture == "gemma3"
    spans = (LayerSpan(window, 1e4), LayerSpan(0, 1e5)) * 2 if gemma else (LayerSpan(0, 1e4),) * 2
    width, heads, kv, d, ff, vocab = 32, 4, 2, 16, 64, 96
    config = ModelConfig(
        architecture=architecture,
        name="tiny",
        n_layers=len(spans),
        n_embd=width,
        n_ff=ff,
        n_heads=heads,
        n_kv_heads=kv,
        head_dim=d,
        rotary_dims=d,
        rope_interleaved=not gemma,
        rms_eps=1e-6,
        context_length=4096,
        vocab_size=vocab,
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        spans=spans,
    )
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(size=(rows, columns), scale=2 / math.sqrt(columns)).astype(np.float32)

    def norm(n: int) -> np.ndarray:
        return (1 + 0.1 * rng.normal(size=n)).astype(np.float32)

    layers = [
        LayerWeights(
            attn_norm=norm(width),
            qkv=matrix((heads + 2 * kv) * d, width),
            attn_out=matrix(width, heads * d),
            ffn_norm=norm(width),
            gate_up=matrix(2 * ff, width),
            down=matrix(width, ff),
            q_norm=norm(d) if gemma else None,
            k_norm=norm(d) if gemma else None,
            post_attn_norm=norm(width) if gemma else None,
            post_ffn_norm=norm(width) if gemma else None,
        )
        for _ in spans
    ]
    embedding = matrix(vocab, width)
    return Model(ModelWeights(config, embedding, norm(width), embedding, layers))
