"""The commands that need a data set and no run; what a command needs is imported when it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textseg.errors import DataError, RecipeError, suggestion
from textseg.system.messages import counted

if TYPE_CHECKING:
    from textseg.contracts import Dataset

data = typer.Typer(help="Fetch data sets, check them, look at them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="DATASET", help="A data set such as spider, or a recipe.")]
Folder = Annotated[
    Path | None,
    typer.Option(help="Where the data are; else the recipe's folder, or TEXTSEG_DATA/<name>, or data/<name>."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the data set; may be repeated.")
]


@data.command()
def fetch(dataset: Name, folder: Folder = None, overrides: Overrides = None) -> None:
    """Download a data set, or say how to get it; what is there already stays.

    Example: textseg data fetch spider --folder data/spider
    """
    found = _dataset(dataset, folder, overrides)
    if not hasattr(found, "fetch"):
        raise DataError(f"The data set '{dataset}' can't be fetched: put its files in place yourself.")
    with bytes_bar() as report:
        said = found.fetch(progress=report)
    print(said)


@data.command()
def check(
    dataset: Name,
    folder: Folder = None,
    overrides: Overrides = None,
    split: Annotated[Path | None, typer.Option(help="A split file whose patients are checked, too.")] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything found there.")] = None,
) -> None:
    """Look for what is wrong with each case; exit code 1 when something is.

    Example: textseg data check spider --folder data/spider --json check.json
    """
    from textseg.data.checking import check_dataset
    from textseg.system.files import write_atomically
    from textseg.system.progress import counting

    found = _dataset(dataset, folder, overrides)
    parts = _parts(split)
    with counting("checking cases", transient=True) as report:
        checked = check_dataset(found, parts, progress=report)
    if json is not None:
        write_atomically(json, checked.as_json())
    for finding in checked.findings:
        print(f"{finding.severity}  {finding.case or 'data set'}: {finding.what}\n       {finding.remedy}")
    doubts = sum(finding.severity == "doubt" for finding in checked.findings)
    sound, are = len(checked.sound), "is" if len(checked.sound) == 1 else "are"
    print(f"{sound} of {counted(len(checked.cases), 'case')} {are} sound; {counted(doubts, 'doubt')}")
    if checked.faulty:
        print(f"To train on the sound ones: --set 'leave_out=[{', '.join(checked.faulty)}]'")
    if not checked.clean:
        raise typer.Exit(1)


@data.command()
def show(
    dataset: Name,
    case: Annotated[str | None, typer.Argument(metavar="CASE", help="A case; without it, the whole data set.")] = None,
    output: Annotated[Path | None, typer.Option(help="The PNG to write; else <case>.png or <data set>.png.")] = None,
    slices: Annotated[str | None, typer.Option(help="Slices of the case, from 1, such as 7,8.")] = None,
    folder: Folder = None,
    overrides: Overrides = None,
) -> None:
    """Draw a case with its structures named, or how often each structure is seen in the data set.

    Example: textseg data show spider 5_t2_SPACE --output case.png
    """
    from textseg.data.checking import check_dataset
    from textseg.drawing.volume_pictures import case_png, frequency_png
    from textseg.system.files import write_atomically
    from textseg.system.progress import counting

    found = _dataset(dataset, folder, overrides)
    if case is None:
        if slices is not None:
            raise typer.BadParameter("--slices goes with a case.")
        with counting("checking cases", transient=True) as report:
            checked = check_dataset(found, progress=report)
        shown = [one.slices for one in checked.cases if one.slices]
        title = f"{Path(dataset).stem}: {counted(len(shown), 'case')} with masks"
        target, content = output or Path(f"{Path(dataset).stem}.png"), frequency_png(title, found.atlas, shown)
    else:
        by_id = {one.id: one for one in found.cases()}
        if case not in by_id:
            raise DataError(f"The data set has no case '{case}'.{suggestion(case, by_id)}")
        target = output or Path(f"{case}.png")
        content = case_png(by_id[case], found.label_map(by_id[case]), found.atlas, _numbers(slices))
    write_atomically(target, content)
    print(target)


@data.command()
def convert(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="A mask: MHA, NRRD or NIfTI.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The mask to write.")],
    source: Annotated[str, typer.Option("--from", metavar="SCHEME", help="How it is labelled, such as spider.")],
    target: Annotated[str, typer.Option("--to", metavar="SCHEME", help="How to label it.")],
    drop: Annotated[bool, typer.Option("--drop", help="Leave out what has no counterpart.")] = False,
) -> None:
    """Write a mask with the label values of another convention; structures without counterpart are listed.

    Example: textseg data convert mask.mha converted.nii.gz --from spider --to totalspineseg
    """
    from textseg.data.conversion import convert_file

    for value, name in convert_file(mask, output, source, target, drop=drop).items():
        print(f"left out: {value} ({name or f'no value of {source}'})")
    print(output)


@data.command()
def cache(
    clean: Annotated[bool, typer.Option("--clean", help="Remove what is there; runs make it anew.")] = False,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Only what was not used for so long.")
    ] = None,
    leftovers: Annotated[bool, typer.Option("--leftovers", help="Only what killed processes left.")] = False,
) -> None:
    """Show what the cache holds, or clean it.

    Example: textseg data cache --clean --older-than 30
    """
    from textseg.data.cache import cache_entries, clean_cache
    from textseg.system.files import cache_folder

    if not clean and (older_than is not None or leftovers):
        raise typer.BadParameter("--older-than and --leftovers say what --clean removes; add it.")
    place = cache_folder()
    if clean:
        removed = clean_cache(place, older_than_days=older_than, leftovers_only=leftovers)
        size = _size(sum(entry.bytes for entry in removed))
        print(f"removed {counted(len(removed), 'entry', 'entries')}, {size}, from {place}")
        return
    print(place)
    entries = cache_entries(place)
    for kind, what in (("slices", "cases with slices"), ("text", "texts with features"), ("leftover", "leftovers")):
        sizes = [entry.bytes for entry in entries if entry.kind == kind]
        print(f"{len(sizes):6} {what:20} {_size(sum(sizes)):>10}")


def evaluate_predictions(
    predictions: Path, name: str, references: Path | None, split: Path | None, output: Path | None
) -> None:
    """What `textseg evaluate --predictions` does."""
    from textseg.evaluation.evaluate import headline
    from textseg.evaluation.masks import evaluate_masks
    from textseg.recipe.loading import EvaluationSettings
    from textseg.system.progress import counting

    found = _dataset(name, references, None)
    target, parts = output or Path("runs") / predictions.name, _parts(split)
    with counting("scoring cases", transient=True) as report:
        scores, missing, extra = evaluate_masks(
            predictions,
            found,
            target.name,
            EvaluationSettings(),
            target,
            patients=parts and parts["test"],
            progress=report,
        )
    shown = {row.structure for row in scores if row.status in ("ok", "missed")}
    if missing:
        print(f"no mask, so every structure is missed: {', '.join(missing)}")
    if extra:
        print(f"of no case, left out: {', '.join(extra)}")
    print(headline(scores, [name for name in found.atlas.names if name in shown], None, of="in the references"))
    print(target)


def _dataset(name: str, folder: Path | None, overrides: list[str] | None) -> Dataset:
    """Return the data set that a name or a recipe means, with settings from the command line."""
    from textseg.recipe.listing import installed_recipes
    from textseg.recipe.loading import load_recipe
    from textseg.recipe.source import put
    from textseg.registry.discovery import installed_registry

    registry = installed_registry()
    known = [component.name for component in registry.components("dataset")]
    if name in known:
        component = name
        settings = {"folder": str(Path(os.environ.get("TEXTSEG_DATA", "data")) / name)}
    elif name.lower().endswith((".yaml", ".yml")) or name in {recipe.name for recipe in installed_recipes(registry)}:
        spec = load_recipe(Path(name), []).dataset
        component, settings = spec.use, dict(spec.settings)
    else:
        raise DataError(f"There is no data set '{name}'.{suggestion(name, known)} Or name a recipe, as for `run`.")
    settings |= {} if folder is None else {"folder": str(folder)}
    for override in overrides or []:
        try:
            put(settings, override)
        except ValueError as error:
            raise RecipeError(f"--set {override}: {error}") from error
    built: Dataset = registry.build("dataset", component, settings=settings)
    return built


def _parts(path: Path | None) -> dict[str, list[str]] | None:
    if path is None:
        return None
    from textseg.data.splits import read_parts

    return read_parts(path)


def _numbers(text: str | None) -> list[int] | None:
    """Slices as a person counts them to 0-based ones."""
    if text is None:
        return None
    try:
        return [int(number) - 1 for number in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' must be numbers with commas between them, such as 7,8.") from error


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


@contextmanager
def bytes_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Shows how much of which file has arrived."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    tasks: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:

        def report(name: str, done: int, total: int | None) -> None:
            task = tasks.setdefault(name, None)
            if task is None:
                task = tasks[name] = bar.add_task(name, total=total)
            bar.update(task, completed=done, total=total)

        yield report
