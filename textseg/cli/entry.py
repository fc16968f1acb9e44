"""The commands of textseg; what a command needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from textseg.cli.compare import compare
from textseg.cli.data import bytes_bar, data, evaluate_predictions
from textseg.cli.figure import figure
from textseg.cli.plugins import components, plugins, warn_of_faults
from textseg.cli.predict import export, predict
from textseg.cli.recipes import recipes
from textseg.cli.runs import runs
from textseg.cli.text import probe, prompts
from textseg.errors import TextsegError
from textseg.version import __version__

app = typer.Typer(
    help="Text-guided medical image segmentation, assembled from plug-ins.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes, name="recipes")
app.add_typer(plugins, name="plugins")
app.add_typer(data, name="data")


def main() -> None:
    """The entry point: a user's mistake is one message on stderr and exit code 2; an interruption is 130."""
    try:
        app()
    except TextsegError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"textseg {__version__}")
        raise typer.Exit


@app.callback()
def _textseg(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def run(
    recipes: Annotated[
        list[Path] | None, typer.Argument(metavar="RECIPE", help="Recipe files, or names that `textseg recipes` lists.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="Instead of recipes: repeat this run and say what differs."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Put a value into the recipe; may be repeated."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds to run instead of the recipe's, such as 1,2,3.")] = None,
    folds: Annotated[
        str | None, typer.Option(help="Folds to run instead of the recipe's, such as 0,1 or all; needs `split.folds`.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder that holds the run folders; else runs, or with --from repeated.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run aside instead of resuming it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
    jobs: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many runs at once, each with its share of the cores.")
    ] = 1,
) -> None:
    """Prepare, train, evaluate and report; an interrupted run resumes. Several end with a leaderboard.

    Example: textseg run quickstart --set training.epochs=2 --seeds 1,2
    """
    if bool(recipes) == (source is not None):
        raise typer.BadParameter("name recipes, or a run with --from.")
    if source is not None and (seeds or folds or jobs > 1):
        raise typer.BadParameter("--seeds, --folds and --jobs go with recipes; --from repeats one run as it was.")
    chosen = _seeds(seeds)
    warn_of_faults()
    if source is not None:
        from textseg.training.reproduce import reproduce

        place = output or Path("repeated")
        reproduce(source, overrides=overrides or [], output=place, fresh=fresh, dry_run=dry_run)
        return
    from textseg.training.many_runs import plan_runs, run_all

    output = output or Path("runs")
    planned = plan_runs(recipes or [], overrides or [], chosen, folds, output)
    if len(planned) > 1:
        raise typer.Exit(run_all(planned, jobs=1 if dry_run else jobs, fresh=fresh, dry_run=dry_run))
    from textseg.training.run import run as run_recipe

    (only,) = planned
    run_recipe(only.recipe, overrides=only.overrides, seed=only.seed, output=output, fresh=fresh, dry_run=dry_run)


@app.command()
def fetch(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Put a value into the recipe; may be repeated."),
    ] = None,
) -> None:
    """Download the pretrained weights that a recipe needs; nothing else does, and runs work offline.

    Example: textseg fetch atmnet_spider
    """
    warn_of_faults()
    from textseg.recipe.loading import load_recipe, required_components
    from textseg.registry.discovery import installed_registry

    needed = required_components(load_recipe(recipe, overrides or []))
    with bytes_bar() as report:
        said = [installed_registry().component(kind, spec.use).fetch(spec.settings, report) for kind, spec in needed]
    print("\n".join(filter(None, said)) or f"'{recipe}' needs no weights from elsewhere.")


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="template, interactive, predicted or ground_truth; else the recipe's."),
    ] = None,
    visible: Annotated[
        str | None,
        typer.Option(metavar="FIRST:LAST", help="With --prompts interactive: what the volumes show, or a CSV file."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead of a run: masks that another tool made.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="DATASET", help="With --predictions: the data set that they are of.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --predictions: the folder of that data set.")
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --predictions: score the test patients of this split file."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --predictions: where scores go; else runs/<name of DIR>.")
    ] = None,
) -> None:
    """Score the best checkpoint of a run again, or masks that another tool made.

    Example: textseg evaluate runs/quickstart/seed2025 --prompts ground_truth
    """
    if (run is None) == (predictions is None):
        raise typer.BadParameter("name a run, or masks with --predictions.")
    if predictions is not None:
        if dataset is None or prompts is not None or visible is not None:
            raise typer.BadParameter("--predictions needs --dataset, and knows no --prompts and no --visible.")
        evaluate_predictions(predictions, dataset, references, split, output)
        return
    assert run is not None
    if dataset or references or split or output:
        raise typer.BadParameter("--dataset, --references, --split and --output go with --predictions.")
    from textseg.evaluation.evaluate import evaluate_run

    evaluate_run(run, prompts=prompts, visible=visible)


app.command()(runs)
app.command()(compare)
app.command()(figure)
app.command()(predict)
app.command()(export)
app.command()(prompts)
app.command()(probe)
app.command()(components)


def _seeds(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' must be numbers with commas between them, such as 1,2,3.") from error
