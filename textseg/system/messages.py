"""Words that messages share: a count with its noun."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: `1 mask`, `2 masks`; `plural` is for nouns such as `2 entries`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
