"""Bundles and run folders that are damaged or hostile give a model, a list or one message, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import textseg
from textseg.comparison.finished_runs import read_runs
from textseg.errors import TextsegError
from textseg.export.bundle import export_bundle
from textseg.inference.bundles import manifest_text
from textseg.inference.loading import load_model
from textseg.runs.folder import RunFolder
from textseg.runs.listing import list_runs
from textseg.runs.saved_predictions import read_kept
from textseg.volumes.files import file_hash

VALUES: tuple[Any, ...] = (None, True, -1, 0, 3, 10**9, 10**30, 1e300, "", "x", "../../x", [], {}, [1], {"a": 1}, ["a"])


def positions(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of each value in a JSON value."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from positions(node[key])


def with_another_value(content: bytes, draw: random.Random) -> bytes:
    """Replace or delete a value of a JSON text."""
    whole = {"whole": json.loads(content)}
    holder, key = draw.choice(list(positions(whole)))
    if isinstance(holder, dict) and holder is not whole and draw.random() < 0.3:
        del holder[key]
    else:
        holder[key] = draw.choice(VALUES)
    return json.dumps(whole["whole"]).encode()


def with_another_header(content: bytes, draw: random.Random) -> bytes:
    """Replace a value in the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = with_another_value(content[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def with_another_line(content: bytes, draw: random.Random) -> bytes:
    """Replace the value in a line of a YAML or CSV text."""
    lines = content.decode().splitlines()
    number = draw.randrange(len(lines))
    mark = ":" if ":" in lines[number] else ","
    key, _, _ = lines[number].partition(mark)
    lines[number] = f"{key}{mark} {draw.choice(VALUES)}"
    return "\n".join(lines).encode()


def with_other_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip a bit, cut the file, or fill it with something else."""
    kind = draw.randrange(5)
    if kind == 0:
        return content[: draw.randrange(len(content))]
    if kind == 1:
        return draw.choice([b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"[" * 100_000, b"cos\nsystem\n(S'x'\ntR."])
    changed = bytearray(content)
    changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": with_another_value,
    ".yaml": with_another_line,
    ".csv": with_another_line,
    ".safetensors": with_another_header,
}


def mutate(folder: Path, draw: random.Random) -> str:
    """Change one file of the folder, and return its name."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    content = path.read_bytes()
    if draw.random() < 0.04:
        path.unlink()
        path.mkdir()
    elif path.suffix in CHANGES and draw.random() < 0.7:
        path.write_bytes(CHANGES[path.suffix](content, draw))
    else:
        path.write_bytes(with_other_bytes(content, draw))
    return str(path.relative_to(folder))


def seal(bundle: Path) -> None:
    """Give a changed bundle the manifest that a hostile person would give it."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        manifest = json.loads((bundle / "bundle.json").read_bytes())
        manifest["files"] = {name: file_hash(bundle / name) for name in manifest["files"]}
        (bundle / "bundle.json").write_text(manifest_text(manifest))


def use_bundle(bundle: Path) -> None:
    seal(bundle)
    textseg.load(bundle)


def use_run(run: Path) -> None:
    """Do what the commands do with a run that somebody sent, each apart from the others."""
    list_runs(run)
    for use in (load_model, lambda path: read_runs([path]), lambda path: read_kept(RunFolder(path)), used_history):
        with suppress(TextsegError):
            use(run)


def used_history(run: Path) -> None:
    RunFolder(run).read_history()
    RunFolder(run).read_split()


@pytest.fixture(scope="module")
def bundle(finished_run: Path, stranger: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(RunFolder(finished_run), load_model(finished_run), folder)
    return folder


def check(folder: Path, use: Callable[[Path], None], scratch: Path, seeds: Iterable[int]) -> None:
    for seed in seeds:
        shutil.copytree(
            folder, scratch / "mutant", ignore=shutil.ignore_patterns("events*", "*.mha", "*.html", ".lock")
        )
        name = mutate(scratch / "mutant", random.Random(seed))
        message = ""
        try:
            use(scratch / "mutant")
        except TextsegError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"mutant {seed} of {name}: {type(error).__name__}: {error}") from error
        assert len(message) < 3000, (seed, name)
        shutil.rmtree(scratch / "mutant")


def test_mutated_bundles(bundle: Path, tmp_path: Path) -> None:
    check(bundle, use_bundle, tmp_path, range(40))


def test_mutated_runs(finished_run: Path, stranger: None, tmp_path: Path) -> None:
    check(finished_run, use_run, tmp_path, (*range(25), 1259))  # the last one is of a nightly session


@pytest.mark.nightly
def test_many_mutated_bundles(bundle: Path, tmp_path: Path) -> None:
    check(bundle, use_bundle, tmp_path, range(1000, 1400))


@pytest.mark.nightly
def test_many_mutated_runs(finished_run: Path, stranger: None, tmp_path: Path) -> None:
    check(finished_run, use_run, tmp_path, range(1000, 1300))
