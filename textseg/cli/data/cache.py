"""`textseg data cache`: slices and text features on disk that any run can make again."""

from __future__ import annotations

from typing import Annotated

from typer import BadParameter, Option


def cache(
    clean: Annotated[bool, Option("--clean", help="Remove the content. Runs make it again.")] = False,
    older_than: Annotated[
        float | None, Option(metavar="DAYS", help="With --clean: only what was not used for so many days.")
    ] = None,
    leftovers: Annotated[bool, Option("--leftovers", help="With --clean: only what killed processes left.")] = False,
) -> None:
    """Show what the cache holds, or remove it.

    Example: textseg data cache --clean --older-than 30
    """
    from textseg.data.cache import cache_entries, clean_cache
    from textseg.system.files import cache_folder
    from textseg.system.messages import counted

    if not clean and (older_than is not None or leftovers):
        raise BadParameter("--older-than and --leftovers say what --clean removes; add it.")
    folder = cache_folder()
    if clean:
        removed = clean_cache(folder, older_than_days=older_than, leftovers_only=leftovers)
        size = _size(sum(entry.bytes for entry in removed))
        print(f"removed {counted(len(removed), 'entry', 'entries')}, {size}, from {folder}")
        return
    print(folder)
    entries = cache_entries(folder)
    for kind, title in (("slices", "cases with slices"), ("text", "texts with features"), ("leftover", "leftovers")):
        sizes = [entry.bytes for entry in entries if entry.kind == kind]
        print(f"{len(sizes):6} {title:20} {_size(sum(sizes)):>10}")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
