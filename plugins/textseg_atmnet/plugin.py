"""Registration of the components of this plug-in."""

from collections.abc import Sequence

from textseg import PublishedTable, hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.prompt_generator("atpg_lumbar", "textseg_atmnet.atpg_lumbar:ATPGLumbar")
    register.text_encoder("huggingface", "textseg_atmnet.huggingface:HuggingFace")
    register.text_encoder("hashed", "textseg_atmnet.hashed:Hashed")
    register.text_encoder("minilm", "textseg_atmnet.minilm:MiniLM")
    register.vision_encoder("swin_unetr", "textseg_atmnet.swin_unetr:SwinUNETREncoder")
    register.vision_encoder("residual_convolutions", "textseg_atmnet.residual_convolutions:ResidualConvolutions")
    register.vision_encoder("monai_unet", "textseg_atmnet.monai_unet:MonaiUNetEncoder")
    register.vision_encoder("huggingface_vision", "textseg_atmnet.huggingface_vision:HuggingFaceVision")
    register.vision_encoder("timm", "textseg_atmnet.timm:TimmEncoder", needs="textseg[timm]")
    register.fusion("hasf", "textseg_atmnet.hasf:HASF")
    register.auxiliary_loss("ccae", "textseg_atmnet.ccae:CCAE")


@hookimpl
def textseg_published_results() -> Sequence[PublishedTable]:
    from textseg_atmnet.published_results import published_tables

    return published_tables()
