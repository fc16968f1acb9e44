"""`textseg score`: masks that another tool made."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, BadParameter, Exit, Option

from textseg.cli.options import Code, dataset_of, split_parts

if TYPE_CHECKING:
    from textseg.levels.obedience import ComparedPicture


def score(
    masks: Annotated[Path, Argument(metavar="DIR", help="The folder of the masks, each named like its case.")],
    dataset: Annotated[str, Option(metavar="DATASET", help="The data set of the masks, or a recipe that uses it.")],
    references: Annotated[Path | None, Option(metavar="DIR", help="Folder of the data, as for `textseg data`.")] = None,
    split: Annotated[Path | None, Option(metavar="FILE", help="Score only test patients of this split file.")] = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="Folder of scores. Default: runs/<name of DIR>.")] = None,
    metrics: Annotated[
        str | None, Option(metavar="NAMES", help="Metrics, such as dsc,hd95. Default: dsc,jaccard,hd95,asd.")
    ] = None,
    kernel: Annotated[
        Literal["textseg", "medpy"], Option(help="Who computes the metrics; the numbers are equal.")
    ] = "textseg",
    moved: Annotated[
        Path | None, Option(metavar="DIR", help="Masks of the same cases under a moved text, to measure obedience.")
    ] = None,
    levels: Annotated[
        int | None, Option(metavar="N", help="With --moved: levels by which that text was moved, downwards positive.")
    ] = None,
    code: Code = None,
) -> None:
    """Score masks that another tool made, with the same code as a run; `textseg compare` then compares them.

    Example: textseg score nnunet_masks --dataset spider
    """
    from textseg.drawing.tables import markdown_table
    from textseg.evaluation.evaluate import headline
    from textseg.evaluation.masks import compare_moved_masks, evaluate_masks
    from textseg.levels.obedience import TABLE_HEADER, as_json, table_rows
    from textseg.recipe.loading import evaluation_of
    from textseg.recipe.schema import EvaluationSettings
    from textseg.system.files import file_name
    from textseg.system.messages import counted
    from textseg.system.progress import counting

    if (moved is None) != (levels is None):
        raise BadParameter(
            "--moved and --levels go together: --moved DIR --levels 1 for a text moved down by one level."
        )
    truth, parts = dataset_of(dataset, references, None, code), split_parts(split)
    settings = EvaluationSettings() if metrics is None else evaluation_of(metrics)
    settings = settings.model_copy(update={"kernel": kernel})
    folder, patients = output or Path("runs") / file_name(masks.resolve().name), parts and parts["test"]
    compared: list[ComparedPicture] = []
    unread: Mapping[str, str] = {}
    if moved is not None and levels is not None:
        with counting("comparing cases", transient=True) as progress:
            compared, left_out, unread = compare_moved_masks(
                masks, moved, truth, levels, patients=patients, progress=progress
            )
        if left_out:
            print(f"not in both folders, so not in the obedience: {', '.join(left_out)}")
    with counting("scoring cases", transient=True) as progress:
        scored = evaluate_masks(
            masks,
            truth,
            folder.name,
            settings,
            folder,
            patients=patients,
            compared=compared,
            progress=progress,
        )
    if scored.missing:
        print(f"no mask, so every structure is missed: {', '.join(scored.missing)}")
    if scored.extra:
        print(f"of no case, left out: {', '.join(scored.extra)}")
    shown = {row.structure for row in scored.scores if row.status in ("ok", "missed")}
    print(headline(scored.scores, [name for name in truth.atlas.names if name in shown], None, of="in the references"))
    if compared:
        record = as_json(compared)
        print(f"\n{record['conclusion']}\n\n{markdown_table(TABLE_HEADER, table_rows(record))}")
    print(folder)
    if failed := {**unread, **scored.failed}:
        print(f"{counted(len(failed), 'case')} could not be scored:", file=sys.stderr)
        print(*(f"  {name}: {reason}" for name, reason in failed.items()), sep="\n", file=sys.stderr)
        raise Exit(1)
