"""A small, readable Llama / Gemma 3 runtime on numpy whose KV cache and attention is pagedkv."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# OpenBLAS reads it when numpy is imported. Its threads otherwise spin on after every product, on
# the cores that are to attend next: a step's attention takes a quarter longer.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

if TYPE_CHECKING:
    from .model import Model
    from .tokenizer import Tokenizer
    from .weights import find_model, load_weights

__all__ = ["Model", "Tokenizer", "find_model", "load_model", "load_weights"]


_HOMES = {"Model": "model", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    """Loads a part when it is asked for: what needs the extra packages must not keep the command
    line from explaining itself."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES.get(name, 'weights')}", __name__), name)


def load_model(name: str) -> tuple[Model, Tokenizer]:
    """Model and tokenizer of ``smollm2``, ``gemma3`` or a GGUF file."""
    from .model import Model
    from .tokenizer import Tokenizer
    from .weights import find_model, load_weights

    weights = load_weights(find_model(name))
    return Model(weights), Tokenizer(weights.metadata)
