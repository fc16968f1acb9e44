"""Table of contents."""

from textseg import Run, hookimpl


@hookimpl
def textseg_run_started(run: Run) -> None:
    if "tensorboard" not in run.recipe["training"]["loggers"]:
        return
    from textseg_tensorboard.summaries import write_recipe

    write_recipe(run)


@hookimpl
def textseg_run_finished(run: Run) -> None:
    if "tensorboard" not in run.recipe["training"]["loggers"]:
        return
    from textseg_tensorboard.summaries import write_results

    write_results(run)
