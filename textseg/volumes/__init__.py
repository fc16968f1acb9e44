"""Images and masks as files: reading, writing, geometry, and the names of the values in a mask.

Imports `contracts`, `system` and below.
"""

from __future__ import annotations

from textseg.volumes.files import SUFFIXES, read_geometry, read_labels, read_volume, write_labels

__all__ = ["SUFFIXES", "read_geometry", "read_labels", "read_volume", "write_labels"]
