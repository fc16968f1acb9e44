"""From what is visible to the text that says so: visibilities of each source, and prompts of any ordered atlas."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import ClassVar, Literal

from textseg.contracts import Atlas, Plane, PromptGenerator, Prompts, Visibility
from textseg.errors import DataError, PromptError, suggestion
from textseg.system.messages import counted

Granularity = Literal[1, 2, 3]
Wording = Literal["corrected", "paper"]
Absence = Literal["stated", "silent"]
FEW = 6  # structures of an atlas without an order, of which every set is a text of its own
THIRDS: Mapping[Plane, tuple[str, str, str]] = {
    "sagittal": ("left third of the slices", "true mid-sagittal plane", "right third of the slices"),
    "coronal": ("anterior third of the slices", "middle third of the slices", "posterior third of the slices"),
    "axial": ("upper third of the slices", "middle third of the slices", "lower third of the slices"),
    "short_axis": ("basal third of the slices", "mid-ventricular third of the slices", "apical third of the slices"),
}
FACT_PHRASES = {"sex": "The patient is {}."}  # where "The <fact> is <value>." would not do


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
        self,
        atlas: Atlas,
        *,
        granularity: Granularity = 3,
        absence: Absence = "stated",
        facts: tuple[str, ...] = (),
    ) -> None:
        self.atlas = atlas
        self.granularity = granularity
        self.absence = absence
        self.facts = facts
        self.order = (*atlas.sequence, *(name for name in atlas.names if name not in atlas.sequence))
        self.phrases = {structure.name: _phrase(structure.family, structure.name) for structure in atlas.structures}

    def __call__(self, visibility: Visibility) -> Prompts:
        """The sentence of the slice and, in class order, the sentence of each structure."""
        visible = {self.atlas[name].name for name in visibility.visible}
        classwise = (self._classwise(name, name in visible) for name in self.atlas.names)
        known = visibility.facts
        facts = (
            FACT_PHRASES.get(name, f"The {name} is {{}}.").format(known[name]) for name in self.facts if name in known
        )
        return Prompts(" ".join([self._holistic(visible, visibility), *facts]), tuple(classwise))

    def relations(self, visible: Set[str]) -> str:
        """How the visible structures lie to each other, in words that close the sentence; nothing by default."""
        return ""

    def place(self, visibility: Visibility) -> str:
        """In which third of the stack the slice lies, in words; empty where that is unknown."""
        third = third_of_stack(visibility.slice_index, visibility.slice_count)
        return "" if third is None else THIRDS[self.atlas.plane][third]

    def _holistic(self, visible: set[str], visibility: Visibility) -> str:
        subject = f"The {self.image}"
        if self.granularity == 1:
            return f"{subject}."
        phrases = [self.phrases[name] for name in self.order if name in visible]
        # A slice at the edge of a stack may show nothing; a sentence that breaks off would not say so.
        listing = _listing(phrases) if phrases else "none of the structures to segment"
        if self.granularity == 2:
            return f"{subject} demonstrates {listing}."
        place = self.place(visibility)
        anatomy = f"the anatomy in the {place}" if place else "the anatomy"
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
            self.phrases = {
                structure.name: _phrase(self.paper_families.get(structure.family, structure.family), structure.name)
                for structure in atlas.structures
            }


def generate(generator: PromptGenerator, atlas: Atlas, visibility: Visibility) -> Prompts:
    """The prompts of a generator, checked: a text for the slice and one for each structure.

    Raises PromptError where the generator breaks that promise.
    """
    prompts = generator(visibility)
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
    """0, 1 or 2: the third in which the middle of a slice lies; None where its place is unknown."""
    if slice_index is None or slice_count is None:
        return None
    # In whole numbers: the only slice of a stack lies in the middle, not on the left.
    middle = 3 * (2 * slice_index + 1)
    if middle < 2 * slice_count:
        return 0
    return 1 if middle <= 4 * slice_count else 2


def template_visibility(atlas: Atlas, facts: Mapping[str, str] = {}) -> Visibility:
    """What is said when nobody looked: every structure of the atlas."""
    return Visibility(atlas.names, source="template", scope="volume", facts=facts)


def interactive_visibility(atlas: Atlas, named: str | Sequence[str], facts: Mapping[str, str] = {}) -> Visibility:
    """What a person named for a whole volume.

    `named` is a stretch of an ordered atlas ("T10:L5", with all that is outside the sequence), a list in one text
    ("L4, L5") or a list of names. Raises PromptError for unknown names and for stretches that the atlas doesn't have.
    """
    visible = _stretch(atlas, named) if isinstance(named, str) else _chosen(atlas, named)
    return Visibility(visible, source="interactive", scope="volume", facts=facts)


def spoken(atlas: Atlas, visible: Sequence[str]) -> str:
    """What a person would name to say `visible`: "T10:L5" where that says it, else every name."""
    stretch = [name for name in atlas.sequence if name in visible]
    if stretch and set(visible) == set(atlas.between(stretch[0], stretch[-1])):
        return f"{stretch[0]}:{stretch[-1]}"
    return ", ".join(visible)


def read_named(given: str, case_ids: Iterable[str]) -> dict[str, str]:
    """What a person named for each case: the same for all, or the columns `case` and `visible` of a CSV file.

    Raises PromptError for a file that can't be read, or that lacks a case.
    """
    if not given.lower().endswith(".csv"):
        return dict.fromkeys(case_ids, given)
    try:
        with Path(given).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PromptError(f"'{given}' can't be read as a table of visible structures: {error}.") from error
    named = {row["case"]: (row["visible"] or "").strip() for row in rows if row.get("case") and "visible" in row}
    for case_id in case_ids:
        if not named.get(case_id):
            near = suggestion(case_id, named)
            raise PromptError(
                f"'{given}' has no row for case '{case_id}'.{near} It needs the columns case and visible, and a row "
                "such as 12_t2,T10:L5 for each case."
            )
    return named


def ground_truth_visibility(
    atlas: Atlas, class_indices_present: Iterable[int], facts: Mapping[str, str] = {}
) -> Visibility:
    """What the mask of one slice shows; index 0, the background, says nothing.

    Raises DataError for a class index that the atlas doesn't have.
    """
    present = {int(index) for index in class_indices_present} - {0}
    unknown = sorted(present - {structure.index for structure in atlas.structures})
    if unknown:
        raise DataError(
            f"A mask holds the class indices {unknown}, and atlas '{atlas.name}' has 0 to {atlas.class_count - 1}; "
            "the mask belongs to another atlas, or its values were not mapped to class indices."
        )
    visible = tuple(structure.name for structure in atlas.structures if structure.index in present)
    return Visibility(visible, source="ground_truth", scope="slice", facts=facts)


def predicted_visibilities(atlas: Atlas, facts: Mapping[str, str] = {}) -> Iterator[Visibility]:
    """Everything that a first pass may find: each stretch of an ordered atlas, else each set of a few structures.

    Without an order and with more than FEW structures, that is all of them, always.
    """
    if atlas.ordered or len(atlas.names) > FEW:
        found = [visibility.visible for visibility in atlas.visibilities()]
    else:
        sizes = range(1, len(atlas.names) + 1)
        found = [names for size in sizes for names in itertools.combinations(atlas.names, size)]
    for visible in dict.fromkeys(found):
        yield Visibility(visible, source="predicted", scope="volume", facts=facts)


def shifted(atlas: Atlas, first: str, last: str, levels: int) -> str:
    """The stretch as a person names it who has miscounted by some levels; downwards where `levels` is positive.

    A level is the next structure of the same group. Where the row ends, the stretch ends with it.
    """
    return f"{_neighbour(atlas, first, levels)}:{_neighbour(atlas, last, levels)}"


def _neighbour(atlas: Atlas, name: str, levels: int) -> str:
    row = next(([n for n in atlas.sequence if n in group] for group in atlas.groups.values() if name in group), None)
    row = row or list(atlas.sequence)
    return row[min(max(row.index(name) + levels, 0), len(row) - 1)]


def _stretch(atlas: Atlas, named: str) -> tuple[str, ...]:
    if ":" not in named:
        return _chosen(atlas, [part.strip() for part in named.split(",") if part.strip()])
    ends = [end.strip() for end in named.split(":")]
    if len(ends) != 2 or not all(ends):
        raise PromptError(
            f"'{named}' is no stretch of structures; write FIRST:LAST with the upper structure first, or names "
            f"separated by commas. Atlas '{atlas.name}' has {', '.join(atlas.names)}."
        )
    return atlas.between(*ends)


def _chosen(atlas: Atlas, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise PromptError(
            f"No visible structure is named; name at least one of atlas '{atlas.name}': {', '.join(atlas.names)}."
        )
    chosen = {atlas[name].name for name in names}
    return tuple(name for name in atlas.names if name in chosen)


def _phrase(family: str, name: str) -> str:
    return name if family == name else f"{family} {name}"


def _listing(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last
