from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from textseg.errors import RunError
from textseg.runs.folder import RunFolder
from textseg.training.resources import explained_exhaustion


def fail(error: BaseException, folder: Path) -> None:
    with explained_exhaustion(folder, folder / "cache", folder / "last.ckpt"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_says_what_to_lower(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Memory ran out. Lower training.batch_size or .* No checkpoint"):
        fail(error, tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(RunError, match="last.ckpt' is kept: the same command continues from there"):
        fail(error, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_lies_where(number: int, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"A disk is full, .*'{tmp_path}'.*'{tmp_path / 'cache'}'.* TEXTSEG_CACHE"):
        fail(OSError(number, "full"), tmp_path)


def test_a_full_disk_behind_an_error_of_torch(tmp_path: Path) -> None:
    hidden = RuntimeError("unexpected pos 64 vs 0")
    hidden.__context__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunError, match="A disk is full"):
        fail(hidden, tmp_path)


def test_a_worker_that_the_system_has_killed_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"A worker process .* was lost \(DataLoader worker .* Killed"):
        fail(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), tmp_path)


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "gone"), RunError("said already")):
        with pytest.raises(type(error)) as caught:
            fail(error, tmp_path)
        assert caught.value is error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_that_does_not_fit_spares_the_one_before(small_disk: Path) -> None:
    folder = RunFolder(small_disk)
    folder.save_checkpoint("last", {"weights": torch.ones(100)})
    last = folder.checkpoint("last")
    with (
        pytest.raises(RunError, match="A disk is full, .*last.ckpt' is kept: the same command"),
        explained_exhaustion(small_disk, small_disk, last),
    ):
        folder.save_checkpoint("last", {"weights": torch.ones(100_000)})
    assert torch.equal(folder.load_checkpoint("last")["weights"], torch.ones(100))
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]  # nothing half-written is left
