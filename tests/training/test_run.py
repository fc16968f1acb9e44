from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import textseg
from textseg.cli.entry import main
from textseg.errors import DataError, RunError, TextsegError
from textseg.export.bundle import export_bundle
from textseg.inference.loading import load_model
from textseg.metrics.scores import read_scores
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.reports.figure import features_figure
from textseg.reports.probe_report import probe_run
from textseg.reports.run_evaluation import evaluate_run
from textseg.runs.folder import RunFolder
from textseg.runs.listing import list_runs
from textseg.training import loop as looping
from textseg.training import record as recording
from textseg.training import run as running
from textseg.training.loop import Training
from textseg.training.record import RunRecord
from textseg.training.reproduce import reproduce
from textseg.training.run import run

ROOT = Path(__file__).parents[2]
ENCODER = "text_encoder hashed_words"  # of the distribution `stranger`

pytestmark = pytest.mark.usefixtures("stranger", "threads")


def forbid(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def called(*arguments: Any, **named: Any) -> None:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, called)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of both checkpoints, with the state of the optimiser."""
    tensors = {}
    for name in ("last", "best"):
        state = RunFolder(folder).load_checkpoint(name)
        tensors |= {f"{name} {key}": tensor for key, tensor in state["model"].items()}
        for number, memory in state.get("optimizer", {"state": {}})["state"].items():
            tensors |= {f"{name} {number} {key}": tensor for key, tensor in memory.items()}
    return tensors


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_leaves_everything(finished_run: Path, tiny_recipe: Path) -> None:
    names = ("recipe.yaml", "run.json", "split.json", "prompts.jsonl", "scores.csv", "report.html", "log/metrics.csv")
    names += ("checkpoints/last.ckpt", "checkpoints/best.ckpt")
    assert [name for name in names if not (finished_run / name).is_file()] == []
    assert list((finished_run / "log").glob("events.out.tfevents.*"))
    assert load_recipe(finished_run / "recipe.yaml") == load_recipe(tiny_recipe)
    split = json.loads((finished_run / "split.json").read_text())
    assert {part: len(split[part]) for part in ("train", "validation", "test")} == {
        "train": 4,
        "validation": 1,
        "test": 2,
    }
    rows = [json.loads(line) for line in (finished_run / "prompts.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rows} == {"template", "ground_truth"}
    scores = read_scores(finished_run / "scores.csv")
    assert {row.patient for row in scores} == set(split["test"])
    assert {row.prompt_source for row in scores} == {"template"}
    assert "tiny" in (finished_run / "report.html").read_text()


def test_the_record_says_what_ran(finished_run: Path) -> None:
    record = RunFolder(finished_run).read()
    state = RunFolder(finished_run).load_checkpoint("last")
    assert (record["name"], record["seed"], record["fold"], record["dataset"]) == ("tiny", 2025, None, "lumbar_phantom")
    assert record["versions"]["torch"] == torch.__version__
    facts = record["components"][ENCODER]
    assert (facts["distribution"], facts["version"], list(facts["source"])) == ("stranger", "1.2", ["stranger.py"])
    assert record["hashes"].keys() == {"data", "split", "preparation", "prompts"}
    assert record["hashes"]["split"] == json.loads((finished_run / "split.json").read_text())["hash"]
    assert record["parameters"] == sum(tensor.numel() for tensor in state["model"].values())
    assert record["multiply_accumulates"] > 0
    assert record["milliseconds_per_slice"] > 0
    assert record["peak_memory_bytes"] > 2**20
    assert record["wall_seconds"] >= record["training_seconds"] > 0
    assert record["precision"] == {"requested": "32-true", "used": "32-true", "note": ""}
    assert record["best"]["epoch"] == state["progression"]["best_epoch"]
    assert record["evaluation"]["prompts"] == "template"
    assert "SC" in record["structures_in_training"]


def test_the_record_holds_the_plan_of_a_network_that_plans_itself(
    tiny_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    assert "plan" not in RunFolder(finished_run).read()
    overrides = (
        "prompts=null",
        "auxiliary_losses=[]",
        "model={network: {use: nnunet_v2, features: 4, max_features: 8}}",
        "training.epochs=1",
    )
    plan = RunFolder(run(tiny_recipe, overrides=overrides, output=tmp_path)).read()["plan"]
    assert plan["features"] == [4, 8, 8, 8]  # 48 x 40, 24 x 20, 12 x 10, 6 x 5
    assert plan["strides"] == [[1, 1], [2, 2], [2, 2], [2, 2]]
    assert (plan["patch"], plan["batch_size"]) == ([48, 40], 2)
    assert plan["median_native_size"] == [96, 80]


def test_running_again_changes_nothing(
    tiny_recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(copied)
    forbid(monkeypatch, Training, "fit")
    forbid(monkeypatch, running, "evaluate_and_write")
    assert run(tiny_recipe, output=copied.parent.parent) == copied
    assert content(copied) == before
    printed = capsys.readouterr().out
    assert "test: dsc " in printed
    assert f"report: {copied}/report.html" in printed


def edited(folder: Path, **facts: Any) -> RunFolder:
    """Let run.json say that the text encoder had other facts when the run was made."""
    run_folder = RunFolder(folder)
    components = run_folder.read()["components"]
    components[ENCODER] |= facts
    run_folder.update(components=components)
    return run_folder


def test_a_finished_run_names_the_code_that_was_edited_since(
    tiny_recipe: Path, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, Training, "__init__")
    run(tiny_recipe, output=copied.parent.parent)
    assert f"finished earlier, nothing was trained: {copied}\n" in capsys.readouterr().out
    edited(copied, source={"stranger.py": "0"})
    before = content(copied)
    for dry_run in (False, True):
        run(tiny_recipe, output=copied.parent.parent, dry_run=dry_run)
        lines = capsys.readouterr().out.splitlines()
        first = lines.index(f"finished earlier, nothing was trained: {copied}. Since then the code has changed:")
        assert lines[first + 1 : first + 3] == [
            "  text_encoder 'hashed_words': its code changed: stranger.py (of stranger)",
            "To train with this code, add --fresh: it moves the earlier run aside.",
        ]
    assert content(copied) == before


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"source": {"stranger.py": "0"}}, "its code changed: stranger.py"),
        ({"version": "1.1"}, "stranger was 1.1, and is 1.2"),
    ],
)
def test_a_begun_run_with_other_code_is_refused_until_somebody_accepts_it(
    facts: dict[str, Any], line: str, tiny_recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = edited(copied, **facts)
    longer = {"overrides": ["training.epochs=4"], "output": copied.parent.parent}
    before, recorded = content(copied), folder.read()["components"][ENCODER]
    for dry_run in (True, False):
        with pytest.raises(RunError, match="was begun with other code") as caught:
            run(tiny_recipe, **longer, dry_run=dry_run)
        assert line in str(caught.value)
        assert "add --changed-code" in str(caught.value)
    assert content(copied) == before, "a refusal is no failure of the run"
    monkeypatch.setattr(Training, "fit", lambda training: None)
    monkeypatch.setattr(running, "_evaluate", lambda training: None)
    run(tiny_recipe, **longer, changed_code=True)
    record = folder.read()
    assert record["components"][ENCODER] != recorded
    (earlier,) = record["earlier"]
    assert earlier["components"][ENCODER] == recorded
    assert earlier["until_step"] == folder.load_checkpoint("last")["progression"]["step"]


def test_an_edited_prompt_generator_is_named_with_its_distribution(tiny_recipe: Path, copied: Path) -> None:
    folder = RunFolder(copied)
    record = folder.read()
    record["components"]["prompt_generator atpg_lumbar"]["source"]["textseg_atmnet/atpg_lumbar.py"] = "0"
    folder.update(components=record["components"], bound={**record["bound"], "text": "0"})
    with pytest.raises(RunError, match="holds a run of another experiment") as caught:
        run(tiny_recipe, output=copied.parent.parent)
    (line,) = str(caught.value).splitlines()[1:-1]
    assert line.startswith("  prompt_generator 'atpg_lumbar': its code changed: ")
    assert line.endswith("textseg_atmnet/atpg_lumbar.py (of textseg)")


def test_other_weights_of_the_text_encoder_are_named(tiny_recipe: Path, copied: Path) -> None:
    folder = RunFolder(copied)
    record = folder.read()
    record["components"][ENCODER]["weights"] = "9de57"
    folder.update(components=record["components"], bound={**record["bound"], "text": "0"})
    with pytest.raises(RunError, match="holds a run of another experiment") as caught:
        run(tiny_recipe, output=copied.parent.parent, changed_code=True)
    (line,) = str(caught.value).splitlines()[1:-1]
    assert line.startswith(
        "  text_encoder 'hashed_words': its weights, tokenizer or settings changed (fingerprint 9de57,"
    )


def test_a_run_that_dies_before_its_record_is_listed_as_failed(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nand more")

    for name, owner in (("measure_cost", recording), ("Objective", looping)):
        monkeypatch.setattr(owner, name, fail)
        with pytest.raises(RuntimeError):
            run(tiny_recipe, output=tmp_path / name)
        (listed,) = list_runs(tmp_path / name)
        assert (listed.state, listed.failure) == ("failed", "mat1 and mat2 shapes cannot be multiplied")
        assert (listed.name, listed.seed) == ("tiny", 2025)


def test_another_evaluation_is_done_without_training(
    tiny_recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = RunFolder(copied).read()
    forbid(monkeypatch, Training, "fit")
    forbid(monkeypatch, RunRecord, "write_origin")  # where the weights come from stays as it is
    run(tiny_recipe, output=copied.parent.parent, overrides=["evaluation.metrics=[jaccard]", "evaluation.per=slice"])
    scores = read_scores(copied / "scores.csv")
    assert {row.metric for row in scores} == {"jaccard"}
    assert {row.slice for row in scores} == set(range(5))
    after = RunFolder(copied).read()
    assert after["evaluation"]["per"] == load_recipe(copied / "recipe.yaml").evaluation.per == "slice"
    assert after["wall_seconds"] > before["wall_seconds"]
    same = ("versions", "git_commit", "command", "milliseconds_per_slice", "training_seconds", "bound")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


@pytest.mark.parametrize("missing", ["scores.csv", "report.html"])
def test_an_interrupted_evaluation_is_done_again(
    tiny_recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    before = (copied / "scores.csv").read_bytes()
    (copied / missing).unlink()
    forbid(monkeypatch, Training, "fit")
    run(tiny_recipe, output=copied.parent.parent)
    assert (copied / "scores.csv").read_bytes() == before
    assert (copied / "report.html").exists()


def test_scores_of_an_earlier_checkpoint_do_not_pass_for_those_of_the_last(
    tiny_recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise MemoryError

    longer = {"overrides": ["training.epochs=4", "training.workers=1"], "output": copied.parent.parent}
    before = RunFolder(copied).read()
    with monkeypatch.context() as patch:
        patch.setattr(running, "evaluate_and_write", fail)
        with pytest.raises(RunError, match="Memory ran out. .*last.ckpt' is kept: the same command"):
            run(tiny_recipe, **longer)
    line = "the length of the training is 4 epochs and was 3: the schedule is planned anew, and what is left"
    assert line in capsys.readouterr().out
    between = RunFolder(copied).read()
    assert between["wall_seconds"] > before["wall_seconds"]
    assert between["training_seconds"] > before["training_seconds"]
    assert between["peak_memory_bytes"] >= before["peak_memory_bytes"]
    forbid(monkeypatch, Training, "fit")
    run(tiny_recipe, **longer)
    assert "planned anew" not in capsys.readouterr().out
    assert (copied / "report.html").exists()
    assert RunFolder(copied).read()["scored_step"] == RunFolder(copied).load_checkpoint("last")["progression"]["step"]
    assert len(RunFolder(copied).read_history()) == 4


def test_a_changed_experiment_is_refused_with_the_keys(tiny_recipe: Path, copied: Path) -> None:
    before = content(copied)
    overrides = ["training.batch_size=2", "model.fusion.heads=1", "preparation.intensity=zscore", "training.workers=1"]
    with pytest.raises(RunError) as caught:
        run(tiny_recipe, output=copied.parent.parent, overrides=overrides)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [
        "data",
        "model.fusion.heads",
        "preparation.intensity",
        "training.batch_size",
    ]
    assert lines[-2] == "  training.batch_size: was 4, is 2"
    assert content(copied) == before


def test_fresh_moves_the_old_run_aside(
    tiny_recipe: Path, copied: Path, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    before = content(copied)
    overrides = ["training.epochs=1", "training.batch_size=16"]
    assert run(tiny_recipe, output=copied.parent.parent, overrides=overrides, fresh=True) == copied
    (aside,) = (path for path in copied.parent.iterdir() if path != copied)
    assert content(aside) == before
    assert str(aside) in capsys.readouterr().out
    assert len(RunFolder(copied).read_history()) == 1
    assert RunFolder.existing(copied.parent).path == copied


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_in_use_is_refused(tiny_recipe: Path, copied: Path, fresh: bool) -> None:
    with RunFolder(copied).lock(), pytest.raises(RunError, match="is in use by another process. Wait for it"):
        run(tiny_recipe, output=copied.parent.parent, fresh=fresh)
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_a_damaged_checkpoint_is_a_message(tiny_recipe: Path, copied: Path) -> None:
    last = RunFolder(copied).checkpoint("last")
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(RunError, match="last.ckpt' is damaged .* Restore it from a copy, or add --fresh"):
        run(tiny_recipe, output=copied.parent.parent)


def test_a_dry_run_checks_and_writes_nothing(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tiny_recipe, output=tmp_path / "runs", dry_run=True, seed=3)
    assert path == tmp_path / "runs" / "tiny" / "seed3"
    assert not (tmp_path / "runs").exists()
    printed = capsys.readouterr().out
    assert "batch_size: 4" in printed
    assert "train: 4 patients, " in printed
    assert "test: 2 patients, " in printed
    assert "evaluation with 'template'" in printed
    assert "M parameters; 3 epochs, " in printed
    assert "loss: 1 dice + 1 focal + 0.2 ccae\n" in printed


def test_a_dry_run_says_how_many_epochs_have_the_steps(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_recipe, overrides=["training.epochs=null", "training.steps=4"], output=tmp_path, dry_run=True)
    printed = re.search(r"M parameters; (\d+) epochs?, (\d+) steps", capsys.readouterr().out)
    assert printed is not None
    epochs, steps = map(int, printed.groups())
    assert steps >= 4 > steps - steps // epochs


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.initialize_from=gone.ckpt", "initialize_from: 'gone.ckpt' does not exist. Name a run folder"),
        (
            "training.threads=1000000000",
            "training.threads=1000000000: should be less than or equal to 1024",
        ),
        ("training.workers=100000", "training.workers=100000: should be less than or equal to 256"),
        ("preparation.size=[100000000, 100000000]", "preparation.size: the outputs for one slice .* Lower it"),
        ("dataset.cases=999999999999999999999", "999999999999999999999 cases, but must have at most 100,000"),
    ],
)
def test_a_dry_run_says_what_the_run_would_say(override: str, message: str, tiny_recipe: Path, tmp_path: Path) -> None:
    for dry_run in (True, False):
        with pytest.raises(TextsegError, match=message):
            run(tiny_recipe, output=tmp_path / "runs", overrides=[override], dry_run=dry_run)


def test_a_dry_run_of_a_run_that_has_begun_says_whether_it_would_go_on(
    tiny_recipe: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = finished_run.parent.parent
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    run(tiny_recipe, output=output, dry_run=True)
    assert f"nothing was trained: {finished_run}\n" in capsys.readouterr().out
    with pytest.raises(RunError, match="holds a run of another experiment"):
        run(tiny_recipe, output=output, overrides=["training.batch_size=2"], dry_run=True)
    run(tiny_recipe, output=output, overrides=["training.batch_size=2"], dry_run=True, fresh=True)
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


def test_lightning_gives_no_hint_about_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        running._fabric(accelerator="cpu", devices=1)
    assert not [warning for warning in warned if "srun" in str(warning.message)]


def test_sixteen_bits_need_a_gpu(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert running._precision("16-mixed")[0] == "32-true"
    assert "needs a CUDA device" in running._precision("16-mixed")[1]
    assert running._precision("bf16-mixed") == ("bf16-mixed", "")


KILLED = """
import os, signal, sys
from pathlib import Path

