"""Slices for training, with their random draws, and for prediction: plain torch, nothing of Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from textseg.contracts import Batch, Source, TextFeatures
from textseg.data.augmentation import Augmentation
from textseg.data.preparation import PreparedCase
from textseg.randomness import case_key, prompt_source, slice_key, slice_order
from textseg.system.devices import Movable
from textseg.text.slice_text import SliceText, TextRows

Draw = tuple[int, int]  # epoch, number of the slice
UNCHANGED = ("image", "case", "slice_index", "slice_count", "spacing_mm")  # fields of a packed batch in a batch
Item = tuple[Tensor, Tensor, int, Source | None]  # image, mask, number of the slice, prompt source


@dataclass(frozen=True)
class SliceStack:
    """The slices of one volume in order, as a network reads them: the image and, where it reads text, their prompts.

    It knows no patient and no annotation, so a scan without either can be segmented.
    """

    image: NDArray[Any]  # [S, H, W]
    text: SliceText | None = None  # from one prompt source, with a row for each slice

    def batches(self, size: int) -> Iterator[tuple[Tensor, TextFeatures | None]]:
        """Give images [B, 1, H, W] with their text, `size` slices at a time."""
        for start in range(0, len(self.image), size):
            image = np.array(self.image[start : start + size])  # a copy: the slice store is mapped read-only
            text = None
            if self.text is not None:
                (source,) = self.text.rows
                text = self.text.features(range(start, start + len(image)), [source] * len(image))
            yield torch.from_numpy(image).float()[:, None], text


@dataclass(frozen=True)
class PackedBatch(Movable):
    """A batch between a worker and the device, as small as it can be; `unpack` makes the batch that networks read."""

    image: Tensor  # [B, C, H, W] float
    mask: Tensor  # [B, H, W] uint8: an eighth of the size of int64
    text: TextRows | None  # rows of the text table: a thousandth of the size of the features
    keys: tuple[int, ...]  # of the random distortions: one for each slice, or one for a whole volume
    case: tuple[str, ...]
    slice_index: Tensor  # [B]
    slice_count: Tensor  # [B]
    spacing_mm: Tensor  # [B, 3]

    def distorted(self, augmentation: Augmentation, *, epoch: int) -> PackedBatch:
        """Return the batch with image and mask distorted, on the device that it lies on."""
        image, mask = augmentation.of_batch(self.image, self.mask, self.keys, epoch=epoch)
        return replace(self, image=image, mask=mask)


class Slices(Dataset[Item]):
    """The slices of several cases, requested by (epoch, number); every draw is a function of those and the seed.

    Args:
        cases: in order; their slices are numbered through.
        text: None where the model reads none; its rows are numbered as the slices are.
        sources: probability of each prompt source; empty where the model reads no text.
        augmentation: None leaves the slices as they are.
        seed: of the recipe.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        text: SliceText | None,
        sources: Mapping[Source, float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.positions = [(case, index) for case in cases for index in range(case.slice_count)]
        self.text, self.augmentation, self.seed = text, augmentation, seed
        total = sum(sources.values())
        # numpy asks for a sum of 1 more precisely than a recipe does
        self.sources = {source: chance / total for source, chance in sorted(sources.items())}

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, draw: Draw) -> Item:
        epoch, number = draw
        image, mask = self.plain(number)
        key = self.key(number)
        if self.augmentation is not None:
            image, mask = self.augmentation(image, mask, epoch=epoch, slice_id=key)
        return image, mask, number, self.source(epoch, key)

    def plain(self, number: int) -> tuple[Tensor, Tensor]:
        """Return image [1, H, W] and mask [H, W], uint8, of a slice without distortion."""
        prepared, index = self.positions[number]
        image = torch.from_numpy(prepared.image[index].copy()).float()[None]
        return image, torch.from_numpy(prepared.mask[index].copy())

    def key(self, number: int) -> int:
        """Return the number from which all draws of a slice are made."""
        prepared, index = self.positions[number]
        return slice_key(prepared.case.id, index)

    def named(self, draw: Draw) -> tuple[str, str | None]:
        """Name a slice and the prompt that it gets in that epoch; None without text."""
        epoch, number = draw
        prepared, index = self.positions[number]
        return f"slice {index} of case '{prepared.case.id}'", self.prompt(number, epoch, self.key(number))

    def prompt(self, number: int, epoch: int, key: int) -> str | None:
        """Return the holistic prompt of a slice from the source that is drawn with `key`; None without text."""
        source = self.source(epoch, key)
        return self.text.holistic(source, number) if self.text is not None and source is not None else None

    def source(self, epoch: int, key: int) -> Source | None:
        """Draw the prompt source of the slice, or the case, with this key; None without text."""
        if self.text is None:
            return None
        chance = prompt_source(self.seed, epoch, key)
        return list(self.sources)[int(chance.choice(len(self.sources), p=list(self.sources.values())))]

    def pack(self, items: Sequence[Item]) -> PackedBatch:
        """Collate items to a packed batch."""
        images, masks, numbers, sources = zip(*items, strict=True)
        positions = [self.positions[number] for number in numbers]
        return PackedBatch(
            image=torch.stack(images),
            mask=torch.stack(masks),
            text=self.text.chosen(numbers, sources) if self.text is not None else None,
            keys=tuple(map(self.key, numbers)),
            case=tuple(prepared.case.id for prepared, _ in positions),
            slice_index=torch.tensor([index for _, index in positions]),
            slice_count=torch.tensor([prepared.slice_count for prepared, _ in positions]),
            spacing_mm=torch.tensor([prepared.spacing_mm for prepared, _ in positions]),
        )

    def unpack(self, packed: PackedBatch) -> Batch:
        """Return the batch that networks and losses read, on the device that `packed` lies on."""
        text = self.text.gather(packed.text) if self.text is not None and packed.text is not None else None
        unchanged = {name: getattr(packed, name) for name in UNCHANGED}
        return Batch(mask=packed.mask.long(), text=text, **unchanged)


