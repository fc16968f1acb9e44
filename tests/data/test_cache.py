from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from textseg.data.cache import cache_entries, clean_cache
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.system.files import cache_folder, new_folder

KEY = "0123456789abcdef" * 2


@pytest.fixture
def cache(tmp_path: Path, tiny_recipe: Path, stranger: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that a run has filled."""
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    build(load_recipe(tiny_recipe))
    return cache_folder()


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(path: Path, *, hours: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"12345")
    os.utime(path, (time.time() - 3600 * hours,) * 2)
    os.utime(path.parent, (time.time() - 3600 * hours,) * 2)
    return path


def test_entries_are_all_that_a_run_wrote(cache: Path) -> None:
    entries = cache_entries(cache)
    kinds = [entry.kind for entry in entries]
    assert kinds.count("slices") == len(list(cache.rglob("case.json"))) > 0
    assert kinds.count("text") == len(list(cache.rglob("*.safetensors"))) > 0
    assert sum(entry.bytes for entry in entries) == sum(map(len, files(cache).values()))


def test_a_cleaned_cache_is_filled_again(cache: Path, tiny_recipe: Path) -> None:
    before = files(cache)
    removed = clean_cache(cache)
    assert sum(entry.bytes for entry in removed) == sum(map(len, before.values()))
    assert cache_entries(cache) == []
    build(load_recipe(tiny_recipe))
    assert {path for path in files(cache) if path.name != "case.json"} == {p for p in before if p.name != "case.json"}


def test_what_was_used_lately_stays(cache: Path, tiny_recipe: Path) -> None:
    old = time.time() - 40 * 86400
    for path in [*cache.rglob("*")]:
        os.utime(path, (old, old))
    build(load_recipe(tiny_recipe))  # uses the slices
    removed = clean_cache(cache, older_than_days=30)
    assert {entry.kind for entry in removed} == {"text"}
    assert {entry.kind for entry in cache_entries(cache)} == {"slices"}


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(cache: Path) -> None:
    dead = put(cache / "slices/01" / f".textseg-{KEY[:16]}" / "image.npy", hours=0)
    half = put(cache / "slices/01" / KEY / "image.npy", hours=2)
    text = put(cache / "text/ab" / f".textseg-{KEY[:16]}", hours=0)
    with new_folder(cache / "slices/02" / KEY) as folder:
        alive = put(folder / "image.npy", hours=2)
        count = len(cache_entries(cache))
        assert len(clean_cache(cache, leftovers_only=True)) == 3
        assert len(cache_entries(cache)) == count - 3
        assert alive.exists()
    assert not any(path.exists() for path in (dead, half, text))


def test_what_textseg_did_not_write_is_never_touched(tmp_path: Path) -> None:
    written = [
        put(tmp_path / name, hours=9999)
        for name in (
            "notes.txt",
            "slices/thesis.txt",
            "slices/ab/holiday/photo.jpg",
            "text/ab/letter.txt",
            "text/x.safetensors",
            f"slices/{KEY}/case.json",
            "other/ab/model.safetensors",
        )
    ]
    assert clean_cache(tmp_path) == []
    assert clean_cache(tmp_path / "nowhere") == []
    assert all(path.exists() for path in written)
