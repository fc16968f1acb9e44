from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from textseg.errors import RunError
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import Recipe
from textseg.registry.source import core_source
from textseg.runs import folder as run_folder
from textseg.runs.folder import RunFolder, environment


def recipe(tiny_recipe: Path, *overrides: str) -> Recipe:
    return load_recipe(tiny_recipe, overrides)


@pytest.mark.usefixtures("stranger")
def test_where_runs_stand(tiny_recipe: Path) -> None:
    assert RunFolder.of(recipe(tiny_recipe, "seed=7"), Path("runs")).path == Path("runs/tiny/seed7")
    folded = recipe(tiny_recipe, "split={folds: 3, fold: 2}")
    assert RunFolder.of(folded, Path("runs")).path == Path("runs/tiny/seed2025_fold2")


def test_a_named_run(tmp_path: Path) -> None:
    for name in ("seed1", "seed1_until_20260101_000000_000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    assert RunFolder.existing(tmp_path / "seed1").path == tmp_path / "seed1"
    assert RunFolder.existing(tmp_path).path == tmp_path / "seed1"
    (tmp_path / "seed2_fold0").mkdir()
    with pytest.raises(RunError, match="is no run: it has no run.json"):
        RunFolder.existing(tmp_path / "seed2_fold0")
    (tmp_path / "seed2_fold0" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="holds 2 runs; name one: .*seed1, .*seed2_fold0"):
        RunFolder.existing(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    program = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True)\n    input()"
    command = [sys.executable, "-c", program, str(folder.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="is in use by another process"), folder.lock():
            pass
        process.kill()  # the operating system frees its lock
    with folder.lock():
        pass
    with folder.lock():
        pass


def test_moving_aside_keeps_everything(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "seed1")
    assert folder.move_aside() is None
    folder.update(name="old")
    with folder.lock():
        aside = folder.move_aside()
    assert aside is not None
    assert RunFolder(aside).read() == {"name": "old"}
    assert not folder.path.exists()


def test_the_record_keeps_what_it_is_not_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read() == {}
    folder.update(name="x", seed=1)
    assert folder.update(seed=2) == folder.read() == {"name": "x", "seed": 2}
    folder.record.write_text('{"name": ')
    with pytest.raises(RunError, match="run.json' is damaged .* --fresh"):
        folder.read()


def test_the_history_may_have_gaps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_history() == []
    folder.write_history([{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": 0.25, "dsc": 0.1}])
    assert folder.read_history() == [
        {"epoch": "0", "loss": "0.5", "dsc": ""},
        {"epoch": "1", "loss": "0.25", "dsc": "0.1"},
    ]


def test_another_experiment_is_refused_key_by_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    bound = {"seed": 1, "preparation": {"size": (4, 4)}, "model": {"network": {"use": "a"}}}
    folder.update(bound=bound)
    folder.check_bound(bound)
    with pytest.raises(RunError) as caught:
        folder.check_bound({"seed": 1, "preparation": {"size": (8, 4)}, "model": {"fusion": {"use": "b"}}})
    assert str(caught.value).splitlines() == [
        f"'{tmp_path}' holds a run of another experiment:",
        "  model.fusion.use: was not given, is b",
        "  model.network.use: was a, is not given",
        "  preparation.size: was [4, 4], is [8, 4]",
        "Undo the change, add --fresh to move the old run aside, or choose another --output or name.",
    ]
    folder.update(bound={"text": "a", "reports": "b", "data": "c"})
    with pytest.raises(RunError) as caught:
        folder.check_bound({"text": "d", "reports": "e", "data": "f"}, {"text": [], "reports": ["the words changed"]})
    assert str(caught.value).splitlines()[1:-1] == ["  data: was c, is f", "  the words changed"]
    folder.record.unlink()
    with pytest.raises(RunError, match="a checkpoint but no run.json"):
        folder.check_bound(bound)


def test_checkpoints_hold_tensors_and_plain_python_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint("last", {"model": {"weight": torch.ones(2)}, "progression": {"step": 3}})
    assert folder.load_checkpoint("last")["progression"] == {"step": 3}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    torch.save({"path": Path()}, folder.checkpoint("best"))
    with pytest.raises(RunError, match="no checkpoint of textseg"):
        folder.load_checkpoint("best")


def test_a_damaged_or_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(RunError, match="last.ckpt' does not exist"):
        folder.load_checkpoint("last")
    folder.save_checkpoint("last", {"model": torch.zeros(1000)})
    content = folder.checkpoint("last").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no checkpoint"):
        folder.checkpoint("last").write_bytes(damaged)
        with pytest.raises(RunError, match="last.ckpt' is damaged .* --fresh") as caught:
            folder.load_checkpoint("last")
        assert "\n" not in str(caught.value)


def test_a_bit_flipped_anywhere_in_a_checkpoint_never_gives_other_weights(tmp_path: Path) -> None:
    folder, path = RunFolder(tmp_path), RunFolder(tmp_path).checkpoint("last")
    weights = torch.arange(60.0)
    folder.save_checkpoint("last", {"model": {"weight": weights}, "progression": {"step": 3}})
    content, refused = path.read_bytes(), 0
    draw = random.Random(0)
    start = content.index(weights.numpy().tobytes())
    positions = [*range(start, start + 240, 8), *(draw.randrange(len(content)) for _ in range(150))]
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            state = folder.load_checkpoint("last")
        except RunError:
            refused += 1
        else:  # padding, or a field of the archive that nobody reads
            assert torch.equal(state["model"]["weight"], weights)
            assert state["progression"] == {"step": 3}
    assert refused >= 30


@pytest.mark.parametrize(
    "content",
    ["[]", '{"seed": "x"}', '{"test": {"dsc": "high"}}', '{"groups": []}', "[" * 100_000, '{"seed": 1' + "0" * 5000],
)
def test_a_record_of_other_types_is_damaged(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    folder.record.write_text(content)
    with pytest.raises(RunError, match="run.json' is damaged") as caught:
        folder.read()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "content", [None, b"epoch\n\x81", b"epoch\nx\n", b"step\n1\n", b"epoch,step\n1\n", b"epoch,dsc\n1,x\n"]
)
def test_a_damaged_history_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = RunFolder(tmp_path).log / "metrics.csv"
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(RunError, match=r"metrics.csv' is damaged .*Delete it"):
        RunFolder(tmp_path).read_history()


def test_an_interrupted_save_leaves_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.update(seed=3)
    folder.save_checkpoint("last", {"step": 1})

    def fail(state: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        folder.save_checkpoint("last", {"step": 2})
    assert folder.load_checkpoint("last") == {"step": 1, "record": {"seed": 3}}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_the_environment() -> None:
    facts = json.loads(json.dumps(environment()))
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["core_source"] == core_source()
    assert facts["hardware"]["threads"] == torch.get_num_threads()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "package" / "run_folder.py"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(file))
    assert run_folder._git_commit() is None  # no checkout
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-q", "-m", "x")
    assert run_folder._git_commit() is None  # a checkout of something else, which textseg was installed into
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "y")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert run_folder._git_commit() == head
    file.write_text("changed")
    assert run_folder._git_commit() == f"{head}-dirty"
