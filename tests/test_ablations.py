"""The ablations of the paper: each changes what its comment names and nothing else, and each of them trains."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from textseg.inference.slices import predict_case
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.loop import Training

ROOT = Path(__file__).parent.parent
ABLATIONS = sorted((ROOT / "recipes" / "ablations").glob("*.yaml"))
VARIANTS = [*ABLATIONS, *sorted((ROOT / "recipes").glob("atmnet_large_*.yaml"))]
# Two recipes that differ in name and data set alone are trained once: test_both_data_sets_share_an_ablation, and for
# the large ones test_recipes.py, show that they do.
DISTINCT = [
    path
    for path in VARIANTS
    if "spider" in path.stem or not path.with_stem(path.stem.replace("mrspineseg", "spider")).exists()
]
# The tables of the ATM-Net paper, and how many of their rows on both data sets are no other recipe.
TABLES = {
    "modules": 4,
    "injection": 1,
    "contrastive_weight": 2,
    "text_encoder": 2,
    "prompt_granularity": 4,
}
CONTROLS = 4  # recipes that no table of the paper has
WITHOUT_TEXT = ("modules: baseline (no HASF; no CCAE)", "prompt_granularity: without text")  # the paper's Swin UNETR
LIGHT = (
    "split={fractions: [0.6, 0.2, 0.2]}",
    "preparation.size=[48, 40]",
    "prompts.text_encoder={use: hashed_words}",
    "model.vision_encoder={use: residual_convolutions, channels: [4, 8], stem_stride: 2}",
    "model.fusion.heads=2",
    "training.epochs=1",
    "training.batch_size=2",
    "training.workers=0",
    "training.precision=32-true",
)

pytestmark = pytest.mark.usefixtures("stranger")


def stem(path: Path) -> str:
    return path.stem


def comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:first])


def declared_difference(path: Path) -> tuple[Path, set[str]]:
    """Return the base recipe of an ablation, and the keys that its comment lists as different."""
    match = re.search(r"Base: (\S+\.yaml)\. Differs in: (\S+(?:, \S+)*)\.$", comment(path))
    assert match, path
    return ROOT / match[1], set(match[2].split(", "))


def leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, dict) and prefix + key != "prompts.training":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("path", VARIANTS, ids=stem)
def test_it_differs_from_its_base_in_what_it_names(path: Path) -> None:
    base, keys = declared_difference(path)
    ours, theirs = (dict(leaves(load_recipe(file).model_dump(mode="json"))) for file in (path, base))
    different = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    if "prompts" in keys:  # the whole section
        different = {"prompts" if key.startswith("prompts.") else key for key in different}
    assert different == {"name", *keys}


def test_every_table_of_the_paper_has_its_recipes() -> None:
    tables = [re.search(r"table `(\w+)`", comment(path)) for path in ABLATIONS]
    counted = [match[1] for match in tables if match]
    assert {table: counted.count(table) for table in counted} == TABLES
    controls = [path for path in ABLATIONS if "a control of ours" in comment(path)]
    assert (len(controls), len(counted) + len(controls)) == (CONTROLS, len(ABLATIONS))


def test_the_rows_without_text_are_the_swin_unetr_of_the_paper() -> None:
    published = {}
    for name, key in (("ablations", "table"), ("average", "method")):
        with (ROOT / "plugins" / "textseg_atmnet" / "published" / f"{name}.csv").open(encoding="utf-8") as file:
            published[name] = list(csv.DictReader(file))
            assert key in published[name][0]
    rows = [row for row in published["ablations"] if f"{row['table']}: {row['variant']}" in WITHOUT_TEXT]
    assert len(rows) == 4
    for row in rows:
        means = {
            mean["metric"]: mean["value"]
            for mean in published["average"]
            if (mean["method"], mean["dataset"]) == ("swin_unetr", row["dataset"])
        }
        assert {name: float(row[name]) for name in means} == {name: float(value) for name, value in means.items()}


@pytest.mark.parametrize("path", ABLATIONS, ids=stem)
def test_what_reads_text_is_also_evaluated_with_that_of_the_annotation(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.model.fusion is not None
    reads = recipe.model.fusion.settings["stages"] > 0
    assert (recipe.prompts_read is not None) == reads
    if recipe.prompts_read is not None:
        assert (recipe.prompts_read.evaluation, recipe.prompts_read.also_evaluate) == ("template", ("ground_truth",))
        assert not recipe.prompts_read.template_position


@pytest.mark.parametrize("path", [path for path in ABLATIONS if "_spider_" in path.stem], ids=stem)
def test_both_data_sets_share_an_ablation(path: Path) -> None:
    twin = path.with_stem(path.stem.replace("spider", "mrspineseg"))
    ours, theirs = (load_recipe(file).model_dump(mode="json", exclude={"name", "dataset"}) for file in (path, twin))
    assert ours == theirs


@pytest.mark.parametrize("path", DISTINCT, ids=stem)
def test_it_trains_a_step_and_segments_a_case(path: Path, tmp_path: Path, tmp_path_factory: Any) -> None:
    """Use a small encoder, because ablations change only later parts."""
    folder = tmp_path_factory.getbasetemp() / "phantom_of_ablations"
    phantom = f"dataset={{use: lumbar_phantom, folder: {folder}, cases: 6, slices: 1, size: [96, 80], spacing_mm: 3.0}}"
    light = [change for change in LIGHT if load_recipe(path).prompts or not change.startswith("prompts.")]
    experiment = build(load_recipe(path, [phantom, *light]))
    training = Training(experiment, RunFolder(tmp_path), Fabric(accelerator="cpu", devices=1, precision="32-true"))
    training._start_epoch(0)
    terms = training.training_step(next(training._batches(0)))
    assert all(math.isfinite(term) for term in terms.values())
    assert ("ccae" in terms) == bool(experiment.recipe.auxiliary_losses)
    training.segmenter.eval()
    prepared = experiment.cases["test"][0]
    slices = experiment.slices(prepared, experiment.evaluation_source)
    prediction = predict_case(training.segmenter, prepared, slices, device=torch.device("cpu"), batch_size=1)
    assert prediction.native is not None
    assert prediction.native.shape == (1, 96, 80)
