from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn

from textseg import testing
from textseg.contracts import Batch, Features, SegmenterOutput, Task
from textseg.errors import PluginError
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.system import distributed
from textseg.training.loop import Training
from textseg.training.output_checks import OutputChecks

WITHOUT_TEXT = ("prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}")
COMPOSED = ("prompts=null", "model={vision_encoder: {use: monai_unet}, fusion: {use: hasf}}")
VOLUMES = (*WITHOUT_TEXT[:2], "model={network: {use: staged}}")
CHECK = "Check it further, without data: textseg plugins doctor {} --check"

Builders = dict[tuple[str, str], Any]

pytestmark = pytest.mark.usefixtures("stranger")


@pytest.fixture(scope="module")
def experiments(tiny_recipe: Path, stranger: None) -> Callable[..., Experiment]:
    """Experiments of the tiny recipe with other values; each is built once."""
    built: dict[tuple[str, ...], Experiment] = {}

    def experiment(*overrides: str) -> Experiment:
        if overrides not in built:
            with pytest.MonkeyPatch.context() as patch:
                replace_components(patch, of_encoder(tuple)[1])
                built[overrides] = build(load_recipe(tiny_recipe, overrides))
        return built[overrides]

    return experiment


class Map(nn.Module):
    """A vision encoder of one level, whose output `change` makes from the right one."""

    size_multiple = 2

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer, self.change = nn.Conv2d(1, 4, 3, stride=2, padding=1), change
        self.features = Features((4,), (2,))

    def forward(self, image: Tensor) -> Any:
        return self.change((self.layer(image),))


