"""Sizes on the command line: 1048576, 64KiB, 1.5GiB, 2GB."""

from __future__ import annotations

import argparse
import re

_UNITS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}


def parse_bytes(text: str) -> int:
    """Bytes of a size; raises argparse's error with the reason."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size (such as 512MiB)")
    value = int(float(match[1]) * _UNITS[match[2].lower()])
    if value <= 0:
        raise argparse.ArgumentTypeError("a size must be positive")
    return value


def _whole(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not low <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{value} is not in {low} to {2**31 - 1}")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def limit_change(text: str) -> tuple[float, int]:
    """SECONDS:BYTES: a moment and the memory limit from then on."""
    when, _, size = text.partition(":")
    try:
        seconds = float(when)
        if not 0.0 <= seconds < 1e9:
            raise ValueError
        return seconds, parse_bytes(size)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not SECONDS:BYTES") from None
