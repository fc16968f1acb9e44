"""Text-guided medical image segmentation, assembled from plug-ins."""

from textseg.compatibility import API_VERSION
from textseg.hookspecs import ReportSection, Run, hookimpl

__version__ = "0.1.0"
__all__ = ["API_VERSION", "ReportSection", "Run", "__version__", "hookimpl"]
