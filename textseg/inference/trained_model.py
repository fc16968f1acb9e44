"""A trained model: one network with its weights, its recipe and its prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from textseg.contracts import Atlas, PromptGenerator, Task, Visibility
from textseg.data.slice_geometry import PreparedVolume
from textseg.data.slices import SliceStack
from textseg.inference.averaging import View
from textseg.inference.predictor import Predictor
from textseg.inference.slices import slice_logits
from textseg.models.cost import memory_of_a_slice
from textseg.models.segmenter import Segmenter
from textseg.recipe.schema import Recipe
from textseg.registry.discovery import Registry
from textseg.runs.task_record import TaskRecord
from textseg.system.files import cache_folder
from textseg.text.embeddings import TextTable, build_text_table
from textseg.text.prompts import generate
from textseg.text.slice_text import SliceText, volume_prompts

AT_ONCE = 16  # slices at a time on a GPU; more do not make it faster


class Texts(Protocol):
    """The features of texts, from a text encoder or from a bundle."""

    def __call__(self, texts: Sequence[str]) -> TextTable:
        """Return a table that holds `texts`."""

    def require(self, texts: Sequence[str]) -> None:
        """Raise PromptError for texts without features."""


@dataclass(frozen=True)
class TrainedModel(Predictor):
    """A model with its weights and everything that it needs to segment a volume; `load` creates it."""

    name: str
    fingerprint: str
    recipe: Recipe
    record: TaskRecord
    segmenter: Segmenter
    generator: PromptGenerator | None
    texts: Texts | None
    device: torch.device

    @property
    def models(self) -> tuple[TrainedModel]:
        """A tuple with this model only."""
        return (self,)

    @cached_property
    def slices_at_once(self) -> int:
        """The number of slices that fit into half of the free memory of a GPU, at most `AT_ONCE`; 1 on a CPU."""
        if self.device.type != "cuda" or self.engine != "torch" or self.segmenter.batching == "volume":
            return 1
        needed = max(1, memory_of_a_slice(self.segmenter, self.task, self.device))
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + unused
        return int(min(max(1, free // 2 // needed), AT_ONCE))

    def view_logits(
        self, prepared: PreparedVolume, visibility: Visibility | None, view: View, batch_size: int | None
    ) -> Iterator[Tensor]:
        """Give logits [B, K, H, W] of one view of the slices, `batch_size` at a time, or as many as fit."""
        shown = prepared
        if view != View():
            slices_mm, *pixel_mm = prepared.spacing_mm
            rows_mm, columns_mm = (side / view.zoom for side in pixel_mm)
            shown = replace(prepared, image=view.show(prepared.image), spacing_mm=(slices_mm, rows_mm, columns_mm))
        stack = self.slices(shown, visibility)
        batch_size = self.slices_at_once if batch_size is None else batch_size
        return slice_logits(self.segmenter, stack, device=self.device, batch_size=batch_size)

    def slices(self, prepared: PreparedVolume, visibility: Visibility | None) -> SliceStack:
        """Return the slices of a volume with the prompts that state `visibility`, where the model reads any."""
        # In 16 bits, as the slice store keeps them: the same volume gives the same mask.
        image = prepared.image.half().numpy()
        if visibility is None or self.recipe.prompts_read is None:
            return SliceStack(image, spacing_mm=prepared.spacing_mm)
        assert self.generator is not None
        assert self.texts is not None
        visibility = self._own(visibility)
        position = self._position(visibility)
        prompts = volume_prompts(visibility, len(image), self.generator, self.atlas, position=position)
        table = self.texts(list(dict.fromkeys(text for prompt in prompts for text in prompt.texts)))
        text = SliceText(table, self.atlas, {visibility.source: prompts})
        return SliceStack(image, text, prepared.spacing_mm)

    def _own(self, visibility: Visibility) -> Visibility:
        """Return the template of its own training, also in an ensemble of other models; other statements unchanged."""
        assert self.recipe.prompts is not None
        counted = self.recipe.prompts.template == "listed"
        return replace(visibility, counted=counted) if visibility.source == "template" else visibility

    def _position(self, visibility: Visibility) -> bool:
        """Return True if the prompts state the position of a slice in the stack."""
        assert self.recipe.prompts is not None
        return visibility.source != "template" or self.recipe.prompts.template_position

    def require_texts(self, visibility: Visibility) -> None:
        """Raise PromptError if there are no features for the prompts that state `visibility`, or they are too long."""
        assert self.generator is not None
        assert self.texts is not None
        visibility = self._own(visibility)
        prompts = [generate(self.generator, self.atlas, visibility)]
        if not visibility.facts and not visibility.sentence:
            self.texts.require([prompts[0].holistic, *prompts[0].classwise])
            return
        # The text may be longer than every text of the training.
        if self._position(visibility):
            prompts = [generate(self.generator, self.atlas, visibility.at(third, 3)) for third in range(3)]
        self.texts(list(dict.fromkeys(text for prompt in prompts for text in (prompt.holistic, *prompt.classwise))))


def prompt_generator(recipe: Recipe, registry: Registry, atlas: Atlas) -> PromptGenerator | None:
    """Build the prompt generator of a recipe; None for a model that reads no text."""
    if recipe.prompts_read is None:
        return None
    spec = recipe.prompts_read.generator
    return cast(PromptGenerator, registry.build("prompt_generator", spec.use, atlas, settings=spec.settings))


class EncodedTexts:
    """Tables of encoded texts, from the text encoder of a recipe or from the cache."""

    def __init__(self, recipe: Recipe, registry: Registry, task: Task) -> None:
        self.recipe, self.registry, self.task = recipe, registry, task

    @cached_property
    def _encoder(self) -> Any:
        assert self.recipe.prompts is not None
        spec = self.recipe.prompts.text_encoder
        return self.registry.build("text_encoder", spec.use, settings=spec.settings)

    def __call__(self, texts: Sequence[str]) -> TextTable:
        """Return a table that holds `texts`."""
        assert self.task.text_length is not None
        return build_text_table(self._encoder, texts, text_length=self.task.text_length, cache=cache_folder() / "text")

    def require(self, texts: Sequence[str]) -> None:
        """Do nothing: the text encoder gives features for every text."""
