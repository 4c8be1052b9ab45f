"""A small, readable Llama / Gemma 3 runtime on numpy whose KV cache and attention is pagedkv."""

from __future__ import annotations

from .model import Model
from .tokenizer import Tokenizer
from .weights import find_model, load_weights

__all__ = ["Model", "Tokenizer", "find_model", "load_model", "load_weights"]


def load_model(name: str) -> tuple[Model, Tokenizer]:
    """Model and tokenizer of ``smollm2``, ``gemma3`` or a GGUF file."""
    weights = load_weights(find_model(name))
    return Model(weights), Tokenizer(weights.metadata)
