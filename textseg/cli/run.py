"""`textseg run`: from recipes to reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from textseg.cli.options import ChangedCode, Code, DryRun, Fresh, RecipeOverrides, TrustCode, numbers


def run(
    recipes: Annotated[list[Path], Argument(metavar="RECIPE", help="Recipe files, or names from `textseg recipes`.")],
    overrides: RecipeOverrides = None,
    seeds: Annotated[str | None, Option(help="Run with each seed, such as 1,2,3. Default: the recipe's.")] = None,
    folds: Annotated[
        str | None,
        Option(help="Run once with each of these folds, such as 0,1 or all. The recipe needs `split.folds`."),
    ] = None,
    output: Annotated[Path, Option(metavar="DIR", help="The folder for the run folders.")] = Path("runs"),
    fresh: Fresh = False,
    dry_run: DryRun = False,
    code: Code = None,
    trust_code: TrustCode = False,
    changed_code: ChangedCode = False,
    jobs: Annotated[int, Option(min=1, metavar="N", help="Run so many at once, each with its share of the cores.")] = 1,
) -> None:
    """Prepare the data, train, evaluate and write a report.

    An interrupted run resumes. Several runs end with a leaderboard.

    Example: textseg run quickstart --set training.epochs=2 --seeds 1,2
    """
    chosen: list[int | None] = [None] if seeds is None else [*dict.fromkeys(numbers(seeds, "1,2,3", int))]
    from textseg.registry.discovery import warn_of_faults
    from textseg.training.many_runs import plan_runs, run_all

    warn_of_faults()
    planned = plan_runs(recipes, overrides or [], chosen, folds, output, code=code or [], trust_code=trust_code)
    options = {"fresh": fresh, "dry_run": dry_run, "trust_code": trust_code, "changed_code": changed_code}
    if len(planned) > 1:
        # Dry runs go one after the other: with several at once, each would write what it prints to a file.
        at_once = 1 if dry_run else jobs
        raise Exit(run_all(planned, jobs=at_once, **options))
    from textseg.training.run import run as run_recipe

    (only,) = planned
    run_recipe(only.recipe, overrides=only.overrides, seed=only.seed, output=output, code=code or [], **options)
