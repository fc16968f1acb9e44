"""Settings of the documentation's build."""

import importlib.metadata

project = "textseg"
author = "The textseg developers"
copyright = f"2026, {author}"  # noqa: A001
release = importlib.metadata.version("textseg")

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"textseg {release}"
html_static_path = ["style"]
html_css_files = ["tables.css"]
