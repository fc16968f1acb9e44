"""Parameters, operations and time of ATM-Net with different vision encoders; one line of the recipe differs.

Run: `OMP_NUM_THREADS=1 python benchmarks/encoders.py recipes/atmnet_spider.yaml`

Weights are random and text features, too: their values change no cost. T and D are those of a full lumbar prompt (217
tokens in MiniLM's vocabulary) and of Bio_ClinicalBERT. Milliseconds are processor time, which on one thread is what a
machine with nothing else to do takes. A line whose package is not installed is left out, with a note.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from textseg.contracts import Task
from textseg.errors import RecipeError
from textseg.models.cost import empty_text, measure_cost
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import Experiment
from textseg_spine.atlas import lumbar_spider

TEXT_LENGTH, TEXT_SIZE = 217, 768
LINES = (
    "{use: swin_unetr, feature_size: 48}",
    "{use: residual_convolutions}",
    "{use: monai_unet}",
    "{use: huggingface_vision, model: swin}",
    "{use: huggingface_vision, model: convnext}",
    "{use: huggingface_vision, model: resnet}",
    "{use: huggingface_vision, model: dinov2, configuration: {hidden_size: 384, num_attention_heads: 6}}",
    "{use: timm, model: resnet34}",
    "{use: timm, model: convnextv2_tiny}",
)


def measure(path: Path, line: str, repeats: int) -> tuple[str, ...]:
    """Return the cells of one row."""
    recipe, atlas = load_recipe(path, [f"model.vision_encoder={line}"]), lumbar_spider()
    size = recipe.preparation.size
    task = Task(1, size, atlas.class_count, atlas, TEXT_SIZE, TEXT_LENGTH)
    torch.manual_seed(0)
    segmenter = Experiment(recipe, installed_registry(), None, None, {}, None, task).segmenter()  # type: ignore[arg-type]
    encoder = segmenter.network.vision_encoder
    cost = measure_cost(segmenter, task, torch.device("cpu"), repeats=1)
    image, text = torch.randn(1, 1, *size), empty_text(task, torch.device("cpu"))

    @torch.no_grad()
    def forward() -> None:
        segmenter(image, text)

    def step() -> None:
        segmenter(image, text).logits.square().mean().backward()

    return (
        f"`{line}`",
        ", ".join(map(str, encoder.features.strides)),
        f"{sum(parameter.numel() for parameter in encoder.parameters()) / 1e6:.2f}",
        f"{cost['parameters'] / 1e6:.2f}",
        f"{cost['multiply_accumulates'] / 1e9:.1f}",
        f"{milliseconds(forward, repeats):.0f}",
        f"{milliseconds(step, repeats):.0f}",
    )


def milliseconds(call: Callable[[], None], repeats: int) -> float:
    """Return the median processor time."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times[1:])  # the first one reserves memory


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lines", type=int, default=len(LINES), help="how many of the lines, from the first")
    arguments = parser.parse_args()
    header = ("vision_encoder", "strides", "encoder [M]", "model [M]", "forward [GMAC]", "forward [ms]", "step [ms]")
    print("| " + " | ".join(header) + " |", "|---" * len(header) + "|", sep="\n")
    for line in LINES[: arguments.lines]:
        try:
            print(
                "| " + " | ".join(measure(arguments.recipe, line, arguments.repeats)) + " |",
                flush=True,
            )
        except RecipeError as error:
            print(f"left out: {line}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
