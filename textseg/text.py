"""What every slice is told by every source that a run needs, and its frozen features."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from textseg.contracts import Atlas, PromptGenerator, Source, TextEncoder, TextFeatures, Visibility
from textseg.embeddings import PromptRow, TextTable, build_text_table, check_budget
from textseg.preparation import PreparedCase
from textseg.prompts import generate, ground_truth_visibility, interactive_visibility, template_visibility

AVAILABLE: tuple[Source, ...] = ("template", "interactive", "ground_truth")  # what the data of a run can say

Line = tuple[Source, Literal["holistic", "classwise"], str | None, str]  # source, view, structure, text


@dataclass(frozen=True)
class SlicePrompt:
    """What one source says of one slice."""

    holistic: str
    classwise: tuple[str, ...]
    visibility: Visibility


def slice_prompts(
    prepared: PreparedCase, source: Source, generator: PromptGenerator, atlas: Atlas
) -> list[SlicePrompt]:
    """The prompts of every slice of a case, in order, with what `source` knows.

    `interactive` simulates the person: the first and the last structure of the sequence that the volume's annotation
    shows, or all visible ones where the atlas has no order.
    """
    prompts = []
    for index in range(prepared.slice_count):
        visibility = _visibility(prepared, index, source, atlas).at(index, prepared.slice_count)
        text = generate(generator, atlas, visibility)
        prompts.append(SlicePrompt(text.holistic, text.classwise, visibility))
    return prompts


def _visibility(prepared: PreparedCase, index: int, source: Source, atlas: Atlas) -> Visibility:
    facts = prepared.case.facts
    if source == "template":
        return template_visibility(atlas, facts)
    if source == "ground_truth":
        return ground_truth_visibility(atlas, prepared.present[index], facts)
    shown = ground_truth_visibility(atlas, {found for plane in prepared.present for found in plane}, facts).visible
    stretch = [name for name in atlas.sequence if name in shown]
    return interactive_visibility(atlas, f"{stretch[0]}:{stretch[-1]}" if stretch else shown or atlas.names, facts)


class SliceText:
    """Which rows of the text table belong to each slice, for each source."""

    def __init__(self, table: TextTable, atlas: Atlas, prompts: Mapping[Source, Sequence[SlicePrompt]]) -> None:
        self.table = table
        self.rows = {source: self._rows(slices, atlas) for source, slices in prompts.items()}

    def _rows(self, slices: Sequence[SlicePrompt], atlas: Atlas) -> tuple[Tensor, Tensor, Tensor]:
        index = self.table.index
        return (
            torch.tensor([index(prompt.holistic) for prompt in slices]),  # [N]
            torch.tensor([[index(text) for text in prompt.classwise] for prompt in slices]),  # [N, K-1]
            torch.tensor([[name in prompt.visibility.visible for name in atlas.names] for prompt in slices]),
        )

    def features(self, numbers: Sequence[int], sources: Sequence[Source]) -> TextFeatures:
        """The features of B slices, each with its own source."""
        holistic, classwise, present = (
            torch.stack([self.rows[source][part][number] for number, source in zip(numbers, sources, strict=True)])
            for part in range(3)
        )
        return TextFeatures(
            tokens=self.table.tokens[holistic].float(),
            mask=self.table.mask[holistic],
            classwise=self.table.pooled[classwise].float(),
            present=present,
        )


@dataclass(frozen=True)
class Text:
    """Everything that is said in a run."""

    atlas: Atlas
    prompts: Mapping[str, Mapping[Source, Sequence[SlicePrompt]]]  # case id -> source -> its slices in order
    table: TextTable
    rows: Sequence[PromptRow]  # each distinct text with its source

    def of(self, cases: Sequence[PreparedCase], sources: Collection[Source]) -> SliceText:
        """What some sources say of the slices of some cases, numbered through."""
        by_case = [self.prompts[prepared.case.id] for prepared in cases]
        prompts = {source: [prompt for case in by_case for prompt in case[source]] for source in sources}
        return SliceText(self.table, self.atlas, prompts)


def build_text(
    needed: Sequence[tuple[PreparedCase, Collection[Source]]],
    generator: PromptGenerator,
    encoder: TextEncoder,
    atlas: Atlas,
    *,
    generator_name: str,
    cache: Path,
) -> Text:
    """Write the prompts of each case by the sources that it needs, and encode each distinct text once.

    T is the longest text that this generator can produce for this atlas, on whatever scan: a trained model can then
    read any of them. Raises PromptError for a text that the encoder can't read whole.
    """
    prompts = {
        prepared.case.id: {source: slice_prompts(prepared, source, generator, atlas) for source in sorted(sources)}
        for prepared, sources in needed
    }
    lines = list(dict.fromkeys(_lines(prompts, atlas)))  # each once, in the order of first use
    texts = list(dict.fromkeys(text for *_, text in lines))
    cases = [prepared for prepared, _ in needed]
    length = check_budget(encoder, [*_possible_texts(generator, atlas, cases), *texts])
    table = build_text_table(encoder, texts, text_length=length, cache=cache)
    counts = dict(zip(table.texts, table.token_counts, strict=True))
    rows = [PromptRow(*line, counts[line[-1]], generator_name, encoder.fingerprint) for line in lines]
    return Text(atlas, prompts, table, rows)


def _lines(prompts: Mapping[str, Mapping[Source, Sequence[SlicePrompt]]], atlas: Atlas) -> Iterator[Line]:
    for by_source in prompts.values():
        for source, slices in by_source.items():
            for prompt in slices:
                yield source, "holistic", None, prompt.holistic
                for name, text in zip(atlas.names, prompt.classwise, strict=True):
                    yield source, "classwise", name, text


def _possible_texts(generator: PromptGenerator, atlas: Atlas, cases: Sequence[PreparedCase]) -> Iterator[str]:
    """What can be said in a run or in a later evaluation of it.

    Of every visibility that template and interactive prompts can have, in every third of a stack and without one; and
    of each case whatever any source says, asked for or not: T must not change with the prompts of an evaluation.
    """
    for visibility in atlas.visibilities():
        for placed in (visibility, *(visibility.at(index, 3) for index in range(3))):
            prompts = generate(generator, atlas, placed)
            yield prompts.holistic
            yield from prompts.classwise
    for prepared in cases:
        for source in AVAILABLE:
            for prompt in slice_prompts(prepared, source, generator, atlas):
                yield prompt.holistic
                yield from prompt.classwise
