"""Phantoms: synthetic scans whose structures are known exactly.

May import whatever `data` may import. Offers plug-ins the base classes of phantoms, for any region and for the spine.
"""

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
