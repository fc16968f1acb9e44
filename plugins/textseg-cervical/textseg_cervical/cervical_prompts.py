"""Sentences about the cervical spine."""

from typing import ClassVar

from textseg.text import SequencePrompts


class CervicalPrompts(SequencePrompts):
    """Prompts of the cervical spine, with the sentences of ATM-Net (arXiv 2504.03476) for the lumbar spine.

    Settings and errors are those of `textseg.text.SequencePrompts`.
    """

    image: ClassVar[str] = "sagittal MRI of the cervical spine"
