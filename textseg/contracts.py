"""Data classes that the packages of textseg exchange, and the Protocol of each kind of component.

The letters of shapes, used in every docstring:
    B slices, C image channels, K classes (0 is background), H and W pixels, T text tokens (constant within a run),
    D text features, L levels of a feature pyramid (finest first), C_l channels and H_l x W_l positions of level l.
    S slices of a volume. A volume in memory is [S, H, W], an image with channels [C, S, H, W]. The plane of its atlas
    defines the directions of the axes:
        sagittal    slices from left to right, rows from superior to inferior, columns from anterior to posterior
        coronal     slices from anterior to posterior, rows from superior to inferior, columns from right to left
        axial       slices from superior to inferior, rows from anterior to posterior, columns from right to left
        short_axis  slices of the heart from base to apex, rows from its anterior to its diaphragmatic wall, columns
                    from the septum to the free wall of the left ventricle
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from textseg.errors import PromptError, suggestion
from textseg.system.devices import Movable

if TYPE_CHECKING:  # listing components must import neither torch nor numpy
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Source = Literal["template", "interactive", "report", "predicted", "ground_truth"]
Scope = Literal["slice", "volume"]
Plane = Literal["sagittal", "coronal", "axial", "short_axis"]  # the orientation of the slices of a volume
Batching = Literal["slice", "volume"]  # a batch holds any slices, or all slices of one case in order
LabelMap = Mapping[int, int]
IGNORED = 255  # in a mask, instead of a class index: a pixel that counts neither in the loss nor in the scores


@dataclass(frozen=True)
class Structure:
    """A structure to segment, such as "L4", of the family "lumbar vertebra", class 2."""

    name: str
    family: str
    index: int
    snomed: str | None = None  # its concept in SNOMED CT, for files that name structures by codes
    synonyms: tuple[str, ...] = ()  # other names that a person may write


@dataclass(frozen=True)
class Atlas:
    """The structures of one anatomical region.

    `structures[i].index` is i + 1. `sequence` lists the structures that have an order (vertebrae and discs), from
    superior to inferior; it is empty for a region without order. `groups` names sets of structures for coarse scores.
    `adjacent` lists the pairs that touch. `label_schemes` gives the meaning of the values in mask files; a scheme may
    also name structures that the atlas does not have. `plane` is the orientation of the slices; a sequence needs a
    plane that shows it. `landmarks` are structures that are recognised without counting, such as the sacrum. `region`
    is the part of the body in words, such as "lumbar spine", which prompts of another region do not fit.
    """

    name: str
    structures: tuple[Structure, ...]
    sequence: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    adjacent: tuple[tuple[str, str], ...] = ()
    label_schemes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    plane: Plane = "sagittal"
    landmarks: tuple[str, ...] = ()
    region: str = ""

    def __post_init__(self) -> None:
        names = self.names
        if [structure.index for structure in self.structures] != list(range(1, len(names) + 1)):
            raise ValueError(f"Atlas '{self.name}': the index of structures[i] must be i + 1.")
        mentioned = {*self.sequence, *self.landmarks, *(n for group in self.groups.values() for n in group)}
        mentioned |= {n for pair in self.adjacent for n in pair}
        if len(set(names)) != len(names) or not mentioned <= set(names):
            raise ValueError(
                f"Atlas '{self.name}': names must be unique, and sequence, groups, adjacent and landmarks may name "
                f"only them; "
                f"unknown: {sorted(mentioned - set(names))}."
            )
        if self.sequence and self.plane == "short_axis":
            raise ValueError(f"Atlas '{self.name}': short-axis slices of the heart show no sequence downwards.")
        schemes = {name: self._in_own_names(scheme) for name, scheme in self.label_schemes.items()}
        object.__setattr__(self, "label_schemes", schemes)

    def _in_own_names(self, scheme: Mapping[int, str]) -> Mapping[int, str]:
        """Return a label scheme with the names of the atlas in place of their synonyms.

        A synonym keeps its own value where the scheme tells it apart from the name, as TotalSegmentator does S and S1.
        """
        names = set(scheme.values())
        own = {}
        for name in names - set(self.names):
            structure = self.find(name)
            if structure and not names & {structure.name, *structure.synonyms} - {name}:
                own[name] = structure.name
        return {value: own.get(name, name) for value, name in scheme.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the structures in the order of their class indices."""
        return tuple(structure.name for structure in self.structures)

    @property
    def class_count(self) -> int:
        """The number of classes K: the structures and the background."""
        return len(self.structures) + 1

    @property
    def ordered(self) -> bool:
        """True if the atlas has a sequence."""
        return bool(self.sequence)

    def __getitem__(self, name: str) -> Structure:
        """Return the structure of that name. Raises PromptError."""
        if name not in self.names:
            raise PromptError(f"Atlas '{self.name}' has no structure '{name}'.{suggestion(name, self.names)}")
        return self.structures[self.names.index(name)]

    def find(self, words: str) -> Structure | None:
        """Return the structure with this name or synonym, in upper or lower case; None for other words.

        A name comes before a synonym of another structure. Every file and option that names structures is read so.
        """
        spelled = words.strip().casefold()
        names = (structure for structure in self.structures if structure.name.casefold() == spelled)
        synonyms = (item for item in self.structures if spelled in {synonym.casefold() for synonym in item.synonyms})
        return next(names, None) or next(synonyms, None)

    def collapsed(self) -> tuple[Atlas, LabelMap]:
        """Return an atlas of the groups, and the class of each structure in it (0 for a structure in no group)."""
        structures = tuple(Structure(name, name, index) for index, name in enumerate(self.groups, start=1))
        classes = dict.fromkeys(range(self.class_count), 0)
        for structure in structures:
            classes.update((self[name].index, structure.index) for name in self.groups[structure.name])
        return Atlas(f"{self.name}_groups", structures, plane=self.plane), classes

    def between(self, first: str, last: str) -> tuple[str, ...]:
        """Return the structures of the sequence from `first` to `last`, and all structures outside the sequence.

        The stretch ends at what is named: of a lumbar spine, "T10:L5" leaves out the disc L5/S and S.
        """
        if not self.ordered:
            raise PromptError(f"Atlas '{self.name}' has no order; name the visible structures one by one.")
        for name in (first, last):
            if name not in self.sequence:
                raise PromptError(f"'{first}:{last}': no '{name}' in the sequence.{suggestion(name, self.sequence)}")
        start, stop = self.sequence.index(first), self.sequence.index(last)
        if start > stop:
            raise PromptError(f"'{first}:{last}' runs upwards; name the upper structure first: '{last}:{first}'.")
        stretch = self.sequence[start : stop + 1]
        return tuple(name for name in self.names if name in stretch or name not in self.sequence)

    def neighbour(self, name: str, levels: int) -> str | None:
        """Return the structure that lies some levels below another one, or above it where `levels` is negative.

        A level is the next structure of the sequence in the same group, or the next one at all where the structure is
        in no group. Returns None beyond the ends of the atlas, and for a structure outside the sequence.
        """
        group = next((members for members in self.groups.values() if name in members), self.sequence)
        row = [structure for structure in self.sequence if structure in group]
        if name not in row:
            return None
        level = row.index(name) + levels
        return row[level] if 0 <= level < len(row) else None

    def visibilities(self) -> Iterator[Visibility]:
        """Yield every visibility that template and interactive prompts can produce, without the position of the slice.

        An atlas without order gives only the templates, because a user may name any subset of its structures.
        """
        for counted in (True, False):
            yield Visibility(self.names, source="template", scope="volume", counted=counted)
        for i, first in enumerate(self.sequence):
            for last in self.sequence[i:]:
                yield Visibility(self.between(first, last), source="interactive", scope="volume")


