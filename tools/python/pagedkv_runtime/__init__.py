"""A small, readable Llama / Gemma 3 runtime on numpy whose KV cache and attention is pagedkv."""

from __future__ import annotations

import os

# OpenBLAS reads it when numpy is imported. Its threads otherwise spin on after every product, on the
# cores that are to attend next: a step's attention takes a quarter longer.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from .model import Model  # noqa: E402
from .tokenizer import Tokenizer  # noqa: E402
from .weights import find_model, load_weights  # noqa: E402

__all__ = ["Model", "Tokenizer", "find_model", "load_model", "load_weights"]


def load_model(name: str) -> tuple[Model, Tokenizer]:
    """Model and tokenizer of ``smollm2``, ``gemma3`` or a GGUF file."""
    weights = load_weights(find_model(name))
    return Model(weights), Tokenizer(weights.metadata)
