"""Networks that are trained part by part, and that read whole volumes."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from textseg.contracts import Batch
from textseg.errors import PluginError, RecipeError, RunError
from textseg.models.stages import Stage, divide_epochs
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.training import run as running
from textseg.training.loop import Training

STAGED = ("prompts=null", "auxiliary_losses=[]", "model={network: {use: staged}}", "training.epochs=3")

pytestmark = pytest.mark.usefixtures("stranger", "one_thread")


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def experiment(tiny_recipe: Path, *overrides: str) -> Experiment:
    return build(load_recipe(tiny_recipe, [*STAGED, *overrides]))


def start(experiment: Experiment, path: Path) -> Training:
    return Training(experiment, RunFolder(path), Fabric(accelerator="cpu", devices=1, precision="32-true"))


def test_epochs_are_divided_by_shares() -> None:
    assert divide_epochs({"coarse": 0.4, "fine": 0.6}, 100) == (Stage("coarse", 0, 40), Stage("fine", 40, 100))
    assert divide_epochs({"a": 1, "b": 1, "c": 1}, 10) == (Stage("a", 0, 3), Stage("b", 3, 7), Stage("c", 7, 10))
    assert divide_epochs({}, 7) == (Stage("", 0, 7),)


@pytest.mark.parametrize("shares", [(1, 1), (1, 99, 1), (98, 1, 1), (0.001, 0.001, 5), (1, 2, 3, 4)])
def test_stages_follow_each_other_and_none_is_left_out(shares: tuple[float, ...]) -> None:
    for epochs in range(len(shares), 40):
        stages = divide_epochs({str(number): share for number, share in enumerate(shares)}, epochs)
        assert [stage.first for stage in stages] == [0, *(stage.end for stage in stages[:-1])]
        assert stages[-1].end == epochs
        for stage, share in zip(stages, shares, strict=True):
            assert stage.end - stage.first >= 1
            assert abs(stage.end - stage.first - epochs * share / sum(shares)) < len(shares)


def test_epochs_or_shares_that_leave_a_stage_without_any_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"training.epochs is 1, .* in 2 stages \(coarse, fine\), .* at least 2"):
        divide_epochs({"coarse": 1, "fine": 1}, 1)
    with pytest.raises(PluginError, match="its stage 'fine' 0 of the epochs"):
        divide_epochs({"coarse": 1, "fine": 0}, 8)


def test_each_stage_trains_its_part_alone(tiny_recipe: Path, tmp_path: Path, capsys: Any) -> None:
    training = start(experiment(tiny_recipe, "training.average_decay=null"), tmp_path)
    states: list[dict[str, torch.Tensor]] = []
    original = training._start_epoch

    def start_epoch(epoch: int) -> None:
        states.append({name: tensor.clone() for name, tensor in training.segmenter.state_dict().items()})
        original(epoch)

    training._start_epoch = start_epoch  # type: ignore[method-assign]
    training.fit()
    states.append(training.segmenter.state_dict())
    for epoch, (before, after) in enumerate(pairwise(states)):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        part = "network.coarse." if epoch == 0 else "network.fine."
        assert moved == {name for name in before if name.startswith(part)}  # buffers too
    history = training.progression.history
    assert [row["stage"] for row in history] == [1, 2, 2]
    assert ["validation_dsc" in row for row in history] == [False, True, True]
    assert training.progression.best_epoch > 1
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert lines == ["epoch 1 of 3 (coarse)", "epoch 2 of 3 (fine)", "epoch 3 of 3 (fine)"]


def test_each_stage_has_the_whole_schedule(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = start(experiment(tiny_recipe), tmp_path)
    rates, original = [], Training.training_step

    def recording(self: Training, batch: Batch) -> dict[str, torch.Tensor]:
        terms = original(self, batch)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return terms

    monkeypatch.setattr(Training, "training_step", recording)
    training.fit()
    per_epoch = training.steps_per_epoch
    settings = training.settings
    one_epoch, two_epochs = (training.experiment.schedule(epochs * per_epoch) for epochs in (1, 2))
    expected = [one_epoch(step) for step in range(per_epoch)]
    expected += [two_epochs(step) for step in range(2 * per_epoch)]
    assert rates == expected
    assert rates[0] == rates[per_epoch] == settings.learning_rate


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Training.training_step

    def stopping(self: Training, batch: Batch) -> dict[str, torch.Tensor]:
        terms = original(self, batch)
        if self.progression.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    monkeypatch.setattr(Training, "training_step", stopping)


def assert_same_numbers(first: Any, second: Any) -> None:
    """Bit by bit, at any depth; times and memory differ."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"seconds", "slices_per_second", "memory_bytes"}:
            assert_same_numbers(first[key], second[key])
    elif isinstance(first, list | tuple):
        for a, b in zip(first, second, strict=True):
            assert_same_numbers(a, b)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("settings", [(), ("training.workers=1", "training.optimizer=sgd", "augmentation.on=device")])
