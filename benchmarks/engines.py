"""Time of one slice through the network of a run by torch, and by each engine that runs its ONNX bundle, in turn.

Run: `OMP_NUM_THREADS=1 python benchmarks/engines.py RUN BUNDLE`, with a run folder and what
`textseg export RUN --to onnx --output BUNDLE` made of it.

Processor time of the process, all its threads, which other work on the machine changes less than the clock.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from textseg import load
from textseg.inference.trained_model import TrainedModel
from textseg.models.cost import empty_text


def milliseconds(model: TrainedModel, image: torch.Tensor) -> float:
    """Return the milliseconds of one forward pass."""
    text = empty_text(model.task, image.device) if model.segmenter.uses_text else None
    start = time.process_time()
    with torch.no_grad():
        model.segmenter(image, text)
    return 1000 * (time.process_time() - start)


def main(run: str, bundle: str, repeats: int = 15) -> None:
    """Print a Markdown table of medians."""
    torch.set_num_threads(1)
    models = {"torch, eager": load(run, device="cpu")}
    models |= {engine: load(bundle, device="cpu", engine=engine) for engine in ("onnxruntime", "openvino")}
    task = models["torch, eager"].task
    image = torch.rand(1, task.image_channels, *task.image_size, generator=torch.Generator().manual_seed(0))
    for model in models.values():
        milliseconds(model, image)
    times = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            times[name].append(milliseconds(model, image))
    eager = statistics.median(times["torch, eager"])
    size = " x ".join(map(str, task.image_size))
    print(f"| {size}, median of {repeats} | ms a slice | as fast as eager |", "|---|---|---|", sep="\n")
    for name, milliseconds_each in times.items():
        median = statistics.median(milliseconds_each)
        print(f"| {name} | {median:.1f} | {eager / median:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:3])
