"""Checks of atlases: names that files and commands can carry, and parts that fit together."""

from __future__ import annotations

import pickle

from textseg.contracts import IGNORED, Atlas
from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed

KIND = "atlas"
LARGEST_CLASS = IGNORED - 1  # prepared masks are stored in a byte


@check("construction", KIND, fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the builder returns an Atlas, and an equal one at each call."""
    atlas = subject.build()
    promise(isinstance(atlas, Atlas), "a textseg.contracts.Atlas", type(atlas).__name__)
    promise(atlas == subject.build(), "the same atlas each time", "another one")
    promise(atlas == pickle.loads(pickle.dumps(atlas)), "a copy that is equal from pickle", "another one")


@check("surroundings", KIND, tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction touches no file and no network."""
    for _ in range(2):
        with undisturbed("construction", allowed=subject.settings.values()):
            subject.build()


@check("structures", KIND)
def _structures(subject: Subject) -> None:
    """Check that names suit tables and commands, each has one meaning, and a byte can hold the classes."""
    atlas: Atlas = subject.build()
    promise(atlas.structures, "at least one structure", "none")
    promise(atlas.class_count - 1 <= LARGEST_CLASS, f"at most {LARGEST_CLASS} structures", len(atlas.structures))
    for structure in atlas.structures:
        for name in (structure.name, *structure.synonyms):
            usable = name and name == name.strip() and not set(name) & set(':,;"\n\t')
            promise(usable, "names without ':' and ',', which commands and tables put between names", repr(name))
        words = f"a family of '{structure.name}', the words that prompts say"
        promise(structure.family.strip(), words, "an empty one")
    names = [(spelled.casefold(), s.name) for s in atlas.structures for spelled in (s.name, *s.synonyms)]
    meanings = dict(names)
    twice = sorted({spelled for spelled, name in names if meanings[spelled] != name})
    promise(not twice, "one structure for each name and synonym, in any case", f"'{', '.join(twice)}' names two")


@check("order", KIND)
def _order(subject: Subject) -> None:
    """Check that the sequence names a structure once, and that a pair of neighbours occurs once."""
    atlas: Atlas = subject.build()
    promise(len(set(atlas.sequence)) == len(atlas.sequence), "each name once in the sequence", atlas.sequence)
    promise(all(len({*pair}) == 2 for pair in atlas.adjacent), "two structures in each adjacent pair", atlas.adjacent)
    pairs = [frozenset(pair) for pair in atlas.adjacent]
    promise(len(set(pairs)) == len(pairs), "each adjacent pair once", atlas.adjacent)
    ordered = all(v.visible == tuple(n for n in atlas.names if n in v.visible) for v in atlas.visibilities())
    promise(ordered, "visibilities in class order", "another order")


@check("groups", KIND)
def _groups(subject: Subject) -> None:
    """Check that no group is empty and no structure is in two groups, so that merged scores count it once."""
    atlas: Atlas = subject.build()
    for name, group in atlas.groups.items():
        promise(group, f"a structure in group '{name}'", "none")
    members = [name for group in atlas.groups.values() for name in group]
    twice = sorted({name for name in members if members.count(name) > 1})
    promise(not twice, "each structure in one group at most", f"{', '.join(twice)} in two")
    for scheme, values in atlas.label_schemes.items():
        promise(0 not in values, f"no name for 0, the background, in label scheme '{scheme}'", values.get(0))
        known = set(values.values()) & set(atlas.names)
        promise(known, f"a structure of the atlas in label scheme '{scheme}'", "none: its names are others")


CHECKS = (_surroundings, _construction, _structures, _order, _groups)
