"""Text that may be the start of something."""

from __future__ import annotations


def overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that `string` starts with, short of all of it."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
