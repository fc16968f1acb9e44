"""What naming levels anew (`textseg predict --ordered`) does to the test cases of a run: before and after."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import textseg
from textseg.build import build
from textseg.enumeration import enumerate_structures
from textseg.metrics import score
from textseg.recipe import load_recipe
from textseg.run_folder import RunFolder


def main() -> None:
    """Print a table of the mean over test cases, for each run that is named."""
    print("| run | ordered | DSC | order violations | duplicates | renamed or removed |\n|---|---|---|---|---|---|")
    for name in sys.argv[1:]:
        folder = RunFolder.existing(Path(name))
        experiment, model = build(load_recipe(folder.recipe)), textseg.load(folder.path)
        for ordered in (False, True):
            dsc, violations, duplicates, changes = [], 0, 0, 0
            for prepared in experiment.cases["test"]:
                mask = model(prepared.case.image_path, ordered=ordered)
                reference = prepared.native_mask(experiment.dataset.label_map(prepared.case))
                shown = [index for index in np.unique(reference).tolist() if index]
                found = score(
                    mask.array, reference, spacing=prepared.native_spacing_mm, structures=shown, metrics=["dsc"]
                )
                dsc.append(np.mean([one.values["dsc"] for one in found.values()]))
                names = enumerate_structures(mask.array, reference, experiment.atlas)
                violations += names.order_violations
                duplicates += names.duplicates
                changes += len(mask.changes)
            label = "yes" if ordered else "no"
            cells = (folder.path.parent.name, label, f"{np.mean(dsc):.4f}", violations, duplicates, changes)
            print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
