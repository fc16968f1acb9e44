"""The structures of the neck that sagittal MRI shows."""

from __future__ import annotations

from itertools import pairwise

from textseg.contracts import Atlas, Structure

VERTEBRAE = ("C2", "C3", "C4", "C5", "C6", "C7", "T1", "T2")
DISCS = tuple(f"{upper}/{lower}" for upper, lower in pairwise(VERTEBRAE))
CORD = "spinal cord"
SYNONYMS = {"C2": ("axis",), "T1": ("Th1", "D1"), "T2": ("Th2", "D2")}


def cervical_spine() -> Atlas:
    """The 16 structures of the neck: C2 to T2, the discs between them, the spinal cord."""
    sequence = tuple(name for pair in zip(VERTEBRAE, DISCS, strict=False) for name in pair) + VERTEBRAE[-1:]
    names = (*VERTEBRAE, *DISCS, CORD)
    return Atlas(
        name="cervical_spine",
        structures=tuple(
            Structure(name, _family(name), index, synonyms=SYNONYMS.get(name, ()))
            for index, name in enumerate(names, start=1)
        ),
        sequence=sequence,
        groups={"vertebrae": VERTEBRAE, "discs": DISCS, "cord": (CORD,)},
        adjacent=tuple(pairwise(sequence)),
        label_schemes={"totalspineseg": totalspineseg()},
        landmarks=("C2",),
        region="cervical spine",
    )


def totalspineseg() -> dict[int, str]:
    """TotalSpineSeg (second step, from version 20241005) around the neck; the atlas lacks C1, T3 and the canal."""
    vertebrae = {11: "C1", **dict(enumerate(VERTEBRAE[:6], 12)), **dict(enumerate((*VERTEBRAE[6:], "T3"), 21))}
    return {1: CORD, 2: "SC", **vertebrae, **dict(enumerate(DISCS[:5], 63)), **dict(enumerate(DISCS[5:], 71))}


def _family(name: str) -> str:
    if name == CORD:
        return CORD
    if name in DISCS:
        return "intervertebral disc"
    return "cervical vertebra" if name.startswith("C") else "thoracic vertebra"