import torch
from textseg.training.run import run
from textseg.training.loop import Training

moment, recipe, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
step, save = Training.training_step, torch.save


def killed_in_a_step(self, batch):
    if self.progression.step == self.steps_per_epoch + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)


def killed_in_a_save(state, file):
    if "training" in state and len(state["progression"]["history"]) == 2:
        save(state, file)
        file.flush()
        os.truncate(file.name, os.path.getsize(file.name) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)


if moment == "step":
    Training.training_step = killed_in_a_step
else:
    torch.save = killed_in_a_save
run(recipe, output=output)
"""


def test_killed_and_started_again_is_the_same(tiny_recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / finished_run.name
    for moment, epochs in (("step", 1), ("save", 1)):  # first in the second epoch, then while its end is written
        command = [sys.executable, "-c", KILLED, moment, str(tiny_recipe), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(RunFolder(folder).load_checkpoint("last")["progression"]["history"]) == epochs
        # Not a terminal: lines that a log file can hold.
        assert "\x1b" not in done.stdout + done.stderr
        assert "\r" not in done.stdout
        lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
        assert [line.split(":")[0] for line in lines] == (["epoch 1 of 3"] if moment == "step" else [])
    assert "continuing from step " in done.stdout
    run(tiny_recipe, output=tmp_path)
    assert_same_weights(folder, finished_run)
    assert (folder / "scores.csv").read_bytes() == (finished_run / "scores.csv").read_bytes()
    ours, theirs = RunFolder(folder).read_history(), RunFolder(finished_run).read_history()
    for row in (*ours, *theirs):
        assert float(row.pop("slices_per_second")) > 0
        assert float(row.pop("memory_bytes")) > 2**20
    assert ours == theirs


def test_missing_data_are_one_message_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "recipes" / "small" / "atmnet_spider_small.yaml"
    monkeypatch.setenv("TEXTSEG_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "argv", ["textseg", "run", str(recipe), "--output", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as caught:
        main()
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert f"{tmp_path / 'nowhere'}/spider" in message
    assert "zenodo" in message.lower()  # where the data are to be had
    assert not (tmp_path / "runs").exists()


def test_a_split_without_test_patients_is_a_message(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no patient is left for test"):
        run(tiny_recipe, output=tmp_path, overrides=["split={fractions: [0.8, 0.2, 0.0]}"])


def test_a_run_without_text(tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}", "training.epochs=1"]
    folder = run(tiny_recipe, output=tmp_path, overrides=overrides)
    assert not (folder / "prompts.jsonl").exists()
    assert {row.prompt_source for row in read_scores(folder / "scores.csv")} == {"none"}
    record = RunFolder(folder).read()
    assert record["hashes"]["prompts"] is None
    assert record["evaluation"]["prompts"] == "none"
    assert "prompts: none" in capsys.readouterr().out
    assert all(math.isnan(row.value) or row.value >= 0 for row in read_scores(folder / "scores.csv"))
    with pytest.raises(RunError, match="reads no text, so there are no 'ground_truth' prompts"):
        evaluate_run(folder, prompts="ground_truth")


PARTS = """
import textseg
from stranger import Plain