@dataclass(frozen=True)
class ArrayImage:
    """An image or a mask that a reader gives as an array instead of a file.

    `load` returns the array in the plane of the atlas: [S, H, W], [H, W] of a single slice, or [C, S, H, W] of an image
    with channels. It is called whenever the pixels are needed, also in other processes: give a function of a module, or
    `functools.partial` of one. `name` tells images of a data set apart, and stands in messages.
    """

    name: str
    load: Callable[[], NDArray[Any]] = field(compare=False, repr=False)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)  # slice, row, column distance

    def __str__(self) -> str:
        return self.name


Pixels = Path | ArrayImage


@dataclass(frozen=True)
class Case:
    """A series of a patient, or several series of one examination as the channels of one image.

    `image` is the image, or each channel by its name: `{"T1": path, "T2": path}`. A data set names the same channels in
    the same order in each case; a case that lacks some is refused before the training. A file may also hold several
    channels. The mask lies on the grid of the first one. `facts` holds what is known without the annotation, such as
    sequence, sex and view.
    """

    id: str
    patient: str
    image: Pixels | Mapping[str, Pixels]
    mask: Pixels | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def channels(self) -> Mapping[str, Pixels]:
        """Each channel by its name; an image without named channels is one, called "image"."""
        return self.image if isinstance(self.image, Mapping) else {"image": self.image}

    @property
    def first(self) -> Pixels:
        """The first channel: its grid is that of the mask, and pictures show it."""
        return next(iter(self.channels.values()))


