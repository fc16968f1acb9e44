"""Text-guided medical image segmentation, assembled from plug-ins."""

from textseg.hookspecs import ReportSection, Run, hookimpl

__version__ = "0.1.0"
__all__ = ["ReportSection", "Run", "__version__", "hookimpl"]
