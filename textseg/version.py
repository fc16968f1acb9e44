"""The version of textseg, and the versions of the plug-in interface that it supports."""

__version__ = "0.1.0"

API_VERSION = 1
"""The newest programming interface for plug-ins that this textseg has."""

OLDEST_API_VERSION = 1
"""The oldest one that it still has."""