def test_stopped_in_any_stage_and_continued_is_the_same(
    settings: tuple[str, ...], tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = experiment(tiny_recipe, *settings)
    whole = start(data, tmp_path / "whole")
    whole.fit()
    per_epoch = whole.steps_per_epoch
    # In the first stage, at its very end, with the first step of the second and in the midst of it.
    for step in (2, per_epoch, per_epoch + 1, 2 * per_epoch + 1):
        training = start(data, tmp_path / "parts")
        if training.folder.checkpoint("last").exists():
            training.resume()
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(KeyboardInterrupt):
                training.fit()
        assert training.folder.load_checkpoint("last")["progression"]["step"] == step
    training = start(data, tmp_path / "parts")
    training.resume()
    training.fit()
    for name in ("last", "best"):
        states = [RunFolder(tmp_path / folder).load_checkpoint(name) for folder in ("whole", "parts")]
        assert_same_numbers(*states)


def test_epochs_are_raised_only_where_no_stage_would_begin_again(tiny_recipe: Path, tmp_path: Path) -> None:
    whole = start(experiment(tiny_recipe), tmp_path)
    finish = whole._finish_epoch

    def finish_and_stop(epoch: int, *results: Any) -> dict[str, float]:
        row = finish(epoch, *results)
        whole.stop_requested = epoch == 1  # one epoch into the second stage
        return row

    whole._finish_epoch = finish_and_stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        whole.fit()
    later = start(experiment(tiny_recipe, "training.epochs=9"), tmp_path)  # the second stage would begin after 3
    with pytest.raises(
        RunError, match=r"in stage 'fine' after 2 epochs, .* in a training of 9 epochs would begin after 3"
    ):
        later.resume()
    longer = start(experiment(tiny_recipe, "training.epochs=5"), tmp_path)
    longer.resume()
    longer.fit()
    assert [row["stage"] for row in longer.progression.history] == [1, 2, 2, 2, 2]


def test_a_step_is_one_case_with_its_slices_in_order(tiny_recipe: Path, tmp_path: Path) -> None:
    data = experiment(tiny_recipe)
    training = start(data, tmp_path)
    assert training.steps_per_epoch == len(data.cases["train"])
    orders = set()
    for epoch in range(4):
        training.progression.step = epoch * training.steps_per_epoch
        batches = list(training._batches(epoch))
        assert sorted(batch.case[0] for batch in batches) == sorted(case.case.id for case in data.cases["train"])
        for batch in batches:
            assert set(batch.case) == {batch.case[0]}
            assert batch.slice_index.tolist() == list(range(5))
        orders.add(tuple(batch.case[0] for batch in batches))
    assert len(orders) > 1


def test_volumes_are_distorted_on_the_device_as_by_workers(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = "augmentation={distortion: 0.7, rotation_degrees: 9, noise: 0.1, flip: both}"
    for name, more in (("workers", ()), ("device", ("augmentation.on=device",))):
        start(experiment(tiny_recipe, settings, *more), tmp_path / name).fit()
    states = [RunFolder(tmp_path / name).load_checkpoint("last") for name in ("workers", "device")]
    assert_same_numbers(states[0]["model"], states[1]["model"])


def test_a_run_says_what_it_does_in_sequence(tiny_recipe: Path, tmp_path: Path, capsys: Any) -> None:
    data = experiment(tiny_recipe)
    steps = 3 * len(data.cases["train"])
    assert f"3 epochs (1 coarse, then 2 fine), {steps} steps of one case each\nloss: " in running.plan(data)
    running.run(tiny_recipe, overrides=STAGED, output=tmp_path)
    assert "test: dsc" in capsys.readouterr().out
    report = next(tmp_path.rglob("report.html")).read_text()
    assert "validation" in report
    with pytest.raises(RecipeError, match="training.epochs is 1"):
        running.run(tiny_recipe, overrides=[*STAGED, "training.epochs=1"], output=tmp_path / "short", dry_run=True)
