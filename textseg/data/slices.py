"""Slices for training, with their random draws, and for prediction: plain torch, nothing of Lightning."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from multiprocessing import queues
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from textseg.contracts import Batch, BatchGeometry, Source, TextFeatures
from textseg.data.augmentation import Augmentation, Place
from textseg.data.field_of_view import View, find_body, view_of_window
from textseg.data.preparation import PreparedCase
from textseg.errors import RecipeError, RunError, TextsegError
from textseg.randomness import case_key, prompt_source, slice_key, slice_order, statement
from textseg.system.children import end_with
from textseg.system.devices import Movable
from textseg.text.drawn_text import DrawnText, Draws
from textseg.text.slice_text import AVAILABLE, SliceText

Draw = tuple[int, int]  # epoch, number of the slice
SHARED_MEMORY = Path("/dev/shm")  # of Linux
PREFETCHED = 2  # batches of each worker
IMAGE_BYTES, MASK_BYTES = 4, 1  # of a pixel
_FEWER_WORKERS = "Lower training.workers, down to 0, or give a container more: docker run --shm-size=1g"
UNCHANGED = ("image", "case", "slice_index", "slice_count", "spacing_mm")  # fields of a packed batch in a batch


@dataclass(frozen=True)
class DrawnSlice:
    """A slice of a batch, with the random draws that were made for it."""

    image: Tensor  # [N, C, H, W], the slice in the middle of its neighbours; N is 1 for models that read none
    mask: Tensor  # [N, H, W] uint8
    number: int
    epoch: int
    key: int  # of the draws
    view: View | None
    draws: Draws | None  # of its text; of one slice


@dataclass(frozen=True)
class SliceStack:
    """The slices of one volume in order, as a network reads them: the image and, where it reads text, their prompts.

    It knows no patient and no annotation, so a scan without either can be segmented.
    """

    image: NDArray[Any]  # [S, C, H, W]
    text: SliceText | None = None  # from one prompt source, with a row for each slice
    spacing_mm: tuple[float, float, float] | None = None  # needed by models that read it

    def batches(self, size: int, context: int = 1) -> Iterator[tuple[Tensor, TextFeatures | None]]:
        """Give images [B, N * C, H, W] with their text, `size` slices at a time; N is `context`."""
        count = len(self.image)
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            if context == 1:
                image = np.array(self.image[start : start + size])  # a copy: the slice store is mapped read-only
            else:
                image = np.stack([self.image[neighbours(number, count, context)] for number in numbers])
            text = None
            if self.text is not None:
                (source,) = self.text.rows
                text = self.text.features(numbers, [source] * len(image))
            yield torch.from_numpy(image).flatten(1, -3).float(), text

    def geometry(self, first: int, batch_size: int, device: torch.device) -> BatchGeometry:
        """Return the geometry of some slices from `first` on. Raises ValueError for a stack without a spacing."""
        if self.spacing_mm is None:
            raise ValueError("This stack of slices has no spacing.")
        index = torch.arange(first, first + batch_size, device=device)
        spacing_mm = torch.tensor([self.spacing_mm] * batch_size, dtype=torch.float32, device=device)
        return BatchGeometry(spacing_mm, index, torch.full_like(index, len(self.image)))


def neighbours(index: int, count: int, context: int) -> list[int]:
    """Return `context` slices around one; beyond the ends of a volume of `count` slices, the last one is repeated."""
    half = context // 2
    return [min(max(number, 0), count - 1) for number in range(index - half, index + half + 1)]


@dataclass(frozen=True)
class PackedBatch(Movable):
    """A batch between a worker and the device, as small as it can be; `unpack` makes the batch that networks read."""

    image: Tensor  # [B * N, C, H, W] float, each slice in the middle of its neighbours
    mask: Tensor  # [B * N, H, W] uint8: an eighth of the size of int64
    draws: Draws | None  # of the texts; None without text
    keys: tuple[int, ...]  # of the random distortions: one for each slice, or one for a whole volume
    views: tuple[View | None, ...]  # one for each key
    epoch: int
    case: tuple[str, ...]
    slice_index: Tensor  # [B]
    slice_count: Tensor  # [B]
    spacing_mm: Tensor  # [B, 3]

    def distorted(self, augmentation: Augmentation | None, on: Place) -> PackedBatch:
        """Return the batch with the distortions that belong to workers or device, computed where the batch lies."""
        if augmentation is None:
            return self
        image, mask = augmentation.of_batch(self.image, self.mask, self.keys, epoch=self.epoch, views=self.views, on=on)
        return replace(self, image=image, mask=mask)


class Slices(Dataset[DrawnSlice]):
    """The slices of several cases, requested by (epoch, number); every draw is a function of those and the seed.

    Args:
        cases: in order; their slices are numbered through.
        text: None where the model reads none; its slices are numbered as these are.
        sources: probability of each prompt source; empty where the model reads no text.
        augmentation: None leaves the slices as they are.
        seed: of the recipe.
        crops: True if the preparation crops volumes to the body.
        context: the number N of slices that the model reads for each one.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        text: DrawnText | None,
        sources: Mapping[Source, float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        *,
        crops: bool = True,
        context: int = 1,
    ) -> None:
        self.positions = [(case, index) for case in cases for index in range(case.slice_count)]
        self.text, self.augmentation, self.seed, self.crops = text, augmentation, seed, crops
        self.context = context
        self.bodies: dict[str, NDArray[np.bool_]] = {}  # by case id, of the cases whose windows this process has drawn
        total = sum(sources.values())
        # numpy asks for a sum of 1 more precisely than a recipe does
        self.sources = {source: chance / total for source, chance in sorted(sources.items())}

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, draw: Draw) -> DrawnSlice:
        epoch, number = draw
        drawn = self.drawn(number, epoch, self.key(number))
        if self.augmentation is None:
            return drawn
        # Neighbours are changed as one image, with the draws of the slice in their middle. The rest of the changes is
        # applied on the device, in `unpack`.
        image, mask = self.augmentation.of_batch(drawn.image, drawn.mask, [drawn.key], epoch=epoch, views=[drawn.view])
        return replace(drawn, image=image, mask=mask)

    def plain(self, number: int) -> tuple[Tensor, Tensor]:
        """Return image [N, C, H, W] and mask [N, H, W], uint8, of a slice and its neighbours without distortion."""
        prepared, index = self.positions[number]
        shown = neighbours(index, prepared.slice_count, self.context)
        return torch.from_numpy(prepared.image[shown]).float(), torch.from_numpy(prepared.mask[shown])

    def drawn(self, number: int, epoch: int, key: int) -> DrawnSlice:
        """Return a slice without distortion, with the draws that `key` gives."""
        image, mask = self.plain(number)
        view = self.view(number, epoch, key)
        middle = mask[self.context // 2]
        return DrawnSlice(image, mask, number, epoch, key, view, self._draws(number, epoch, key, middle, view))

    def key(self, number: int) -> int:
        """Return the number from which all draws of a slice are made."""
        prepared, index = self.positions[number]
        return slice_key(prepared.case.id, index)

    def view(self, number: int, epoch: int, key: int) -> View | None:
        """Draw the view of the slice, or the case, with this key; None for the whole picture.

        A sentence of a report on structures holds for the whole picture only, and nobody can rewrite it for a window.
        """
        whole = self.text is not None and number in self.text.statements.whole_only
        if whole and self._source(epoch, key) == "report":
            return None
        prepared, _ = self.positions[number]
        if self.augmentation is None:
            return None
        window = self.augmentation.window(prepared.slice_geometry.native_size, epoch=epoch, key=key)
        if window is None:
            return None
        if self.crops and prepared.case.id not in self.bodies:
            self.bodies[prepared.case.id] = find_body(prepared.image)
        return view_of_window(prepared, window, self.bodies[prepared.case.id] if self.crops else None)

    def _draws(self, number: int, epoch: int, key: int, mask: Tensor, view: View | None) -> Draws | None:
        """Draw the source of the text and all that it depends on."""
        if self.text is None:
            return None
        source = self._source(epoch, key)
        size, enlargement = (mask.shape[-2], mask.shape[-1]), view.area_scale if view is not None else 1.0
        if self.augmentation is not None:
            enlargement = self.augmentation.enlargement(size, epoch=epoch, key=key) * enlargement
        classes = self.text.statements.atlas.class_count
        before = torch.bincount(mask.flatten(), minlength=classes)[:classes] * enlargement  # without ignored pixels
        return Draws(
            torch.tensor([number]),
            torch.tensor([AVAILABLE.index(source)]),
            before[None].float(),
            *self._statement(epoch, key),
            torch.tensor([self.text.statements.errors[number]]),
        )

    def _source(self, epoch: int, key: int) -> Source:
        """Draw the prompt source."""
        chance = prompt_source(self.seed, epoch, key)
        return list(self.sources)[int(chance.choice(len(self.sources), p=list(self.sources.values())))]

    def _statement(self, epoch: int, key: int) -> tuple[Tensor, Tensor]:
        """Draw if a list ends at a vertebra, and the renumbering: see `Draws`."""
        assert self.text is not None
        settings = self.text.statements.renumbering
        ends, renumbered, move = statement(self.seed, epoch, key).random(3)
        applies = settings is not None and renumbered < settings.probability
        return torch.tensor([bool(ends < 0.5)]), torch.tensor([float(move) if applies else -1.0])

    def pack(self, slices: Sequence[DrawnSlice]) -> PackedBatch:
        """Collate slices to a packed batch."""
        positions = [self.positions[drawn.number] for drawn in slices]
        draws = [drawn.draws for drawn in slices if drawn.draws is not None]
        scales = [(1.0, *(drawn.view.scale if drawn.view is not None else (1.0, 1.0))) for drawn in slices]
        return PackedBatch(
            image=torch.cat([drawn.image for drawn in slices]),
            mask=torch.cat([drawn.mask for drawn in slices]),
            draws=Draws(*(torch.cat([getattr(d, f.name) for d in draws]) for f in fields(Draws))) if draws else None,
            keys=tuple(drawn.key for drawn in slices),
            views=tuple(drawn.view for drawn in slices),
            epoch=slices[0].epoch,
            case=tuple(prepared.case.id for prepared, _ in positions),
            slice_index=torch.tensor([index for _, index in positions]),
            slice_count=torch.tensor([prepared.slice_count for prepared, _ in positions]),
            spacing_mm=torch.tensor([prepared.spacing_mm for prepared, _ in positions]) * torch.tensor(scales),
        )

    def unpack(self, packed: PackedBatch, *, volume: bool = False) -> Batch:
        """Return the batch that networks and losses read, on the device that `packed` lies on.

        With `volume` the slices are those of one case, and one statement holds for all of them.
        """
        packed = self._joined(packed.distorted(self.augmentation, "device"))
        mask, text, renumbered = packed.mask, None, None
        if self.text is not None and packed.draws is not None:
            mask, rows, renumbered = self.text(mask, packed.draws, volume=volume)
            text = self.text.features(rows)
        unchanged = {name: getattr(packed, name) for name in UNCHANGED}
        return Batch(mask=mask.long(), text=text, renumbered=renumbered, **unchanged)

    def _joined(self, packed: PackedBatch) -> PackedBatch:
        """Return a batch with the channels of neighbours as those of one image [B, N * C, H, W], and its mask."""
        if self.context == 1:
            return packed
        image, mask = (part.reshape(-1, self.context, *part.shape[1:]) for part in (packed.image, packed.mask))
        return replace(packed, image=image.flatten(1, 2), mask=mask[:, self.context // 2])

    def named(self, draw: Draw) -> tuple[str, str | None]:
        """Name a slice and the prompt that it gets in that epoch; None without text."""
        prepared, index = self.positions[draw[1]]
        return f"slice {index} of case '{prepared.case.id}'", self.prompt(self.pack([self[draw]]))

    def prompt(self, packed: PackedBatch, *, volume: bool = False) -> str | None:
        """Return the holistic prompt of the first slice of a batch on the host; None without text."""
        if self.text is None or packed.draws is None:
            return None
        packed = self._joined(packed.distorted(self.augmentation, "device"))
        assert packed.draws is not None
        numbers, _ = self.text.numbers(packed.mask, packed.draws, volume=volume)
        return self.text.holistic(int(numbers[0]))


class Volumes(Dataset[PackedBatch]):
    """The slices of several cases as whole volumes, requested by (epoch, number of the case).

    A volume is distorted as one image with one window, and one statement holds for all of its slices.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices, self.positions = slices, slices.positions
        starts = [number for number, (_, index) in enumerate(slices.positions) if index == 0]
        self.numbers = [range(start, start + slices.positions[start][0].slice_count) for start in starts]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, draw: Draw) -> PackedBatch:
        epoch, number = draw
        slices, numbers = self.slices, self.numbers[number]
        key = self._key(number)
        packed = slices.pack([slices.drawn(slice_number, epoch, key) for slice_number in numbers])
        packed = replace(packed, keys=(key,), views=packed.views[:1])
        return packed.distorted(slices.augmentation, "workers")

    def pack(self, items: Sequence[PackedBatch]) -> PackedBatch:
        """Return the only item: a volume is a batch already."""
        (packed,) = items
        return packed

    def unpack(self, packed: PackedBatch) -> Batch:
        """Return the batch that networks and losses read, on the device that `packed` lies on."""
        return self.slices.unpack(packed, volume=True)

    def named(self, draw: Draw) -> tuple[str, str | None]:
        """Name a case and the prompt that its first slice gets in that epoch; None without text."""
        case_id = self.slices.positions[self.numbers[draw[1]][0]][0].case.id
        return f"case '{case_id}'", self.slices.prompt(self[draw], volume=True)

    def _key(self, number: int) -> int:
        prepared, _ = self.slices.positions[self.numbers[number][0]]
        return case_key(prepared.case.id)


@dataclass(frozen=True)
class Foreground:
    """The slices that show structures, for batches of which a share shows one: nnU-Net's oversampling of foreground."""

    share: float  # of each batch
    shown: tuple[tuple[tuple[int, ...], ...], ...]  # for each case and structure that it shows, the numbers of slices

    @classmethod
    def of(cls, cases: Sequence[PreparedCase], share: float) -> Foreground:
        """Return the slices of cases whose slices are numbered in order. Raises RecipeError if none shows anything."""
        shown, first = [], 0
        for case in cases:
            classes = sorted({index for present in case.present for index in present})
            groups = [
                tuple(first + i for i, present in enumerate(case.present) if index in present) for index in classes
            ]
            shown += [tuple(groups)] * bool(groups)
            first += case.slice_count
        if not shown:
            raise RecipeError("training.foreground_share: no training slice shows a structure.")
        return cls(share, tuple(shown))

    def count(self, batch_size: int) -> int:
        """Return the number of slices of a batch that must show a structure."""
        return batch_size - round(batch_size * (1 - self.share))

    def draw(self, generator: np.random.Generator) -> int:
        """Draw a case, a structure that it shows, and the number of a slice that shows it."""
        groups = self.shown[generator.integers(len(self.shown))]
        numbers = groups[generator.integers(len(groups))]
        return numbers[generator.integers(len(numbers))]


@dataclass(eq=False)
class ShuffledBatches(Sampler[list[Draw]]):
    """The batches of one epoch, from batch `start` on; the order is a function of (seed, epoch).

    A last batch that is not full is left out, unless it is the only one. `share` (rank, number of processes) selects
    the part of each batch that one process gets. With `foreground`, the last slices of each batch are drawn anew.
    """

    slice_count: int
    batch_size: int
    _: KW_ONLY
    seed: int
    epoch: int
    start: int = 0
    share: tuple[int, int] = (0, 1)
    foreground: Foreground | None = None

    @staticmethod
    def per_epoch(slice_count: int, batch_size: int) -> int:
        """Return the number of batches in a whole epoch."""
        return max(1, slice_count // batch_size)

    def __len__(self) -> int:
        return self.per_epoch(self.slice_count, self.batch_size) - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        # Every process draws the same order and takes its own part of each batch.
        generator = slice_order(self.seed, self.epoch)
        order = generator.permutation(self.slice_count).tolist()
        if self.foreground is not None:
            for batch in range(self.per_epoch(self.slice_count, self.batch_size)):
                end = min((batch + 1) * self.batch_size, self.slice_count)
                for position in range(end - self.foreground.count(end - batch * self.batch_size), end):
                    order[position] = self.foreground.draw(generator)
        for batch in range(self.start, self.start + len(self)):
            numbers = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            rank, processes = self.share
            part = numbers[rank * len(numbers) // processes : (rank + 1) * len(numbers) // processes]
            yield [(self.epoch, number) for number in part]


def training_loader(
    slices: Slices | Volumes, order: ShuffledBatches, *, workers: int, pin_memory: bool
) -> Iterator[PackedBatch]:
    """Load the batches of an epoch in their order, each for `slices.unpack`.

    Raises RunError if the workers can't hand over their batches.
    """
    loader: DataLoader[Any] = DataLoader(
        slices,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=slices.pack,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker if workers else None,
    )
    try:
        yield from loader
    except TextsegError as error:  # from a worker, torch gives it with the traceback there
        message = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2]
        raise type(error)(message.strip()) from error
    except (RuntimeError, OSError, EOFError) as error:
        if str(error).startswith("Caught ") or not workers:  # in the work itself, not in handing it over
            raise
        raise lost_worker(error) from error


def lost_worker(error: Exception) -> RunError:
    """Return the message about a worker that ended before it had handed over all batches."""
    reason = (str(error).splitlines() or ["the connection to it ended"])[0]
    return RunError(
        f"A worker process that loads slices was lost ({reason}). Memory or shared memory may have run out. "
        f"{_FEWER_WORKERS}. The same command goes on from the last checkpoint."
    )


def _begin_worker(_: int) -> None:
    """Let a worker end with the training, and when it can't hand over a batch, which the training would wait for."""
    end_with(os.getppid())
    queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]


def _give_up(error: Exception, _: object) -> None:
    print(f"A worker can't hand over a batch: {error}", file=sys.stderr, flush=True)
    os._exit(0)  # other codes make torch raise an error inside any line of the training


def check_shared_memory(slices: Slices | Volumes, batch_size: int, workers: int) -> None:
    """Raise RunError if the batches of the workers need more shared memory than there is: they would be killed."""
    if not SHARED_MEMORY.is_dir():
        return
    case = max((case for case, _ in slices.positions), key=lambda case: case.slice_count)
    count = case.slice_count if isinstance(slices, Volumes) else batch_size * slices.context
    channels, height, width = case.image.shape[1:]
    needed = (PREFETCHED * workers + 1) * count * height * width * (channels * IMAGE_BYTES + MASK_BYTES)
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise RunError(
            f"training.workers: the batches of {workers} workers need {needed / 1e6:.0f} MB of shared memory, and "
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free. {_FEWER_WORKERS}."
        )
