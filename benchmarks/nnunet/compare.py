"""nnU-Net v2 and the original `nnunetv2`, trained on the same real scans and scored by the same code.

    python -m venv nnunet && nnunet/bin/pip install nnunetv2==2.8.1     # in an environment of its own
    python benchmarks/nnunet/compare.py --original nnunet/bin/python --folder nnunet_comparison [--steps 2000]

The scans are those of `recipes/splits/spider_small.json`, with every fourth row and column (means of pixels) and every
third slice, and with labels merged to vertebra, disc and canal, which both learn in the time at hand. Both read one
folder in nnU-Net's layout. Plan, batch and patch are the original's; its widths are divided by four. Each is trained
with two seeds on one thread, and its last checkpoint predicts the test scans with mirroring. A stage whose result is in
the folder is not repeated, and an interrupted training goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import SimpleITK
from parts import NAMES

from textseg.contracts import Dataset
from textseg.evaluation.masks import evaluate_masks
from textseg.metrics.scores import summarise
from textseg.recipe.schema import EvaluationSettings, MetricSpec
from textseg.registry.discovery import installed_registry

HERE = Path(__file__).resolve().parent
SPLIT = HERE.parents[1] / "recipes/splits/spider_small.json"
DATASET = "Dataset501_SpineParts"
EPOCH = 50  # steps, as in original/trainer.py
LEARNED = 0.7  # below this mean DSC, nothing is compared
ROWS, SLICES = 4, 3  # pixels that become one, and slices of which one is kept
THREADS = {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}


def write_dataset(scans: Path, folder: Path) -> None:
    """Write the scans of a SPIDER folder as nnU-Net's raw data."""
    split = json.loads(SPLIT.read_text())
    for part, patients in (("Tr", split["train"] + split["validation"]), ("Ts", split["test"])):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        for patient in patients:
            (path,) = (scans / "images").glob(f"{patient}_*.mha")
            image = SimpleITK.ReadImage(path, SimpleITK.sitkFloat32)
            small = SimpleITK.BinShrink(image, [ROWS, ROWS, 1])[:, :, ::SLICES]
            values = SimpleITK.Cast(SimpleITK.ReadImage(scans / "masks" / path.name), SimpleITK.sitkInt16)
            mask = SimpleITK.Resample(values, small, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
            canal, disc = (
                mask == 100,
                mask > 200,
            )  # SPIDER: vertebrae from 1, those that are cut from 101, discs from 201
            parts = SimpleITK.Cast(mask > 0, SimpleITK.sitkUInt8) + disc + 2 * canal
            SimpleITK.WriteImage(small, folder / f"images{part}" / f"{patient}_0000.nii.gz")
            SimpleITK.WriteImage(parts, folder / f"labels{part}" / f"{patient}.nii.gz")
    labels = {"background": 0} | {name: index for index, name in enumerate(NAMES, start=1)}
    description = {"channel_names": {"0": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    description["numTraining"] = len(split["train"]) + len(split["validation"])
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))


class Original:
    """The original in its own environment, with folders of its own below `folder`."""

    def __init__(self, python: Path, folder: Path, steps: int) -> None:
        self.commands, self.folder, self.steps = python.absolute().parent, folder, steps

    def run(self, command: str, *arguments: str, seed: int = 0) -> None:
        """Run one of its commands on one thread; the results of each seed are a folder of their own."""
        variables = {
            "nnUNet_raw": self.folder / "raw",
            "nnUNet_preprocessed": self.folder / "preprocessed",
            "nnUNet_results": self.results(seed),
            "nnUNet_extTrainer": HERE / "original",  # it imports every file there
            "nnUNet_n_proc_DA": int(command != "nnUNetv2_train"),  # 0: on the thread of the training; plans need 1
            "STEPS": self.steps,
            "SEED": seed,
        }
        environment = os.environ | THREADS | {name: str(value) for name, value in variables.items()}
        subprocess.run([self.commands / command, *arguments], env=environment, check=True)

    def results(self, seed: int) -> Path:
        """Return the folder of what a seed trains."""
        return self.folder / f"original_seed{seed}"

    def plan(self) -> dict[str, Any]:
        """Prepare the data, and return its plan for two dimensions with a quarter of its widths."""
        prepared = self.folder / "preprocessed" / DATASET
        if not (prepared / "nnUNetPlansSmall.json").exists():
            self.run("nnUNetv2_plan_and_preprocess", "-d", "501", "-c", "2d", "-np", "1", "-npfp", "1")
            plans = json.loads((prepared / "nnUNetPlans.json").read_text())
            network = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
            network["features_per_stage"] = [width // 4 for width in network["features_per_stage"]]
            split = json.loads(SPLIT.read_text())
            folds = [{"train": split["train"], "val": split["validation"]}]
            (prepared / "splits_final.json").write_text(json.dumps(folds))
            (prepared / "nnUNetPlansSmall.json").write_text(json.dumps(plans | {"plans_name": "nnUNetPlansSmall"}))
        plans = json.loads((prepared / "nnUNetPlansSmall.json").read_text())
        plan: dict[str, Any] = plans["configurations"]["2d"]
        return plan

    def predict(self, seed: int) -> Path:
        """Train with a seed unless that is done, and return the folder of the predictions of the test scans."""
        choice = ("-p", "nnUNetPlansSmall", "-tr", "ShortTrainer")
        (trained,) = list(self.results(seed).glob("*/ShortTrainer*/fold_0")) or [None]
        if trained is None or not (trained / "checkpoint_final.pth").exists():
            go_on = ["--c"] if trained and (trained / "checkpoint_latest.pth").exists() else []
            self.run("nnUNetv2_train", "501", "2d", "0", *choice, *go_on, "-device", "cpu", seed=seed)
        masks = self.folder / f"original_masks_seed{seed}"
        if len(list(masks.glob("*.nii.gz"))) < len(json.loads(SPLIT.read_text())["test"]):
            inputs = str(self.folder / "raw" / DATASET / "imagesTs")
            options = ("-d", "501", "-c", "2d", "-f", "0", "-npp", "1", "-nps", "1", "-device", "cpu")
            self.run("nnUNetv2_predict", "-i", inputs, "-o", str(masks), *choice, *options, seed=seed)
        return masks


def train_ours(folder: Path, plan: Mapping[str, Any], steps: int, seed: int) -> Path:
    """Train with a seed, or go on, and return the folder of the predictions of the test scans."""
    values = {
        "dataset.folder": folder / "raw" / DATASET,
        "preparation.size": json.dumps(plan["patch_size"]),
        "training.batch_size": plan["batch_size"],
        "training.steps": steps,
    }
    overrides = [text for key, value in values.items() for text in ("--set", f"{key}={value}")]
    options = ["--code", HERE / "parts.py", "--seeds", str(seed), "--output", folder]
    command = [sys.executable, "-m", "textseg", "run", HERE / "recipe.yaml", *options, *overrides]
    subprocess.run(command, env=os.environ | THREADS, check=True)
    return folder / "nnunet_v2_parts" / f"seed{seed}" / "predictions"


def dice(masks: Path, folder: Path, name: str) -> list[float]:
    """Return the mean DSC of each part, and of all, over the test scans, by the code of `textseg score`."""
    dataset = build_dataset(folder / "raw" / DATASET)
    settings = EvaluationSettings(metrics=(MetricSpec(use="dsc"),))
    patients = json.loads(SPLIT.read_text())["test"]
    scored = evaluate_masks(masks, dataset, name, settings, folder / "scores" / name, patients=patients)
    summary = summarise(scored.scores, structures=NAMES)
    return [*(summary.per_structure[part, "dsc"].value for part in NAMES), summary.overall["dsc"].value]


def build_dataset(folder: Path) -> Dataset:
    """Return the reader of nnU-Net's folder."""
    settings = {"folder": str(folder), "atlas": "spine_parts"}
    dataset: Dataset = installed_registry().build("dataset", "nnunet_raw", settings=settings)
    return dataset


def show_plans(theirs: Mapping[str, Any], run: Path, steps: int) -> None:
    """Print what the two plans say, side by side."""
    ours = json.loads((run / "run.json").read_text())["plan"]
    network = theirs["architecture"]["arch_kwargs"]
    rows = {
        "patch": (theirs["patch_size"], ours["patch"]),
        "spacing [mm]": (theirs["spacing"], ours["spacing_mm"]),
        "planned batch": (theirs["batch_size"], ours["batch_size"]),
        "widths": (network["features_per_stage"], ours["features"]),
        "strides": (network["strides"], ours["strides"]),
        "kernels": (network["kernel_sizes"], ours["kernels"]),
        "steps": (steps, json.loads((run / "run.json").read_text())["scored_step"]),
    }
    print("\n| | original | textseg |\n|---|---|---|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(json.dumps(cell) for cell in cells)} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train both, and print the two plans and the scores side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True, help="Python of the environment with nnunetv2")
    parser.add_argument("--folder", type=Path, default=Path("nnunet_comparison"), help="for all that is made")
    parser.add_argument("--steps", type=int, default=2000, help=f"of each training, a multiple of {EPOCH}")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    folder = options.folder.absolute() / f"{options.steps}_steps"  # another length is another training
    if not (folder / "raw" / DATASET / "dataset.json").exists():
        write_dataset(Path(os.environ["TEXTSEG_DATA"]) / "spider", folder / "raw" / DATASET)
    original = Original(options.original, folder, options.steps)
    plan = original.plan()
    rows: dict[str, list[list[float]]] = {"original": [], "textseg": []}
    for seed in range(1, options.seeds + 1):
        masks = {"original": original.predict(seed), "textseg": train_ours(folder, plan, options.steps, seed)}
        for name, predictions in masks.items():
            rows[name].append(dice(predictions, folder, f"{name}_seed{seed}"))
    show_plans(plan, folder / "nnunet_v2_parts" / "seed1", options.steps)
    print(f"\n| DSC | seed | {' | '.join(NAMES)} | mean |\n|---|---|{'---|' * (len(NAMES) + 1)}")
    for name, scores in rows.items():
        for seed, values in enumerate(scores, start=1):
            print(f"| {name} | {seed} | {' | '.join(f'{value:.4f}' for value in values)} |")
    means = {name: mean(values[-1] for values in scores) for name, scores in rows.items()}
    print(f"\ndifference of the means, textseg - original: {means['textseg'] - means['original']:+.4f} (goal: 0.03)")
    if min(means.values()) < LEARNED:
        print(f"No comparison: a mean is below {LEARNED}. Take more --steps.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
