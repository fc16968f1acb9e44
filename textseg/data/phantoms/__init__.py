"""Synthetic scans whose structures are known exactly.

Imports `volumes` and below.
"""

from __future__ import annotations

from textseg.data.phantoms.files import Patient, PhantomFiles, Series, SpinePhantom, check_settings, write_drawn
from textseg.data.phantoms.spine_anatomy import Anatomy, Level, Part

__all__ = [
    "Anatomy",
    "Level",
    "Part",
    "Patient",
    "PhantomFiles",
    "Series",
    "SpinePhantom",
    "check_settings",
    "write_drawn",
]
