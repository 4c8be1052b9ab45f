"""A tokenizer built from the vocabulary inside a GGUF file.

Two kinds occur: byte-level BPE with explicit merges (``gpt2``: SmolLM2) and SentencePiece BPE whose
merge order is given by the tokens' scores (``llama``: Gemma 3).
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def _merges_from_scores(
    tokens: list[str], scores: list[float], types: list[int]
) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best score first: what SentencePiece would do."""
    index = {token: i for i, token in enumerate(tokens) if types[i] == _NORMAL}
    merges = []
    for token, i in index.items():
        for cut in range(1, len(token)):
            left, right = index.get(token[:cut]), index.get(token[cut:])
            if left is not None and right is not None:
                merges.append((-scores[i], i, left, right))
    merges.sort()
    return [(tokens[left], tokens[right]) for _, _, left, right in merges]


class Tokenizer:
    """Text to token ids and back, with the model's special tokens."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        types: list[int] = metadata["tokenizer.ggml.token_type"]
        kind = metadata["tokenizer.ggml.model"]
        vocab = {token: i for i, token in enumerate(tokens)}
        if kind == "gpt2":
            merges = [tuple(m.split(" ", 1)) for m in metadata["tokenizer.ggml.merges"]]
            core = tokenizers.Tokenizer(BPE(vocab, merges))
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
            pre = metadata.get("tokenizer.ggml.pre", "default")
            if pre == "smollm":
                core.pre_tokenizer = pre_tokenizers.Sequence(
                    [pre_tokenizers.Digits(individual_digits=True), byte_level]
                )
            elif pre in ("default", "gpt-2", "gpt2"):
                core.pre_tokenizer = byte_level
            else:
                raise ValueError(f"pre-tokenizer {pre!r} is not supported")
            core.decoder = decoders.ByteLevel()
        elif kind == "llama":
            merges = _merges_from_scores(tokens, metadata["tokenizer.ggml.scores"], types)
            core = tokenizers.Tokenizer(
                BPE(
                    vocab,
                    merges,
                    unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
                    fuse_unk=True,
                    byte_fallback=True,
                )
            )
            steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
            if metadata.get("tokenizer.ggml.add_space_prefix", True):
                steps.insert(0, normalizers.Prepend("\u2581"))
            core.normalizer = normalizers.Sequence(steps)
            core.decoder = decoders.Sequence(
                [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
            )
        else:
            raise ValueError(f"tokenizer {kind!r} is not supported (gpt2, llama)")
        core.add_special_tokens(
            [
                tokenizers.AddedToken(tokens[i], special=True, normalized=False)
                for i, t in enumerate(types)
                if t == _CONTROL
            ]
        )
        core.add_tokens(
            [
                tokenizers.AddedToken(tokens[i], special=False, normalized=False)
                for i, t in enumerate(types)
                if t == _USER_DEFINED
            ]
        )
        self._core = core
        self.vocab_size = len(tokens)
        self.tokens = tokens
        self.bos_id: int | None = metadata.get("tokenizer.ggml.bos_token_id")
        self.eos_id: int | None = metadata.get("tokenizer.ggml.eos_token_id")
        self.add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"))
        self.chat_template: str | None = metadata.get("tokenizer.chat_template")
        self.stop_ids = {
            i
            for i in (self.eos_id, vocab.get("<|im_end|>"), vocab.get("<end_of_turn>"))
            if i is not None
        }

    @property
    def bos(self) -> list[int]:
        """What a text begins with before its own tokens: one token or none."""
        return [self.bos_id] if self.add_bos and self.bos_id is not None else []

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text. ``add_bos`` None = as the model wants it."""
        ids = self._core.encode(text, add_special_tokens=False).ids
        if self.add_bos if add_bos is None else add_bos:
            if self.bos_id is None:
                raise ValueError("this vocabulary has no begin token")
            ids = [self.bos_id, *ids]
        return ids

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        return self._core.decode(ids, skip_special_tokens=skip_special)

    def render_chat(self, messages: list[dict[str, str]]) -> str:
        """The model's chat template applied to messages of ``role`` and ``content``."""
        if self.chat_template is None:
            raise ValueError("this GGUF carries no chat template: it is a base model")
        import jinja2.sandbox

        env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        bos = self.tokens[self.bos_id] if self.bos_id is not None else ""
        eos = self.tokens[self.eos_id] if self.eos_id is not None else ""
        return env.from_string(self.chat_template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
