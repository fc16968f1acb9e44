"""Names that follow a person's statement after the segmentation, for models with and without text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from textseg.cli.entry import app
from textseg.contracts import SegmenterOutput, TextFeatures
from textseg.data.preparation import PreparedCase
from textseg.errors import PromptError
from textseg.inference.ensemble import Ensemble
from textseg.inference.files import PredictionSettings, check_words, plan_jobs, predict_files
from textseg.inference.trained_model import TrainedModel
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.volumes.files import read_labels


class Recited(nn.Module):
    """A network that is sure of one label map, whatever image and text it gets."""

    uses_text = False
    size_multiple = 1
    batching = "volume"

    def __init__(self, label_map: np.ndarray, class_count: int) -> None:
        super().__init__()
        one_hot = nn.functional.one_hot(torch.from_numpy(np.array(label_map)).long(), class_count)
        self.register_buffer("logits", 8.0 * one_hot.movedim(-1, 1).float())

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        return SegmenterOutput(self.logits)


@pytest.fixture(scope="module")
def case(finished_run: Path, stranger: None) -> PreparedCase:
    """A test case of the finished run; its mask shows L5/S."""
    return build(load_recipe(RunFolder(finished_run).recipe)).cases["test"][0]


def reciting(model: TrainedModel, label_map: np.ndarray, *, reads_text: bool = False) -> TrainedModel:
    """Return a model that predicts a label map."""
    network = Recited(label_map, model.atlas.class_count)
    recipe = model.recipe if reads_text else model.recipe.model_copy(update={"prompts": None})
    return replace(model, recipe=recipe, segmenter=Segmenter(network).eval(), fingerprint=f"recites {label_map.sum()}")


def moved(label_map: np.ndarray, model: TrainedModel, levels: int) -> np.ndarray:
    """Return a label map whose names are some levels off; names that leave the atlas become background."""
    table = np.arange(model.atlas.class_count)
    for name in model.atlas.sequence:
        successor = model.atlas.neighbour(name, levels)
        table[model.atlas[name].index] = model.atlas[successor].index if successor else 0
    return table[label_map].astype(np.uint8)


def stretch(case: PreparedCase, model: TrainedModel) -> tuple[str, str]:
    present = set(np.flatnonzero(np.bincount(case.mask.ravel()) > 60).tolist())
    row = [name for name in model.atlas.sequence if model.atlas[name].index in present]
    return row[0], row[-1]


def test_a_model_without_text_takes_its_names_from_a_statement(model: TrainedModel, case: PreparedCase) -> None:
    first, last = stretch(case, model)
    right = reciting(model, case.mask)(case.case.image)
    wrong = reciting(model, moved(case.mask, model, -1))
    plain = wrong(case.case.image)
    mask = wrong(case.case.image, visible=f"{first} to {last}", ordered=True)
    assert mask.unnamed == ()
    assert set(mask.margins) <= set(model.atlas.sequence)
    assert min(mask.margins.values()) > 0
    assert len(mask.changes) >= 6
    assert mask.visibility is not None
    assert mask.visibility.source == "interactive"
    named, unnamed = ((array == right.array).mean() for array in (mask.array, plain.array))
    # The rest are outlines, and what left the atlas when the names of the prediction were moved.
    assert named > 0.99
    assert named > unnamed
    assert set(np.unique(right.array)) - set(np.unique(mask.array)) <= {model.atlas["T9"].index}


def test_an_ensemble_without_text_takes_its_names_from_a_statement(model: TrainedModel, case: PreparedCase) -> None:
    first, last = stretch(case, model)
    member = reciting(model, moved(case.mask, model, -1))
    both = Ensemble.of([("first", member), ("second", replace(member, fingerprint="another"))])
    statement = {"visible": (first, last), "ordered": True}
    assert np.array_equal(both(case.case.image, **statement).array, member(case.case.image, **statement).array)


def test_a_model_with_text_reads_the_statement_and_is_named_by_it(model: TrainedModel, case: PreparedCase) -> None:
    path = case.case.image
    text, both = model(path, visible="L1:L5"), model(path, visible="L1:L5", ordered=True)
    assert text.margins == {}
    assert both.visibility == text.visibility
    assert both.margins
    # A template is no statement of a person, so it moves no names.
    present = stretch(case, model)
    reader = reciting(model, case.mask, reads_text=True)
    assert reader(path, prompts="template", ordered=True).changes == ()
    assert reader(path, visible=present, ordered=True).changes == ()


@pytest.mark.parametrize("ordered", [False, True])
def test_a_visible_landmark_against_the_statement_is_a_remark(
    model: TrainedModel, case: PreparedCase, ordered: bool
) -> None:
    first, last = stretch(case, model)
    assert last == "L5/S"
    reader = reciting(model, case.mask, reads_text=True)
    above = model.atlas.neighbour(first, -1)
    for visible, contradicts in ((f"{first}:L5", False), (f"{above or first}:L4", True)):
        remarks = reader(case.case.image, visible=visible, ordered=ordered).remarks
        assert any("contradicts the statement: the picture says L5/S" in remark for remark in remarks) == contradicts


@pytest.mark.parametrize(
    ("visible", "ordered", "message"),
    [
        ("T12:L5", False, "reads no text, .* or add --ordered"),
        ("SC", True, r"none of its levels \(T9, .*\) is named: --ordered can't name anything"),
        ("T12:L9", True, "no 'L9' in the sequence"),
    ],
)
def test_a_statement_without_use_is_refused_before_a_volume_is_read(
    model: TrainedModel, case: PreparedCase, tmp_path: Path, visible: str, ordered: bool, message: str
) -> None:
    visual = reciting(model, case.mask)
    with pytest.raises(PromptError, match=message):
        check_words(visual, plan_jobs([case.case.image], tmp_path, visible=visible), ordered=ordered)
    with pytest.raises(PromptError, match=message):
        visual(case.case.image, visible=visible, ordered=ordered)


def test_the_json_file_lists_changes_margins_and_what_has_no_name(
    model: TrainedModel, case: PreparedCase, tmp_path: Path
) -> None:
    visual = reciting(model, moved(case.mask, model, -1))
    (tmp_path / "seen.csv").write_text(f"case,visible\n{case.case.image.stem},T12:L5\n")
    [job] = plan_jobs([case.case.image], tmp_path / "out", visible=str(tmp_path / "seen.csv"))
    settings = PredictionSettings(ordered=True)
    assert check_words(visual, [job], ordered=True)[0].startswith("read: T12:L5")
    assert [outcome.state for outcome in predict_files(visual, [job], settings)] == ["written"]
    sidecar = json.loads(job.sidecar.read_text())
    assert sidecar["said"]["visible"] == "T12:L5"
    assert sidecar["made"]["prompts"] == "T12:L5"
    assert sidecar["changes"]
    assert sidecar["unnamed"]
    assert {"T12", "L5", "L5/S"} <= set(sidecar["margins"])
    assert sidecar["labels"] != {}
    assert read_labels(job.mask).array.any()
    assert [outcome.state for outcome in predict_files(visual, [job], settings)] == ["there"]


def test_the_command_takes_statement_and_order_together(finished_run: Path, case: PreparedCase, tmp_path: Path) -> None:
    arguments = ["predict", str(finished_run), str(case.case.image), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--ordered", "--visible", "T12:L4"], catch_exceptions=False)
    assert result.exit_code == 0
    sidecar = json.loads((tmp_path / "out" / f"{case.case.image.stem}.json").read_text())
    assert sidecar["made"]["ordered"] is True
    assert set(sidecar["margins"]) <= {
        "T11",
        "T11/T12",
        "T12",
        "T12/L1",
        "L1",
        "L1/L2",
        "L2",
        "L2/L3",
        "L3",
        "L3/L4",
        "L4",
        "L4/L5",
        "L5",
        "L5/S",
    }
