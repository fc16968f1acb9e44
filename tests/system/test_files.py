from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from textseg.system.files import cache_folder, new_folder, remove_unfinished, replacing, write_atomically


def test_a_file_is_written_whole_into_a_folder_that_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "table.csv"
    write_atomically(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mistake", [ValueError("half-way"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path, mistake: BaseException) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise mistake

    with pytest.raises(type(mistake)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = {".lock", "last.ckpt", ".gitignore", ".hidden.txt"}
    for name in kept:
        (tmp_path / name).touch()
    for name in ("last.ckpt", "scores.csv", "no suffix"):
        with replacing(tmp_path / name) as temporary:
            (tmp_path / f"copy{temporary.name}").write_bytes(b"half")
            half = (tmp_path / f"copy{temporary.name}").rename(tmp_path / f".again{temporary.name}")
        assert half.exists()
    (tmp_path / f".{'0f' * 16}.2_t1.mha").touch()  # as volumes are written
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept | {"scores.csv", "no suffix"}
    remove_unfinished(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stands_there_where_the_first_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half-way"), replacing(tmp_path / "table.csv"):
        raise ValueError("half-way")
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_file_stands_beside_the_final_one_hidden_and_with_its_suffix(tmp_path: Path) -> None:
    with replacing(tmp_path / "image.npy") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".npy"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_the_mode_respects_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "table.csv"
    code = f"from pathlib import Path; from textseg.system.files import *; write_atomically(Path({str(path)!r}), 'new')"
    subprocess.run([sys.executable, "-c", code], check=True, umask=umask)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_cache_stands_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TEXTSEG_CACHE", "~/slices")
    assert cache_folder() == tmp_path / "slices"
    monkeypatch.delenv("TEXTSEG_CACHE")
    assert cache_folder().name == "textseg"


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "folder") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "a" / "folder").exists()
    assert (tmp_path / "a" / "folder" / "file").read_text() == "content"
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "b") as folder:
        (folder / "missing" / "file").write_text("it can't be written")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
