"""Parameters, operations, memory and time of one slice, forward and backward, for models of full-size recipes.

Run: `python benchmarks/full_size.py recipes/atmnet_spider.yaml recipes/swin_unetr_spider.yaml`

Each recipe is measured in a process of its own, so that peak memory is its own. Text features are random: their values
change no cost. T and D are those of a full lumbar prompt (217 tokens in MiniLM's vocabulary) and of Bio_ClinicalBERT.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

TEXT_LENGTH, TEXT_SIZE = 217, 768


def measure(path: Path) -> dict[str, object]:
    """Measure one recipe in this process."""
    import torch

    from textseg.contracts import Batch, Task, TextFeatures
    from textseg.models.cost import measure_cost
    from textseg.recipe.loading import load_recipe
    from textseg.registry.discovery import installed_registry
    from textseg.runs.experiment import Experiment
    from textseg_spine.atlas import lumbar_spider

    recipe, atlas = load_recipe(path), lumbar_spider()
    size = recipe.preparation.size
    task = Task(1, size, atlas.class_count, atlas, TEXT_SIZE, TEXT_LENGTH)
    experiment = Experiment(recipe, installed_registry(), None, None, {}, None, task)  # type: ignore[arg-type]
    torch.manual_seed(0)
    segmenter = experiment.segmenter()
    auxiliary = experiment.auxiliary_losses(segmenter)
    text = TextFeatures(
        torch.randn(1, TEXT_LENGTH, TEXT_SIZE),
        torch.ones(1, TEXT_LENGTH, dtype=torch.bool),
        torch.randn(1, atlas.class_count - 1, TEXT_SIZE),
        torch.ones(1, atlas.class_count - 1, dtype=torch.bool),
    )
    index = torch.zeros(1, dtype=torch.long)
    mask = torch.randint(0, atlas.class_count, (1, *size))
    batch = Batch(torch.randn(1, 1, *size), mask, text, ("a",), index, index, torch.ones(1, 3))

    def step() -> None:
        output = segmenter(batch.image, batch.text)
        terms = [*experiment.segmentation_loss()(output.logits, batch.mask).values()]
        terms += [spec.weight * auxiliary[spec.use](output, batch) for spec in recipe.auxiliary_losses]
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]

    step()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cost = measure_cost(segmenter, task, torch.device("cpu"), repeats=1)
    return {
        "recipe": recipe.name,
        "parameters [M]": round(cost["parameters"] / 1e6, 2),
        "forward [GMAC]": round(cost["multiply_accumulates"] / 1e9, 2),
        "peak memory [GiB]": round(peak, 2),
        "median step [s]": round(sorted(seconds)[1], 2),
    }


def main() -> None:
    """Measure each recipe in a separate process and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--here", action="store_true", help="measure the one recipe in this process, print JSON")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.recipes[0])))
        return
    rows = []
    for recipe in arguments.recipes:
        command = [sys.executable, __file__, str(recipe), "--here"]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print("| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|", sep="\n")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