class Mixed(nn.Module):
    """A fusion that scales each level by one parameter."""

    uses_text = False

    def __init__(self, features: Features, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.scale, self.features, self.change = nn.Parameter(torch.ones(())), features, change

    def forward(self, image_features: tuple[Tensor, ...], text: Any) -> Any:
        return self.change(tuple(level * self.scale for level in image_features))


class Logits(nn.Module):
    """A network of one convolution."""

    uses_text = False
    size_multiple = 1

    def __init__(self, task: Task, change: Callable[[SegmenterOutput], Any], extra: int = 0) -> None:
        super().__init__()
        self.layer, self.change = nn.Conv2d(1, task.class_count + extra, 1), change

    def forward(self, image: Tensor, text: Any) -> Any:
        return self.change(SegmenterOutput(self.layer(image)))


class OwnLosses(Logits):
    """A network with terms of its own, which `change` makes."""

    def forward(self, image: Tensor, text: Any) -> Any:
        return SegmenterOutput(self.layer(image))

    def losses(self, output: Any, batch: Batch, segmentation_loss: Any) -> Any:
        return self.change(output.logits.mean())


class Whole(Logits):
    """A network for whole volumes."""

    batching = "volume"


class Sum(nn.Module):
    """An auxiliary loss with one weight."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight, self.change = nn.Parameter(torch.ones(())), change

    def forward(self, output: SegmenterOutput, batch: Batch) -> Any:
        return self.change(output.logits.float().mean() * self.weight)


def broken(value: Any) -> Any:
    raise KeyError("nowhere")


def replace_components(monkeypatch: pytest.MonkeyPatch, builders: Builders) -> None:
    known = installed_registry()._components
    for key, builder in builders.items():
        monkeypatch.setitem(known, key, replace(known[key], target=builder))


def step(
    experiment: Experiment,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    builders: Builders,
    **more: Any,
) -> Training:
    """Take the first step of a training whose components are replaced, and return the training."""
    replace_components(monkeypatch, builders)
    training = Training(experiment, RunFolder(folder), Fabric(accelerator="cpu", devices=1, **more))
    training._start_epoch(0)
    training.training_step(next(iter(training._batches(0))))
    return training


def start(experiment: Experiment, folder: Path) -> Training:
    return Training(experiment, RunFolder(folder), Fabric(accelerator="cpu", devices=1))


def of_network(network: Any, change: Any, **more: Any) -> tuple[tuple[str, ...], Builders]:
    return WITHOUT_TEXT, {("network", "plain"): lambda task: network(task, change, **more)}


def of_encoder(change: Any) -> tuple[tuple[str, ...], Builders]:
    builders = {
        ("vision_encoder", "monai_unet"): lambda task: Map(change),
        ("fusion", "hasf"): lambda task, features: Mixed(features, tuple),
        ("auxiliary_loss", "ccae"): lambda task, features: Sum(lambda loss: loss),
    }
    return COMPOSED, builders


def of_fusion(change: Any) -> tuple[tuple[str, ...], Builders]:
    builders = of_encoder(tuple)[1] | {("fusion", "hasf"): lambda task, features: Mixed(features, change)}
    return COMPOSED, builders


def of_loss(change: Any) -> tuple[tuple[str, ...], Builders]:
    builders = of_encoder(tuple)[1] | {("auxiliary_loss", "ccae"): lambda task, features: Sum(change)}
    return COMPOSED, builders


class Term(nn.Module):
    """The mean logit, changed."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.change(logits.mean())


def of_term(change: Any) -> tuple[tuple[str, ...], Builders]:
    return COMPOSED, of_encoder(tuple)[1] | {("segmentation_loss", "focal"): lambda task: Term(change)}


def nan(value: Any) -> Any:
    return value * math.nan


MAPS = "expected a tuple of 1 map [4, 4, 24, 20], as its `features` say, finest first, seen "


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            of_network(Logits, lambda o: o, extra=1),
            "network 'plain' .* logits [4, {K}, H, W] .* seen [4, {L}, 48, 40]",
        ),
        (
            of_network(Logits, lambda o: o.logits),
            "SegmenterOutput, seen a tensor [4, {K}, 48, 40] of torch.float32",
        ),
        (of_network(Logits, lambda o: replace(o, logits=o.logits[0])), "logits [4, .* seen [{K}, 48, 40]"),
        (
            of_network(Logits, lambda o: replace(o, logits=o.logits.argmax(1, keepdim=True).expand_as(o.logits))),
            "torch.int64",
        ),
        (
            of_network(Logits, lambda o: replace(o, deep_logits=(o.logits[:, :2],))),
            "deep logits [4, .* seen [4, 2,",
        ),
        (
            of_network(Logits, lambda o: replace(o, logits=o.logits.detach().requires_grad_())),
            "none: the loss does not depend",
        ),
        (of_network(Logits, lambda o: replace(o, logits=nan(o.logits))), "network 'plain' .* finite numbers, seen NaN"),
        (
            of_network(Logits, broken),
            "network 'plain' .* failed in the first batch: KeyError: 'nowhere' (",
        ),
        (of_network(Whole, lambda o: replace(o, logits=o.logits[:2])), "logits [5, .* seen [2, {K}, 48, 40]"),
        (
            of_network(OwnLosses, lambda term: term),
            "from `losses` a mapping from names to scalars, seen a tensor [] of",
        ),
        (of_network(OwnLosses, lambda term: {"own": term[None]}), "names to scalars, seen 'own', a tensor [1] of"),
        (
            of_network(OwnLosses, lambda term: {"own": term, "bad": nan(term)}),
            "network .* number in the term 'bad' of the",
        ),
        (of_encoder(list), f"vision_encoder 'monai_unet' of plug-in 'atmnet' .* {MAPS}a list of [4, 4, 24, 20]"),
        (of_encoder(lambda maps: maps[0]), f"vision_encoder .* {MAPS}a tensor [4, 4, 24, 20] of torch.float32"),
        (
            of_encoder(lambda maps: (maps[0][..., :-1],)),
            f"vision_encoder .* {MAPS}a tuple of [4, 4, 24, 19] in the first batch",
        ),
        (of_encoder(lambda maps: (nan(maps[0]),)), "vision_encoder .* finite numbers"),
        (of_fusion(list), f"fusion 'hasf' of plug-in 'atmnet' .* {MAPS}a list of [4, 4, 24, 20]"),
        (of_fusion(lambda maps: (maps[0][:, :3],)), f"fusion .* {MAPS}a tuple of [4, 3, 24, 20]"),
        (of_fusion(lambda maps: ()), f"fusion .* {MAPS}a tuple"),
        (of_fusion(lambda maps: (nan(maps[0]),)), "fusion .* finite numbers, seen NaN or infinity in the first batch"),
        (of_fusion(lambda maps: tuple(m.detach() for m in maps)), "vision_encoder .* at least one of its 2 trainable"),
        (of_fusion(broken), "fusion 'hasf' .* failed in the first batch: KeyError: 'nowhere'"),
        (
            of_loss(lambda loss: loss[None]),
            "auxiliary_loss 'ccae' .* a scalar in float32, seen a tensor [1] of torch.float32",
        ),
        (of_loss(lambda loss: loss.double()), "a scalar in float32, seen a tensor [] of torch.float64"),
        (of_loss(lambda loss: loss.item()), "a scalar in float32, seen a float"),
        (of_loss(nan), "auxiliary_loss 'ccae' .* a finite number in the term 'ccae' of the loss, seen NaN"),
        (of_loss(lambda loss: loss.detach()), "a scalar with gradients, seen one that is detached from the model"),
        (of_loss(broken), "auxiliary_loss 'ccae' .* failed"),
        (of_term(nan), "segmentation_loss 'focal' of plug-in 'standard' .* a finite number in the term 'focal' of the"),
        (of_term(lambda term: term[None]), "segmentation_loss 'focal' .* a scalar in float32, seen a tensor [1] of"),
        (of_term(broken), "segmentation_loss 'focal' .* failed"),
    ],
)
def test_the_component_is_named_before_a_weight_changes(
    case: Any, message: str, experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, builders = case
    steps: list[Any] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: steps.append(_))
    with pytest.raises(PluginError) as caught:
        step(experiments(*overrides), tmp_path, monkeypatch, builders)
    assert not steps
    classes = experiments(*overrides).task.class_count
    for fragment in message.replace("{K}", str(classes)).replace("{L}", str(classes + 1)).split(" .* "):
        assert fragment in str(caught.value)
    assert str(caught.value).endswith(tuple(map(CHECK.format, ("stranger", "atmnet", "standard"))))


