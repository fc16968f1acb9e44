"""Two rules of CONTRIBUTING, "Words": docstrings begin with a verb or a noun, and variables have names of the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

OPENINGS = {
    "What": "name the thing, not the question: 'What a run costs.' -> 'The cost of a run.'",
    "Whether": "begin with the verb: 'Whether a mask is empty.' -> 'Return True if a mask is empty.'",
    "How": "name the quantity or the method: 'How far borders lie apart.' -> 'Distances between two surfaces.'",
    "Of": "name the thing first: 'Of one forward pass.' -> 'Milliseconds of one forward pass.'",
    "As": "say it in full: 'As of slices.' -> 'Return the key of a whole case; see slice_key.'",
    "That": "name the thing again: 'That of the last epoch.' -> 'The learning rate of the last epoch.'",
}
NAMES = {
    "found": "name what was searched for, such as `matches`, `files`, `components`",
    "said": "name the text, such as `message`, `output`, `statement`",
    "told": "name the content, such as `prompts`, `arguments`, `calls`",
    "one": "use `first` beside a `second`, or the singular of the thing, such as `run`, `mask`",
    "other": "use `second` beside a `first`, or the thing itself, such as `remaining`, `reference`",
    "mine": "say whose value it is, such as `ours`, `own_weights`, `result`",
    "place": "say which kind of place, such as `position`, `index`, `path`, `offset`",
}


def folder_of(path: Path) -> str:
    """Return the first two parts of a path, the unit of the tests."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[: min(2, len(parts) - 1)])


FOLDERS: dict[str, list[Path]] = {}
for _root in ("textseg", "plugins", "tests", "benchmarks"):
    for _path in sorted((ROOT / _root).rglob("*.py")):
        if not {"build", ".venv"} & set(_path.relative_to(ROOT).parts):
            FOLDERS.setdefault(folder_of(_path), []).append(_path)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring of modules, classes, functions and fields."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                statements = node.body[:1]
            case ast.Module() | ast.ClassDef():
                statements = node.body  # a string below an assignment describes a constant or a field
            case _:
                continue
        for statement in statements:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))) if text.strip():
                    yield statement.lineno, text


def variables(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of each variable: targets, parameters, fields, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def mistakes(source: str, file: str = "<source>") -> list[str]:
    """Return one line for each breach of the two rules, with a better form."""
    tree = ast.parse(source)
    opened = [(line, text.split()[0].rstrip(",:;.")) for line, text in docstrings(tree)]
    return [
        *(f"{file}:{line}: a docstring begins with '{w}'; {OPENINGS[w]}" for line, w in opened if w in OPENINGS),
        *(f"{file}:{line}: a variable is called `{n}`; {NAMES[n]}" for line, n in variables(tree) if n in NAMES),
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_names_can_be_understood(folder: str) -> None:
    lines = [
        line
        for path in FOLDERS[folder]
        for line in mistakes(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not lines, "\n" + "\n".join(lines)


TEMPLATES = [path for path in sorted((ROOT / "textseg").rglob("*")) if path.suffix in (".template", ".j2")]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_docstrings_of_templates_can_be_understood(path: Path) -> None:
    """A template is not Python before it is filled in, so its text is searched."""
    openings = re.findall(r'"""(\w+)', path.read_text(encoding="utf-8"))
    assert sorted(set(openings) & set(OPENINGS)) == []


@pytest.mark.parametrize("word", OPENINGS)
@pytest.mark.parametrize(
    "source",
    [
        '"""{} a file holds."""',
        'class A:\n    """{} a class is."""',
        'class A:\n    x: int = 0\n    """{} a field means."""',
        'def f():\n    """{} a function returns."""',
        'class A:\n    def _private(self):\n        """{} a method does."""',
        'async def f():\n    """{}, in a coroutine."""',
    ],
    ids=["module", "class", "field", "function", "private method", "coroutine"],
)
def test_a_docstring_that_begins_with_a_relative_clause_is_refused(source: str, word: str) -> None:
    (line,) = mistakes(source.format(word))
    assert f"begins with '{word}'" in line
    assert "->" in line


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "source",
    [
        "{} = 1",
        "a, *{} = 1, 2",
        "{}: int",
        "for {} in (): pass",
        "[{} for {} in ()]",
        "with open(f) as {}: pass",
        "try: pass\nexcept OSError as {}: pass",
        "def f({}): pass",
        "def f(*, {}=1): pass",
        "lambda {}: 1",
        "class A:\n    {}: int = 0",
        "def f(self):\n    self.{} = 1",
        "print({} := 1)",
        "match x:\n    case [{}]: pass",
    ],
)
def test_a_variable_whose_name_says_nothing_is_refused(source: str, name: str) -> None:
    lines = mistakes(source.replace("{}", name))
    assert len(lines) == 1
    assert f"called `{name}`" in lines[0]
    assert NAMES[name] in lines[0]


def test_clean_source_and_names_of_attributes_that_are_read_pass() -> None:
    source = (
        '"""Howitzers are no issue; see What."""\nfiles = match.found\n\ndef other():\n    """Return the mask."""\n'
    )
    assert mistakes(source) == []