class Volumes(Dataset[PackedBatch]):
    """The slices of several cases as whole volumes, requested by (epoch, number of the case).

    A volume is distorted as one image, and the prompts of its slices have one source.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices, self.unpack = slices, slices.unpack
        starts = [number for number, (_, index) in enumerate(slices.positions) if index == 0]
        self.numbers = [range(start, start + slices.positions[start][0].slice_count) for start in starts]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, draw: Draw) -> PackedBatch:
        epoch, number = draw
        slices, numbers = self.slices, self.numbers[number]
        key = self._key(number)
        source = slices.source(epoch, key)
        packed = slices.pack([(*slices.plain(slice_number), slice_number, source) for slice_number in numbers])
        packed = replace(packed, keys=(key,))
        return packed if slices.augmentation is None else packed.distorted(slices.augmentation, epoch=epoch)

    def pack(self, items: Sequence[PackedBatch]) -> PackedBatch:
        """Return the only item: a volume is a batch already."""
        (packed,) = items
        return packed

    def named(self, draw: Draw) -> tuple[str, str | None]:
        """Name a case and the prompt that its first slice gets in that epoch; None without text."""
        epoch, number = draw
        first = self.numbers[number][0]
        case_id = self.slices.positions[first][0].case.id
        return f"case '{case_id}'", self.slices.prompt(first, epoch, self._key(number))

    def _key(self, number: int) -> int:
        prepared, _ = self.slices.positions[self.numbers[number][0]]
        return case_key(prepared.case.id)


@dataclass(eq=False)
class ShuffledBatches(Sampler[list[Draw]]):
    """The batches of one epoch, from batch `start` on; the order is a function of (seed, epoch).

    A last batch that is not full is left out, unless it is the only one. `share` (rank, number of processes) selects
    the part of each batch that one process gets.
    """

    slice_count: int
    batch_size: int
    _: KW_ONLY
    seed: int
    epoch: int
    start: int = 0
    share: tuple[int, int] = (0, 1)

    @staticmethod
    def per_epoch(slice_count: int, batch_size: int) -> int:
        """Return the number of batches in a whole epoch."""
        return max(1, slice_count // batch_size)

    def __len__(self) -> int:
        return self.per_epoch(self.slice_count, self.batch_size) - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        # Every process draws the same order and takes its own part of each batch.
        order = slice_order(self.seed, self.epoch).permutation(self.slice_count).tolist()
        for batch in range(self.start, self.start + len(self)):
            numbers = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            rank, processes = self.share
            part = numbers[rank * len(numbers) // processes : (rank + 1) * len(numbers) // processes]
            yield [(self.epoch, number) for number in part]


def training_loader(
    slices: Slices | Volumes, order: ShuffledBatches, *, workers: int, pin_memory: bool
) -> Iterable[PackedBatch]:
    """Load the batches of an epoch in their order, each for `slices.unpack`."""
    loader: DataLoader[Any] = DataLoader(
        slices, batch_sampler=order, num_workers=workers, collate_fn=slices.pack, pin_memory=pin_memory
    )
    return loader