@dataclass(frozen=True)
class Visibility:
    """The content of a prompt: visible structures in class order, position of the slice, source of knowledge.

    `counted` is False where nobody looked at the image. `visible` then holds every structure of the atlas, and the text
    must say that nobody has named what is visible: it must differ from the text about a person who saw all of it.
    `sentence` is a sentence of a report that the model reads as it is: it replaces the generator's holistic text.
    """

    visible: tuple[str, ...]
    source: Source
    scope: Scope
    slice_index: int | None = None  # 0-based, in the slice order of the atlas's plane
    slice_count: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    counted: bool = True
    sentence: str = ""

    def at(self, slice_index: int, slice_count: int) -> Visibility:
        """Return the same content for one slice of a stack."""
        return replace(self, slice_index=slice_index, slice_count=slice_count)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a slice: one for the whole slice, and one for each structure in class order."""

    holistic: str
    classwise: tuple[str, ...]


@dataclass(frozen=True)
class TextFeatures(Movable):
    """Features of the prompts of B slices, from a frozen encoder."""

    tokens: Tensor  # [B, T, D] of the holistic prompt; padding is zero
    mask: Tensor  # [B, T] bool, True at tokens, False at padding
    classwise: Tensor | None  # [B, K-1, D], a vector for each structure: its prompt, pooled over tokens
    present: Tensor  # [B, K-1] bool, the structures that the text calls visible; all of them for a template


@dataclass(frozen=True)
class Task:
    """The task that a model is built for. Later versions may add fields, but remove none."""

    image_channels: int
    image_size: tuple[int, int]  # H, W
    class_count: int  # K
    atlas: Atlas
    text_size: int | None = None  # D; None without text
    text_length: int | None = None  # T; None without text
    fingerprint: Mapping[str, Any] = field(default_factory=dict)  # sizes, spacings, intensities of the prepared data
    channel_names: tuple[str, ...] = ("image",)


@dataclass(frozen=True)
class Features:
    """The feature pyramid of a vision encoder, finest level first."""

    channels: tuple[int, ...]  # C_l
    strides: tuple[int, ...]  # H / H_l


@dataclass(frozen=True)
class BatchGeometry(Movable):
    """The size of the voxels of B prepared slices, and their positions in their volumes."""

    spacing_mm: Tensor  # [B, 3]: slice distance, row distance, column distance of the prepared slice
    slice_index: Tensor  # [B], from 0, in the order of the atlas's plane
    slice_count: Tensor  # [B]

    @property
    def position(self) -> Tensor:
        """The position of each slice [B] from 0, the first one of its volume, to 1, the last one."""
        return self.slice_index / (self.slice_count - 1).clamp(min=1)


@dataclass(frozen=True)
class Batch(Movable):
    """A batch of B prepared slices; for a model that reads neighbouring slices, the channels of all of them."""

    image: Tensor  # [B, C, H, W] float
    mask: Tensor  # [B, H, W] int64: class indices, and `IGNORED` where the label maps of the data set have it
    text: TextFeatures | None
    case: tuple[str, ...]
    slice_index: Tensor  # [B]
    slice_count: Tensor  # [B]
    spacing_mm: Tensor  # [B, 3]: slice distance, row distance, column distance of the prepared slice
    renumbered: Tensor | None = None  # [B] bool, True where mask and text have other names than the patient

    @property
    def geometry(self) -> BatchGeometry:
        """The spacing and the position of each slice."""
        return BatchGeometry(self.spacing_mm, self.slice_index, self.slice_count)


@dataclass(frozen=True)
class SegmenterOutput:
    """The output of a model for a batch. Auxiliary losses read the feature maps; the finest comes first."""

    logits: Tensor  # [B, K, H, W]
    deep_logits: tuple[Tensor, ...] = ()  # coarser predictions [B, K, H_l, W_l], finest first
    image_features: tuple[Tensor, ...] = ()  # [B, C_l, H_l, W_l]
    fused_features: tuple[Tensor, ...] = ()  # [B, C_l, H_l, W_l]
    text: TextFeatures | None = None


class Dataset(Protocol):
    """`(*, folder, ...)`: a reader of cases and of the meaning of the values in their masks. Raises DataError.

    Optional: `fetch(*, progress: textseg.system.fetching.Progress) -> str` downloads the data and returns a summary;
    `doubts(values)` returns, by case id, sentences on suspicious values in the mask of each case.
    """

    atlas: Atlas

    def cases(self) -> Sequence[Case]:
        """Return every case, sorted by id; numbers in an id may sort as numbers."""

    def label_map(self, case: Case) -> LabelMap:
        """Return the class index of each value that the mask of this case may hold; any other value is an error.

        `IGNORED` as class means voxels that count neither in the loss nor in the scores.
        """

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Return the patients of "train" and "test" in the publishers' split, or None."""


