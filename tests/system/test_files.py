from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from textseg.errors import DataError
from textseg.system.files import (
    LONGEST_NAME,
    cache_folder,
    file_name,
    inside,
    is_locked,
    new_folder,
    open_owned,
    remove_leftovers,
    replacing,
    write_atomically,
)


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


def test_leftovers_of_dead_processes_are_removed_by_the_next_writing_there_and_nothing_else(tmp_path: Path) -> None:
    write = "import os, sys; from pathlib import Path; from textseg.system.files import *\n"
    write += "with {}(Path(sys.argv[1])) as path:\n    print(path, flush=True); input(); os._exit(9)"
    kept = {".lock", "last.ckpt", ".gitignore", ".textseg-notes.txt", f".textseg-{'0' * 16}.mha"}
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / f".textseg-{'0' * 16}.mha").unlink()
    (tmp_path / f".textseg-{'0' * 16}.mha").mkdir()  # of a living process: see below
    living = os.open(tmp_path / f".textseg-{'0' * 16}.mha", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", write.format(how), str(tmp_path / "x.nii.gz")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for how in ("replacing", "new_folder")
    ]  # fmt: skip
    temporary = [Path(process.stdout.readline().strip()) for process in processes if process.stdout]
    assert temporary[0].name.endswith(".nii.gz")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in temporary)  # their owners live
    for process in processes:
        process.communicate("\n")
    assert all(path.exists() for path in temporary)
    write_atomically(tmp_path / "scores.csv", "")
    assert {path.name for path in tmp_path.iterdir()} == kept | {"scores.csv"}
    os.close(living)
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name in kept if "0000" not in name} | {"scores.csv"}
    remove_leftovers(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*table.csv'$"):
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
    with replacing(tmp_path / "2.5_T1.MHA") as temporary:
        assert temporary.suffix == ".mha"  # libraries know formats by small letters


ODD_NAMES = (
    "/../../X/run", "..", ".", "", ".hidden", "a/b", "a\\b", "c:d", "nul", "COM1.x", "line\nbreak", "tab\t", "end. ",
    "\x00", "J\udcfcrgen", "\ud800", "ä" * 200, "x" * 300,
)  # fmt: skip


def test_names_from_data_are_files_of_their_folder_and_different_ones_stay_different(tmp_path: Path) -> None:
    for name in ("12_t2", "Müller, 3. Aufnahme (b)", "a'b", "T2+FS", "x" * 255, "患者 1", "-flag"):
        assert file_name(name) == name
    names = [file_name(name, ending) for name in ODD_NAMES for ending in ("", ".nii.gz")]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert len(name.encode()) <= LONGEST_NAME
        write_atomically(tmp_path / name, "content")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert file_name("x" * 251, ".json") != file_name("x" * 251 + "y", ".json")
    assert file_name("scan_/../../X/run").startswith("scan__.._.._X_run-")


def test_a_path_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "linked").symlink_to(elsewhere)
    (folder / "file").symlink_to(elsewhere / "file")
    assert inside(folder, "sub/new/name") == folder / "sub/new/name"
    for name in ("../x", "sub/../../x", "/x", "linked/x", "file"):
        with pytest.raises(DataError, match="leads out of .*, or is a link"):
            inside(folder, name)
    with pytest.raises(DataError, match="leads out of"):
        inside(folder / "linked", "x")


@pytest.mark.parametrize("length", [221, 222, 250, 255])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * (length - 7) + ".nii.gz")
    write_atomically(path, "content")
    with new_folder(tmp_path / ("y" * length)):
        pass
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [length, length]


def test_devices_and_folders_are_no_files_to_replace(tmp_path: Path) -> None:
    (tmp_path / "pipe").symlink_to("/dev/null")
    with pytest.raises(FileExistsError, match="This is a device and no file: .*pipe"):
        write_atomically(tmp_path / "pipe", "content")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write_atomically(tmp_path, "content")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), new_folder(tmp_path / "file" / "x"):
        pass


def test_links_at_predictable_names_are_removed_and_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(theirs)
    (tmp_path / "hard").hardlink_to(theirs)
    (tmp_path / "own").write_bytes(b"half")
    for name in ("link", "hard", "own", "new"):
        with open_owned(tmp_path / name) as file:
            assert file.read() == (b"half" if name == "own" else b"")
            file.write(b"more")
    assert theirs.read_bytes() == b"precious"
    assert (tmp_path / "own").read_bytes() == b"halfmore"


def test_a_lock_is_seen_without_writing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path)
    path.symlink_to(tmp_path / "theirs")
    assert not is_locked(path)
    assert not (tmp_path / "theirs").exists()
    path.unlink()
    with open_owned(path) as file:
        assert not is_locked(path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_locked(path)


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
