"""Text: visible structures become prompts, and prompts become frozen text features.

May import `recipe` and the packages below it, but not `models` or `metrics`. It reads no image and no mask. Offers
plug-ins the base classes of prompt generators, and functions that create a `Visibility`.
"""

from textseg.text.prompts import RegionPrompts, SequencePrompts
from textseg.text.reading import interactive_visibility
from textseg.text.visibility import template_visibility

__all__ = ["RegionPrompts", "SequencePrompts", "interactive_visibility", "template_visibility"]
