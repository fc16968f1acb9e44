"""Text-guided medical image segmentation, assembled from plug-ins."""

from textseg.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]
