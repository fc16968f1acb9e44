"""Images and masks as files: reading, writing, geometry, and the names of the label values.

May import `hookspecs`, `contracts` and the packages below them. Offers plug-ins functions that find,
read and write volumes.
"""

from textseg.volumes.files import SUFFIXES, find_volumes, read_geometry, read_labels, read_volume, write_labels
from textseg.volumes.scan import read_scan

__all__ = ["SUFFIXES", "find_volumes", "read_geometry", "read_labels", "read_scan", "read_volume", "write_labels"]
