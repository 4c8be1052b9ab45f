"""Fixtures shared by the tests. Models are loaded once per run; tests that need one are skipped
with the reason when its package is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        default=bool(os.environ.get("PKV_LONG")),
        help="run the long form: more tokens, both models (tens of minutes)",
    )


@pytest.fixture(scope="session")
def long_form(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--long"))


def _load(name: str):
    from pagedkv_runtime import load_model

    try:
        return load_model(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer) of SmolLM2-135M-Instruct."""
    return _load("smollm2")


@pytest.fixture(scope="session")
def gemma3():
    """(model, tokenizer) of Gemma-3-270M."""
    return _load("gemma3")
