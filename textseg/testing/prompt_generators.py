"""Checks of prompt generators: pure functions from a visibility to text."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import torch

from textseg.contracts import Atlas, Prompts, Source, Visibility
from textseg.testing.conformance import Subject, check
from textseg.testing.examples import REGION
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed
from textseg.text.prompts import generate
from textseg.text.visibility import template_visibility

KIND = "prompt_generator"


def visibilities(atlas: Atlas) -> Iterator[Visibility]:
    """Yield visibilities: every source and slice position, with and without facts, and slices that show nothing."""
    for visibility in atlas.visibilities():
        yield visibility
        yield visibility.at(0, 1)
    for name in atlas.names:
        yield Visibility((name,), source="ground_truth", scope="slice", slice_index=4, slice_count=9)
    facts = {"sequence": "T2", "sex": "female", "view": "sagittal"}
    for source in get_args(Source):
        yield Visibility((), source=source, scope="slice", slice_index=8, slice_count=9)
        yield Visibility(atlas.names[:2], source=source, scope="slice", slice_index=0, slice_count=9, facts=facts)


@check("construction", KIND, fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the component is built for an atlas and is a function of a visibility."""
    atlas = subject.atlas or REGION
    generator = subject.build(atlas)
    promise(callable(generator), "an object that can be called with a Visibility", type(generator).__name__)
    given = generator(template_visibility(atlas))
    promise(isinstance(given, Prompts), "textseg.contracts.Prompts", type(given).__name__)


@check("surroundings", KIND, tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction and call touch no file, no network and no random numbers."""
    atlas = subject.atlas or REGION
    before = torch.get_rng_state()
    for _ in range(2):
        with undisturbed("construction", allowed=subject.settings.values()):
            generator = subject.build(atlas)
        with undisturbed("a call"):
            generator(template_visibility(atlas))
    promise(torch.equal(before, torch.get_rng_state()), "no random numbers", "a change of torch's random state")


@check("prompts", KIND)
def _prompts(subject: Subject) -> None:
    """Check that every visibility gives a text for the slice, and one for each structure in class order."""
    atlas = subject.atlas or REGION
    generator = subject.build(atlas)
    for visibility in visibilities(atlas):
        given = generate(generator, atlas, visibility)
        texts = (given.holistic, *given.classwise)
        promise(isinstance(given.classwise, tuple), "class-wise prompts in a tuple", type(given.classwise).__name__)
        promise(all(isinstance(text, str) for text in texts), f"texts for {visibility}", given)


@check("pure", KIND)
def _pure(subject: Subject) -> None:
    """Check that equal visibilities give equal texts, in any order of calls and from any copy."""
    atlas = subject.atlas or REGION
    generator = subject.build(atlas)
    asked = list(visibilities(atlas))
    first = [generator(visibility) for visibility in asked]
    again = [generator(visibility) for visibility in reversed(asked)][::-1]
    for name, texts in (
        ("again, in another order", again),
        ("by another one of the same settings", list(map(subject.build(atlas), asked))),
        ("by a pickled copy", list(map(pickle.loads(pickle.dumps(generator)), asked))),
    ):
        for visibility, before, after in zip(asked, first, texts, strict=True):
            promise(before == after, f"the same text {name} for {visibility}", f"{before} and {after}")


@check("names", KIND)
def _names(subject: Subject) -> None:
    """Check that each visible structure has a distinct text, and that leaving it out changes the text."""
    atlas = subject.atlas or REGION
    generator = subject.build(atlas)
    everything = template_visibility(atlas)
    complete = generator(everything)
    first: dict[str, str] = {}
    for name, text in zip(atlas.names, complete.classwise, strict=True):
        promise(text.strip(), f"a text for '{name}' where it is visible", "an empty one")
        owner = first.setdefault(text, name)
        promise(owner == name, "a text of its own for each visible structure", f"'{text}' for '{owner}' and '{name}'")
    for name in atlas.names:
        without = generator(replace(everything, visible=tuple(n for n in atlas.names if n != name)))
        promise(without != complete, f"another text where '{name}' is not visible", f"the same: '{complete.holistic}'")


@check("uncounted", KIND)
def _uncounted(subject: Subject) -> None:
    """Check that the text of a template that nobody counted is not the text of any statement."""
    atlas = subject.atlas or REGION
    generator = subject.build(atlas)
    nobody = [visibility for visibility in visibilities(atlas) if not visibility.counted]
    holistic = {generator(visibility).holistic for visibility in nobody}
    classwise = [generator(visibility).classwise for visibility in nobody]
    for visibility in visibilities(atlas):
        if not visibility.counted:
            continue
        stated = generator(visibility)
        wanted = "a text of its own where Visibility.counted is False (see `prompts.template: uncounted`)"
        promise(stated.holistic not in holistic, wanted, f"that of {visibility.visible}: '{stated.holistic}'")
        for name, text, *unknown in zip(atlas.names, stated.classwise, *classwise, strict=True):
            promise(text not in unknown, f"{wanted} for '{name}', too", f"that of {visibility.visible}: '{text}'")


CHECKS = (_surroundings, _construction, _prompts, _pure, _names, _uncounted)
