from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from textseg.errors import RunError
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training import objective as module
from textseg.training.loop import Training

pytestmark = pytest.mark.usefixtures("stranger")


def start(tiny_recipe: Path, path: Path, *overrides: str) -> Training:
    experiment = build(load_recipe(tiny_recipe, ["training.threads=1", *overrides]))
    return Training(experiment, RunFolder(path), Fabric(accelerator="cpu", devices=1, precision="32-true"))


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
        compiled = compile_(function, backend="eager")
        return lambda *batch: (calls.append(1), compiled(*batch))[1]

    monkeypatch.setattr(module.torch, "compile", eager)
    plain = one_step(start(tiny_recipe, tmp_path))
    assert calls == []
    training = start(tiny_recipe, tmp_path, "training.compile=true")
    found = one_step(training)
    assert calls == [1]
    assert found.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(found[name], plain[name])
    training._save("last")
    state = training.folder.load_checkpoint("last")
    assert not [key for part in ("model", "training") for key in state[part] if "_orig_mod" in key]


def test_no_compiler_is_a_message(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*batch: Any) -> None:
        raise TorchDynamoException("No working C++ compiler found")

    monkeypatch.setattr(module.torch, "compile", lambda function: broken)
    training = start(tiny_recipe, tmp_path, "training.compile=true")
    with pytest.raises(
        RunError, match="training.compile: .* No working C\\+\\+ compiler found .* leave training.compile out"
    ):
        one_step(training)
