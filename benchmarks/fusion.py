"""Cost of HASF with text relative to a bare Swin UNETR of the same size, timed in pairs within one process.

    OMP_NUM_THREADS=1 python benchmarks/fusion.py [--sides 384,512] [--pairs 5] [--feature-size 48]

One slice at a time (batch 1). Processor time, not wall time, of one thread: what else the machine does changes it less.
Each pair has a ratio; the table shows the median with the lowest and the highest. Operations are multiply-accumulates
of convolutions, matrix products and attention in a forward pass, counted from shapes: they do not drift.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from textseg.contracts import Atlas, Structure, Task, TextFeatures
from textseg.models.cost import count_cost
from textseg.models.segmenter import Segmenter, TextGuidedNetwork
from textseg.registry.discovery import installed_registry

CLASSES, TOKENS, WIDTH = 20, 192, 384  # K, and T and D of MiniLM
FUSIONS = {"hasf": {}, "hasf, reduction: positions": {"reduction": "positions"}}


def main() -> None:
    options = read_options(__doc__)
    torch.set_num_threads(1)
    print("| side | model | operations | forward | forward and backward |\n|---|---|---|---|---|")
    for side in map(int, options.sides.split(",")):
        image = torch.rand(1, 1, side, side)
        task, builders = models(side, options.feature_size)
        operations = [count_cost(build, task)["multiply_accumulates"] for build in builders]
        bare, *guided = (build() for build in builders)
        for name, model, count in zip(FUSIONS, guided, operations[1:], strict=True):
            cells = [paired(step, bare, model, image, options.pairs) for step in (forward, both)]
            print(f"| {side} | {name} | {count / operations[0]:.3f} | {' | '.join(cells)} |", flush=True)


def read_options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="384,512")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--feature-size", type=int, default=48)
    return parser.parse_args()


def models(side: int, feature_size: int) -> tuple[Task, list[Callable[[], Segmenter]]]:
    structures = tuple(Structure(f"S{index}", "structure", index) for index in range(1, CLASSES))
    task = Task(1, (side, side), CLASSES, Atlas("benchmark", structures), text_size=WIDTH, text_length=TOKENS)
    registry, size = installed_registry(), {"feature_size": feature_size}

    def bare() -> Segmenter:
        return Segmenter(registry.build("network", "swin_unetr", task, settings=size))

    def guided(settings: dict[str, str]) -> Segmenter:
        encoder = registry.build("vision_encoder", "swin_unetr", task, settings=size)
        fusion = registry.build("fusion", "hasf", task, encoder.features, settings=settings)
        return Segmenter(TextGuidedNetwork(task, encoder, fusion))

    return task, [bare, *(partial(guided, settings) for settings in FUSIONS.values())]


def text() -> TextFeatures:
    mask = torch.arange(TOKENS)[None] < 156  # an average prompt
    tokens = torch.randn(1, TOKENS, WIDTH) * mask[..., None]
    return TextFeatures(tokens, mask, torch.randn(1, CLASSES - 1, WIDTH), torch.ones(1, CLASSES - 1, dtype=torch.bool))


def forward(model: nn.Module, image: Tensor, text_features: TextFeatures) -> None:
    with torch.no_grad():
        model(image, text_features)


def both(model: nn.Module, image: Tensor, text_features: TextFeatures) -> None:
    model.zero_grad()
    model(image, text_features).logits.square().mean().backward()


def paired(
    step: Callable[[nn.Module, Tensor, TextFeatures], None],
    bare: nn.Module,
    model: nn.Module,
    image: Tensor,
    pairs: int,
) -> str:
    text_features, ratios = text(), []
    for number in range(pairs + 1):  # the first warms up
        times = []
        for network in (bare, model) if number % 2 else (model, bare):
            start = time.process_time()
            step(network, image, text_features)
            times.append(time.process_time() - start)
        ours, theirs = reversed(times) if number % 2 else times
        ratios.append(ours / theirs)
    measured = ratios[1:]
    return f"{statistics.median(measured):.3f} ({min(measured):.3f} to {max(measured):.3f})"


if __name__ == "__main__":
    main()