@textseg.component("network", "mine")
class Mine(Plain):
    '''A network of a file.'''
"""


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Nothing that a test loads stays in the registry."""
    installed_registry.cache_clear()
    yield
    installed_registry.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_a_run_with_local_code_keeps_a_copy_that_runs_only_with_consent(tiny_recipe: Path, tmp_path: Path) -> None:
    parts = tmp_path / "my_parts.py"
    parts.write_text(PARTS)
    model = ["prompts=null", "auxiliary_losses=[]", "model={network: {use: mine}}", "training.epochs=1"]
    with pytest.raises(TextsegError, match="There is no network 'mine'"):
        run(tiny_recipe, overrides=model, output=tmp_path / "runs")
    folder = RunFolder(run(tiny_recipe, overrides=model, output=tmp_path / "runs", code=[parts]))
    assert (folder.code / "my_parts.py").read_text() == PARTS
    record, digest = folder.read(), hashlib.sha256(PARTS.encode()).hexdigest()
    assert record["local_code"] == {"my_parts.py": digest}
    assert record["components"]["network mine"]["source"] == {"my_parts.py": digest}
    output = tmp_path / "bundle"
    with pytest.raises(TextsegError, match="network 'mine' comes from the file 'my_parts.py'"):
        export_bundle(folder, load_model(folder.path), output)
    assert not output.exists()

    openings: list[Callable[..., Any]] = [
        load_model,
        evaluate_run,
        probe_run,
        partial(reproduce, output=tmp_path / "again", dry_run=True),
        lambda path, **consent: run(path / "recipe.yaml", output=tmp_path / "again", dry_run=True, **consent),
        lambda path, **consent: features_figure([path], **consent),
    ]
    for opening in openings:
        installed_registry.cache_clear()  # as in another process
        with pytest.raises(TextsegError, match="made with --code, .* add --trust-code"):
            opening(folder.path)
    assert load_model(folder.path, trust_code=True).name == "tiny"
    installed_registry.cache_clear()
    run(tiny_recipe, overrides=model, output=tmp_path / "runs", code=[parts])  # finished earlier
    parts.write_text(PARTS + "# edited")
    with pytest.raises(RunError, match="network 'mine': its code changed: my_parts.py"):
        run(tiny_recipe, overrides=[*model, "training.epochs=2"], output=tmp_path / "runs", code=[parts])


@pytest.mark.usefixtures("forgetful")
def test_several_processes_do_not_have_a_class_of_this_session(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.launching, "check_devices", lambda settings: None)
    import stranger  # type: ignore[import-not-found]

    textseg.component("network", "mine")(stranger.Plain)
    model = ["prompts=null", "auxiliary_losses=[]", "model={network: {use: mine}}", "training.devices=2"]
    with pytest.raises(RunError, match="network 'mine' is a class of this Python session"):
        run(tiny_recipe, overrides=model, output=tmp_path)
    with pytest.raises(RunError, match="several processes read the recipe from a file"):
        run(load_recipe(tiny_recipe, ["training.devices=2"]), output=tmp_path)
