from __future__ import annotations

import inspect
import math
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision

from textseg.contracts import Batch
from textseg.errors import RunError
from textseg.evaluation.evaluate import Validation
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import Registry
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.system import distributed
from textseg.training import loop as module
from textseg.training import run
from textseg.training.checkpoints import Progression
from textseg.training.loop import Objective, Training

MEASURED = ("seconds", "slices_per_second", "memory_bytes", "record")
WITHOUT_TEXT = ("prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}")

pytestmark = pytest.mark.usefixtures("stranger", "one_thread")


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def experiment(tiny_recipe: Path, *overrides: str) -> Experiment:
    return build(load_recipe(tiny_recipe, overrides))


def start(experiment: Experiment, path: Path) -> Training:
    return Training(experiment, RunFolder(path), Fabric(accelerator="cpu", devices=1, precision="32-true"))


def assert_equal(first: Any, second: Any) -> None:
    """Bit by bit, at any depth; times and memory differ, of course."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            if key not in MEASURED:
                assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_equal(a, b)
    else:
        assert first == second


def checkpoints(path: Path) -> dict[str, Any]:
    return {name: RunFolder(path).load_checkpoint(name) for name in ("last", "best")}


@pytest.fixture(scope="module")
def plain_overrides() -> tuple[str, ...]:
    return (*WITHOUT_TEXT, "training.epochs=2")


def test_the_terms_sum_to_the_loss_and_the_history_holds_their_means(finished_run: Path) -> None:
    state = RunFolder(finished_run).load_checkpoint("last")
    history = state["progression"]["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for row in history:
        terms = [row[f"train_{name}"] for name in ("dice", "focal", "ccae")]
        assert row["train_loss"] == pytest.approx(sum(terms), rel=1e-5)
        assert all(0 < term < 3 for term in terms)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    per_epoch = history[0]["step"]
    assert state["progression"]["step"] == 3 * per_epoch
    rates = [row["learning_rate"] for row in history]
    expected = [
        1e-6 + (1e-2 - 1e-6) * (1 + math.cos(math.pi * (row["step"] - 1) / (3 * per_epoch))) / 2 for row in history
    ]
    assert rates == pytest.approx(expected)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A real termination signal, in that step."""
    original = Training.training_step

    def stopping(self: Training, batch: Batch) -> dict[str, torch.Tensor]:
        terms = original(self, batch)
        if self.progression.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    monkeypatch.setattr(Training, "training_step", stopping)


