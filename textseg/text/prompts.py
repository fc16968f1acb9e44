"""Prompt generators for any atlas: sentences about the structures that are visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import ClassVar, Literal

from textseg.contracts import Atlas, Plane, PromptGenerator, Prompts, Visibility
from textseg.errors import PromptError
from textseg.system.messages import counted

Granularity = Literal[1, 2, 3]
Wording = Literal["corrected", "paper"]
Absence = Literal["stated", "silent"]
THIRDS: Mapping[Plane, tuple[str, str, str]] = {
    "sagittal": ("left third of the slices", "true mid-sagittal plane", "right third of the slices"),
    "coronal": ("anterior third of the slices", "middle third of the slices", "posterior third of the slices"),
    "axial": ("upper third of the slices", "middle third of the slices", "lower third of the slices"),
    "short_axis": ("basal third of the slices", "mid-ventricular third of the slices", "apical third of the slices"),
}
FACT_PHRASES = {"sex": "The patient is {}."}  # if "The <fact> is <value>." would be wrong


class RegionPrompts:
    """Sentences about the structures of any atlas, after the Anatomy-aware Text Prompt Generator of ATM-Net.

    A region of the body is a subclass that names its `image`, and that may say in `relations` how the structures lie to
    each other; one whose structures stand in a row is a `SequencePrompts`. The text is a pure function of the
    visibility. Raises PromptError for a visible structure that the atlas doesn't have.

    Args:
        atlas: The structures, listed in class order; its plane gives the thirds of the stack their names.
        granularity: 1 names the type of image, 2 adds the visible structures, 3 adds the position of the slice in
            the stack (left out where it is unknown) and the spatial relations.
        absence: What a structure's prompt says where it is not visible: "stated" says so, "silent" is an empty text.
        facts: Which facts of a case the holistic prompt ends with, such as sequence, view and sex; a case that lacks
            one says nothing of it.
    """

    image: ClassVar[str] = "medical image"
    listing: ClassVar[str] = "which encompasses"

    def __init__(
        self, atlas: Atlas, *, granularity: Granularity = 3, absence: Absence = "stated", facts: tuple[str, ...] = ()
    ) -> None:
        self.atlas, self.granularity, self.absence, self.facts = atlas, granularity, absence, facts
        self.order = (*atlas.sequence, *(name for name in atlas.names if name not in atlas.sequence))
        self.phrases = {structure.name: _phrase(structure.family, structure.name) for structure in atlas.structures}

    def __call__(self, visibility: Visibility) -> Prompts:
        """Return the sentence of the slice, and the sentence of each structure in class order."""
        visible = {self.atlas[name].name for name in visibility.visible}
        classwise = [self._classwise(name, name in visible) for name in self.atlas.names]
        if not visibility.counted:
            classwise = [f"Nobody has looked for {self.phrases[name]}." for name in self.atlas.names]
        known = visibility.facts
        facts = [name for name in self.facts if name in known]
        sentences = [FACT_PHRASES.get(name, f"The {name} is {{}}.").format(known[name]) for name in facts]
        return Prompts(" ".join([self._holistic(visible, visibility), *sentences]), tuple(classwise))

    @property
    def region(self) -> str:
        """The region of the body in `image`, such as "lumbar spine"; empty where `image` names none."""
        return self.image.rpartition(" of the ")[2] if " of the " in self.image else ""

    def relations(self, visible: Set[str]) -> str:
        """Return the spatial relations of the visible structures, as the end of the sentence; empty by default."""
        return ""

    def place(self, visibility: Visibility) -> str:
        """Return the name of the third of the stack that contains the slice; empty if the position is unknown."""
        third = third_of_stack(visibility.slice_index, visibility.slice_count)
        return "" if third is None else THIRDS[self.atlas.plane][third]

    def _holistic(self, visible: set[str], visibility: Visibility) -> str:
        subject = f"The {self.image}"
        if not visibility.counted:
            position = self.place(visibility) if self.granularity == 3 else ""
            return f"{subject}, in {position or 'any slice'}: nobody has named the structures that are visible."
        if self.granularity == 1:
            return f"{subject}."
        phrases = [self.phrases[name] for name in self.order if name in visible]
        # A slice at the edge of a stack may show no structure. The sentence must then state this.
        listing = _listing(phrases) if phrases else "none of the structures to segment"
        if self.granularity == 2:
            return f"{subject} demonstrates {listing}."
        position = self.place(visibility)
        anatomy = f"the anatomy in the {position}" if position else "the anatomy"
        relation = self.listing if phrases else "which encompasses"
        closing = self.relations(visible)
        return f"{subject} demonstrates {anatomy}, {relation} {listing}{f', {closing}' if closing else ''}."

    def _classwise(self, name: str, visible: bool) -> str:
        if visible:
            return f"It contains {self.phrases[name]}."
        return f"It does not contain {self.phrases[name]}." if self.absence == "stated" else ""


class SequencePrompts(RegionPrompts):
    """Sentences about the structures of an ordered atlas, from superior to inferior, all others after them.

    A region is a subclass that names its `image` and, where a paper published other words than anatomy's, its
    `paper_families`. Raises PromptError also for an atlas without an order and a wording that was never published.

    Args:
        atlas: The structures.
        granularity: As in `RegionPrompts`.
        wording: "corrected" gives every structure its own family, "paper" the family that the paper gives it.
        absence: As in `RegionPrompts`.
        facts: As in `RegionPrompts`.
    """

    image: ClassVar[str] = "sagittal MRI of the spine"
    listing: ClassVar[str] = "which, from superior to inferior, encompasses"
    paper_families: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        atlas: Atlas,
        *,
        granularity: Granularity = 3,
        wording: Wording = "corrected",
        absence: Absence = "stated",
        facts: tuple[str, ...] = (),
    ) -> None:
        if not atlas.ordered:
            raise PromptError(
                f"{type(self).__name__} lists structures from superior to inferior, and atlas '{atlas.name}' has no "
                "order; use a prompt generator made for it, or give the atlas a sequence."
            )
        if wording == "paper" and not self.paper_families:
            raise PromptError(
                f"{type(self).__name__} knows no published wording for '{self.image}'; use wording 'corrected'."
            )
        super().__init__(atlas, granularity=granularity, absence=absence, facts=facts)
        if wording == "paper":
            families = {item.name: self.paper_families.get(item.family, item.family) for item in atlas.structures}
            self.phrases = {name: _phrase(family, name) for name, family in families.items()}


def require_region(generator: PromptGenerator, atlas: Atlas, name: str) -> None:
    """Raise PromptError if a prompt generator writes about another region of the body than that of the atlas.

    A region may be a part of the other: prompts of the "spine" fit the "lumbar spine". Nothing is compared where the
    generator or the atlas names no region.
    """
    ours, theirs = (words.casefold().split() for words in (str(getattr(generator, "region", "")), atlas.region))
    shared = min(len(ours), len(theirs))
    if shared and ours[-shared:] != theirs[-shared:]:
        raise PromptError(
            f"prompts.generator: '{name}' writes about the {' '.join(ours)}, and atlas '{atlas.name}' is of the "
            f"{atlas.region}. Use a prompt generator of the {atlas.region}, or a data set of the {' '.join(ours)}."
        )


def generate(generator: PromptGenerator, atlas: Atlas, visibility: Visibility) -> Prompts:
    """Return the prompts of a generator, checked: a text for the slice and one for each structure.

    A sentence of a report takes the place of the text for the slice. Raises PromptError if the generator breaks this
    promise.
    """
    prompts = generator(visibility)
    if visibility.sentence:
        prompts = replace(prompts, holistic=visibility.sentence)
    name = type(generator).__name__
    if not prompts.holistic.strip():
        raise PromptError(
            f"Prompt generator '{name}' gave an empty holistic prompt for {visibility.visible}; a slice without text "
            "can't guide a model: let it say at least what kind of image this is."
        )
    if len(prompts.classwise) != len(atlas.structures):
        raise PromptError(
            f"Prompt generator '{name}' gave {counted(len(prompts.classwise), 'class-wise prompt')} for atlas "
            f"'{atlas.name}'; it must give one for each of its {counted(len(atlas.structures), 'structure')}, "
            "in class order."
        )
    return prompts


def third_of_stack(slice_index: int | None, slice_count: int | None) -> int | None:
    """Return the third (0, 1 or 2) that holds the middle of a slice; None where its position is unknown."""
    if slice_index is None or slice_count is None:
        return None
    # In whole numbers: the only slice of a stack lies in the middle, not on the left.
    middle = 3 * (2 * slice_index + 1)
    if middle < 2 * slice_count:
        return 0
    return 1 if middle <= 4 * slice_count else 2


def _phrase(family: str, name: str) -> str:
    return name if family == name else f"{family} {name}"


def _listing(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last
