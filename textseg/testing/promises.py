"""A promise of a kind, kept or broken."""

from __future__ import annotations


class BrokenPromiseError(Exception):
    """A broken promise: the expected and the actual value. The runner adds the component."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(expected, came)
        self.expected, self.came = expected, came


def promise(kept: object, expected: str, came: object) -> None:
    """Raise BrokenPromiseError if a promise is not kept."""
    if not kept:
        raise BrokenPromiseError(expected, str(came))
