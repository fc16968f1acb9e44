"""A trained model in use: a volume in, a mask of named structures out, in the geometry of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from textseg.contracts import Atlas, PromptGenerator, Task, Visibility
from textseg.data.slice_geometry import PreparedVolume, prepare_volume
from textseg.data.slices import SliceStack
from textseg.errors import DataError, PromptError
from textseg.inference.averaging import Change, View, mean_posterior, views
from textseg.inference.slices import slice_logits
from textseg.inference.structure_finder import StructureFinder, predicted_visibility
from textseg.inference.training_domain import unlike
from textseg.levels.level_order import order_levels
from textseg.models.cost import memory_of_a_slice
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import Recipe
from textseg.registry.discovery import Registry
from textseg.runs.task_record import TaskRecord
from textseg.system.files import cache_folder
from textseg.text.embeddings import TextTable, build_text_table
from textseg.text.prompts import interactive_visibility, template_visibility
from textseg.text.slice_text import SliceText, prompts_saying
from textseg.volumes.files import DicomSeries, Geometry, Volume, file_hash, read_volume
from textseg.volumes.mask import Mask, label_values

_READS_NO_TEXT = "'{}' reads no text, so there is nobody to tell what is visible. Leave out --visible and --prompts."
AT_ONCE = 16  # slices on a GPU: more keep it no busier

Prompting = Literal["template", "predicted"]
Named = str | tuple[str, str] | list[str]
Texts = Callable[[Sequence[str]], TextTable]


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights and all that it needs to segment a volume; made by `load`.

    Calling it segments one volume. It never sees an annotation: what its prompts know is the template, what a person
    names, or what its own first pass finds.
    """

    name: str
    fingerprint: str  # of its weights
    recipe: Recipe
    record: TaskRecord
    segmenter: Segmenter
    generator: PromptGenerator | None
    texts: Texts | None  # gives a table that holds these texts
    device: torch.device
    members: tuple[TrainedModel, ...] = ()  # of an ensemble, whose other fields are then those of the first

    @property
    def task(self) -> Task:
        """What it was built for."""
        return self.record.task

    @property
    def atlas(self) -> Atlas:
        """The structures that it knows."""
        return self.record.task.atlas

    @property
    def reads_text(self) -> bool:
        """Whether it, or a member of it, can be told anything."""
        return bool(self._readers)

    @property
    def engine(self) -> str:
        """What runs its network: "torch", or the engine of an ONNX bundle; of an ensemble, each that does."""
        networks = [part.segmenter.network for part in self._parts]
        return " + ".join(sorted({str(getattr(network, "engine", "torch")) for network in networks}))

    @cached_property
    def slices_at_once(self) -> int:
        """As many as fit into half of a GPU's free memory, at most `AT_ONCE`; 1 on a CPU, where more win nothing."""
        if self.device.type != "cuda" or self.engine != "torch" or self.segmenter.batching == "volume":
            return 1
        needed = max(1, memory_of_a_slice(self.segmenter, self.task, self.device))
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + unused
        return int(min(max(1, free // 2 // needed), AT_ONCE))

    @property
    def default_prompts(self) -> Prompting:
        """What its prompts know where nobody says: as its recipe evaluates it.

        Raises PromptError where the recipes of an ensemble say different things.
        """
        recipes = [(part.name, part.recipe.prompts) for part in self._parts]
        said = [(name, cast(Prompting, settings.evaluation)) for name, settings in recipes if settings]
        if len({source for _, source in said}) > 1:
            each = ", ".join(f"'{name}' by {source}" for name, source in said)
            raise PromptError(f"The models of the ensemble are evaluated with different prompts ({each}): say which.")
        return said[0][1] if said else "template"

    @property
    def _parts(self) -> tuple[TrainedModel, ...]:
        return self.members or (self,)

    @property
    def _readers(self) -> list[TrainedModel]:
        return [part for part in self._parts if part.recipe.prompts is not None]

    def __call__(
        self,
        volume: Path | str | DicomSeries | Volume,
        *,
        visible: Named | None = None,
        prompts: Prompting | None = None,
        ordered: bool = False,
        test_time_augmentation: Sequence[Change] = (),
    ) -> Mask:
        """Segment a volume: a file, or what `textseg.volumes.files.read_volume` gave in the plane of the atlas.

        Args:
            volume: MHA, NRRD or NIfTI, or a folder of one DICOM series, in any orientation.
            visible: what a person sees in it: "T10:L5" or ("T10", "L5") for all from one to the other in an ordered
                atlas, "L4, L5" or a list for these.
            prompts: without `visible`, what the prompts go by: "template" or "predicted"; else as the recipe evaluates.
            ordered: name pieces anew that contradict the order of the atlas: see `textseg.levels.level_order`.
            test_time_augmentation: "shift", "scale", "gamma": take the mean over views of the volume, none of them
                mirrored: see `textseg.inference.averaging`.

        Raises DataError for a volume that can't be read, PromptError for names that the atlas does not have and for
        `visible` to a model that reads no text.
        """
        read = volume if isinstance(volume, Volume) else read_volume(volume, self.atlas.plane)
        if read.geometry.plane != self.atlas.plane:
            raise DataError(
                f"The volume was read in {read.geometry.plane} slices, and '{self.name}' reads {self.atlas.plane} "
                f"ones: read_volume(path, plane='{self.atlas.plane}')."
            )
        content = None if isinstance(volume, Volume) else file_hash(volume)
        prepared = self.prepare(read)
        said = self.visibility(prepared, visible, prompts)
        remarks = self.remarks_on(read, prepared, content)
        changes = test_time_augmentation
        return self.segment(prepared, read.geometry, said, remarks, ordered=ordered, test_time_augmentation=changes)

    def prepare(self, volume: Volume) -> PreparedVolume:
        """The slices of a volume as the model reads them."""
        return prepare_volume(volume, self.recipe.preparation)

    def visibility(
        self, prepared: PreparedVolume, visible: Named | None, prompts: Prompting | None
    ) -> Visibility | None:
        """What the prompts will say of a volume; None for a model that reads no text. Raises PromptError."""
        if not self.reads_text:
            if visible is not None or prompts is not None:
                raise PromptError(_READS_NO_TEXT.format(self.name))
            return None
        if visible is not None:
            return self.visibility_of(visible)
        template = template_visibility(self.atlas)
        if (prompts or self.default_prompts) == "template":
            return template
        finder = StructureFinder(self.atlas)
        for logits in self.logits(prepared, template):
            finder.add(logits)
        first = self._readers[0].recipe.prompts
        assert first is not None
        return predicted_visibility(finder.confidence(), self.atlas, first.predicted_threshold)

    def visibility_of(self, visible: Named) -> Visibility:
        """What a person means by `visible`; raises PromptError for names that the atlas does not have."""
        if not self.reads_text:
            raise PromptError(_READS_NO_TEXT.format(self.name))
        return interactive_visibility(self.atlas, ":".join(visible) if isinstance(visible, tuple) else visible)

    def remarks_on(self, volume: Volume, prepared: PreparedVolume, content: str | None) -> tuple[str, ...]:
        """What makes a mask of this volume doubtful; `content` is the hash of its file."""
        seen = self.record.seen.get(content or "")
        known = [f"it is the {seen} of this model, so its mask says nothing about new scans"] if seen else []
        return (*known, *unlike(self.task, volume, prepared.intensities))

    def check_labels(self, labels: str) -> None:
        """Raises DataError for a label scheme that the atlas does not have, or not for every structure."""
        label_values(self.atlas, labels)

    def segment(
        self,
        prepared: PreparedVolume,
        geometry: Geometry,
        said: Visibility | None,
        remarks: tuple[str, ...] = (),
        *,
        ordered: bool = False,
        test_time_augmentation: Sequence[Change] = (),
    ) -> Mask:
        """The mask of prepared slices, told what `said` says."""
        finder = StructureFinder(self.atlas)
        logits = self.logits(prepared, said, test_time_augmentation=test_time_augmentation)
        changes: list[str] = []
        if ordered:  # of the whole volume, so all of it at once in memory
            found, changes = order_levels(torch.cat([batch.cpu() for batch in logits]).numpy(), self.atlas)
            logits = iter(torch.from_numpy(found)[:, None])
        array = torch.cat([prepared.placement.restore(batch).cpu() for batch in _passed(logits, finder)]).numpy()
        return Mask(array, geometry, self.atlas, finder.confidence(), said, remarks, tuple(changes))

    def logits(
        self,
        prepared: PreparedVolume,
        said: Visibility | None,
        *,
        batch_size: int | None = None,
        test_time_augmentation: Sequence[Change] = (),
    ) -> Iterator[Tensor]:
        """Logits [B, K, H, W] of the prepared slices, one batch after the other, of `slices_at_once` if nobody says.

        Of an ensemble, and with augmentation, the logarithm of the mean of all posteriors.
        """
        seen = views(test_time_augmentation, self.task.image_size)
        if (len(self._parts), len(seen)) == (1, 1):
            return self._parts[0]._logits(prepared, said, View(), batch_size)
        return mean_posterior(
            [(view, part._logits(prepared, said, view, batch_size)) for part in self._parts for view in seen]
        )

    def _logits(
        self, prepared: PreparedVolume, said: Visibility | None, view: View, batch_size: int | None
    ) -> Iterator[Tensor]:
        shown = prepared if view == View() else replace(prepared, image=view.show(prepared.image))
        stack = self.slices(shown, said if self.recipe.prompts is not None else None)
        batch_size = self.slices_at_once if batch_size is None else batch_size
        return slice_logits(self.segmenter, stack, device=self.device, batch_size=batch_size)

    def slices(self, prepared: PreparedVolume, said: Visibility | None) -> SliceStack:
        """Return the slices of a volume with prompts that say `said`, or without text."""
        # In 16 bits, as the slice store keeps them: the same volume gives the same mask.
        image = prepared.image.half().numpy()
        if said is None:
            return SliceStack(image)
        assert self.generator is not None
        assert self.texts is not None
        assert self.recipe.prompts is not None
        position = said.source != "template" or self.recipe.prompts.template_position
        prompts = prompts_saying(said, len(image), self.generator, self.atlas, position=position)
        table = self.texts(list(dict.fromkeys(text for prompt in prompts for text in prompt.texts)))
        return SliceStack(image, SliceText(table, self.atlas, {said.source: prompts}))


def prompt_generator(recipe: Recipe, registry: Registry, atlas: Atlas) -> PromptGenerator | None:
    """Who writes the prompts of a model; None for one that reads no text."""
    if recipe.prompts is None:
        return None
    spec = recipe.prompts.generator
    return cast(PromptGenerator, registry.build("prompt_generator", spec.use, atlas, settings=spec.settings))


class EncodedTexts:
    """Texts through the text encoder of a recipe, or out of the cache where they have been encoded before."""

    def __init__(self, recipe: Recipe, registry: Registry, task: Task) -> None:
        self.recipe, self.registry, self.task = recipe, registry, task

    @cached_property
    def _encoder(self) -> Any:
        assert self.recipe.prompts is not None
        spec = self.recipe.prompts.text_encoder
        return self.registry.build("text_encoder", spec.use, settings=spec.settings)

    def __call__(self, texts: Sequence[str]) -> TextTable:
        """A table that holds `texts`."""
        assert self.task.text_length is not None
        return build_text_table(self._encoder, texts, text_length=self.task.text_length, cache=cache_folder() / "text")


def _passed(logits: Iterable[Tensor], finder: StructureFinder) -> Iterator[Tensor]:
    for batch in logits:
        finder.add(batch)
        yield batch
