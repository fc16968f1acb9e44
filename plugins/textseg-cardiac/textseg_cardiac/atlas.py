"""The structures of the heart in a short-axis stack. They form no sequence: they enclose and touch each other."""

from __future__ import annotations

from textseg.contracts import Atlas, Structure

RV, MYO, LV = "right ventricle", "myocardium", "left ventricle"
LA, RA = "left atrium", "right atrium"
SYNONYMS = {
    RV: ("RV", "right ventricular cavity"),
    MYO: ("MYO", "left ventricular myocardium"),
    LV: ("LV", "left ventricular cavity"),
    LA: ("LA",),
    RA: ("RA",),
}
ENCLOSED = ((LV, MYO),)  # what lies inside of what
ACDC_VALUES = {1: RV, 2: MYO, 3: LV}


def heart_acdc() -> Atlas:
    """The three structures that ACDC labels: right ventricle, myocardium of the left ventricle, left ventricle."""
    return _heart("heart_acdc", (RV, MYO, LV), {"ventricles": (RV, LV), "myocardium": (MYO,)})


def heart_short_axis() -> Atlas:
    """Structures of ACDC and the two atria, which slices near the base show."""
    groups = {"ventricles": (RV, LV), "myocardium": (MYO,), "atria": (LA, RA)}
    return _heart("heart_short_axis", (RV, MYO, LV, LA, RA), groups)


def _heart(name: str, names: tuple[str, ...], groups: dict[str, tuple[str, ...]]) -> Atlas:
    touching = ((LV, MYO), (RV, MYO), (LV, LA), (RV, RA), (LA, RA))
    return Atlas(
        name=name,
        structures=tuple(
            Structure(structure, structure, index, synonyms=SYNONYMS[structure])
            for index, structure in enumerate(names, start=1)
        ),
        groups=groups,
        adjacent=tuple(pair for pair in touching if set(pair) <= set(names)),
        label_schemes={"acdc": ACDC_VALUES},
        plane="short_axis",
        region="heart",
    )
