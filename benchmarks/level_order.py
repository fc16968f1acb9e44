"""Effect on a run's test cases of naming the visible levels and of renaming levels (`textseg predict --ordered`).

Run: `python benchmarks/level_order.py RUN...`. Interactive is what a person would say who counts right: the first and
the last level that the annotation of the volume shows, as `--visible FIRST:LAST`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import numpy as np

import textseg
from textseg.levels.level_naming import compare_names
from textseg.metrics.definitions import score
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder


def main() -> None:
    """Print a table of each given run, over its test cases."""
    columns = (
        "run",
        "prompts",
        "ordered",
        "cases",
        "DSC",
        "level-shift rate",
        "order violations",
        "duplicates",
        "renamed or removed",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in sys.argv[1:]:
        folder = RunFolder.existing(Path(name))
        experiment, model = build(load_recipe(folder.recipe)), textseg.load(folder.path, device="cpu")
        row = experiment.atlas.sequence
        for mode in ("template", "interactive") if model.reads_text else ("none",):
            for ordered in (False, True):
                dsc, changes, shifted, violations, duplicates = [], 0, 0, 0, 0
                for prepared in experiment.cases["test"]:
                    reference = prepared.native_mask(experiment.dataset.label_map(prepared.case))[0]
                    shown = [index for index in np.unique(reference).tolist() if index]
                    levels = [level for level in row if experiment.atlas[level].index in shown]
                    visible = (levels[0], levels[-1]) if mode == "interactive" else None
                    prompts: Literal["template"] | None = "template" if mode == "template" else None
                    mask = model(prepared.case.image, visible=visible, prompts=prompts, ordered=ordered)
                    spacing = prepared.native_spacing_mm
                    scores = score(mask.array, reference, spacing=spacing, structures=shown, metrics=["dsc"])
                    dsc.append(np.mean([structure_scores.values["dsc"] for structure_scores in scores.values()]))
                    names = compare_names(mask.array, reference, experiment.atlas)
                    shifted += names.shift != 0
                    violations += names.order_violations
                    duplicates += names.duplicates
                    changes += len(mask.changes)
                cells = (
                    folder.path.parent.name,
                    mode,
                    "yes" if ordered else "no",
                    len(dsc),
                    f"{np.mean(dsc):.4f}",
                    f"{shifted / len(dsc):.2f}",
                    violations,
                    duplicates,
                    changes,
                )
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
