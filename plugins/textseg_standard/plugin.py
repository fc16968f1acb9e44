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
    register.augmentation("monai", "textseg_standard.augmentations.monai:Monai")
    register.augmentation("torchio", "textseg_standard.augmentations.torchio:TorchIO", needs="textseg[torchio]")
    register.logger("wandb", "textseg_standard.wandb:Wandb", needs="textseg[wandb]")
    register.logger("mlflow", "textseg_standard.mlflow:MLflow", needs="textseg[mlflow]")
    losses = "textseg_standard.segmentation_losses"
    register.segmentation_loss("dice", f"{losses}.dice:Dice")
    register.segmentation_loss("focal", f"{losses}.focal:Focal")
    register.segmentation_loss("cross_entropy", f"{losses}.cross_entropy:CrossEntropy")
    register.segmentation_loss("top_k_cross_entropy", f"{losses}.top_k_cross_entropy:TopKCrossEntropy")
    register.segmentation_loss("tversky", f"{losses}.tversky:Tversky")
    register.segmentation_loss("boundary", f"{losses}.boundary:Boundary")
    register.segmentation_loss("cldice", f"{losses}.cldice:ClDice")
    register.segmentation_loss("monai", f"{losses}.monai:Monai")
    register.optimizer("adamw", "textseg_standard.optimizers:adamw")
    register.optimizer("sgd", "textseg_standard.optimizers:sgd")
    register.optimizer("torch", "textseg_standard.optimizers:torch_optimizer")
    register.schedule("cosine", "textseg_standard.schedules:cosine")
    register.schedule("one_cycle", "textseg_standard.schedules:one_cycle")
    register.schedule("polynomial", "textseg_standard.schedules:polynomial")
    register.schedule("constant", "textseg_standard.schedules:constant")
    register.schedule("torch", "textseg_standard.schedules:TorchSchedule")
    register.metric("dsc", "textseg_standard.metrics:DSC")
    register.metric("jaccard", "textseg_standard.metrics:Jaccard")
    register.metric("hd95", "textseg_standard.metrics:HD95")
    register.metric("hd95_directed_max", "textseg_standard.metrics:HD95DirectedMax")
    register.metric("asd", "textseg_standard.metrics:ASD")
    register.metric("asd_reverse", "textseg_standard.metrics:ASDReverse")
    register.metric("assd", "textseg_standard.metrics:ASSD")
    register.metric("nsd", "textseg_standard.metrics:NSD")
