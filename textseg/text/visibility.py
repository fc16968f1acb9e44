"""Visibilities: the structures that a prompt may call visible, for each source of that knowledge.

The template knows nothing of the image, a mask shows some structures, and a first pass predicts them. What a person
names is read in `textseg.text.reading`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from textseg.contracts import Atlas, Visibility
from textseg.errors import DataError

NAMED_SHARE = 0.3  # share of its size that a structure needs in a picture to be named
FEW = 6  # number of structures of an unordered atlas up to which a first pass may find any set


def template_visibility(atlas: Atlas, facts: Mapping[str, str] = {}, *, counted: bool = True) -> Visibility:
    """Return the visibility of the template: every structure of the atlas, whatever the image shows.

    Without `counted`, its text says that nobody has named the structures: see `Visibility`.
    """
    return Visibility(atlas.names, source="template", scope="volume", facts=facts, counted=counted)


def person_visibility(atlas: Atlas, named: Sequence[str], facts: Mapping[str, str] = {}) -> Visibility:
    """Return the visibility that a person states who names these structures.

    In an ordered atlas it is the whole stretch from the first to the last one, with all structures outside the
    sequence.
    """
    stretch = [name for name in atlas.sequence if name in named]
    visible = atlas.between(stretch[0], stretch[-1]) if stretch else tuple(n for n in atlas.names if n in named)
    return Visibility(visible, source="interactive", scope="volume", facts=facts)


def report_visibility(
    atlas: Atlas, visible: Sequence[str], facts: Mapping[str, str] = {}, sentence: str = ""
) -> Visibility:
    """Return the visibility that the report of a case states; without structures, nobody has named what is visible."""
    names, counted = (tuple(visible), True) if visible else (atlas.names, False)
    return Visibility(names, source="report", scope="volume", facts=facts, counted=counted, sentence=sentence)


def statement(atlas: Atlas, visible: Sequence[str]) -> str:
    """Return visible structures as a statement: "T10:L5" for an uninterrupted part of the sequence, else every name."""
    stretch = [name for name in atlas.sequence if name in visible]
    if stretch and set(visible) == set(atlas.between(stretch[0], stretch[-1])):
        return f"{stretch[0]}:{stretch[-1]}"
    return ", ".join(visible)


def shifted(atlas: Atlas, first: str, last: str, levels: int) -> str | None:
    """Return a stretch moved by some levels, as a person who miscounted names it; downwards where `levels` is positive.

    Returns None if a structure of the stretch has no successor (`Atlas.neighbour`): a stretch that is cut at the end of
    the atlas would be a shorter list, not a wrong one.
    """
    stretch = [name for name in atlas.between(first, last) if name in atlas.sequence]
    successors = {atlas.neighbour(name, levels) for name in stretch}
    moved = [name for name in atlas.sequence if name in successors]
    return None if None in successors else f"{moved[0]}:{moved[-1]}"


def ground_truth_visibility(
    atlas: Atlas, class_indices_present: Iterable[int], facts: Mapping[str, str] = {}
) -> Visibility:
    """Return the visibility that the mask of one slice shows; index 0, the background, is left out.

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
    """Give every visibility that a first pass may predict: each stretch of an ordered atlas, or each set of structures.

    Without an order and with more than FEW structures, the only one names all of them.
    """
    if atlas.ordered or len(atlas.names) > FEW:
        sets = [visibility.visible for visibility in atlas.visibilities()]
    else:
        sizes = range(1, len(atlas.names) + 1)
        sets = [names for size in sizes for names in itertools.combinations(atlas.names, size)]
    for visible in dict.fromkeys(sets):
        yield Visibility(visible, source="predicted", scope="volume", facts=facts)
