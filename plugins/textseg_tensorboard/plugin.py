"""The hooks of this plug-in."""

from textseg import Run, hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    """Register the logger of `training.loggers: [tensorboard]`."""
    register.logger("tensorboard", "textseg_tensorboard.tensorboard:TensorBoard")


@hookimpl
def textseg_run_started(run: Run) -> None:
    """Show the recipe under TEXT."""
    if "tensorboard" not in run.recipe["training"]["loggers"]:
        return
    from textseg_tensorboard.summaries import write_recipe

    write_recipe(run)


@hookimpl
def textseg_run_finished(run: Run) -> None:
    """Show settings and test scores under HPARAMS."""
    if "tensorboard" not in run.recipe["training"]["loggers"]:
        return
    from textseg_tensorboard.summaries import write_results

    write_results(run)