def test_stopped_anywhere_and_continued_is_the_same(
    tiny_recipe: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = experiment(tiny_recipe)
    per_epoch = start(data, tmp_path).steps_per_epoch
    assert per_epoch > 3
    handler = signal.getsignal(signal.SIGTERM)
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(Registry, "notify", lambda self, hook, run, **about: calls.append((hook, *about.values())))
    # In the first epoch, twice in the second, with its very last step, and with the last step of all.
    stops = [2, per_epoch + 1, per_epoch + 3, 2 * per_epoch, 3 * per_epoch]
    for step in stops:
        training = start(data, tmp_path)
        if step != stops[0]:
            training.resume()
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(KeyboardInterrupt):
                training.fit()
        assert training.folder.load_checkpoint("last")["progression"]["step"] == step
        assert not training.finished
    training = start(data, tmp_path)
    training.resume()
    training.fit()
    assert training.finished
    assert_equal(checkpoints(tmp_path), checkpoints(finished_run))
    rows = [training.folder.read_history(), RunFolder(finished_run).read_history()]
    ours, theirs = [[{k: v for k, v in row.items() if k not in MEASURED} for row in some] for some in rows]
    assert ours == theirs
    assert signal.getsignal(signal.SIGTERM) is handler
    # Hooks: each epoch once, whatever interrupted it.
    assert [fit.step for hook, fit in calls if hook == "textseg_fit_started"] == [0, *stops]
    assert [epoch.number for hook, epoch in calls if hook == "textseg_epoch_finished"] == [1, 2, 3]
    (fit,) = [fit for hook, fit in calls if hook == "textseg_fit_finished"]
    assert (fit.step, len(fit.history)) == (3 * per_epoch, 3)


LISTENING = (
    "prompts.template=uncounted",
    "prompts.training={template: 0.3, interactive: 0.7}",
    "prompts.renumbering={probability: 0.7, levels: 2, where: anywhere}",
    "augmentation.field_of_view={probability: 0.7, height: [0.4, 0.9], width: [0.7, 1]}",
)
LISTED = (
    "[{use: field_of_view, probability: 0.7, height: [0.4, 0.9]}, {use: distortion, probability: 0.5}, noise, "
    "{use: flip, axis: vertical, probability: 0.5, on: device}]"
)
VOLUMES = (
    "prompts=null",
    "auxiliary_losses=[]",
    "model={network: {use: staged}}",
    "augmentation.field_of_view={probability: 0.7}",
)


class PowerFailure(Exception):
    """Ends a training at once; nothing is saved."""


def fail_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Raise PowerFailure in that step."""
    original = Training.training_step

    def failing(self: Training, batch: Batch) -> dict[str, torch.Tensor]:
        terms = original(self, batch)
        if self.progression.step == step:
            raise PowerFailure
        return terms

    monkeypatch.setattr(Training, "training_step", failing)


@pytest.mark.parametrize(
    "overrides",
    [
        (*LISTENING, "augmentation.on=workers", "training.workers=1"),
        (*LISTENING, "augmentation.on=device"),
        (*VOLUMES, "augmentation.on=workers"),
        (*VOLUMES, "augmentation.on=device"),
        (*LISTENING[:-1], f"augmentation={LISTED}", "training.workers=1"),
    ],
    ids=["workers", "device", "volumes_workers", "volumes_device", "list"],
)
def test_windows_and_other_names_continue_inside_an_epoch(
    overrides: tuple[str, ...], tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = experiment(tiny_recipe, *overrides, "training.epochs=2")
    whole = start(data, tmp_path / "whole")
    batches = list(whole._batches(0))
    full = whole.experiment.cases["train"][0].spacing_mm
    assert any(bool((batch.spacing_mm[:, 1] < full[1]).any()) for batch in batches)  # windows are enlarged
    if data.text is not None:
        assert any(batch.renumbered is not None and bool(batch.renumbered.any()) for batch in batches)
    whole.fit()
    # Stopped and saved in the first epoch; lost in the second, so that it starts again from the end of the first.
    for interrupt, step, error in (
        (stop_after, 2, KeyboardInterrupt),
        (fail_after, whole.steps_per_epoch + 2, PowerFailure),
    ):
        training = start(data, tmp_path / "parts")
        if interrupt is fail_after:
            training.resume()
            assert training.progression.step == 2
        with monkeypatch.context() as patch:
            interrupt(patch, step)
            with pytest.raises(error):
                training.fit()
    training = start(data, tmp_path / "parts")
    training.resume()
    assert training.progression.step == whole.steps_per_epoch
    training.fit()
    assert_equal(checkpoints(tmp_path / "parts"), checkpoints(tmp_path / "whole"))


def test_a_signal_in_the_validation_is_heard(
    tiny_recipe: Path, plain_overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(*arguments: object, **named: object) -> Validation:
        os.kill(os.getpid(), signal.SIGINT)
        return Validation(0.5)

    monkeypatch.setattr(module, "validate", validate)
    training = start(experiment(tiny_recipe, *plain_overrides), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.fit()
    saved = training.folder.load_checkpoint("last")["progression"]
    assert (saved["step"], saved["best_epoch"], len(saved["history"])) == (training.steps_per_epoch, 1, 1)


def test_dropout_and_buffers_survive_too(
    tiny_recipe: Path, plain_overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = experiment(tiny_recipe, *plain_overrides, "training.workers=1", "training.optimizer=sgd")
    whole = start(data, tmp_path / "whole")
    whole.fit()
    first = start(data, tmp_path / "parts")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    second = start(data, tmp_path / "parts")
    second.resume()
    second.fit()
    assert_equal(checkpoints(tmp_path / "parts"), checkpoints(tmp_path / "whole"))


def test_the_moving_average_is_validated_and_kept(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start(experiment(tiny_recipe, *WITHOUT_TEXT, "training.epochs=1"), tmp_path)
    original, expected, validated = Training.training_step, {}, []

    def recording(self: Training, batch: Batch) -> dict[str, torch.Tensor]:
        terms = original(self, batch)
        for name, now in self.segmenter.state_dict().items():
            before = expected.get(name, now)
            expected[name] = 0.5 * before + 0.5 * now if now.is_floating_point() else now.clone()
        return terms

    def validate(
        data: Experiment, segmenter: torch.nn.Module, part: str, device: torch.device, examples: int
    ) -> Validation:
        assert not segmenter.training
        assert part == "validation"
        validated.append({name: tensor.clone() for name, tensor in segmenter.state_dict().items()})
        return Validation(0.5)

    monkeypatch.setattr(Training, "training_step", recording)
    monkeypatch.setattr(module, "validate", validate)
    training.fit()
    best = training.folder.load_checkpoint("best")["model"]
    for averaged in (best, *validated):
        assert averaged.keys() == expected.keys()
        for name, tensor in averaged.items():
            torch.testing.assert_close(tensor, expected[name])
    assert torch.equal(best["network.index"], torch.arange(1000))
    weight = "network.layers.0.weight"
    assert not torch.equal(best[weight], training.segmenter.state_dict()[weight])


def validate_as(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Each validation finds the next of these."""
    left = iter(values)
    monkeypatch.setattr(module, "validate", lambda *arguments, **named: Validation(next(left)))


def test_early_stopping_is_finished_and_may_go_on(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*WITHOUT_TEXT, "training.epochs=9", "training.validate_every=2", "training.checkpoint_every=9")
    validate_as(monkeypatch, 0.3, 0.2, 0.3)
    training = start(experiment(tiny_recipe, *overrides, "training.patience=2"), tmp_path)
    training.fit()
    assert training.finished
    assert len(training.progression.history) == 6  # the best after 2; 4 and 6 were no better
    assert "finished early: no better score in 2 validations after epoch 2" in capsys.readouterr().out
    assert len(training.folder.read_history()) == 6
    again = start(experiment(tiny_recipe, *overrides, "training.patience=2"), tmp_path)
    again.resume()
    assert again.finished
    validate_as(monkeypatch, 0.4, 0.1)
    longer = start(experiment(tiny_recipe, *overrides, "training.patience=3"), tmp_path)
    longer.resume()
    assert not longer.finished
    longer.fit()
    assert (len(longer.progression.history), longer.progression.best_epoch) == (9, 8)


def test_best_is_the_epoch_that_validates_best(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validate_as(monkeypatch, 0.1, 0.3, 0.2)
    overrides = (*WITHOUT_TEXT, "training.epochs=5", "training.validate_every=2", "training.checkpoint_every=3")
    training = start(experiment(tiny_recipe, *overrides, "training.average_decay=null"), tmp_path)
    training.fit()
    best = training.folder.load_checkpoint("best")
    assert best["progression"]["best_epoch"] == 4
    assert best["progression"]["step"] == 4 * training.steps_per_epoch
    assert ["validation_dsc" in row for row in training.progression.history] == [False, True, False, True, True]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split(":")[0] for line in lines] == [f"epoch {number} of 5" for number in range(1, 6)]
    assert "validation DSC 0.300, " in lines[3]
    assert "validation" not in lines[2]


@pytest.mark.parametrize("what", ["loss", "term", "gradient", "weight", "weight at the end"])
def test_numbers_that_are_none_stop_the_run_name_the_batch_and_spare_the_checkpoint(
    what: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    training = start(experiment(tiny_recipe, "training.epochs=2", "training.average_decay=null"), tmp_path)
    bad = training.steps_per_epoch + 2  # counted from 0: the third of the second epoch
    if what == "weight at the end":  # of an epoch, so that no later loss shows it
        what, bad = "weight", 2 * training.steps_per_epoch - 1
    batches: list[Batch] = []

    def of_loss(module: Any, inputs: tuple[Any, ...], terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        worse = {"loss": ["dice", "focal"], "term": ["focal"]}.get(what, []) if training.progression.step == bad else []
        return {name: term * math.nan if name in worse else term for name, term in terms.items()}

    def of_gradient(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if what == "gradient" and training.progression.step == bad else gradient

    def of_weight(optimizer: Any, arguments: Any, named: Any) -> None:
        if what == "weight" and training.progression.step == bad:
            with torch.no_grad():
                training.parameters[0].view(-1)[0] = math.inf

    def remember(module: Any, inputs: tuple[Any, ...]) -> None:
        batches.append(inputs[0]())

    training.objective.segmentation_loss.register_forward_hook(of_loss)
    training.parameters[0].register_hook(of_gradient)
    training.optimizer.register_step_post_hook(of_weight)
    training.wrapped.register_forward_pre_hook(remember)
    with pytest.raises(RunError) as caught:
        training.fit()
    message, batch = str(caught.value), batches[bad]
    if what == "weight":  # is seen in the loss of the next step, or when the epoch ends
        assert message.startswith(f"A weight is no finite number in step {bad + 1}.")
        assert "optimizer 'adamw' of plug-in 'standard'" in message
    else:
        lost = {"loss": "loss (dice, focal)", "term": "term 'focal' of the loss"}.get(what, what)
        assert message.startswith(f"The {lost} is no finite number in step {bad + 1}, in a batch of\n")
        slices = training.experiment.training_slices()
        for case, index in zip(batch.case, batch.slice_index.tolist(), strict=True):
            number = next(n for n, (c, i) in enumerate(slices.positions) if (c.case.id, i) == (case, index))
            prompt = slices.named((1, number))[1]
            assert prompt
            assert f"  slice {index} of case '{case}': {prompt[:100]}" in message
    assert "last.ckpt' is kept as it was. " in message
    if what == "term":
        assert "(dice, ccae) is finite, so look for" in message
        assert "in segmentation_loss 'focal' of plug-in 'standard'" in message
    elif what != "weight":
        assert "as it was. Lower training.learning_rate" in message
    saved = training.folder.load_checkpoint("last")
    assert saved["progression"]["step"] == training.steps_per_epoch
    assert all(tensor.isfinite().all() for tensor in saved["training"].values())
    if what != "weight":  # on a processor, the step is not taken
        assert all(parameter.isfinite().all() for parameter in training.parameters)


def test_a_scaled_gradient_may_overflow_but_not_for_ever(tiny_recipe: Path, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=10_000)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    training = Training(experiment(tiny_recipe, "training.epochs=1"), RunFolder(tmp_path), fabric)
    overflows = 0

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal overflows
        overflows += 1
        return gradient * math.inf if overflows < 3 else gradient

    training.parameters[0].register_hook(overflow)
    training.fit()
    assert overflows > 3
    assert scaler.get_scale() <= 2.0**28
    scaler.update(2.0**-30)
    with pytest.raises(RunError, match="The gradient overflows at any scale in step"):
        training._check_numbers(weights=True)


def test_distortions_on_the_device_train_the_same(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ("training.epochs=1", "augmentation={distortion: 0.7, rotation_degrees: 9, noise: 0.1, flip: both}")
    for name, more in (("workers", ()), ("device", ("augmentation.on=device",))):
        start(experiment(tiny_recipe, *settings, *more), tmp_path / name).fit()
    states = [RunFolder(tmp_path / name).load_checkpoint("last") for name in ("workers", "device")]
    assert_equal(states[0]["model"], states[1]["model"])


def test_a_learning_rate_out_of_reach_saves_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    data = experiment(tiny_recipe, *WITHOUT_TEXT, "training.learning_rate=1e38", "training.optimizer=sgd")
    training = start(data, tmp_path)
    with pytest.raises(
        RunError, match=r"(?s)in step \d+, in a batch of.*Nothing was saved yet. Lower training.learning_rate"
    ):
        training.fit()
    assert not training.folder.checkpoint("last").exists()


def test_gradients_are_clipped(tiny_recipe: Path, tmp_path: Path) -> None:
    data = experiment(
        tiny_recipe,
        *WITHOUT_TEXT,
        *(f"training.{setting}" for setting in ("gradient_clip=1e-3", "optimizer=sgd", "momentum=0.0")),
        *("training.weight_decay=0", "training.schedule=constant", "training.learning_rate=1.0"),
    )
    training = start(data, tmp_path)
    before = [parameter.detach().clone() for parameter in training.parameters]
    training.training_step(next(training._batches(0)))
    moved = torch.cat([(a - b).flatten() for a, b in zip(training.parameters, before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)  # a step of a learning rate of 1 is the gradient


def test_initial_weights(tiny_recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    best = RunFolder(finished_run).checkpoint("best")
    for source in (finished_run, finished_run.parent, best):
        training = start(experiment(tiny_recipe, f"training.initialize_from={source}"), tmp_path)
        assert_equal(dict(training.segmenter.state_dict()), dict(torch.load(best, weights_only=True)["model"]))
    another_model = experiment(tiny_recipe, *WITHOUT_TEXT, f"training.initialize_from={best}")
    with pytest.raises(RunError, match="initialize_from: '.*best.ckpt' does not fit the model of this recipe"):
        start(another_model, tmp_path)
    gone = experiment(tiny_recipe, f"training.initialize_from={tmp_path / 'gone.ckpt'}")
    with pytest.raises(RunError, match="gone.ckpt' does not exist"):
        start(gone, tmp_path)
    RunFolder(tmp_path).save_checkpoint("last", {})  # a run that has begun needs them no more
    start(gone, tmp_path)


def test_a_checkpoint_of_another_model_or_shape_is_a_message(
    tiny_recipe: Path, plain_overrides: tuple[str, ...], finished_run: Path, tmp_path: Path
) -> None:
    training = start(experiment(tiny_recipe, *plain_overrides), tmp_path)
    for state in (RunFolder(finished_run).load_checkpoint("last"), {"model": {}}):
        training.folder.save_checkpoint("last", state)
        with pytest.raises(RunError, match="last.ckpt' does not fit this recipe .* --fresh") as caught:
            training.resume()
        assert "\n" not in str(caught.value)
        assert "key(s) in state_dict" in str(caught.value) or "'progression'" in str(caught.value)  # what does not fit


def test_more_epochs_behind_than_asked_for(tiny_recipe: Path, finished_run: Path) -> None:
    training = start(experiment(tiny_recipe, "training.epochs=2"), finished_run)
    with pytest.raises(RunError, match=r"has trained 3 epochs, more than the recipe asks for \(2\)"):
        training.resume()


def test_a_length_in_steps_is_the_fewest_epochs_that_reach_it(tiny_recipe: Path, tmp_path: Path) -> None:
    whole = experiment(tiny_recipe, *WITHOUT_TEXT)
    per_epoch = start(whole, tmp_path / "whole").steps_per_epoch
    for steps, epochs in ((1, 1), (2 * per_epoch, 2), (2 * per_epoch + 1, 3)):
        overrides = [*WITHOUT_TEXT, "training.epochs=null", f"training.steps={steps}"]
        training = start(experiment(tiny_recipe, *overrides), tmp_path / str(steps))
        assert (training.epochs, training.total_steps) == (epochs, epochs * per_epoch)


def test_outside_of_the_main_thread(tiny_recipe: Path, tmp_path: Path) -> None:
    training = start(experiment(tiny_recipe, *WITHOUT_TEXT, "training.epochs=1"), tmp_path)
    thread = threading.Thread(target=training.fit)
    thread.start()
    thread.join()
    assert training.finished


def test_a_checkpoint_says_how_far_it_is_in_plain_python(finished_run: Path) -> None:
    for name, keys in (("last", {"training", "optimizer", "average", "precision"}), ("best", set())):
        state = RunFolder(finished_run).load_checkpoint(name)
        assert state.keys() == {"model", "progression", "record"} | keys
        assert Progression(**state["progression"]).best_score >= 0
        record = RunFolder(finished_run).read()
        origin = (
            "versions",
            "components",
            "git_commit",
            "hardware",
            "numerics",
            "seed",
            "hashes",
            "bound",
            "parameters",
        )
        for key in (*origin, "multiply_accumulates", "milliseconds_per_slice"):
            assert state["record"][key] == record[key], key


def scaled_float16() -> MixedPrecision:
    """Return the precision of 16-mixed on a CUDA device for a CPU: float16 in some operators, and a scaled loss."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_near_full_precision_with_losses_in_full(
    precision: str, tiny_recipe: Path, tmp_path: Path, finished_run: Path
) -> None:
    plugin = MixedPrecision("bf16-mixed", "cpu") if precision == "bf16-mixed" else scaled_float16()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    training = Training(experiment(tiny_recipe), RunFolder(tmp_path), fabric)
    logits: set[torch.dtype] = set()
    losses: set[torch.dtype] = set()
    training.segmenter.register_forward_hook(lambda module, inputs, output: logits.add(output.logits.dtype))
    training.objective.auxiliary["ccae"].register_forward_hook(lambda module, inputs, output: losses.add(output.dtype))
    training.objective.segmentation_loss.register_forward_hook(
        lambda m, i, terms: losses.update(t.dtype for t in terms.values())
    )
    training.fit()
    assert logits & {torch.bfloat16, torch.float16}
    assert losses == {torch.float32}
    whole = RunFolder(finished_run).load_checkpoint("last")["progression"]["history"]
    for row, full in zip(training.progression.history, whole, strict=True):
        assert row["train_loss"] == pytest.approx(full["train_loss"], rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in training.parameters)


def test_the_processes_meet_after_the_first_has_saved(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(experiment(tiny_recipe), RunFolder(tmp_path), Fabric(accelerator="cpu", devices=1))
    happened: list[str] = []
    save, gathered = training._save, distributed.gathered

    def saving(name: str) -> None:
        save(name)
        happened.append(f"saved {name}")

    def meeting(value: Any) -> list[Any]:
        happened.append("met")
        return gathered(value)

    monkeypatch.setattr(training, "_save", saving)
    monkeypatch.setattr(distributed, "gathered", meeting)
    training.request_stop()
    with pytest.raises(KeyboardInterrupt):
        training.fit()
    assert happened[-2:] == ["saved last", "met"]


def test_a_scaled_run_goes_on_with_its_scale(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(path: Path, *overrides: str) -> Training:
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[scaled_float16()])
        return Training(experiment(tiny_recipe, *overrides), RunFolder(path), fabric)

    whole = scaled(tmp_path / "whole")
    whole.fit()
    first = scaled(tmp_path / "parts")
    finish = first._finish_epoch

    def finish_and_stop(epoch: int, *results: Any) -> dict[str, float]:
        row = finish(epoch, *results)
        first.stop_requested = epoch == 1  # two epochs, then another process
        return row

    monkeypatch.setattr(first, "_finish_epoch", finish_and_stop)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    assert first.folder.load_checkpoint("last")["precision"]["scale"] != 256.0
    second = scaled(tmp_path / "parts")
    second.resume()
    second.fit()
    assert_equal(checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "parts"))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_cuda(tiny_recipe: Path, path: Path, precision: Any, *overrides: str) -> Training:
    fabric = Fabric(accelerator="cuda", devices=1, precision=precision)
    return Training(experiment(tiny_recipe, *overrides), RunFolder(path), fabric)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_cuda_device_trains_at_every_precision(precision: Any, clip: str, tiny_recipe: Path, tmp_path: Path) -> None:
    training = on_cuda(tiny_recipe, tmp_path, precision, f"training.gradient_clip={clip}")
    training.fit()
    losses = [row["train_loss"] for row in training.progression.history]
    assert losses[-1] < losses[0]
    assert training.progression.history[-1]["memory_bytes"] == torch.cuda.max_memory_allocated()
    assert all(parameter.dtype == torch.float32 for parameter in training.parameters)


@pytest.mark.cuda
@needs_cuda
def test_a_cuda_device_trains_compiled(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ("training.compile=true",)
    plain, compiled = (
        on_cuda(tiny_recipe, tmp_path / name, "32-true", *more)
        for name, more in (("plain", ()), ("compiled", settings))
    )
    for training in (plain, compiled):
        training.fit()
    rows = [training.progression.history for training in (plain, compiled)]
    for row, compiled_row in zip(*rows, strict=True):
        assert compiled_row["train_loss"] == pytest.approx(row["train_loss"], rel=0.02)
    assert (
        checkpoints(tmp_path / "plain")["best"]["model"].keys()
        == checkpoints(tmp_path / "compiled")["best"]["model"].keys()
    )


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_run_on_a_cuda_device_goes_on_where_it_stopped(
    precision: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = on_cuda(tiny_recipe, tmp_path / "whole", precision)
    whole.fit()
    first = on_cuda(tiny_recipe, tmp_path / "parts", precision)
    with monkeypatch.context() as patch:
        stop_after(patch, first.steps_per_epoch + 2)
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    second = on_cuda(tiny_recipe, tmp_path / "parts", precision)
    second.resume()
    assert second.progression.step == first.steps_per_epoch + 2
    second.fit()
    uninterrupted, resumed = checkpoints(tmp_path / "whole")["last"], checkpoints(tmp_path / "parts")["last"]
    assert uninterrupted["precision"] == resumed["precision"]
    for name, tensor in uninterrupted["training"].items():  # atomic additions of the device are not in order
        torch.testing.assert_close(resumed["training"][name], tensor, rtol=1e-2, atol=1e-3)


def test_what_an_epoch_thaws_is_trained(tiny_recipe: Path, plain_overrides: tuple[str, ...], tmp_path: Path) -> None:
    training = start(experiment(tiny_recipe, *plain_overrides), tmp_path)
    network: Any = training.segmenter.network
    first = network.layers[0].weight.requires_grad_(False)
    training = _again(training, network)
    begin = first.detach().clone()
    seen = []

    def start_epoch(epoch: int, epochs: int) -> None:
        seen.append(torch.equal(first, begin))
        first.requires_grad_(epoch > 0)

    network.start_epoch = start_epoch
    training.fit()
    assert seen == [True, True]
    assert not torch.equal(first, begin)


def _again(training: Training, network: Any) -> Training:
    """The same training, built of a network that is frozen in part from the start."""
    segmenter = Segmenter(network)
    frozen = replace(training.experiment)
    object.__setattr__(frozen, "segmenter", lambda: segmenter)
    return Training(frozen, training.folder, training.fabric)


def test_a_loss_called_like_a_term_of_another_adds_to_it(tiny_recipe: Path, tmp_path: Path) -> None:
    training = start(experiment(tiny_recipe, "training.epochs=1"), tmp_path)
    batch = next(training._batches(0))
    plain = training.wrapped(lambda: batch)
    name = "dice"
    training.objective.auxiliary[name] = training.objective.auxiliary["ccae"]
    del training.objective.auxiliary["ccae"]
    training.objective.weights[name] = training.objective.weights["ccae"]
    both = training.wrapped(lambda: batch)
    assert both.keys() == {"dice", "focal"}
    assert both["dice"].item() == pytest.approx((plain["dice"] + plain["ccae"]).item(), rel=1e-3)


def test_the_loss_is_the_sum_also_where_a_network_calls_a_term_so(
    tiny_recipe: Path, plain_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    training = start(experiment(tiny_recipe, *plain_overrides), tmp_path)
    network: Any = training.segmenter.network
    network.losses = lambda output, batch, loss: {"loss": output.logits.mean() * 0 + 1, "deep": torch.tensor(2.0)}
    assert training.training_step(next(training._batches(0)))["loss"].item() == 3


def one_step(training: Training) -> dict[str, Any]:
    training._start_epoch(0)
    training.training_step(next(training._batches(0)))
    return training.segmenter.state_dict()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at one after a graph break
def test_compiled_and_not_take_the_same_step_under_the_same_names(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compile_ = torch.compile

    def eager(function: Any) -> Any:  # what is captured and replayed, without minutes of a compiler
        captured = compile_(function, backend="eager")
        return lambda *batch: (calls.append(1), captured(*batch))[1]

    monkeypatch.setattr(module.torch, "compile", eager)
    plain = one_step(start(experiment(tiny_recipe), tmp_path))
    assert calls == []
    training = start(experiment(tiny_recipe, "training.compile=true"), tmp_path)
    compiled = one_step(training)
    assert calls == [1]
    assert compiled.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name])
    training._save("last")
    state = training.folder.load_checkpoint("last")
    assert not [key for part in ("model", "training") for key in state[part] if "_orig_mod" in key]


def test_no_compiler_is_a_message(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*batch: Any) -> None:
        raise TorchDynamoException("No working C++ compiler found")

    monkeypatch.setattr(module.torch, "compile", lambda function: broken)
    training = start(experiment(tiny_recipe, "training.compile=true"), tmp_path)
    with pytest.raises(
        RunError, match="training.compile: .* No working C\\+\\+ compiler found .* leave training.compile out"
    ):
        one_step(training)


def test_forward_step_and_epochs_can_each_be_read_at_once() -> None:
    files = {inspect.getsourcefile(part) for part in (Objective.forward, Training.training_step, Training.fit)}
    assert len(files) == 1
    for function in (Objective.forward, Training.training_step, Training.fit, run.run, run._run):
        lines = len(inspect.getsourcelines(function)[0])
        assert lines - len((inspect.getdoc(function) or "").splitlines()) < 45, function
