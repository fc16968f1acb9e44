"""The hooks of this plug-in."""

from textseg import LoggerOffer, Run, hookimpl


@hookimpl
def textseg_loggers() -> list[LoggerOffer]:
    """Offer `training.loggers: [tensorboard]`."""
    return [LoggerOffer("tensorboard", "textseg_tensorboard.tensorboard:TensorBoard", "tensorboard", "tensorboard")]


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
