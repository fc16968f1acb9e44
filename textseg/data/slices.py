"""Batches out of the slice store and the text table: plain torch, nothing of Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from textseg.contracts import Batch, Batching, Case, TextFeatures
from textseg.data.augmentation import Augmentation
from textseg.randomness import case_key, slice_key
from textseg.text.slice_text import SliceText, TextRows

Draw = tuple[int, int]  # epoch, number of the slice
Item = tuple[Tensor, Tensor, int, str | None]


class SliceStack(Protocol):
    """What slices are taken from: a case in the store, or a volume that was just read."""

    @property
    def case(self) -> Case: ...
    @property
    def slice_count(self) -> int: ...
    @property
    def spacing_mm(self) -> tuple[float, float, float]: ...
    @property
    def image(self) -> NDArray[Any]:
        """[S, H, W]."""
        ...

    @property
    def mask(self) -> NDArray[np.uint8]:
        """[S, H, W]."""
        ...


class Slices(Dataset[Item]):
    """The slices of some cases, asked for by (epoch, number); every draw is a function of those and the seed.

    Args:
        cases: in order; their slices are numbered through.
        text: None where the model reads none; its rows are numbered as the slices are.
        sources: probability of each prompt source; empty where the model reads no text.
        augmentation: None leaves the slices as they are.
        seed: of the recipe.
    """

    def __init__(
        self,
        cases: Sequence[SliceStack],
        text: SliceText | None,
        sources: Mapping[str, float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.places = [(case, index) for case in cases for index in range(case.slice_count)]
        self.text, self.augmentation, self.seed = text, augmentation, seed
        total = sum(sources.values())
        # numpy asks for a sum of 1 more precisely than a recipe does
        self.sources = {source: chance / total for source, chance in sorted(sources.items())}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, draw: Draw) -> Item:
        epoch, number = draw
        prepared, index = self.places[number]
        image, mask = self.plain(number)
        slice_id = slice_key(prepared.case.id, index)
        if self.augmentation is not None:
            image, mask = self.augmentation(image, mask, epoch=epoch, slice_id=slice_id)
        return image, mask, number, self.source(epoch, slice_id)

    def plain(self, number: int) -> tuple[Tensor, Tensor]:
        """Image [1, H, W] and mask [H, W] of a slice as they are; the mask has a byte each until it is in a batch."""
        prepared, index = self.places[number]
        image = torch.from_numpy(prepared.image[index].copy()).float()[None]
        return image, torch.from_numpy(prepared.mask[index].copy())

    def named(self, draw: Draw) -> tuple[str, str | None]:
        """Which slice that is, and the prompt that it is given; None without text."""
        epoch, number = draw
        prepared, index = self.places[number]
        source = self.source(epoch, slice_key(prepared.case.id, index))
        said = self.text.holistic(source, number) if self.text is not None and source is not None else None
        return f"slice {index} of case '{prepared.case.id}'", said

    def source(self, epoch: int, key: int) -> str | None:
        """Who writes the prompts of the slice, or the case, of this key; None without text."""
        if self.text is None:
            return None
        chance = np.random.default_rng((self.seed, epoch, key, 1))
        return list(self.sources)[int(chance.choice(len(self.sources), p=list(self.sources.values())))]

    def collate(self, items: Sequence[Item]) -> Batch:
        """Items to a batch with its text features."""
        return self.complete(self.collate_rows(items))

    def complete(self, batch: Batch) -> Batch:
        """A batch of `collate_rows` with its text features, gathered on the device that it lies on."""
        rows = cast("Any", batch.text)
        if self.text is None or not isinstance(rows, TextRows):
            return batch
        return replace(batch, text=self.text.gather(rows))

    def collate_rows(self, items: Sequence[Item]) -> Batch:
        """Items to a batch as it goes from process to process and to the device.

        Masks are bytes, eight times fewer, and text is rows of the table, a thousand times fewer: training widens both
        on the device.
        """
        images, masks, numbers, sources = zip(*items, strict=True)
        places = [self.places[number] for number in numbers]
        return Batch(
            image=torch.stack(images),
            mask=torch.stack(masks),
            text=cast("TextFeatures", self.text.chosen(numbers, sources)) if self.text is not None else None,
            case=tuple(prepared.case.id for prepared, _ in places),
            slice_index=torch.tensor([index for _, index in places]),
            slice_count=torch.tensor([prepared.slice_count for prepared, _ in places]),
            spacing_mm=torch.tensor([prepared.spacing_mm for prepared, _ in places]),
        )


class Volumes(Dataset[Batch]):
    """The same slices by whole cases, asked for by (epoch, number of the case): all of one in order, drawn for as one.

    A case is distorted as a whole, and the prompts of its slices have one source.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        starts = [number for number, (_, index) in enumerate(slices.places) if index == 0]
        self.numbers = [range(start, start + slices.places[start][0].slice_count) for start in starts]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, draw: Draw) -> Batch:
        epoch, number = draw
        slices, numbers = self.slices, self.numbers[number]
        prepared, _ = slices.places[numbers[0]]
        source = slices.source(epoch, case_key(prepared.case.id))
        batch = slices.collate([(*slices.plain(one), one, source) for one in numbers])
        return slices.augmentation.of_volume(batch, epoch=epoch) if slices.augmentation is not None else batch

    def collate_rows(self, items: Sequence[Batch]) -> Batch:
        """A case is a batch already; there is one to a step."""
        (batch,) = items
        return batch

    def named(self, draw: Draw) -> tuple[str, str | None]:
        """Which case that is, and the prompt of its first slice; None without text."""
        epoch, number = draw
        first = self.numbers[number][0]
        prepared, _ = self.slices.places[first]
        source = self.slices.source(epoch, case_key(prepared.case.id))
        text = self.slices.text
        said = text.holistic(source, first) if text is not None and source is not None else None
        return f"case '{prepared.case.id}'", said

    def complete(self, batch: Batch) -> Batch:
        """As of slices."""
        return self.slices.complete(batch)


