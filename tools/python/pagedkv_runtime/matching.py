"""Who waits for whose pages: docs/prefix.md, "Matching while waiting"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine import Request


def common_tokens(a: list[int], b: list[int], limit: int) -> int:
    """Leading tokens that a and b share, at most limit. O(result) comparisons in C."""
    low, high, step, growing = 0, min(len(a), len(b), limit), 64, True
    while low < high:
        end = min(low + step, high)
        if a[low:end] == b[low:end]:
            low = end
        elif end - low == 1:
            break
        else:
            high, growing = end, False  # the difference lies before end
        step = 2 * step if growing else max(1, (high - low) // 2)
    return low


@dataclass(frozen=True)
class Following:
    """A waiting request's leader and the leading tokens that they have in common, in full pages."""

    leader: Request
    common: int

    def holds(self) -> bool:
        """Whether the leader is still on its way to the end of the common part."""
        return self.leader.seq is not None and (
            self.leader.computed < self.common and not self.leader.seq.tainted
        )


def find_leader(request: Request, running: Iterable[Request], matched: int) -> Following | None:
    """Whom a request should wait for that would start with ``matched`` tokens of the index."""
    known = request.tokens
    best: Following | None = None
    for other in running:
        if other.seq is None or other.computed < matched:
            continue
        page = other.seq.cache.page_tokens
        common = common_tokens(known, other.tokens, len(known) - 1) // page * page
        gain = common - matched
        if gain < page or 4 * gain < len(known) - matched:
            continue
        found = Following(other, common)
        if found.holds() and (best is None or common > best.common):
            best = found
    return best
