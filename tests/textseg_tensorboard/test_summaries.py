from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from textseg.metrics.scores import read_scores, summarise


@pytest.fixture(scope="module")
def events(finished_run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(finished_run / "log"))
    accumulator.Reload()
    return accumulator


def test_the_recipe_stands_as_text(events: EventAccumulator, finished_run: Path) -> None:
    (event,) = events.Tensors("recipe/text_summary")
    shown = event.tensor_proto.string_val[0].decode()
    assert shown == "\n".join(f"    {line}" for line in (finished_run / "recipe.yaml").read_text().splitlines())


def test_the_means_of_the_test_stand_behind_the_curves(events: EventAccumulator, finished_run: Path) -> None:
    record = json.loads((finished_run / "run.json").read_text())
    means = summarise(read_scores(finished_run / "scores.csv"), structures=record["structures_in_training"]).overall
    assert len(means) == 4
    for metric, mean in means.items():
        *_, event = events.Scalars(f"test/{metric}")
        assert event.step == record["scored_step"]
        assert event.value == pytest.approx(mean.value)
    assert "validation_dsc" in events.Tags()["scalars"]


def test_settings_are_a_row_of_hyperparameters(events: EventAccumulator) -> None:
    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings: Any = HParamsPluginData.FromString(data).session_start_info.hparams
    assert settings["training.learning_rate"].number_value == 1e-2
    assert settings["model.fusion.use"].string_value == "hasf"
    assert settings["preparation.size"].string_value == "[48, 40]"
    assert "split.folds" not in settings  # not given


def test_registering_loads_no_torch() -> None:
    program = "import sys, textseg_tensorboard.plugin; print({'torch', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