class ShuffledBatches(Sampler[list[Draw]]):
    """The batches of one epoch, from batch `start` on; the order is a function of (seed, epoch).

    A last batch that is not full is left out, unless it is the only one. Of each batch, `share` (which, of how many)
    is the part of one process.
    """

    def __init__(
        self,
        slice_count: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.share = share
        self.batch_size, self.seed, self.epoch, self.start, self.slice_count = (
            batch_size,
            seed,
            epoch,
            start,
            slice_count,
        )

    @staticmethod
    def per_epoch(slice_count: int, batch_size: int) -> int:
        """Batches in a whole epoch."""
        return max(1, slice_count // batch_size)

    def __len__(self) -> int:
        return self.per_epoch(self.slice_count, self.batch_size) - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.slice_count).tolist()
        for batch in range(self.start, self.start + len(self)):
            numbers = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            which, shares = self.share
            part = numbers[which * len(numbers) // shares : (which + 1) * len(numbers) // shares]
            yield [(self.epoch, number) for number in part]


def training_loader(
    slices: Slices | Volumes,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int,
    workers: int,
    pin_memory: bool,
    share: tuple[int, int] = (0, 1),
) -> DataLoader[Any]:
    """The rest of an epoch, from batch `start` on, each batch to be made whole by `slices.complete`.

    `batch_size` is that of slices, and 1 of volumes.
    """
    order = ShuffledBatches(len(slices), batch_size, seed=seed, epoch=epoch, start=start, share=share)
    return DataLoader(
        slices, batch_sampler=order, num_workers=workers, collate_fn=slices.collate_rows, pin_memory=pin_memory
    )


def batches_in_order(slices: Slices, batch_size: int, batching: Batching = "slice") -> Iterator[Batch]:
    """Every slice once, in order, as validation and prediction need them; with `volume`, a batch is a case."""
    starts = range(0, len(slices), batch_size)
    batches = [range(start, min(start + batch_size, len(slices))) for start in starts]
    for numbers in Volumes(slices).numbers if batching == "volume" else batches:
        yield slices.collate([slices[0, number] for number in numbers])
