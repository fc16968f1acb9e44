"""Registration of the components of this plug-in."""

from textseg import hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.logger("wandb", "textseg_standard.wandb:Wandb", needs="textseg[wandb]")
    register.logger("mlflow", "textseg_standard.mlflow:MLflow", needs="textseg[mlflow]")
