"""The prompts of every slice, by source, and their frozen features."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from textseg.contracts import Atlas, Case, PromptGenerator, Source, TextEncoder, TextFeatures, Visibility
from textseg.errors import PromptError
from textseg.randomness import simulated_person
from textseg.system.devices import Movable
from textseg.text.embeddings import PromptRow, TextTable, build_text_table, check_budget
from textseg.text.prompts import generate
from textseg.text.reading import interactive_visibility
from textseg.text.reports import Report
from textseg.text.visibility import (
    ground_truth_visibility,
    person_visibility,
    predicted_visibilities,
    shifted,
    template_visibility,
)


class AnnotatedCase(Protocol):
    """A case whose slices are annotated: a `PreparedCase`, which this package may not import."""

    @property
    def case(self) -> Case: ...
    @property
    def slice_count(self) -> int: ...
    @property
    def present(self) -> tuple[tuple[int, ...], ...]:
        """The class indices in each slice."""
        ...


MOST_TEXTS = 20_000  # distinct texts of a run
# Sources that need no model. A draw holds the position of its source, so that a new one comes last.
AVAILABLE: tuple[Source, ...] = ("template", "interactive", "ground_truth", "report")

Line = tuple[Source, Literal["holistic", "classwise"], str | None, str]  # source, view, structure, text


@dataclass(frozen=True)
class Knowledge:
    """The knowledge of prompt sources beyond the annotation.

    Args:
        template_position: True if the template states the position of a slice in the stack, which needs no person.
        counted: False if the template says that nobody counted the levels.
        interactive_error: probability that the simulated person has miscounted a volume by one level. At an end of the
            atlas the error goes the other way, and a stretch that can't be moved at all is named rightly.
        seed: of that error.
        named: statements of a real person, by case id, in place of the simulated one: "T10:L5" or "L4, L5". If there
            are any, a case without one gets the template.
        reports: the words that came with each case, by its id; a case without any gets the template.
    """

    template_position: bool = True
    counted: bool = True
    interactive_error: float = 0.0
    seed: int = 0
    named: Mapping[str, str] = field(default_factory=dict)
    reports: Mapping[str, Report] = field(default_factory=dict)


@dataclass(frozen=True)
class SlicePrompt:
    """The prompts of one slice from one source."""

    holistic: str
    classwise: tuple[str, ...]
    visibility: Visibility

    @property
    def texts(self) -> tuple[str, ...]:
        """The holistic text, then the text of each structure."""
        return self.holistic, *self.classwise


def slice_prompts(
    prepared: AnnotatedCase,
    source: Source,
    generator: PromptGenerator,
    atlas: Atlas,
    knowledge: Knowledge = Knowledge(),
) -> list[SlicePrompt]:
    """Return the prompts of every slice of a case, in order, from one source.

    `interactive` uses what a person named. Without that, it simulates a person who names the first and the last
    structure of the sequence in the volume's annotation, or all visible ones where the atlas has no order. `report`
    states what came with the case, and the template for a case without a report. `predicted` prompts need a model: see
    `volume_prompts`.
    """
    if source == "ground_truth":
        facts = prepared.case.facts
        return [
            write_prompt(generator, atlas, ground_truth_visibility(atlas, shown, facts).at(index, prepared.slice_count))
            for index, shown in enumerate(prepared.present)
        ]
    visibility = _of_volume(prepared, source, atlas, knowledge)
    position = visibility.source != "template" or knowledge.template_position
    return volume_prompts(visibility, prepared.slice_count, generator, atlas, position=position)


def volume_prompts(
    visibility: Visibility, slice_count: int, generator: PromptGenerator, atlas: Atlas, *, position: bool = True
) -> list[SlicePrompt]:
    """Return the prompts of every slice of a volume, which state `visibility`.

    With `position` they also state the position of the slice in the stack.
    """
    if not position:
        return [write_prompt(generator, atlas, visibility)] * slice_count
    return [write_prompt(generator, atlas, visibility.at(index, slice_count)) for index in range(slice_count)]


def write_prompt(generator: PromptGenerator, atlas: Atlas, visibility: Visibility) -> SlicePrompt:
    """Return the prompts that state a visibility."""
    text = generate(generator, atlas, visibility)
    return SlicePrompt(text.holistic, text.classwise, visibility)


def _of_volume(prepared: AnnotatedCase, source: Source, atlas: Atlas, knowledge: Knowledge) -> Visibility:
    facts, case = prepared.case.facts, prepared.case.id
    if source == "report" and case in knowledge.reports:
        return knowledge.reports[case].visibility(atlas, facts)
    if source in ("template", "report") or (knowledge.named and case not in knowledge.named):
        return template_visibility(atlas, facts, counted=knowledge.counted)
    if case in knowledge.named:
        return interactive_visibility(atlas, knowledge.named[case], facts)
    shown = ground_truth_visibility(atlas, {index for plane in prepared.present for index in plane}, facts).visible
    stretch = [name for name in atlas.sequence if name in shown]
    if not stretch:
        return interactive_visibility(atlas, shown or atlas.names, facts)
    levels = miscounted(case, knowledge.interactive_error, knowledge.seed)
    # Where the atlas ends, only the opposite error is possible; a stretch that can't move at all is named rightly.
    moved = (shifted(atlas, stretch[0], stretch[-1], move) for move in (levels, -levels, 0))
    return interactive_visibility(atlas, next(names for names in moved if names), facts)


def miscounted(case_id: str, probability: float, seed: int) -> int:
    """Return the levels by which a simulated person has miscounted a case: -1, 0 or 1, downwards positive."""
    chance = simulated_person(seed, case_id)
    return int(chance.choice((-1, 1))) if chance.random() < probability else 0


@dataclass(frozen=True)
class TextRows(Movable):
    """The rows of the text table that hold the features of B slices."""

    holistic: Tensor  # [B]
    classwise: Tensor  # [B, K-1]
    present: Tensor  # [B, K-1] bool


class SliceText:
    """The rows of the text table that belong to each slice, for each source."""

    def __init__(self, table: TextTable, atlas: Atlas, prompts: Mapping[str, Sequence[SlicePrompt]]) -> None:
        self.table = table
        self._tables: dict[torch.device, list[Tensor]] = {}
        self.rows = {source: self._rows(slices, atlas) for source, slices in prompts.items()}

    def _rows(self, slices: Sequence[SlicePrompt], atlas: Atlas) -> tuple[Tensor, Tensor, Tensor]:
        index = self.table.index
        return (
            torch.tensor([index(prompt.holistic) for prompt in slices]),  # [N]
            torch.tensor([[index(text) for text in prompt.classwise] for prompt in slices]),  # [N, K-1]
            torch.tensor([[name in prompt.visibility.visible for name in atlas.names] for prompt in slices]),
        )

    def holistic(self, source: str, number: int) -> str:
        """Return the holistic prompt of a slice from one source."""
        return self.table.texts[int(self.rows[source][0][number])]

    def features(self, numbers: Sequence[int], sources: Sequence[str]) -> TextFeatures:
        """Return the features of B slices, each with its own source."""
        return self.gather(self.chosen(numbers, sources))

    def chosen(self, numbers: Sequence[int], sources: Sequence[str]) -> TextRows:
        """Return the rows of B slices, each with its own source; a worker process returns them instead of features."""
        picks = list(zip(numbers, sources, strict=True))
        return TextRows(*(torch.stack([self.rows[source][part][n] for n, source in picks]) for part in range(3)))

    def gather(self, rows: TextRows) -> TextFeatures:
        """Return the features of B slices on the device of their rows; the table is copied there once."""
        device = rows.holistic.device
        if device not in self._tables:
            self._tables[device] = [part.to(device) for part in (self.table.tokens, self.table.mask, self.table.pooled)]
        tokens, mask, pooled = self._tables[device]
        return TextFeatures(
            tokens=tokens[rows.holistic].float(),
            mask=mask[rows.holistic],
            classwise=pooled[rows.classwise].float(),
            present=rows.present,
        )


@dataclass(frozen=True)
class Text:
    """All prompts of a run with their features."""

    atlas: Atlas
    generator: PromptGenerator
    prompts: Mapping[str, Mapping[Source, Sequence[SlicePrompt]]]  # case id -> source -> its slices in order
    table: TextTable
    rows: Sequence[PromptRow]  # each distinct text with its source
    knowledge: Knowledge = Knowledge()

    def of(self, cases: Sequence[AnnotatedCase], sources: Collection[Source]) -> SliceText:
        """Return the text of the slices of some cases, numbered through, from some sources."""
        by_case = [self.prompts[prepared.case.id] for prepared in cases]
        prompts: dict[str, Sequence[SlicePrompt]] = {
            source: [prompt for case in by_case for prompt in case[source]] for source in sources
        }
        return SliceText(self.table, self.atlas, prompts)

    def stating(self, prepared: AnnotatedCase, visibility: Visibility) -> SliceText:
        """Return the text of the slices of a case with prompts that state `visibility`.

        Raises PromptError for a text that is not in the table.
        """
        prompts = volume_prompts(visibility, prepared.slice_count, self.generator, self.atlas)
        return SliceText(self.table, self.atlas, {visibility.source: prompts})


def build_text(
    needed: Sequence[tuple[AnnotatedCase, Collection[Source]]],
    generator: PromptGenerator,
    encoder: TextEncoder,
    atlas: Atlas,
    *,
    generator_name: str,
    cache: Path,
    knowledge: Knowledge = Knowledge(),
    drawn: Sequence[SlicePrompt] = (),
    stated: Collection[str] = (),
) -> Text:
    """Write the prompts of each case by the sources that it needs, and encode each distinct text once.

    For a case that needs `predicted`, the table holds the prompts of every visibility that a first pass may predict. T
    is the longest text that this generator can produce for this atlas on any scan, so that a trained model can read
    each of them.

    Args:
        needed: the cases, each with its prompt sources.
        generator: the prompt generator.
        encoder: the text encoder.
        atlas: the structures.
        generator_name: for prompts.jsonl.
        cache: the folder of encoded texts.
        knowledge: of the prompt sources, beyond the annotation.
        drawn: further prompts, which training draws.
        stated: ids of cases of which every stretch may be stated, such as that of a window.

    Raises PromptError for a text that the encoder can't read whole, and for more than `MOST_TEXTS` texts.
    """
    prompts: dict[str, dict[Source, Sequence[SlicePrompt]]] = {
        prepared.case.id: {
            source: slice_prompts(prepared, source, generator, atlas, knowledge)
            for source in sorted(sources)
            if source != "predicted"
        }
        for prepared, sources in needed
    }
    written = [prompt for by_source in prompts.values() for slices in by_source.values() for prompt in slices]
    guided = [prepared for prepared, sources in needed if "predicted" in sources]
    windowed = [prepared for prepared, _ in needed if prepared.case.id in stated]
    written += _any_stretch(guided, "predicted", generator, atlas)
    written += _any_stretch(windowed, "interactive", generator, atlas)
    lines = list(dict.fromkeys(_lines([*written, *drawn], atlas)))  # each once, in the order of first use
    texts = list(dict.fromkeys(text for *_, text in lines))
    cases = [prepared for prepared, _ in needed]
    length = check_budget(encoder, [*_possible_texts(generator, atlas, cases, knowledge), *texts])
    if len(texts) > MOST_TEXTS:
        gigabytes = len(texts) * length * encoder.feature_size * 2 / 1e9
        raise PromptError(
            f"This recipe needs {len(texts):,} distinct texts, {gigabytes:.1f} GB of features, and at most "
            f"{MOST_TEXTS:,} are possible. Lower the granularity of the prompt generator or leave out `facts`, or take "
            "ground_truth or report out of prompts.training."
        )
    if not knowledge.counted:
        _require_distinct(generator, atlas)
    table = build_text_table(encoder, texts, text_length=length, cache=cache)
    counts = dict(zip(table.texts, table.token_counts, strict=True))
    rows = [PromptRow(*line, counts[line[-1]], generator_name, encoder.fingerprint) for line in lines]
    return Text(atlas, generator, prompts, table, rows, knowledge)


def _lines(prompts: Iterable[SlicePrompt], atlas: Atlas) -> Iterator[Line]:
    for prompt in prompts:
        source = prompt.visibility.source  # that of the template for a case without a report
        yield source, "holistic", None, prompt.holistic
        for name, text in zip(atlas.names, prompt.classwise, strict=True):
            yield source, "classwise", name, text


def _any_stretch(
    cases: Sequence[AnnotatedCase], source: Source, generator: PromptGenerator, atlas: Atlas
) -> list[SlicePrompt]:
    """Return the prompts of all visibilities of a first pass; cases with equal facts and slice counts share them."""
    alike = {(*sorted(case.case.facts.items()), case.slice_count): case for case in cases}
    return [
        prompt
        for case in alike.values()
        for visibility in predicted_visibilities(atlas, case.case.facts)
        for prompt in volume_prompts(replace(visibility, source=source), case.slice_count, generator, atlas)
    ]


def require_levels(generator: PromptGenerator, atlas: Atlas) -> None:
    """Raise PromptError for a generator whose texts do not name levels, so that no model could know new names."""
    whole, first = (person_visibility(atlas, names) for names in (atlas.sequence, atlas.sequence[:1]))
    if generator(whole).holistic == generator(first).holistic:
        raise PromptError(
            f"prompts.renumbering: the holistic text of {type(generator).__name__} does not depend on the levels that "
            "are visible, so a model could not know the new names. Raise the granularity, or remove 'renumbering'."
        )


def _require_distinct(generator: PromptGenerator, atlas: Atlas) -> None:
    """Raise PromptError for a generator whose uncounted template equals that of a person who saw everything."""
    listed, uncounted = (generator(template_visibility(atlas, counted=counted)) for counted in (True, False))
    if listed.holistic == uncounted.holistic or listed.classwise == uncounted.classwise:
        raise PromptError(
            f"prompts.template: {type(generator).__name__} writes the same text whether anybody counted the levels or "
            "not, so a model could not tell them apart. Use template: listed, or a generator that reads "
            "`Visibility.counted`."
        )


def _possible_texts(
    generator: PromptGenerator, atlas: Atlas, cases: Sequence[AnnotatedCase], knowledge: Knowledge
) -> Iterator[str]:
    """Give all texts that a run or a later evaluation of it may need.

    These are the prompts of every visibility of template and interactive prompts, with the facts of each case, in every
    third of a stack and without a position; and the prompts of each case from every source, even if the recipe does not
    use it: T must not depend on the prompts of an evaluation.
    """
    facts = {tuple(sorted(prepared.case.facts.items())) for prepared in cases} | {()}
    for visibility in (replace(plain, facts=dict(known)) for plain in atlas.visibilities() for known in sorted(facts)):
        for placed in (visibility, *(visibility.at(index, 3) for index in range(3))):
            yield from write_prompt(generator, atlas, placed).texts
    for prepared in cases:
        for source in AVAILABLE if prepared.case.id in knowledge.reports else AVAILABLE[:-1]:
            for prompt in slice_prompts(prepared, source, generator, atlas, Knowledge(reports=knowledge.reports)):
                yield from prompt.texts
