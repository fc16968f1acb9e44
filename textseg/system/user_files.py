"""Read the tables, JSON and YAML that people write; write tables that a spreadsheet opens without running formulas."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from textseg.errors import DataError, suggestion
from textseg.system import yaml_text
from textseg.system.messages import counted

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xls", ".xlsx", ".ods")  # the last three are refused with advice
SEPARATORS = ",;\t"
_MISNAMED = {".csv": (".xlsx", ".xls", ".ods", ".tsv", ".csv.txt"), ".yaml": (".yml", ".yaml.txt")}
NEAR = 0.75  # similarity of two names of columns from which one is taken for a slip of the pen
_SAVE = "Save it as UTF-8 (Excel calls this 'CSV UTF-8')"
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # xlsx and ods, xls
# A spreadsheet that separates at another character than the file sees a formula inside a cell, too.
_FORMULA = re.compile(r"(?P<start>(?:^|[;,\t\r\n]) *)(?P<quotes>'*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


class Row(NamedTuple):
    """A row of a table: its line in the file, and its cells by column."""

    line: int
    cells: Mapping[str, str]


def read_text(path: Path) -> str:
    """Return a text in UTF-8, with or without a byte order mark, or in UTF-16 with one. Raises DataError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error.strerror}.") from None
    if content.startswith(_SPREADSHEETS):
        raise DataError(f"'{path}' is a spreadsheet, and only text can be read. {_SAVE}.")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 if wide else 1 + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: this is not UTF-8 (byte 0x{content[error.start]:02x}: {error.reason}). {_SAVE}."
        ) from None
    if "\0" in text:
        raise DataError(f"{path}:{1 + text[: text.index(chr(0))].count(chr(10))}: this is no text in UTF-8. {_SAVE}.")
    return text


def optional_file(path: Path) -> Path | None:
    """Return a file that may be missing, also with its name in another case; None without it.

    Raises DataError for a file of that name in another format, which would silently count as missing.
    """
    if path.exists() or not path.parent.is_dir():
        return path if path.exists() else None
    files = {file.name.casefold(): file for file in path.parent.iterdir()}
    for suffix in _MISNAMED[path.suffix]:
        if misnamed := files.get(f"{path.stem}{suffix}"):
            raise DataError(f"'{misnamed}' is not read. Save it as '{path.name}', in UTF-8, or move it away.")
    return files.get(path.name)


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises DataError, also for a key that stands twice in an object."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: this is no JSON: {error.msg} (column {error.colno}).") from None
    except RecursionError:
        raise DataError(f"'{path}' is nested too deeply to be read as JSON.") from None
    except ValueError as error:
        raise DataError(f"'{path}' can't be read as JSON: {error}.") from None


def read_json_lines(path: Path, key: str) -> dict[str, Row]:
    """Return the objects of a JSONL file, one on each line, by their text under `key`.

    Values are texts, numbers, or lists of texts, which are joined. Names of keys compare without case. Raises DataError
    that names the file and the line, also for two objects of one key.
    """
    table: dict[str, Row] = {}
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            content = json.loads(text, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: this line is no JSON: {error}. Each line is one object.") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}:{line}: this line is no object, such as {{'{key}': '...'}} in double quotes.")
        cells = {name.strip().casefold(): _as_cell(value) for name, value in content.items()}
        if wrong := [name for name, cell in cells.items() if cell is None]:
            raise DataError(f"{path}:{line}: '{wrong[0]}' must be a text, a number or a list of texts.")
        row = Row(line, {name: cell for name, cell in cells.items() if cell is not None})
        if not row.cells.get(key):
            raise DataError(f"{path}:{line}: there is no '{key}'. Every line needs one.")
        if (earlier := table.setdefault(row.cells[key], row)) is not row:
            raise DataError(f"{path}:{line}: '{row.cells[key]}' has a line already, {earlier.line}. Keep one.")
    return table


def _as_cell(value: Any) -> str | None:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value).strip()
    return "" if value is None else str(value).strip() if type(value) in (str, int, float) else None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if content.setdefault(key, value) is not value:
            raise ValueError(f"the key '{key}' stands twice in one object; keep one")
    return content