class PromptGenerator(Protocol):
    """`(atlas, *, ...)`: a pure function from what is visible to text; it never sees an image or a mask."""

    def __call__(self, visibility: Visibility) -> Prompts: ...


class TextEncoder(Protocol):
    """`(*, ...)`: a frozen encoder. It reads weights at the first call, so that counting tokens stays cheap."""

    @property
    def feature_size(self) -> int:
        """The size D of a feature vector."""

    @property
    def max_tokens(self) -> int:
        """The number of tokens in the longest text that the encoder can read."""

    @property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer and settings."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, with special tokens, before any truncation."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return tokens [N, T, D] (padding is zero) and mask [N, T] of N texts; T is the length of the longest."""


class VisionEncoder(Protocol):
    """`(task, *, ...)`: an `nn.Module`."""

    features: Features
    size_multiple: int  # H and W must be multiples of this number; the core pads images

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return L feature maps [B, C_l, H_l, W_l] of an image [B, C, H, W], finest first."""


class Fusion(Protocol):
    """`(task, features, *, ...)`: an `nn.Module` that combines the pyramid with text.

    A fusion that reads no text has an attribute `uses_text` that is False. It gets None instead of text where the task
    has none. Any other builder raises RecipeError for a task without text.
    """

    features: Features  # of its output

    def __call__(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> tuple[Tensor, ...]:
        """Return L feature maps [B, C_l, H_l, W_l], finest first, from the L maps of an image and the text."""


class SegmentationLoss(Protocol):
    """`(task, *, ...)`: an `nn.Module`, a term of the loss that compares logits with the annotation."""

    def __call__(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return a scalar in float32 for logits [B, K, H, W] and class indices [B, H, W].

        Logits are in float32, and autocast is off. A network with deep supervision calls it for coarser logits, too.
        A pixel that the annotation ignores is background that the logits predict with certainty: it has no gradient,
        and its loss is 0. A term that must tell such pixels apart has the member of `ReadsIgnored`.
        """


@runtime_checkable
class ReadsIgnored(Protocol):
    """A segmentation loss that is told which pixels are ignored, for example for a mean over the others.

    With `reads_ignored = True`, it has a further argument by name: `ignored`, [B, H, W] bool, or None, which is its
    default, where no mask of the data set has such pixels. Logits and mask are as for any other term.
    """

    reads_ignored: bool


class AuxiliaryLoss(Protocol):
    """`(task, features, *, ...)`: an `nn.Module`, used in training only. `features` describes the fused pyramid."""

    def __call__(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        """Return a scalar in float32; zero, with gradients, for a batch that the loss does not apply to.

        In the mask of this batch, ignored pixels are background.
        """


class Augmentation(Protocol):
    """`(*, ...)`: a random change of training slices, an item of the list `augmentation` of a recipe.

    Optional: `host_only = True` for one that needs arrays in main memory, which `on: device` is refused for, and the
    members of `HasEnlargement` and `HasWindow`. The core recognises them with `isinstance`.
    """

    geometric: bool  # True if structures may move; otherwise the mask stays as it is

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return image [S, C, H, W] float and mask [S, H, W] uint8, changed alike; the arguments stay as they are.

        S is 1, or the number of slices of a case where a batch is a volume: one draw then holds for all of them.
        Everything random comes from `generator`: equal generators give equal results. A library that draws from a
        global generator runs in `textseg.randomness.forked(generator)`. The mask holds class indices and `IGNORED`,
        and keeps them.
        """


@runtime_checkable
class HasEnlargement(Protocol):
    """An augmentation that enlarges structures; the core compares areas to decide if a text names a structure."""

    def enlargement(self, size: tuple[int, int], generator: np.random.Generator) -> float:
        """Return the factor by which areas grow in slices of H x W, for a generator like that of the call."""


@runtime_checkable
class HasWindow(Protocol):
    """An augmentation that cuts a window of the file; it is the first of its list.

    The core shows the window as if it were a file of its own, and calls the augmentation afterwards.
    """

    def window(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the window in a file of `size` (rows, columns)."""


class Network(Protocol):
    """`(task, *, ...)`: an `nn.Module` that computes logits from images by itself.

    A network, or a fusion, may also have the members of the protocols below: `HasLosses`, `HasEpochStart`, `HasStages`,
    `HasBatching`, `ReadsFrozen` and, for a network, `HasPlan`. A network, or a vision encoder, may have those of
    `ReadsGeometry` and `ReadsNeighbours`. The core recognises them with `isinstance`, so you
    need not inherit from a class. Do not use the names of these members for anything else.

    Keep state that must survive an interruption in buffers.
    """

    uses_text: bool
    size_multiple: int

    def __call__(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput: ...


@runtime_checkable
class HasLosses(Protocol):
    """A network or fusion that computes its own loss."""

    def losses(
        self, output: Any, batch: Batch, segmentation_loss: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Return the terms of the loss by name, each a scalar; in training they replace the segmentation loss.

        `segmentation_loss(logits, mask)` gives the terms of the recipe, with their weights, for logits and a mask of
        any one size. `batch.mask` may hold `IGNORED`; the segmentation loss leaves these pixels out, so resize the mask
        by nearest neighbour, and leave them out of other losses, too.
        """


@runtime_checkable
class HasEpochStart(Protocol):
    """A network or fusion that changes from epoch to epoch."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Prepare for an epoch, counted from 0. The core calls it before each epoch, after `start_stage`."""


@runtime_checkable
class HasStages(Protocol):
    """A network or fusion whose parts one run trains in sequence. Validation begins with the last stage."""

    stages: Mapping[str, float]  # the share of the epochs of each stage, by name

    def start_stage(self, name: str) -> None:
        """Set which parameters have gradients; change no weight. Called before each epoch of the stage."""


@runtime_checkable
class HasBatching(Protocol):
    """A network or fusion that defines the content of its batches.

    With "volume", a batch is all slices of one case, in order, in training and everywhere else. With "slice", or
    without this member, a batch is any slices.
    """

    batching: Batching


@runtime_checkable
class ReadsGeometry(Protocol):
    """A network or vision encoder that reads the spacing of the voxels and the position of each slice.

    With `reads_geometry = True`, it is called with a further argument by name: `geometry`, a `BatchGeometry`.
    """

    reads_geometry: bool


@runtime_checkable
class ReadsNeighbours(Protocol):
    """A network or vision encoder that reads each slice with its neighbours, in training and everywhere else.

    With N = `context_slices`, an odd number, its image is [B, N * C, H, W]: the channels of the first slice, then those
    of the next; the slice itself is in the middle. Beyond the ends of a volume, its last slice is repeated. Random
    distortions move all N slices alike. A network for whole volumes sees every slice and can't have this member.
    """

    context_slices: int


@runtime_checkable
class ReadsFrozen(Protocol):
    """A network, vision encoder or fusion with parameters that are read from elsewhere and never trained.

    With `reads_frozen = True`, these are the parameters that have no gradient after construction. Checkpoints contain a
    fingerprint of them instead of their values.
    """

    reads_frozen: bool


@runtime_checkable
class HasPlan(Protocol):
    """A network that derives settings from the data; its plan, a dataclass, is written into run.json."""

    plan: Any


class Optimizer(Protocol):
    """`(parameters, learning_rate, *, ...)`: a `torch.optim.Optimizer` for parameters by name.

    The core sets `lr` of each group of parameters before each step, so that groups keep their proportions, and calls
    `step` without a closure. A parameter without a gradient stays as it is.
    """

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Update the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, in tensors and plain values."""


class Schedule(Protocol):
    """`(learning_rate, steps, *, ...)`: the learning rate of each step, a pure function of the step.

    `learning_rate` is the one of the recipe, and `steps` the number of steps of the run; a network that is trained in
    stages gets a schedule for each stage.
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0. A resumed run begins at any step."""


class Metric(Protocol):
    """`(*, ...)`: a score of one structure in a predicted and a reference mask.

    The core calls a metric only for a structure that both masks show. The other cases follow from `missed`. Instead of
    `__call__`, a metric may have the member of `ReadsCounts` or `ReadsDistances`, or be a `torchmetrics.Metric`, whose
    `update` gets both masks as int64 [1, ...].

    `unit` is "" for a number without a unit, "length" for a length (in mm or pixels, as the recipe says), and else the
    unit itself, such as "ml". `missed` is the value of a structure that only one of the masks shows, or None if such a
    value is undefined. Then penalised means take the diagonal of the image for a length, and for any other unit the
    attribute `worst`, a number.
    """

    unit: str
    higher_is_better: bool
    missed: float | None

    def __call__(
        self, prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...]
    ) -> float:
        """Return the finite score of two masks [S, H, W] or [H, W].

        `spacing` has the distance of the voxels along each axis: in mm, or ones for a recipe in pixels. A metric with a
        unit of its own always gets mm.
        """


@runtime_checkable
class ReadsCounts(Protocol):
    """A metric of numbers of voxels, which the core counts once for all metrics and structures."""

    def from_counts(self, predicted: int, expected: int, common: int) -> float:
        """Return the score from the voxels in the prediction, in the reference, and in both."""


@runtime_checkable
class ReadsDistances(Protocol):
    """A metric of distances between borders, which the core measures once for all metrics and structures."""

    def from_distances(self, there: NDArray[np.float64], back: NDArray[np.float64]) -> float:
        """Return the score from distances in mm or pixels, as the recipe says.

        `there` holds the distance of each border voxel of the prediction to the border of the reference, and `back`
        those of the other direction.
        """


@runtime_checkable
class HasFirstLayer(Protocol):
    """A module, at any place in a model, whose pretrained weights were made for images of other channels."""

    first_layer: str | None  # a sentence on what became of them, for run.json; None where the channels agree


class Logger(Protocol):
    """`(run, step, *, ...)`: writes the log of a training to a service or a file, from `step` on.

    `run` is a `textseg.Run`. Services and files are opened at the first call, not at construction. Only the first
    process of a run has loggers. A run that continues after an interruption builds a new logger.
    """

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Record the numbers of an epoch, by name."""

    def show(self, picture: Path, step: int) -> None:
        """Record a PNG file with validation slices."""

    def log_results(self, results: Mapping[str, float], step: int) -> None:
        """Record the means of the test scores, by name. A new logger is built for this call."""

    def close(self, *, failed: bool) -> None:
        """Write what is still in memory."""