@pytest.mark.parametrize("overrides", [COMPOSED, WITHOUT_TEXT, VOLUMES], ids=["composed", "network", "volumes"])
def test_what_keeps_its_contract_trains_as_without_checks(
    overrides: tuple[str, ...], experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builders = of_encoder(tuple)[1]
    checked = step(experiments(*overrides), tmp_path / "checked", monkeypatch, builders)
    assert not checked.objective.checks.due
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in checked.objective.modules())
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(OutputChecks, "due", property(lambda self: False, lambda self, due: None))
        unchecked = step(experiments(*overrides), tmp_path / "unchecked", monkeypatch, builders)
    assert torch.equal(state, torch.get_rng_state())
    states = checked.model.state_dict(), unchecked.model.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items() if "frozen" not in name)


def test_each_process_and_each_stage_is_checked_once(
    experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = step(experiments(*VOLUMES), tmp_path, monkeypatch, {})  # `fine` has no gradient in the first stage
    checks = training.objective.checks
    due = []
    for epoch in range(3):
        training._start_epoch(epoch)
        due.append(checks.due)
        training.training_step(next(iter(training._batches(0))))
        training._start_epoch(epoch)
        assert checks.due is (epoch in (0, 1))  # the first epoch of a stage
        checks.due = False
    assert due == [True, True, False]


def test_the_part_of_a_stage_that_gets_no_gradient_is_named(
    experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start(experiments(*VOLUMES), tmp_path)
    training._start_epoch(2)
    network: Any = training.segmenter.network
    network.stage = "coarse"  # the stage trains `fine`, which this leaves out
    with pytest.raises((PluginError, RuntimeError), match="network 'staged' .* a gradient in at least one of its 2"):
        training.training_step(next(iter(training._batches(0))))


def test_a_scaled_gradient_may_be_infinite(experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    training = step(experiments(*WITHOUT_TEXT), tmp_path, monkeypatch, {}, plugins=[precision])
    assert scaler.get_scale() < 2.0**127  # the gradient did overflow
    assert not training.objective.checks.due


def test_what_is_missing_on_one_of_two_processes_ends_both(
    experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start(experiments(*WITHOUT_TEXT), tmp_path)
    monkeypatch.setattr(distributed, "gathered", lambda value: [value, "fusion 'x' of the second process"])
    with pytest.raises(PluginError, match="fusion 'x' of the second process"):
        training.objective.checks.check_terms({"dice": torch.ones((), requires_grad=True)})


def test_a_compiled_model_is_checked_without_hooks(
    experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    overrides, builders = of_fusion(lambda maps: (maps[0][:, :3],))
    with pytest.raises(PluginError, match="fusion 'hasf' .* seen a tuple of \\[4, 3, 24, 20\\]"):
        step(experiments(*overrides, "training.compile=true"), tmp_path, monkeypatch, builders)
    overrides, builders = of_network(Logits, lambda o: o, extra=1)
    with pytest.raises(PluginError, match="network 'plain' .* a channel for the background and each structure"):
        step(experiments(*overrides, "training.compile=true"), tmp_path, monkeypatch, builders)


def test_memory_that_runs_out_is_no_fault_of_the_component(
    experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(output: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    overrides, builders = of_network(Logits, exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        step(experiments(*overrides), tmp_path, monkeypatch, builders)


class Thick(Logits):
    """A network of three slices, weighted by the position of the one in the middle."""

    reads_geometry, context_slices = True, 3

    def __init__(self, task: Task, change: Callable[[SegmenterOutput], Any]) -> None:
        super().__init__(task, change)
        self.layer = nn.Conv2d(3, task.class_count, 1)

    def forward(self, image: Tensor, text: Any, *, geometry: Any = None) -> Any:
        return super().forward(image * (1 + geometry.position[:, None, None, None]), text)


@pytest.mark.parametrize("compiled", ["training.compile=false", "training.compile=true"])
def test_a_network_gets_what_it_asks_for_in_training(
    compiled: str, experiments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    overrides, builders = of_network(Thick, lambda output: shapes.append(output.logits.shape) or output)
    step(experiments(*overrides, compiled), tmp_path, monkeypatch, builders)
    assert shapes == [(4, experiments(*overrides).task.class_count, 48, 40)]


def test_code_that_is_not_installed_is_checked_in_python() -> None:
    component = installed_registry().component("network", "plain")
    assert component.check == CHECK.format("stranger")
    local = replace(component, source={"parts.py": "1"})
    assert local.check == "Check it further, without data, in Python: textseg.testing.check_network"
    assert hasattr(testing, "check_network")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: setattr(module, "context_slices", 2), "an odd number of `context_slices`.*, seen 2"),
        (
            lambda module: module.__dict__.update(context_slices=3, batching="volume"),
            'no `context_slices` beside `batching = "volume"`',
        ),
        (lambda module: "no module", "network 'plain' .* expected an nn.Module, seen a str"),
        (lambda module: setattr(module, "size_multiple", 2.0), "an attribute `size_multiple`, int, seen 2.0"),
        (lambda module: setattr(module, "uses_text", None), "an attribute `uses_text`, bool, seen None"),
    ],
)
def test_what_a_builder_returns_has_what_the_core_reads(
    change: Any, message: str, experiments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_network(task: Task) -> Any:
        module = Logits(task, lambda output: output)
        return change(module) or module

    known = installed_registry()._components
    monkeypatch.setitem(known, ("network", "plain"), replace(known["network", "plain"], target=build_network))
    with pytest.raises(PluginError, match=message):
        experiments(*WITHOUT_TEXT).segmenter()
