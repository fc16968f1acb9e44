"""Sentences about the lumbar spine."""

from collections.abc import Mapping
from typing import ClassVar

from textseg.text import SequencePrompts


class ATPGLumbar(SequencePrompts):
    """The Anatomy-aware Text Prompt Generator of ATM-Net (arXiv 2504.03476, section on ATPG), for the lumbar spine.

    The paper's words are "The sagittal MRI of the lumbar spine demonstrates the anatomy in the true mid-sagittal plane,
    which, from superior to inferior, encompasses ..." and "It contains ...". Its example calls T10 a lumbar and L1 a
    thoracic vertebra: `wording="paper"` does so throughout, the default gives each its own family. The paper shows no
    sentence for an absent structure, for the lateral thirds of the stack, and for a slice that shows nothing; those
    are textseg's.

    Settings and errors are those of `SequencePrompts`.
    """

    image: ClassVar[str] = "sagittal MRI of the lumbar spine"
    paper_families: ClassVar[Mapping[str, str]] = {
        "lumbar vertebra": "thoracic vertebra",
        "thoracic vertebra": "lumbar vertebra",
    }
