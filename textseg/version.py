"""The version of textseg, and the versions of the plug-in interface that it supports."""

__version__ = "0.1.0"

API_VERSION = 1
"""The newest interface for plug-ins that this version has."""

OLDEST_API_VERSION = 1
"""The oldest interface for plug-ins that this version still supports."""
