"""What several test files check alike."""

from __future__ import annotations

from pagedkv_runtime.engine import Request, State
from pagedkv_runtime.model import Model
from pagedkv_runtime.reference import reference_logits


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
