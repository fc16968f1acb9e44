"""Mistakes of users; the command line prints the message of such an error and exits with code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LISTED = 40  # names that a message shows
SHOWN = 60  # characters of a value
LONGEST_LINE = 4000  # characters
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class TextsegError(Exception):
    """A mistake of a user; the message says what is wrong, where, what is possible, and what to do."""


class RecipeError(TextsegError):
    """A recipe or a `--set` value is wrong; the message has one line for each mistake."""


class PluginError(TextsegError):
    """A plug-in is missing, broken, or collides with another."""


class DataError(TextsegError):
    """A data set, volume or split is missing, damaged or inconsistent."""


class PromptError(TextsegError):
    """A prompt names something unknown, or is longer than its text encoder can read."""


class RunError(TextsegError):
    """A run folder is missing, in use, or belongs to another experiment."""


def one_line(error: Exception, failure: str) -> str:
    """Return an exception as one line for a list of failures; `failure` says what failed, such as "a can't be read"."""
    if isinstance(error, TextsegError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"{failure}: there is not enough memory."
    if isinstance(error, OSError) and error.strerror:
        return f"{failure}: {error.strerror}."
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(". ")
    return f"{failure}: {reason}."


def shortened(value: object) -> str:
    """Return a value as a text that fits into a message."""
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def printable(message: str) -> str:
    """Return a message without colours and control characters of values in it, and with each line cut to a bound."""
    lines = _COLOURS.sub("", message).split("\n")
    lines = ["".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line) for line in lines]
    kept = LONGEST_LINE // 2
    return "\n".join(f"{line[:kept]} [...] {line[-kept:]}" if len(line) > 2 * kept else line for line in lines)


def suggestion(name: str, possible: Iterable[str]) -> str:
    """Return the end of a message about an unknown `name`: the nearest possible name, then all possible names."""
    names = sorted(possible)
    nearest = difflib.get_close_matches(name[:SHOWN], names, n=1, cutoff=0.6)
    guess = f" Did you mean '{nearest[0]}'?" if nearest else ""
    if not names:
        return f"{guess} There is none."
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{guess} Possible: {', '.join(names[:LISTED])}{more}."
