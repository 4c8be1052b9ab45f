"""Eviction policies: how one sequence's pages in one layer group are bounded."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ._library import lib
from ._structs import CONSTANTS, SCORE_FN, EvictConfigStruct
from .errors import check

#: Policy names that :class:`EvictPolicy` takes.
POLICIES = (
    "none",
    "window",
    "sink",
    "mass",
    "obs",
    "keydiff",
    "lru-mass",
    "random",
    "topk",
    "h2o",
    "tova",
)
_UNITS = {
    "tokens": CONSTANTS["BUDGET_TOKENS"],
    "pages": CONSTANTS["BUDGET_PAGES"],
    "bytes": CONSTANTS["BUDGET_BYTES"],
}
_MODES = {"original": CONSTANTS["POSITION_ORIGINAL"], "compact": CONSTANTS["POSITION_COMPACT"]}
_KEYSUM = {"keydiff"}
_BOUNDS = {"topk"}

ScoreFunction = Callable[[npt.NDArray[np.uint32], int], npt.ArrayLike]


class EvictPolicy:
    """A policy with its budget. ``EvictPolicy("sink", 1024, positions="compact")``.

    name      one of POLICIES, or "callback" with ``score``
    budget    tokens (or pages, bytes: ``unit``) kept per sequence and group
    positions "original" (true distances) or "compact" (survivors close up)
    score     function(logical page numbers ``[n]`` uint32, sequence length) -> n scores; the lowest
              is dropped first. An exception in it counts as all zeros and is raised by the commit.
    options   any other field of pkv_evict_config: sinks, window, gamma, obs_rows, epsilon, pool,
              seed, journal_steps, regret, regret_pages, regret_every, regret_rank, normalize_age
    """

    def __init__(
        self,
        name: str,
        budget: int = 0,
        *,
        unit: str = "tokens",
        positions: str = "original",
        score: ScoreFunction | None = None,
        **options: Any,
    ) -> None:
        self.name = name
        self.struct = EvictConfigStruct()
        size = C.sizeof(self.struct)
        if name == "callback":
            if score is None:
                raise ValueError("the policy 'callback' needs a score function")
            status = lib.pkv_evict_config_init(
                self.struct, size, CONSTANTS["EVICT_CALLBACK"], budget
            )
            self._callback = SCORE_FN(self._scored(score))
            self.struct.score = self._callback
        else:
            status = lib.pkv_evict_config_named(self.struct, size, name.encode(), budget)
        check(status, f"policy {name!r}")
        if unit not in _UNITS:
            raise ValueError(f"unit {unit!r} is not one of {', '.join(_UNITS)}")
        if positions not in _MODES:
            raise ValueError(f"positions {positions!r} is not one of {', '.join(_MODES)}")
        self.struct.budget_unit = _UNITS[unit]
        self.struct.position_mode = _MODES[positions]
        known = {field for field, *_ in EvictConfigStruct._fields_}
        for key, value in options.items():
            if key not in known or key in ("struct_size", "kind", "score", "score_user"):
                raise TypeError(f"pkv_evict_config has no option {key!r}")
            setattr(self.struct, key, value)
        #: Signals (PKV_SIGNAL_*) that the cache must be created with for this policy.
        self.signals = (CONSTANTS["SIGNAL_KEYSUM"] if name in _KEYSUM else 0) | (
            CONSTANTS["SIGNAL_BOUNDS"] if name in _BOUNDS or self.struct.regret else 0
        )
        #: The exception a score function raised last, or None.
        self.failure: BaseException | None = None

    def _scored(self, score: ScoreFunction) -> Callable[..., None]:
        def call(
            _user: Any, _seq: Any, _group: int, n_tokens: int, logical: Any, scores: Any, n: int
        ) -> None:
            try:
                pages = np.ctypeslib.as_array(logical, (n,))
                np.ctypeslib.as_array(scores, (n,))[:] = score(pages, n_tokens)
            except BaseException as error:  # must not travel through C frames
                self.failure = error
                C.memset(scores, 0, 4 * n)

        return call

    @classmethod
    def parse(cls, spec: str, **options: Any) -> EvictPolicy:
        """``POLICY:BUDGET`` in tokens, e.g. ``sink:1024``."""
        name, _, budget = spec.partition(":")
        if name == "none":
            return cls("none")
        if not budget.isdigit() or int(budget) == 0:
            raise ValueError(f"{spec!r} is not POLICY:BUDGET with a budget in tokens")
        return cls(name, int(budget), **options)

    def __repr__(self) -> str:
        unit = {code: name for name, code in _UNITS.items()}[self.struct.budget_unit]
        mode = {code: name for name, code in _MODES.items()}[self.struct.position_mode]
        return (
            f"EvictPolicy({self.name!r}, {self.struct.budget}, unit={unit!r}, positions={mode!r})"
        )
