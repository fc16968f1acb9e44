"""Registration of the components of this plug-in."""

from textseg import hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.network("spineparsenet", "textseg_baselines.spineparsenet:SpineParseNet")
    register.network("ariadnes_thread", "textseg_baselines.ariadnes_thread:AriadnesThread")
    register.network("attention_unet", "textseg_baselines.attention_unet:AttentionUNet")
    register.network("h_sam", "textseg_baselines.h_sam:HSAM")
    register.network("modified_bisenet", "textseg_baselines.modified_bisenet:ModifiedBiSeNet")
    register.network("nnunet_v2", "textseg_baselines.nnunet_v2:NNUNetV2")
    register.network("segresnet", "textseg_baselines.segresnet:SegResNet")
    register.network("swin_unetr", "textseg_baselines.swin_unetr:SwinUNETR")
    register.network("tevia", "textseg_baselines.tevia:TeViA")
    register.network("u_bisenet", "textseg_baselines.u_bisenet:UBiSeNet")
    register.network("unet", "textseg_baselines.unet:UNet")
    register.network("unetr", "textseg_baselines.unetr:UNETR")
