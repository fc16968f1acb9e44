"""Whether loss and gradient are numbers, which step was the first without one, and how numbers are computed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from textseg.errors import RunError
from textseg.runs.folder import RunFolder
from textseg.system import distributed

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
LOOK_EVERY = 100  # steps between two looks on a GPU, each of which makes it wait
LOWEST_SCALE = 2.0**-24  # of a loss in 16-mixed; float16 knows no smaller number
NEVER = torch.iinfo(torch.int64).max
LISTED, SHOWN = 16, 600  # slices of a batch, characters of a prompt that a message shows


class NumberCheck:
    """Notes on the device the first step whose loss, or whose gradient, is no finite number.

    Noting makes no device wait; looking does, so that a GPU is asked rarely, and a CPU, which never runs ahead, in
    every step: there the weights are still those from before it.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = torch.full((2,), NEVER, device=device)  # of the loss, of the gradient
        self.every = 1 if device.type == "cpu" else LOOK_EVERY

    def note(self, step: int, loss: Tensor, gradient_norm: Tensor | None) -> None:
        """Both are scalars; no norm where a scaled loss (16-mixed) makes one that overflows a matter of course."""
        numbers = torch.stack([loss, loss if gradient_norm is None else gradient_norm]).isfinite()
        self.steps = torch.where(numbers, self.steps, self.steps.clamp(max=step))

    def due(self, step: int) -> bool:
        """Whether this step, counted from 0, is one to look at."""
        return (step + 1) % self.every == 0

    def first(self) -> tuple[str, int] | None:
        """What was no number first, "loss" or "gradient", and in which step, counted from 0."""
        loss, gradient = map(min, zip(*distributed.gathered(self.steps.tolist()), strict=True))
        if min(loss, gradient) == NEVER:
            return None
        return ("loss", loss) if loss <= gradient else ("gradient", gradient)


def lost_numbers(what: str, folder: RunFolder, step: int, batch: Sequence[tuple[str, str | None]] = ()) -> RunError:
    """The error that ends a training; `step` is counted from 0, `batch` names its slices, each with its prompt."""
    lines = [f"  {name}" + (f": {_shortened(said)}" if said else "") for name, said in batch[:LISTED]]
    more = [f"  and {len(batch) - LISTED} more"] if len(batch) > LISTED else []
    kept = (
        f"'{folder.checkpoint('last')}' is kept as it was"
        if folder.checkpoint("last").exists()
        else "Nothing was saved yet"
    )
    of_batch = [", in a batch of", *lines, *more] if lines else ["."]
    return RunError(
        f"{what} in step {step + 1}{of_batch[0]}\n" + "".join(f"{line}\n" for line in of_batch[1:]) + f"{kept}. Lower "
        "training.learning_rate, set training.gradient_clip, or use precision 32-true, and start anew with --fresh; "
        "if only these slices do it, look at them with `textseg data check`."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch takes operators that repeat bit by bit, or raises RuntimeError for one that it has not.

    A message about such an operator is a RunError that says which.
    """
    if not wanted:
        yield
        return
    set_here = CUBLAS not in os.environ
    os.environ.setdefault(CUBLAS, ":4096:8")  # read when cuBLAS starts
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise RunError(
            f"training.deterministic: {str(error).split('. ')[0]}. Leave the key out, or use a model without it."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
        if set_here:
            del os.environ[CUBLAS]


def numeric_settings() -> dict[str, Any]:
    """How torch computes here, for run.json."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),  # "highest": no tf32
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        # Of a deterministic run alone: otherwise it says whether somebody has imported MONAI yet, which sets it.
        "cublas_workspace": os.environ.get(CUBLAS) if torch.are_deterministic_algorithms_enabled() else None,
    }
