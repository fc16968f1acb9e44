"""Numbers in sentences."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 mask`, `2 masks`, `0 masks`; a `plural` where it is no s at the end, as in `2 entries`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
