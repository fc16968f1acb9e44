"""Sentences about the heart."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import ClassVar

from textseg.contracts import Visibility
from textseg.text import RegionPrompts
from textseg_cardiac.atlas import ENCLOSED, LA, MYO, RA, RV

NEIGHBOURS = ((RV, MYO), (LA, RA))


class CardiacPrompts(RegionPrompts):
    """Prompts of a short-axis slice of the heart: its third of the stack, its structures, and their relations.

    "The short-axis MRI of the heart demonstrates the anatomy in the basal third of the slices, which encompasses right
    ventricle, myocardium and left ventricle, the left ventricle inside the myocardium and the right ventricle beside
    the myocardium." Slices run from base to apex, unless the fact `first_slice` of a case is "apex".

    Settings and errors are those of `textseg.text.RegionPrompts`.
    """

    image: ClassVar[str] = "short-axis MRI of the heart"

    def relations(self, visible: Set[str]) -> str:
        """Return the relations of visible structures: enclosure first, then neighbourhood."""
        inside = [f"the {inner} inside the {outer}" for inner, outer in ENCLOSED if {inner, outer} <= visible]
        beside = [f"the {first} beside the {second}" for first, second in NEIGHBOURS if {first, second} <= visible]
        return " and ".join([*inside, *beside])

    def place(self, visibility: Visibility) -> str:
        """Return the third of the stack: basal, mid-ventricular or apical."""
        index, count = visibility.slice_index, visibility.slice_count
        if visibility.facts.get("first_slice") == "apex" and index is not None and count is not None:
            visibility = replace(visibility, slice_index=count - 1 - index)
        return super().place(visibility)
