"""Table of contents."""

from textseg import hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.network("spineparsenet", "textseg_baselines.spineparsenet:SpineParseNet")
    register.network("swin_unetr", "textseg_baselines.swin_unetr:SwinUNETR")
