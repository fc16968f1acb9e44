"""The conditions of a probe, and the texts that the model gets under each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from textseg.contracts import Source, Visibility
from textseg.data.preparation import PreparedCase
from textseg.metrics.scores import Mark
from textseg.runs.experiment import Experiment
from textseg.text.reading import interactive_visibility
from textseg.text.slice_text import SlicePrompt, slice_prompts, volume_prompts
from textseg.text.visibility import shifted

BASELINE = "template"
REPORT = "report"  # only of recipes with reports
RIGHT: Source = "interactive"
MOVED = {"one_level_up": -1, "one_level_down": 1}  # conditions with a wrong list: its levels, downwards positive
SYLLABLES = ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu"]

WritePrompts = Callable[["Subject"], Sequence[SlicePrompt] | None]  # None for a case that is left out


@dataclass(frozen=True)
class Subject:
    """The input of a condition: a case, its prompts, the prompts of another patient, and a random generator."""

    prepared: PreparedCase
    prompts: Mapping[Source, Sequence[SlicePrompt]]
    another: Sequence[SlicePrompt]
    experiment: Experiment
    chance: random.Random


@dataclass(frozen=True)
class Condition:
    """A way to change the text of a model; `mark` is set if it needs the annotation of the case."""

    name: str
    meaning: str
    mark: Mark
    write_prompts: WritePrompts | None  # None: read from a first prediction

    @property
    def label(self) -> str:
        """Return the name in probe.csv."""
        return f"{self.name} ({self.mark})" if self.mark else self.name


def probe_subject(experiment: Experiment, number: int) -> Subject:
    """Return the input of the conditions for a test case, by its number."""
    cases = experiment.cases["test"]
    prepared, atlas, text = cases[number], experiment.atlas, experiment.text
    assert text is not None
    sources: tuple[Source, ...] = ("template", "interactive", "ground_truth")
    knowledge = replace(text.knowledge, interactive_error=0.0, named={})
    prompts = {source: slice_prompts(prepared, source, text.generator, atlas, knowledge) for source in sources}
    others = [case for case in cases if case.case.patient != prepared.case.patient] or [prepared]
    neighbour = others[number % len(others)]
    # The volumes may differ in length: each slice gets the prompt at the same relative position.
    theirs = slice_prompts(neighbour, "ground_truth", text.generator, atlas)
    positions = (np.arange(prepared.slice_count) * len(theirs)) // prepared.slice_count
    another = [theirs[position] for position in positions]
    seed = f"{experiment.recipe.seed}:{prepared.case.id}"  # a text: hashes of other types differ between processes
    return Subject(prepared, prompts, another, experiment, random.Random(seed))


def used_conditions(experiment: Experiment) -> tuple[Condition, ...]:
    """Return the conditions of a probe; that of reports only where the recipe has any."""
    return tuple(condition for condition in CONDITIONS if condition.name != REPORT or experiment.reports)


def _reported(case: Subject) -> Sequence[SlicePrompt] | None:
    text, prepared = case.experiment.text, case.prepared
    assert text is not None
    if prepared.case.id not in case.experiment.reports:
        return None
    return slice_prompts(prepared, "report", text.generator, case.experiment.atlas, text.knowledge)


def _of(source: Source) -> WritePrompts:
    return lambda case: case.prompts[source]


def _moved(case: Subject, *, levels: int) -> Sequence[SlicePrompt] | None:
    """Return the prompts of a person who miscounted; None if the atlas ends before the list that is moved by `levels`.

    A list that is cut at the end of the atlas would be a shorter right list.
    """
    text, atlas, right = case.experiment.text, case.experiment.atlas, case.prompts[RIGHT][0].visibility
    assert text is not None
    stretch = [name for name in atlas.sequence if name in right.visible]
    moved = shifted(atlas, stretch[0], stretch[-1], levels) if stretch else None
    if moved is None:
        return None
    visibility = interactive_visibility(atlas, moved, right.facts)
    return volume_prompts(visibility, case.prepared.slice_count, text.generator, atlas)


def _empty(case: Subject) -> Sequence[SlicePrompt]:
    # A full stop instead of an empty text, since a text encoder may need at least one token.
    return [replace(p, holistic=".", classwise=("",) * len(p.classwise)) for p in case.prompts["template"]]


def _shuffled(case: Subject) -> Sequence[SlicePrompt]:
    return [_words(prompt, lambda words: case.chance.sample(words, len(words))) for prompt in case.prompts["template"]]


def _nonsense(case: Subject) -> Sequence[SlicePrompt]:
    def word() -> str:
        return "".join(case.chance.choices(SYLLABLES, k=2))

    return [_words(prompt, lambda words: [word() for _ in words]) for prompt in case.prompts["template"]]


def _words(prompt: SlicePrompt, change: Callable[[list[str]], list[str]]) -> SlicePrompt:
    holistic, *classwise = (" ".join(change(text.split())) for text in (prompt.holistic, *prompt.classwise))
    return replace(prompt, holistic=holistic, classwise=tuple(classwise))


def _paraphrased(case: Subject) -> Sequence[SlicePrompt]:
    prompts = []
    for prompt in case.prompts["template"]:
        # The template of a volume has every structure as visible, in an uncounted one as well as in a listed one.
        names = prompt.visibility.visible
        if prompt.visibility.counted:
            holistic = f"In this picture one can make out {', '.join(names)}."
            classwise = tuple(f"{name} can be seen." for name in names)
        else:
            holistic = "In this picture nobody has said which structures one can make out."
            classwise = tuple(f"Nobody has checked for {name}." for name in names)
        prompts.append(replace(prompt, holistic=holistic, classwise=classwise))
    return prompts


def _with_one_changed(case: Subject, *, present: bool) -> Sequence[SlicePrompt]:
    """Return prompts of the structures in the volume, with one of them left out or with one absent structure added."""
    text, atlas = case.experiment.text, case.experiment.atlas
    assert text is not None
    shown = {atlas.names[index - 1] for plane in case.prepared.present for index in plane}
    choice = [name for name in atlas.names if (name in shown) == present]
    changed = shown ^ ({case.chance.choice(choice)} if choice else set())
    visible = tuple(name for name in atlas.names if name in changed)
    visibility = Visibility(visible, source="ground_truth", scope="volume", facts=case.prepared.case.facts)
    return volume_prompts(visibility, case.prepared.slice_count, text.generator, atlas)


CONDITIONS = (
    Condition(BASELINE, "the recipe's template, which knows nothing of the image", "", _of("template")),
    Condition("predicted", "what a first pass found", "", None),
    Condition(REPORT, "the words that came with the case", "report", _reported),
    Condition(
        RIGHT,
        "first and last level, as a person names them (read off the annotation)",
        "simulated",
        _of("interactive"),
    ),
    Condition(
        "one_level_up",
        "the same, miscounted by one level upwards",
        "oracle",
        partial(_moved, levels=MOVED["one_level_up"]),
    ),
    Condition(
        "one_level_down",
        "the same, miscounted by one level downwards",
        "oracle",
        partial(_moved, levels=MOVED["one_level_down"]),
    ),
    Condition("ground_truth", "what each slice shows", "oracle", _of("ground_truth")),
    Condition(
        "claimed",
        "what the volume shows, and one structure that it does not",
        "oracle",
        partial(_with_one_changed, present=False),
    ),
    Condition(
        "denied", "what the volume shows, but for one structure", "oracle", partial(_with_one_changed, present=True)
    ),
    Condition("another_patient", "what slices of another patient show", "", lambda case: case.another),
    Condition("paraphrased", "the template in other words", "", _paraphrased),
    Condition("shuffled", "the words of the template in disorder", "", _shuffled),
    Condition("nonsense", "as many invented words", "", _nonsense),
    Condition("empty", "a full stop", "", _empty),
)