def read_yaml(path: Path) -> Any:
    """Return the value in a YAML file, whose keys may be numbers. Raises DataError; see `yaml_text.parse`."""
    try:
        value, _ = yaml_text.parse(read_text(path), typed_keys=True)
    except yaml_text.YamlError as error:
        raise DataError(f"{path}:{error.line}: this is no YAML: {error}.") from None
    return value


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV file, the header first, each with its line; rows without content are left out.

    Cells are separated by commas, semicolons or tabs, whichever the header has most of. Cells that `csv_text` has
    neutralised are as they were before. Raises DataError.
    """
    text = read_text(path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    widths = {separator: len(next(csv.reader([header], delimiter=separator), ())) for separator in SEPARATORS}
    table = csv.reader(io.StringIO(text, newline=""), delimiter=max(widths, key=widths.__getitem__), strict=True)
    rows = []
    try:
        for cells in table:
            if any(cell.strip() for cell in cells):
                rows.append((table.line_num, [_FORMULA.sub(_restored, cell) for cell in cells]))
    except csv.Error as error:
        raise DataError(f"{path}:{table.line_num}: this can't be read as a row of a table: {error}.") from None
    return rows


def read_table(
    path: Path,
    key: str,
    needed: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    fold: Callable[[str], str] = str,
    synonyms: Mapping[str, str] = {},
) -> dict[str, Row]:
    """Return the rows of a CSV file by their cell in the column `key`, which `fold` brings into one spelling.

    Names of columns compare without case and outer blanks. There may be further columns, but none whose name is close
    to a column of `key`, `needed` or `optional` that is missing, or is among the `synonyms` of one. Raises DataError
    that names the file and the line, also for two rows of one key.
    """
    rows = read_rows(path)
    if not rows:
        raise DataError(f"'{path}' is empty. Its first line names the columns: {', '.join((key, *needed, *optional))}.")
    (first, header), *rows = rows
    columns = [column.strip().casefold() for column in header]
    while columns and not columns[-1]:  # a separator at the end of each line
        columns.pop()
    _check_columns(f"{path}:{first}", columns, (key, *needed), optional, synonyms)
    table: dict[str, Row] = {}
    for line, cells in rows:
        row = Row(line, dict(zip(columns, map(str.strip, cells), strict=False)))
        if any(cell.strip() for cell in cells[len(columns) :]) or len(cells) < len(columns):
            cause = "a cell with a comma needs quotation marks around it" if len(cells) > len(columns) else "add them"
            raise DataError(
                f"{path}:{line}: this row has {counted(len(cells), 'cell')}, and the header names "
                f"{counted(len(columns), 'column')}: {', '.join(columns)}; {cause}."
            )
        if not row.cells[key]:
            raise DataError(f"{path}:{line}: the column '{key}' is empty. Fill it, or remove the row.")
        if (earlier := table.setdefault(fold(row.cells[key]), row)) is not row:
            raise DataError(f"{path}:{line}: '{row.cells[key]}' has a row already, in line {earlier.line}. Keep one.")
    return table


def _check_columns(
    where: str, columns: Sequence[str], needed: Sequence[str], optional: Sequence[str], synonyms: Mapping[str, str]
) -> None:
    if "" in columns:
        raise DataError(f"{where}: column {columns.index('') + 1} has no name. Name it, or remove it.")
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise DataError(f"{where}: two columns are called '{twice[0]}' (upper and lower case are the same). Keep one.")
    missing = [name for name in (*needed, *optional) if name not in columns]
    for column in columns:
        for name in missing if column not in (*needed, *optional) else ():
            words = {synonyms.get(word, word) for word in (column, *re.split(r"[\W_]+", column))}
            if name in words or difflib.SequenceMatcher(None, column, name).ratio() >= NEAR:
                raise DataError(
                    f"{where}: the column '{column}' may be meant as '{name}'. Call it '{name}', or give it a name "
                    f"that is not close to one of {', '.join((*needed, *optional))}."
                )
    if lacking := [name for name in missing if name in needed]:
        raise DataError(
            f"{where}: there is no column {' and no column '.join(map(repr, lacking))}. The columns are "
            f"{', '.join(map(repr, columns))}; they are separated by commas, semicolons or tabs."
        )


def unknown_row(path: Path, row: Row, name: str, kind: str, known: Iterable[str]) -> str:
    """Return the sentence about a row that fits nobody: its place, and the names that are possible."""
    names = list(known)
    return f"{path}:{row.line}: there is no {kind} '{name}'.{suggestion(name, names) if names else ''}"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV table; floats stand in full, as `repr` writes them.

    A text that a spreadsheet would take for a formula gets a quotation mark in front; `read_rows` removes it.
    """
    lines = list[str]()
    # With "\n" as terminator, a cell with "\r" would get no quotation marks, and end its row for most readers.
    file: Any = SimpleNamespace(write=lines.append)
    csv.writer(file, lineterminator="\r\n").writerows([_cell(value) for value in row] for row in (header, *rows))
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _cell(value: object) -> object:
    if isinstance(value, str):
        return _FORMULA.sub(r"\g<start>'\g<quotes>", value)
    return repr(float(value)) if isinstance(value, float) else value


def _restored(match: re.Match[str]) -> str:
    return match["start"] + match["quotes"][1:]
