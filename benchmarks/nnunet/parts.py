"""An atlas for `--code`: what the spine consists of, without levels."""

import textseg
from textseg.contracts import Atlas, Structure

NAMES = ("vertebra", "disc", "canal")


@textseg.component("atlas", "spine_parts")
def spine_parts() -> Atlas:
    """Return the atlas of vertebrae, discs and the spinal canal."""
    return Atlas("spine_parts", tuple(Structure(name, name, index) for index, name in enumerate(NAMES, start=1)))
