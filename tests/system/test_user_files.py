from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from textseg.errors import DataError
from textseg.system.user_files import (
    Row,
    csv_text,
    optional_file,
    read_json,
    read_rows,
    read_table,
    read_text,
    read_yaml,
)

TABLE = "case,patient\nMüller,7\n"
FORMULAS = (
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "a;=1+1",
    " =1",
    "a\t@b",
    "\uff1d1",
    "'=1",
    "''-x",
    "a\n+b",
    "=",
)
PLAIN = (
    "12_t2",
    "a=b",
    "it's",
    "'a",
    "T10:L5",
    "L5/S",
    "Müller, Jürgen",
    'a "quoted" name',
    "a; b",
    "2-3",
    "",
    "a\rb",
    "\r\n",
)


def written(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_text_editors_and_spreadsheets_are_read(tmp_path: Path, encoding: str) -> None:
    assert read_text(written(tmp_path, TABLE.encode(encoding))) == TABLE
    content = written(tmp_path, '{"ü": [1]}'.encode(encoding))
    assert read_json(content) == read_yaml(content) == {"ü": [1]}


@pytest.mark.parametrize("content", [TABLE.encode("cp1252"), TABLE.encode("utf-16-le"), TABLE.encode("utf-16")[:-1]])
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"table.csv:\d: .*Save it as UTF-8"):
        read_text(written(tmp_path, content))


@pytest.mark.parametrize("content", [b"PK\x03\x04rest", b"\xd0\xcf\x11\xe0rest"])
def test_a_spreadsheet_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="is a spreadsheet.*Save it as UTF-8"):
        read_text(written(tmp_path, content, "table.xlsx"))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_text(tmp_path / "missing")
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    "name", ["numbering.xlsx", "Numbering.XLS", "numbering.ods", "numbering.tsv", "numbering.csv.txt"]
)
def test_a_table_in_another_format_does_not_count_as_missing(tmp_path: Path, name: str) -> None:
    assert optional_file(tmp_path / "numbering.csv") is optional_file(tmp_path / "no/numbering.csv") is None
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{name}' is not read. Save it as 'numbering.csv'"):
        optional_file(tmp_path / "numbering.csv")
    path = tmp_path / "numbering.csv"
    path.touch()
    assert optional_file(path) == path


def test_the_name_of_a_table_may_be_in_another_case(tmp_path: Path) -> None:
    (tmp_path / "Cases.CSV").touch()
    assert optional_file(tmp_path / "cases.csv") == tmp_path / "Cases.CSV"
    (tmp_path / "labels.yml").touch()
    with pytest.raises(DataError, match="Save it as 'labels.yaml'"):
        optional_file(tmp_path / "labels.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"a": 1,}', "table.csv:2: this is no JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "can't be read as JSON"),
    ],
)
def test_json_that_contradicts_itself_or_can_not_be_read(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_json(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {", "table.csv:2: this is no YAML"),
        ("a: 1\na: 2\n", "table.csv:2: .*'a' stands twice"),
        ("a: &x [*x]\n", "table.csv:1: .*nested deeper"),
        ("? [1]\n: 2\n", "a key must be a text"),
        ("[" * 200, "nested deeper than 20 levels"),
        ("!!python/object:os.system {}", "table.csv:1"),
    ],
)
def test_yaml_that_contradicts_itself_or_can_not_be_read(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_yaml(written(tmp_path, content))


def test_words_of_yaml_stay_words(tmp_path: Path) -> None:
    content = "{1: no, 2: on, 3: y, 010: 1_1, 5: 2024-01-02, 6: true, 7: -3}"
    assert read_yaml(written(tmp_path, content)) == {
        1: "no", 2: "on", 3: "y", "010": "1_1", 5: "2024-01-02", 6: True, 7: -3,
    }  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_ends_of_lines(tmp_path: Path, separator: str, end: str) -> None:
    header, row = separator.join((" Case ", '"Patient"', "")), separator.join((f'"a{separator}1"', " 7", ""))
    text = end.join(["", header, row, separator * 2, ""])
    assert read_table(written(tmp_path, text), "case", ["patient"]) == {
        f"a{separator}1": Row(3, {"case": f"a{separator}1", "patient": "7"})
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty. Its first line names the columns: case, patient, split"),
        ("case\na\n", ":1: there is no column 'patient'. The columns are 'case'"),
        ("name,patient\na,1\n", ":1: there is no column 'case'"),
        ("case,Patient ID\na,1\n", "the column 'patient id' may be meant as 'patient'"),
        ("case,pateint\na,1\n", "the column 'pateint' may be meant as 'patient'"),
        ("case,subject\na,1\n", "the column 'subject' may be meant as 'patient'"),
        ("case,patient,splits\na,1,x\n", "the column 'splits' may be meant as 'split'"),
        ("case,patient,PATIENT\na,1,2\n", "two columns are called 'patient'"),
        ("case,,patient\na,1,2\n", "column 2 has no name"),
        ("case,patient\na,1,2\n", ":2: this row has 3 cells, and the header names 2 columns: case, patient"),
        ("case,patient\na\n", ":2: this row has 1 cell, and the header names 2"),
        ("case,patient\na,1\n\nA,2\n", ":4: 'A' has a row already, in line 2"),
        ("case,patient\n,1\n", ":2: the column 'case' is empty"),
        ('case,patient\n"a,1\n', ":2: this can't be read as a row of a table"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(
            written(tmp_path, content), "case", ["patient"], ["split"], fold=str.lower, synonyms={"subject": "patient"}
        )


def test_further_columns_are_read(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "case,patient,patient_age,Site\na,1,63,B\n"), "case", ["patient"], ["split"])
    assert table["a"].cells == {"case": "a", "patient": "1", "patient_age": "63", "site": "B"}


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_a_written_table_has_no_formulas_and_reads_back_as_it_was(tmp_path: Path, text: str) -> None:
    content = csv_text(("name", text), [(text, 0.1), ("", -1.0)])
    rows = [cells for _, cells in read_rows(written(tmp_path, content))]
    assert rows == [["name", text], [text, "0.1"], ["", "-1.0"]]
    assert (text in PLAIN) == (list(csv.reader(io.StringIO(content)))[1][0] == text)
    for separator in ",;\t":  # whichever a spreadsheet separates at
        cells = [
            cell.lstrip(" ")
            for row in csv.reader(io.StringIO(content, newline=""), delimiter=separator)
            for cell in row
        ]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\uff1d")) or cell[:2] in ("-x",)]
