"""From what is visible to prompts, and from prompts to frozen text features.

Imports `contracts`, `system` and below; it never sees an image or a mask.
"""

from __future__ import annotations

from textseg.text.prompts import RegionPrompts, SequencePrompts
from textseg.text.visibility import interactive_visibility, template_visibility

__all__ = ["RegionPrompts", "SequencePrompts", "interactive_visibility", "template_visibility"]
