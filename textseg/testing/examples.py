"""Examples to check components on: a small region, random slices of it, their text, and a pyramid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from textseg.contracts import Atlas, Batch, Features, SegmenterOutput, Structure, Task, TextFeatures

TEXT_SIZE = 7  # D
TEXT_LENGTH = 5  # T

REGION = Atlas(
    name="example",
    structures=(
        Structure("L2", "lumbar vertebra", 1),
        Structure("L1", "lumbar vertebra", 2),
        Structure("L1/L2", "intervertebral disc", 3),
        Structure("SC", "spinal canal", 4),
    ),
    sequence=("L1", "L1/L2", "L2"),
    groups={"vertebrae": ("L1", "L2"), "discs": ("L1/L2",), "canal": ("SC",)},
    adjacent=(("L1", "L1/L2"), ("L1/L2", "L2")),
)
ONE_STRUCTURE = Atlas("one", (Structure("SC", "spinal canal", 1),), groups={"canal": ("SC",)})


def task(image_size: tuple[int, int], atlas: Atlas = REGION) -> Task:
    """Return the task of a recipe with text, for three volumes of nine slices."""
    fingerprint = {
        "native_sizes": [(9, *image_size)] * 3,
        "native_spacings_mm": [(4.0, 1.0, 1.0)] * 3,
        "spacings_mm": [(4.0, 1.0, 1.0)] * 3,
        "intensities": [(0.0, 10.0, 100.0, 200.0, 255.0)] * 3,
    }
    return Task(1, image_size, atlas.class_count, atlas, TEXT_SIZE, TEXT_LENGTH, fingerprint)


@dataclass(frozen=True)
class Example:
    """Random slices with masks and text; equal for an equal seed.

    Image and pyramid are padded to the multiple of the model, the mask is not, as in training.
    """

    image: Tensor  # [B, C, H, W]
    mask: Tensor  # [B, H, W] of the prepared slice
    text: TextFeatures
    logits: Tensor  # [B, K, H, W]
    pyramid: tuple[Tensor, ...]  # [B, C_l, H_l, W_l]
    spacing_mm: tuple[float, float, float] = (4.0, 1.0, 1.0)
    first_slice: int = 0  # of a volume of nine

    @classmethod
    def of(
        cls,
        task: Task,
        batch: int = 2,
        *,
        features: Features | None = None,
        size_multiple: int = 1,
        counts: tuple[int, ...] = (),
        seed: int = 0,
    ) -> Example:
        """Return slices of a task; `counts` are the tokens of each text (default: T - 1, T - 2, ...)."""
        random = torch.Generator().manual_seed(seed)
        structures = task.class_count - 1
        size, length = task.text_size or TEXT_SIZE, task.text_length or TEXT_LENGTH
        counts = counts or tuple(max(1, length - 1 - row) for row in range(batch))
        shown = torch.arange(length)[None] < torch.tensor(counts)[:, None]
        text = TextFeatures(
            torch.randn(batch, length, size, generator=random) * shown[..., None],
            shown,
            torch.randn(batch, structures, size, generator=random),
            torch.ones(batch, structures, dtype=torch.bool),
        )
        sides = padded(task.image_size, size_multiple)
        image = torch.randn(batch, task.image_channels, *sides, generator=random)
        mask = torch.randint(0, task.class_count, (batch, *task.image_size), generator=random)
        logits = torch.randn(batch, task.class_count, *task.image_size, generator=random).requires_grad_()
        levels = zip(features.channels, features.strides, strict=True) if features else ()
        pyramid = tuple(
            torch.randn(batch, channels, sides[0] // stride, sides[1] // stride, generator=random).requires_grad_()
            for channels, stride in levels
        )
        return cls(image, mask, text, logits, pyramid)

    def first(self) -> Example:
        """Return the first slice alone."""
        text = self.text
        classwise = None if text.classwise is None else text.classwise[:1]
        shown = TextFeatures(text.tokens[:1], text.mask[:1], classwise, text.present[:1])
        pyramid = tuple(feature[:1] for feature in self.pyramid)
        return Example(self.image[:1], self.mask[:1], shown, self.logits[:1], pyramid)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the logits and the pyramid, as far as there are any."""
        return [tensor.grad for tensor in (self.logits, *self.pyramid) if tensor.grad is not None]

    @property
    def batch(self) -> Batch:
        count = len(self.image)
        slice_index = torch.arange(self.first_slice, self.first_slice + count)
        slice_count = torch.full_like(slice_index, 9)
        spacing_mm = torch.tensor([self.spacing_mm]).repeat(count, 1)
        return Batch(self.image, self.mask, self.text, ("case",) * count, slice_index, slice_count, spacing_mm)

    @property
    def output(self) -> SegmenterOutput:
        """Return an output that a text-guided network might give for this example."""
        return SegmenterOutput(self.logits, (), self.pyramid, self.pyramid, self.text)


def padded(image_size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return H and W as the core pads them."""
    height, width = (-(-side // multiple) * multiple for side in image_size)
    return height, width
