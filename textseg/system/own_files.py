"""Files that textseg wrote: they are read back through a schema, because they may be damaged or come from anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textseg.errors import DataError, RunError
from textseg.system import user_files

LARGEST = 2**28  # bytes of such a file; no file of textseg comes near


def read_json(path: Path, schema: Any, remedy: str) -> Any:
    """Return the content of a JSON file, unchanged, if it fits the type `schema`.

    Raises FileNotFoundError, and RunError with the `remedy` for any other file that can't be read or does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    if not path.exists():
        raise FileNotFoundError(path)
    if (size := path.stat().st_size) > LARGEST:
        raise damaged(path, f"it has {size} bytes", remedy)
    try:
        content = user_files.read_json(path)
        TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise damaged(path, ": ".join((*map(str, first["loc"]), first["msg"])), remedy) from None
    except DataError as error:
        raise damaged(path, str(error), remedy) from None
    return content


def damaged(path: Path, reason: str, remedy: str) -> RunError:
    """Return the error for a file that is not as textseg wrote it; long reasons are shortened."""
    reason = " ".join(reason.removeprefix(f"{path}:").removeprefix(f"'{path}' ").split())
    return RunError(f"'{path}' is damaged ({reason[:160].rstrip('. ')}). {remedy}")
