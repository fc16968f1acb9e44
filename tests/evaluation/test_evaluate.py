from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from medpy.metric import binary

from textseg.comparison.compare import compare
from textseg.comparison.text import as_text
from textseg.contracts import TextFeatures, Visibility
from textseg.errors import RecipeError, RunError
from textseg.evaluation import evaluate as evaluation
from textseg.evaluation.evaluate import evaluate, evaluate_run, headline, load_segmenter, validate
from textseg.inference.slices import predict_case
from textseg.metrics.scores import Score, read_scores
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import read_kept
from textseg.text.prompts import generate

pytestmark = pytest.mark.usefixtures("stranger")
CPU = torch.device("cpu")


class Guess(torch.nn.Module):
    """Class 1 where the image is bright, class 19 elsewhere in its right half; see `guessed`."""

    uses_text = False
    size_multiple = 1

    def forward(self, image: torch.Tensor, text: TextFeatures | None) -> Any:
        from textseg.contracts import SegmenterOutput

        logits = torch.zeros(image.shape[0], 20, *image.shape[-2:])
        logits[:, 0] = 0.5
        logits[:, 1] = (image[:, 0] > 0.5).float()
        logits[..., image.shape[-1] // 2 :][:, 19] = 0.75
        return SegmenterOutput(logits)


def guessed(image: np.ndarray) -> np.ndarray:
    """What `Guess` says, [S, H, W] -> [S, H, W]."""
    labels = np.zeros(image.shape, np.uint8)
    labels[..., image.shape[-1] // 2 :] = 19
    labels[np.asarray(image, np.float32) > 0.5] = 1
    return labels


@pytest.fixture(scope="module")
def without_text(tiny_recipe: Path, stranger: None) -> Experiment:
    overrides = ["prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}"]
    return build(load_recipe(tiny_recipe, overrides))


def measured(experiment: Experiment, **settings: Any) -> Experiment:
    recipe = experiment.recipe
    return replace(
        experiment,
        recipe=recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=settings)}),
    )


def scored(experiment: Experiment, path: Path, **settings: Any) -> list[Score]:
    folder = RunFolder(path)
    return evaluate(measured(experiment, **settings), Segmenter(Guess()), folder, folder, source=None, device=CPU)


def test_scores_are_those_of_medpy_on_a_prediction_by_hand(finished_run: Path) -> None:
    experiment = build(load_recipe(finished_run / "recipe.yaml"))
    atlas, registry, recipe = experiment.atlas, experiment.registry, experiment.recipe
    assert recipe.prompts is not None
    generator = registry.build("prompt_generator", "atpg_lumbar", atlas, settings={})
    words = registry.build("text_encoder", "hashed_words", settings={})
    segmenter = experiment.segmenter().eval()
    state = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    segmenter.load_state_dict(state["model"])
    rows = {(row.case, row.structure, row.metric): row for row in read_scores(finished_run / "scores.csv")}
    checked = 0
    for prepared in experiment.cases["test"]:
        height, width = prepared.slice_geometry.native_size
        found = np.zeros((prepared.slice_count, height, width), np.uint8)
        for index in range(prepared.slice_count):
            visibility = Visibility(atlas.names, "template", "volume", facts=prepared.case.facts)
            said = generate(generator, atlas, visibility.at(index, prepared.slice_count))
            tokens, mask = words([said.holistic])
            # The run keeps features in 16 bits.
            tokens = F.pad(tokens.half().float(), (0, 0, 0, experiment.task.text_length - tokens.shape[1]))
            mask = F.pad(mask, (0, experiment.task.text_length - mask.shape[1]))
            text = TextFeatures(tokens, mask, None, torch.ones(1, 19, dtype=torch.bool))
            image = torch.from_numpy(prepared.image[index].astype(np.float32))[None, None]
            with torch.inference_mode():
                logits = segmenter(image, text).logits
            place = prepared.slice_geometry
            box = F.interpolate(logits, (place.height, place.width), mode="bilinear").argmax(1)[0].numpy()
            for row in range(height):
                for column in range(width):
                    y, x = row - place.top, column - place.left
                    if 0 <= y < place.height and 0 <= x < place.width:
                        found[index, row, column] = box[y, x]
        image = sitk.DICOMOrient(sitk.ReadImage(str(prepared.case.mask_path)), "PIR")
        values = sitk.GetArrayFromImage(image)
        label_map = experiment.dataset.label_map(prepared.case)
        reference = np.vectorize(label_map.__getitem__)(values)
        for structure in atlas.structures:
            ours, theirs = found == structure.index, reference == structure.index
            row = rows[prepared.case.id, structure.name, "dsc"]
            assert row.status == ("ok" if ours.any() and theirs.any() else row.status)
            if ours.any() and theirs.any():
                checked += 1
                assert row.value == pytest.approx(binary.dc(ours, theirs))
                assert rows[prepared.case.id, structure.name, "asd"].value == pytest.approx(
                    binary.asd(ours, theirs, voxelspacing=prepared.native_spacing_mm)
                )
            elif theirs.any():
                assert (row.status, row.value) == ("missed", 0.0)
    assert checked >= 2


