"""Checks for losses and gradients that are not finite, and the numerical settings of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from textseg.errors import RunError
from textseg.recipe.schema import SUMS
from textseg.runs.folder import RunFolder
from textseg.system import distributed

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
LOOK_EVERY = 100  # steps between two checks on a GPU, each of which makes it wait
LOWEST_SCALE = 2.0**-24  # of a loss in 16-mixed; float16 knows no smaller number
NEVER = torch.iinfo(torch.int64).max
ADVICE = (
    "Lower training.learning_rate, set training.gradient_clip, or use precision 32-true, and start anew with --fresh; "
    "if only these slices do it, look at them with `textseg data check`."
)
LISTED, SHOWN = 16, 600  # slices of a batch, characters of a prompt that a message shows


class NumberCheck:
    """The first step in which a term of the loss or the gradient is not finite, kept on the device.

    A GPU need not wait when a step is noted, but it must wait when the note is read, so it is checked rarely. A CPU is
    checked in every step, before the weights change.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: dict[tuple[str, ...], Tensor] = {}  # of each number, by names: a stage may have terms of its own
        self.device, self.every = device, 1 if device.type == "cpu" else LOOK_EVERY

    def note(self, step: int, terms: Mapping[str, Tensor], gradient_norm: Tensor | None) -> None:
        """Note the scalars of a step; no norm for a scaled loss, whose gradient may overflow."""
        numbers = {**terms, "loss": torch.stack([*terms.values()]).sum()}
        numbers |= {} if gradient_norm is None else {"gradient": gradient_norm}
        before = self.steps.get(tuple(numbers), torch.full((len(numbers),), NEVER, device=self.device))
        finite = torch.stack([*numbers.values()]).isfinite()
        self.steps[tuple(numbers)] = torch.where(finite, before, before.clamp(max=step))

    @property
    def terms(self) -> list[str]:
        """The names of the terms that were noted."""
        return [name for names in self.steps for name in names if name not in SUMS]

    def due(self, step: int) -> bool:
        """Return True if this step, counted from 0, is to be checked."""
        return (step + 1) % self.every == 0

    def first(self) -> tuple[int, list[str]] | None:
        """Return the first step, from 0, with a number that is not finite, and the names of the terms; or None.

        The name is "gradient" if all terms were finite, and "loss" if only their sum was not.
        """
        own = [pair for names, steps in self.steps.items() for pair in zip(steps.tolist(), names, strict=True)]
        noted = [(step, name) for share in distributed.gathered(own) for step, name in share if step < NEVER]
        if not noted:
            return None
        first = min(step for step, _ in noted)
        names = list(dict.fromkeys(name for step, name in noted if step == first))
        terms = [name for name in names if name not in SUMS]
        return first, terms or names[:1]


def lost_numbers(
    what: str, folder: RunFolder, step: int, batch: Sequence[tuple[str, str | None]] = (), advice: str = ADVICE
) -> RunError:
    """Return the error that ends a training; `step` is counted from 0, `batch` names slices with their prompts."""
    lines = [f"  {name}" + (f": {_shortened(prompt)}" if prompt else "") for name, prompt in batch[:LISTED]]
    more = [f"  and {len(batch) - LISTED} more"] if len(batch) > LISTED else []
    last = folder.checkpoint("last")
    kept = f"'{last}' is kept as it was" if last.exists() else "Nothing was saved yet"
    of_batch = "\n".join([", in a batch of", *lines, *more]) if lines else "."
    return RunError(f"{what} in step {step + 1}{of_batch}\n{kept}. {advice}")


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Let torch use only deterministic operators inside. Raises RunError for an operator that has no such form."""
    if not enabled:
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
    """Return the numerical settings of torch, for run.json."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),  # "highest": no tf32
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        # Only for a deterministic run: importing MONAI sets it, too.
        "cublas_workspace": os.environ.get(CUBLAS) if torch.are_deterministic_algorithms_enabled() else None,
    }
