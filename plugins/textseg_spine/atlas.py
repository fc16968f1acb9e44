"""The structures of the lumbar spine, as the two public data sets of the field label them."""

from __future__ import annotations

from itertools import pairwise

from textseg.contracts import Atlas, Structure
from textseg_spine.label_schemes import DISCS_DOWNWARDS, DOWNWARDS, all_schemes

VERTEBRAE = ("L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9")
DISCS = ("L5/S", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10")
CANAL = "SC"
SACRUM = "S"
SNOMED = {
    "L5": "49668003",
    "L4": "11994002",
    "L3": "36470004",
    "L2": "14293000",
    "L1": "66794005",
    "T12": "23215003",
    "T11": "12989004",
    "T10": "7610001",
    "T9": "82687006",
    "L5/S": "715056000",
    "L4/L5": "84020006",
    "L3/L4": "62551000",
    "L2/L3": "67459009",
    "L1/L2": "80064006",
    "T12/L1": "76206002",
    "T11/T12": "1537001",
    "T10/T11": "34959001",
    "T9/T10": "113209001",
    CANAL: "61853006",
    SACRUM: "54735007",
}
"""Concepts of DICOM's context groups 7603 (vertebrae), 7604 (discs), 6115 (canal) and 4031 (sacrum)."""


SYNONYMS = {
    **{name: (name.replace("T", "Th"), name.replace("T", "D")) for name in VERTEBRAE if name.startswith("T")},
    "L5/S": ("L5/S1", "L5/sacrum", "lumbosacral disc"),
    CANAL: ("vertebral canal",),
    SACRUM: ("S1",),
}
"""Names that reports use beside those of the data sets; `textseg.text.reading` adds "spinal canal" and "L4-5"."""


def lumbar_spider() -> Atlas:
    """The 19 structures of SPIDER: L5 to T9, the disc below each, the spinal canal (ATM-Net, table 2)."""
    sequence = _downwards()
    return Atlas(
        name="lumbar_spider",
        structures=_structures((*VERTEBRAE, *DISCS, CANAL)),
        sequence=sequence,
        groups={"vertebrae": VERTEBRAE, "discs": DISCS, "canal": (CANAL,)},
        adjacent=(*_neighbours(sequence), *((name, CANAL) for name in sequence)),
        label_schemes=all_schemes(),
        landmarks=("L5/S",),
        region="lumbar spine",
    )


def lumbar_mrspineseg() -> Atlas:
    """The 19 structures of MRSpineSeg: the sacrum, L5 to T9, the disc below each (ATM-Net, table 1)."""
    sequence = (*_downwards(), SACRUM)
    return Atlas(
        name="lumbar_mrspineseg",
        structures=_structures((SACRUM, *VERTEBRAE, *DISCS)),
        sequence=sequence,
        groups={"vertebrae": (SACRUM, *VERTEBRAE), "discs": DISCS},
        adjacent=_neighbours(sequence),
        label_schemes=all_schemes(),
        landmarks=(SACRUM, "L5/S"),
        region="lumbar spine",
    )


def whole_spine() -> Atlas:
    """The 49 structures of the whole spine: C1 to L5 and the sacrum, the discs between them from C2 on, the canal."""
    below = {disc.split("/")[0]: disc for disc in DISCS_DOWNWARDS}
    sequence = (*(name for level in DOWNWARDS for name in (level, below.get(level)) if name), SACRUM)
    vertebrae = (*DOWNWARDS, SACRUM)
    return Atlas(
        name="whole_spine",
        structures=_structures((*vertebrae, *DISCS_DOWNWARDS, CANAL)),
        sequence=sequence,
        groups={"vertebrae": vertebrae, "discs": DISCS_DOWNWARDS, "canal": (CANAL,)},
        adjacent=(*_neighbours(sequence), *((name, CANAL) for name in sequence)),
        label_schemes=all_schemes(),
        landmarks=("C2", "L5/S", SACRUM),
        region="spine",
    )


def _downwards() -> tuple[str, ...]:
    """T9, T9/T10, T10, ..., L5, L5/S."""
    pairs = zip(reversed(VERTEBRAE), reversed(DISCS), strict=True)
    return tuple(name for pair in pairs for name in pair)


def _neighbours(sequence: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(pairwise(sequence))


def _structures(names: tuple[str, ...]) -> tuple[Structure, ...]:
    return tuple(
        Structure(name, _family(name), index, SNOMED.get(name), SYNONYMS.get(name, ()))
        for index, name in enumerate(names, start=1)
    )


def _family(name: str) -> str:
    if "/" in name:
        return "intervertebral disc"
    if name == CANAL:
        return "spinal canal"
    if name == SACRUM:
        return "sacrum"
    return {"C": "cervical vertebra", "T": "thoracic vertebra", "L": "lumbar vertebra"}[name[0]]