def test_predictions_are_kept_in_the_geometry_of_the_scan(without_text: Experiment, tmp_path: Path) -> None:
    scored(without_text, tmp_path)
    kept = read_kept(RunFolder(tmp_path))
    assert list(kept.cases) == [prepared.case.id for prepared in without_text.cases["test"]]
    for prepared in without_text.cases["test"]:
        found, geometry = kept.cases[prepared.case.id].read_prediction()
        label_map = without_text.dataset.label_map(prepared.case)
        segmenter = Segmenter(Guess()).eval()
        expected = predict_case(segmenter, prepared, without_text.slices(prepared, None), device=CPU, batch_size=4)
        np.testing.assert_array_equal(found, expected.native)
        np.testing.assert_array_equal(kept.cases[prepared.case.id].read_reference(), prepared.native_mask(label_map))
        assert kept.cases[prepared.case.id].read_image(geometry).shape == found.shape


def test_per_slice_at_the_prepared_size_in_pixels(without_text: Experiment, tmp_path: Path) -> None:
    scores = scored(without_text, tmp_path, per="slice", space="prepared", unit="pixel")
    assert {(row.unit, row.space) for row in scores} == {("", "prepared"), ("pixel", "prepared")}
    prepared = without_text.cases["test"][0]
    measures = {"dsc": binary.dc, "jaccard": binary.jc, "hd95": binary.hd95, "asd": binary.asd}
    found, reference = guessed(prepared.image) == 19, np.asarray(prepared.mask) == 19
    checked = 0
    for row in scores:
        if row.case == prepared.case.id and row.structure == "SC":
            assert (row.status in ("ok", "missed")) == bool(reference[row.slice].any())
            if row.status == "ok":
                checked += 1
                assert row.value == pytest.approx(measures[row.metric](found[row.slice], reference[row.slice]))
    assert checked >= 4
    assert {row.slice for row in scores if row.case == prepared.case.id} == set(range(prepared.slice_count))


def test_millimetres_and_pixels_differ_by_the_spacing(without_text: Experiment, tmp_path: Path) -> None:
    found = {}
    for unit in ("mm", "pixel"):
        rows = scored(without_text, tmp_path / unit, per="slice", unit=unit, metrics=("asd",))
        found[unit] = np.array([row.value for row in rows])
        assert {(row.metric, row.unit, row.space) for row in rows} == {("asd", unit, "native")}
    there = np.isfinite(found["mm"])
    assert there.any()
    spacing = without_text.cases["test"][0].native_spacing_mm
    assert spacing[1] == spacing[2]
    np.testing.assert_allclose(found["mm"][there], found["pixel"][there] * spacing[1], rtol=1e-6)


