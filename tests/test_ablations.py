"""The ablations of the paper: each changes what its comment names and nothing else, and each of them trains."""

from __future__ import annotations

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
    "modules": 6,
    "injection": 1,
    "contrastive_weight": 2,
    "text_encoder": 2,
    "prompt_granularity": 4,
    "prompt_mode": 2,
}
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
    assert {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)} == {"name", *keys}


def test_every_table_of_the_paper_has_its_recipes() -> None:
    tables = [re.search(r"table `(\w+)`", comment(path)) for path in ABLATIONS]
    counted = [match[1] for match in tables if match]
    assert {table: counted.count(table) for table in counted} == TABLES
    assert len(counted) == len(ABLATIONS)


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
    experiment = build(load_recipe(path, [phantom, *LIGHT]))
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
