"""Registration of the components of this plug-in."""

from textseg import hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.augmentation("field_of_view", "textseg_standard.augmentations.field_of_view:FieldOfView")
    register.augmentation("distortion", "textseg_standard.augmentations.distortion:Distortion")
    register.augmentation("flip", "textseg_standard.augmentations.flip:Flip")
    register.augmentation("contrast", "textseg_standard.augmentations.contrast:Contrast")
    register.augmentation("gamma", "textseg_standard.augmentations.gamma:Gamma")
    register.augmentation("noise", "textseg_standard.augmentations.noise:Noise")
    register.augmentation("bias", "textseg_standard.augmentations.bias:Bias")
    register.augmentation("blur", "textseg_standard.augmentations.blur:Blur")
    register.augmentation("low_resolution", "textseg_standard.augmentations.low_resolution:LowResolution")
    register.logger("wandb", "textseg_standard.wandb:Wandb", needs="textseg[wandb]")
    register.logger("mlflow", "textseg_standard.mlflow:MLflow", needs="textseg[mlflow]")
