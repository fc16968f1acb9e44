"""What the prompts of a case read at each granularity and from each source, with their tokens, beside the slice."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import get_args

from textseg.contracts import Atlas, Case, Dataset, PromptGenerator, Source, TextEncoder
from textseg.data.preparation import PreparedCase, prepare
from textseg.drawing.volume_pictures import case_png
from textseg.errors import DataError, RecipeError, suggestion
from textseg.recipe.loading import Recipe
from textseg.registry.discovery import Registry, installed_registry
from textseg.system.files import cache_folder
from textseg.system.messages import counted
from textseg.text.slice_text import AVAILABLE, Knowledge, SlicePrompt, slice_prompts


@dataclass(frozen=True)
class Entry:
    """What one source says of the slice at one granularity (None where the generator has no such setting)."""

    source: Source
    granularity: int | None
    prompt: SlicePrompt
    tokens: int  # of the holistic text, special ones included
    simulated: bool = False  # what a person would have named was read off the annotation

    @property
    def called(self) -> str:
        """The source, marked where it knows the annotation."""
        if self.source == "ground_truth":
            return "ground truth (oracle)"
        return f"{self.source} (simulated)" if self.simulated else self.source


@dataclass(frozen=True)
class PromptSheet:
    """The prompts of one slice."""

    atlas: Atlas
    case: Case
    dataset: Dataset
    slice_index: int  # 0-based
    slice_count: int
    max_tokens: int
    entries: Sequence[Entry]

    def __str__(self) -> str:
        shown = ", ".join(f"{key} {value}" for key, value in self.case.facts.items())
        lines = [
            f"case {self.case.id}, slice {self.slice_index + 1} of {self.slice_count}{f'; {shown}' if shown else ''}"
        ]
        for entry in self.entries:
            lines += ["", _title(entry), f"  {entry.prompt.holistic}"]
        for one in self._by_source():
            said = [text or "(silence)" for text in one.prompt.classwise]
            lines += ["", f"class-wise, {one.called}:", *(f"  {text}" for text in said)]
        lines += ["", f"The text encoder reads at most {self.max_tokens} tokens."]
        return "\n".join(lines)

    def page(self) -> str:
        """The same as one HTML page that needs no network, with the annotated slice."""
        picture = ""
        if self.case.mask_path is not None:
            png = case_png(self.case, self.dataset.label_map(self.case), self.atlas, [self.slice_index])
            data = base64.b64encode(png).decode("ascii")
            picture = f'<img src="data:image/png;base64,{data}" alt="the slice, its annotated structures named">'
        parts = []
        for entry in self.entries:
            parts.append(f"<h2{_mark(entry)}>{escape(_title(entry))}</h2><blockquote>")
            parts.append(f"{escape(entry.prompt.holistic)}</blockquote>")
        for one in self._by_source():
            rows = "".join(
                f"<tr><th>{escape(name)}</th><td>{escape(text) or '<i>silence</i>'}</td></tr>"
                for name, text in zip(self.atlas.names, one.prompt.classwise, strict=True)
            )
            parts.append(f"<details><summary{_mark(one)}>class-wise, {escape(one.called)}</summary>")
            parts.append(f"<table>{rows}</table></details>")
        title = f"Prompts of case {escape(self.case.id)}, slice {self.slice_index + 1} of {self.slice_count}"
        return _PAGE.format(title=title, picture=picture, body="".join(parts))

    def _by_source(self) -> Iterator[Entry]:
        yield from {entry.source: entry for entry in self.entries}.values()


def prompt_sheet(
    recipe: Recipe, *, case_id: str | None = None, slice_number: int | None = None, named: str | None = None
) -> PromptSheet:
    """The prompts of one slice of a case: its first case and the slice that shows most, unless others are named.

    Args:
        recipe: with a section `prompts`.
        case_id: which case.
        slice_number: which slice, counted from 1.
        named: what a person says is visible, for `interactive`; else that is read off the annotation.

    What `predicted` prompts say only a trained run knows. Raises RecipeError without prompts, and DataError for a case
    or a slice that there is not.
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
    encoder: TextEncoder = registry.build(
        "text_encoder", settings.text_encoder.use, settings=settings.text_encoder.settings
    )
    knowledge = Knowledge(
        template_position=settings.template_position, named={prepared.case.id: named} if named else {}
    )
    entries = []
    for source in AVAILABLE:
        for granularity, generator in _generators(recipe, registry, dataset.atlas):
            prompt = slice_prompts(prepared, source, generator, dataset.atlas, knowledge)[index]
            tokens = encoder.count_tokens([prompt.holistic])[0]
            entries.append(Entry(source, granularity, prompt, tokens, source == "interactive" and not named))
    return PromptSheet(dataset.atlas, prepared.case, dataset, index, count, encoder.max_tokens, entries)


def _prepared(recipe: Recipe, dataset: Dataset, case_id: str | None) -> PreparedCase:
    cases = {case.id: case for case in dataset.cases() if case.mask_path is not None}
    if not cases:
        raise DataError(f"dataset: '{recipe.dataset.use}' has no case with a mask, off which prompts could be read.")
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
        asked = settings if level is None else {**settings, "granularity": level}
        yield level, registry.build("prompt_generator", use, atlas, settings=asked)


def _title(entry: Entry) -> str:
    level = "" if entry.granularity is None else f", granularity {entry.granularity}"
    return f"{entry.called}{level}: {counted(entry.tokens, 'token')}"


def _mark(entry: Entry) -> str:
    return ' class="oracle"' if entry.source == "ground_truth" or entry.simulated else ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1.5rem; }}
main {{ display: flex; flex-wrap: wrap; gap: 2rem; }} main > div {{ flex: 1 1 28rem; }}
img {{ max-width: 100%; flex: 0 1 26rem; height: auto; align-self: flex-start; border-radius: .4rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1rem; margin: 1.2rem 0 .3rem; }}
blockquote {{ margin: 0; padding: .5rem .9rem; border-left: 3px solid #3b82c4; background: #8881; }}
.oracle {{ color: #c0392b; }} table {{ border-collapse: collapse; }} details {{ margin-top: 1rem; }}
th, td {{ padding: .1rem .8rem .1rem 0; text-align: left; font-weight: normal; }} th {{ font-weight: 600; }}
</style></head><body><h1>{title}</h1><main>{picture}<div>{body}</div></main></body></html>
"""
