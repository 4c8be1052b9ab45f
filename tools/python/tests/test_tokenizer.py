"""Tokenisers built from a GGUF's vocabulary: known ids, round trips, special tokens."""

from __future__ import annotations

import pytest

TEXTS = [
    "Hello world",
    "  two  spaces\n\nand\ttabs ",
    "x = 12345; y == 0.5",
    "don't can't I'll",
    "é ü ß 你好 🙂 \u200b",
    "",
    "<|im_start|>user\nhi<|im_end|>",
    "a" * 300,
]


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_round_trip(smollm2, text):
    _, tokenizer = smollm2
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


@pytest.mark.parametrize("text", TEXTS)
def test_gemma3_round_trip(gemma3, text):
    _, tokenizer = gemma3
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids[1:], skip_special=False) == text


def test_smollm2_known_ids(smollm2):
    """Ids that llama.cpp gives for the same file."""
    _, tokenizer = smollm2
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.stop_ids == {2}
    digits = tokenizer.encode("1234")
    assert len(digits) == 4  # SmolLM splits numbers into digits


def test_gemma3_known_ids(gemma3):
    _, tokenizer = gemma3
    assert tokenizer.encode("The capital of France is") == [2, 818, 5279, 529, 7001, 563]


def test_chat_template(smollm2, gemma3):
    _, tokenizer = smollm2
    text = tokenizer.render_chat([{"role": "user", "content": "hi"}])
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ValueError, match="no chat template"):
        gemma3[1].render_chat([{"role": "user", "content": "hi"}])
