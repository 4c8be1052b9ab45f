"""What several test files check alike, against a reference that shares no code with the runtime's
forward pass (:mod:`eval.plain`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from eval.plain import Array, PlainModel
from pagedkv_runtime.engine import Request, State
from pagedkv_runtime.model import Model

_plain: dict[int, tuple[Model, PlainModel]] = {}
_known: dict[tuple[int, tuple[int, ...]], Array] = {}
_MOST = 6  # texts whose logits are kept: several tests ask for the same


def metadata_of(model: Model) -> dict[str, Any]:
    """A model's metadata: its file's, or made up from the configuration for one without a file."""
    if model.weights.metadata:
        return model.weights.metadata
    config = model.config
    arch = config.architecture
    own = {
        "block_count": config.n_layers,
        "embedding_length": config.n_embd,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.rotary_dims,
        "rope.freq_base": max(span.theta for span in config.spans),
        "attention.layer_norm_rms_epsilon": config.rms_eps,
        "attention.sliding_window": max(span.window for span in config.spans),
        "attention.sliding_window_pattern": 2,
    }
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in own.items()}}


def plain_of(model: Model) -> PlainModel:
    """The reference with a loaded model's weights (reading the file twice would cost seconds; that
    both readers agree has a test of its own)."""
    found = _plain.get(id(model))
    if found is not None and found[0] is model:
        return found[1]
    config, weights = model.config, model.weights
    d, heads, kv, ff = config.head_dim, config.n_heads, config.n_kv_heads, config.n_ff

    def tensor(name: str) -> Array | None:
        parts = name.removesuffix(".weight").split(".")
        if parts[0] != "blk":
            if parts[0] == "output" and weights.output is weights.embedding:
                return None
            own = {"token_embd": "embedding", "output_norm": "output_norm", "output": "output"}
            return getattr(weights, own[parts[0]])
        layer, part = weights.layers[int(parts[1])], parts[2]
        return {
            "attn_norm": layer.attn_norm,
            "attn_q": layer.qkv[: heads * d],
            "attn_k": layer.qkv[heads * d : (heads + kv) * d],
            "attn_v": layer.qkv[(heads + kv) * d :],
            "attn_output": layer.attn_out,
            "ffn_norm": layer.ffn_norm,
            "ffn_gate": layer.gate_up[:ff],
            "ffn_up": layer.gate_up[ff:],
            "ffn_down": layer.down,
            "attn_q_norm": layer.q_norm,
            "attn_k_norm": layer.k_norm,
            "post_attention_norm": layer.post_attn_norm,
            "post_ffw_norm": layer.post_ffn_norm,
        }[part]

    made = PlainModel(metadata_of(model), tensor)
    _plain[id(model)] = (model, made)
    return made


def reference_logits(model: Model, ids: list[int], rows: Iterable[int] | None = None) -> Array:
    """Logits of a whole sequence, nothing cached. Whole tables are remembered for a while."""
    plain = plain_of(model)
    if rows is not None:
        return plain.logits(ids, list(rows))
    key = (id(model), tuple(ids))
    if key not in _known:
        if len(_known) >= _MOST:
            _known.pop(next(iter(_known)))
        _known[key] = plain.logits(ids)
    return _known[key]


def reference_generate(model: Model, prompt: list[int], n: int) -> list[int]:
    """Greedy tokens, recomputing the whole sequence for each: slow, and obviously right."""
    return plain_of(model).generate(prompt, n)


def assert_greedy(model: Model, request: Request, margin: float = 1e-3) -> None:
    """Every output token is the reference's argmax. Only where the reference's own first and second
    choice are closer than ``margin`` may another of the two be taken."""
    assert request.state is State.DONE, request.error
    ids = request.tokens
    rows = range(len(request.prompt) - 1, len(ids) - 1)
    logits = reference_logits(model, ids, rows)
    for row, token in zip(logits, request.output):
        if int(row.argmax()) != token:
            assert row.max() - row[token] < margin, "a greedy choice with a clear margin differs"
            assert np.isfinite(row).all()