def test_pictures_are_chosen_by_dsc_also_where_it_is_not_asked_for(
    without_text: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(evaluation, "write_report", lambda path, **parts: shown.update(parts))
    scored(without_text, tmp_path / "asked", metrics=("dsc", "jaccard"))
    titles = [picture.title for picture in shown["overlays"]]
    rows = scored(without_text, tmp_path / "unasked", metrics=("jaccard",))
    assert {row.metric for row in rows} == {"jaccard"}
    assert [picture.title for picture in shown["overlays"]] == titles
    assert [title.partition(":")[0] for title in titles] == ["best", "median", "worst"]
    assert shown["run"]["structures_in_training"] == without_text.structures_in_training
    assert shown["prompts"] == []


def test_validation_is_the_mean_over_structures_of_the_mean_over_cases(without_text: Experiment) -> None:
    segmenter = Segmenter(Guess()).eval()
    values: dict[int, list[float]] = {}
    for prepared in without_text.cases["train"]:
        found, reference = guessed(prepared.image), np.asarray(prepared.mask)
        for index in np.unique(reference)[1:]:
            values.setdefault(int(index), []).append(binary.dc(found == index, reference == index))
    expected = np.mean([np.mean(several) for several in values.values()])
    assert expected > 0
    found = validate(without_text, segmenter, "train", CPU, pictures=2)
    assert found.dsc == pytest.approx(expected)
    atlas = without_text.atlas
    assert found.groups.keys() == atlas.groups.keys()
    for group, names in atlas.groups.items():
        means = [np.mean(values[atlas[name].index]) for name in names if atlas[name].index in values]
        assert found.groups[group] == pytest.approx(np.mean(means))
    first = without_text.cases["train"][0]
    assert [picture.title.split(",")[0] for picture in found.pictures] == [
        f"case {case.case.id}" for case in without_text.cases["train"][:2]
    ]
    drawn = found.pictures[0]
    assert any(np.array_equal(drawn.reference, plane) for plane in np.asarray(first.mask))
    assert drawn.prediction.shape == drawn.image.shape == drawn.reference.shape


def test_oracle_prompts_stand_apart(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    target = evaluate_run(copied.parent, prompts="ground_truth")
    assert target == copied / "evaluations" / "ground_truth"
    assert {path: path.read_bytes() for path in before} == before
    assert "ORACLE" in capsys.readouterr().out
    assert "ORACLE" in (target / "report.html").read_text()
    assert {row.prompt_source for row in read_scores(target / "scores.csv")} == {"ground_truth"}
    assert json.loads((target / "run.json").read_text())["evaluation"]["prompts"] == "ground_truth"
    ranked, _, oracles = as_text(compare([copied, target])).partition("Oracle runs (prompts from the ground truth)")
    assert oracles
    tables = [part.partition("95 % interval")[0] for part in (ranked, oracles)]
    assert [table.count("tiny (seed 2025)") for table in tables] == [1, 1]
    assert "not ranked" in oracles


@pytest.mark.parametrize("source", ["ground_truth", "interactive"])
def test_a_stored_recipe_that_was_edited_gives_no_oracle_unasked(copied: Path, source: str) -> None:
    before = (copied / "scores.csv").read_bytes()
    text = (copied / "recipe.yaml").read_text()
    edited, count = re.subn(r"evaluation: template", f"evaluation: {source}", text)
    assert count == 1
    (copied / "recipe.yaml").write_text(edited)
    with pytest.raises(RecipeError, match=f"'{source}' prompts are read off the annotation"):
        evaluate_run(copied)
    assert (copied / "scores.csv").read_bytes() == before


def test_interactive_prompts(copied: Path) -> None:
    target = evaluate_run(copied, prompts="interactive")
    assert target.name == "simulated"  # nobody named anything
    assert {row.prompt_source for row in read_scores(target / "scores.csv")} == {"simulated"}
    assert "SIMULATED · test prompts: simulated" in (target / "report.html").read_text()
    lines = [json.loads(line) for line in (target / "prompts.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"simulated"}
    assert as_text(compare([target])).startswith("Simulated interaction")
    # A table of levels for the whole test set is a person's, and ranked.
    named = evaluate_run(copied, prompts="interactive", visible=str(target / "visible.csv"))
    assert named.name == "interactive"
    assert json.loads((named / "run.json").read_text())["named"] == str(target / "visible.csv")
    assert "Simulated" not in as_text(compare([named]))
    assert [row.value for row in read_scores(named / "scores.csv")] == pytest.approx(
        [row.value for row in read_scores(target / "scores.csv")], nan_ok=True
    )


def test_the_runs_own_prompts_replace_its_scores(copied: Path) -> None:
    before = (copied / "scores.csv").read_bytes()
    (copied / "scores.csv").unlink()
    assert evaluate_run(copied) == copied
    assert (copied / "scores.csv").read_bytes() == before
    assert not (copied / "evaluations").exists()


def test_predicted_prompts_say_what_the_first_pass_found(copied: Path) -> None:
    target = evaluate_run(copied, prompts="predicted")
    scores, record = read_scores(target / "scores.csv"), json.loads((target / "run.json").read_text())
    assert {row.prompt_source for row in scores} == {"predicted"}
    assert record["visible"]["cases"] == 3
    with (target / "visible.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    lines = [json.loads(line) for line in (target / "prompts.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"predicted"}
    # What was found, named by a person, gives the same text and so the same masks.
    again = evaluate_run(copied, prompts="interactive", visible=str(target / "visible.csv"))
    named = read_scores(again / "scores.csv")
    assert [row.value for row in named] == pytest.approx([row.value for row in scores], nan_ok=True)
    assert {row.prompt_source for row in named} == {"interactive"}


def test_sources_that_there_are_not(finished_run: Path) -> None:
    with pytest.raises(RunError, match="there is no source 'ground_thruth'. Did you mean 'ground_truth'"):
        evaluate_run(finished_run, prompts="ground_thruth")
    with pytest.raises(RunError, match="--visible goes with --prompts interactive; 'template' prompts ask nobody"):
        evaluate_run(finished_run, visible="T12:L5")
    assert not (finished_run / "evaluations").exists()


def test_other_data_are_refused(copied: Path) -> None:
    recipe = copied / "recipe.yaml"
    text = recipe.read_text()
    assert "  seed: 0" not in text
    recipe.write_text(text.replace("  cases: 8", "  cases: 9"))
    before = (copied / "scores.csv").read_bytes()
    with pytest.raises(RunError, match="trained on other data than those at hand: data, split changed"):
        evaluate_run(copied)
    assert (copied / "scores.csv").read_bytes() == before


def test_a_checkpoint_of_another_model_is_one_message(copied: Path, finished_run: Path) -> None:
    folder = RunFolder(copied)
    folder.save_checkpoint("best", {"model": {"x": torch.zeros(1)}})
    with pytest.raises(RunError, match="best.ckpt' does not fit the model of '.*recipe.yaml'.* --fresh") as caught:
        load_segmenter(build(load_recipe(folder.recipe)), folder)
    assert "\n" not in str(caught.value)


def test_the_headline_counts_what_the_means_leave_out() -> None:
    row = Score("1", "1", None, "SC", "dsc", "", "native", 0.5, 0.0, "ok", "ground_truth")
    rows = [
        row,
        replace(row, metric="hd95", unit="mm", value=2.0),
        replace(row, case="2", value=0.0, status="missed"),
        replace(row, case="2", metric="hd95", unit="mm", value=float("nan"), status="missed"),
    ]
    assert headline(rows, ["SC"], "ground_truth") == (
        "test: dsc 0.2500, hd95 2.00 mm; mean over 1 structure seen in training, 2 cases, 1 missed, 0 spurious; "
        "prompts: ground_truth ORACLE (prompts from the annotation)"
    )
    assert headline(rows, ["SC"], None).endswith("prompts: none")


def test_a_run_keeps_the_scores_of_groups_and_shows_them(finished_run: Path) -> None:
    folder = RunFolder(finished_run)
    rows = read_scores(folder.group_scores)
    assert {row.structure for row in rows} == {"vertebrae", "discs", "canal"}
    assert {row.case for row in rows} == {row.case for row in read_scores(folder.scores)}
    assert "right places, whatever the names" in folder.report.read_text()
