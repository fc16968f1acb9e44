"""The prompts of one slice, from each source and at each granularity, with their token counts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from textseg.contracts import Atlas, Case, Dataset, PromptGenerator, Source, TextEncoder
from textseg.data.preparation import PreparedCase, prepare
from textseg.drawing.page import render
from textseg.drawing.volume_pictures import case_png
from textseg.errors import DataError, RecipeError, suggestion
from textseg.recipe.schema import Recipe
from textseg.registry.discovery import Registry, installed_registry
from textseg.system.files import cache_folder
from textseg.system.messages import counted
from textseg.text.prompts import require_region
from textseg.text.reading import interactive_visibility, summary
from textseg.text.reports import Report, read_reports
from textseg.text.slice_text import AVAILABLE, Knowledge, SlicePrompt, slice_prompts
from textseg.text.visibility import statement


@dataclass(frozen=True)
class Entry:
    """The prompts of one source at one granularity; None where the generator has no such setting."""

    source: Source
    granularity: int | None
    prompt: SlicePrompt
    tokens: int  # of the holistic text, special ones included
    simulated: bool = False  # nobody named what is visible, so it was read from the annotation

    @property
    def knows_annotation(self) -> bool:
        """Return whether the annotation was read to write these prompts."""
        return self.source == "ground_truth" or self.simulated

    @property
    def label(self) -> str:
        """Return the source, marked where it knows the annotation."""
        if self.source == "ground_truth":
            return "ground truth (oracle)"
        return f"{self.source} (simulated)" if self.simulated else self.source

    @property
    def title(self) -> str:
        """Return the source with its granularity and the length of its text."""
        level = "" if self.granularity is None else f", granularity {self.granularity}"
        return f"{self.label}{level}: {counted(self.tokens, 'token')}"


@dataclass(frozen=True)
class PromptSheet:
    """The prompts of one slice, as text for a terminal and as a page."""

    atlas: Atlas
    case: Case
    dataset: Dataset
    slice_index: int  # 0-based
    slice_count: int
    max_tokens: int
    entries: Sequence[Entry]
    read: str = ""  # what was read from the words of a person

    def __str__(self) -> str:
        facts = ", ".join(f"{key} {value}" for key, value in self.case.facts.items())
        case = f"case {self.case.id}, slice {self.slice_index + 1} of {self.slice_count}"
        lines = ["; ".join(filter(None, (case, facts))), *([f"read: {self.read}"] if self.read else [])]
        for entry in self.entries:
            lines += ["", entry.title, f"  {entry.prompt.holistic}"]
        for entry in self.by_source:
            texts = [text or "(no text)" for text in entry.prompt.classwise]
            lines += ["", f"class-wise, {entry.label}:", *(f"  {text}" for text in texts)]
        lines += ["", f"The text encoder reads at most {self.max_tokens} tokens."]
        return "\n".join(lines)

    def page(self) -> str:
        """Return one HTML page that needs no network: every prompt, beside the annotated slice."""
        png = None
        if self.case.mask is not None:
            png = case_png(self.case, self.dataset.label_map(self.case), self.atlas, [self.slice_index])
        return render("prompt_sheet.html.j2", sheet=self, png=png)

    @property
    def by_source(self) -> list[Entry]:
        """Return the last entry of each source, whose class-wise texts are shown."""
        return list({entry.source: entry for entry in self.entries}.values())


def prompt_sheet(
    recipe: Recipe, *, case_id: str | None = None, slice_number: int | None = None, named: str | None = None
) -> PromptSheet:
    """Return the prompts of one slice of a case.

    Args:
        recipe: with a section `prompts`.
        case_id: a case with a mask; the first one by default.
        slice_number: counted from 1; by default the slice that shows most structures.
        named: the words of a person on what is visible, for `interactive` prompts; by default the annotation is read.

    `predicted` prompts are left out, since they need a trained model. Raises RecipeError for a recipe without prompts,
    and DataError for an unknown case or slice.
    """
    if recipe.prompts is None:
        raise RecipeError(f"prompts: recipe '{recipe.name}' has none; its model reads no text.")
    registry, settings = installed_registry(), recipe.prompts
    dataset: Dataset = registry.build("dataset", recipe.dataset.use, settings=recipe.dataset.settings)
    prepared = _prepared(recipe, dataset, case_id)
    count = prepared.slice_count
    if slice_number is not None and not 1 <= slice_number <= count:
        raise DataError(f"--slice {slice_number}: case '{prepared.case.id}' has slices 1 to {count}.")
    most = max(range(count), key=lambda index: (len(prepared.present[index]), -abs(index - count // 2)))
    index = most if slice_number is None else slice_number - 1
    part, persons, read = settings.text_encoder, {}, ""
    if named is not None:
        stated = interactive_visibility(dataset.atlas, named)
        persons[prepared.case.id] = statement(dataset.atlas, stated.visible)
        read = summary(dataset.atlas, stated.visible)
    encoder: TextEncoder = registry.build("text_encoder", part.use, settings=part.settings)
    counted = settings.template == "listed"
    reports: Mapping[str, Report] = {}
    if settings.report is not None:
        plain, reports = read_reports(dataset.atlas, settings.report, dataset.cases())
        of_case = next(case for case in plain if case.id == prepared.case.id)
        prepared = replace(prepared, case=of_case)
    knowledge = Knowledge(template_position=settings.template_position, counted=counted, named=persons, reports=reports)
    entries = []
    for source in AVAILABLE if prepared.case.id in reports else AVAILABLE[:-1]:
        for granularity, generator in _generators(recipe, registry, dataset.atlas):
            prompt = slice_prompts(prepared, source, generator, dataset.atlas, knowledge)[index]
            tokens = encoder.count_tokens([prompt.holistic])[0]
            entries.append(Entry(source, granularity, prompt, tokens, source == "interactive" and named is None))
    return PromptSheet(dataset.atlas, prepared.case, dataset, index, count, encoder.max_tokens, entries, read)


def _prepared(recipe: Recipe, dataset: Dataset, case_id: str | None) -> PreparedCase:
    cases = {case.id: case for case in dataset.cases() if case.mask is not None}
    if not cases:
        raise DataError(f"dataset: '{recipe.dataset.use}' has no case with a mask, and prompts are read from masks.")
    if case_id is not None and case_id not in cases:
        raise DataError(f"--case: there is no case '{case_id}' with a mask.{suggestion(case_id, cases)}")
    chosen = cases[case_id] if case_id is not None else next(iter(cases.values()))
    return prepare([chosen], dataset.label_map, recipe.preparation, cache_folder(), plane=dataset.atlas.plane)[0]


def _generators(recipe: Recipe, registry: Registry, atlas: Atlas) -> Iterator[tuple[int | None, PromptGenerator]]:
    assert recipe.prompts is not None
    use, settings = recipe.prompts.generator.use, recipe.prompts.generator.settings
    parameter: inspect.Parameter | None = registry.component("prompt_generator", use).settings().get("granularity")
    levels: Sequence[int | None] = get_args(parameter.annotation) if parameter is not None else (None,)
    for level in levels or (None,):
        changed = settings if level is None else {**settings, "granularity": level}
        generator = registry.build("prompt_generator", use, atlas, settings=changed)
        require_region(generator, atlas, use)
        yield level, generator
