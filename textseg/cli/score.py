"""`textseg score`: masks that another tool made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from textseg.cli.options import dataset_of, split_parts


def score(
    masks: Annotated[Path, Argument(metavar="DIR", help="The folder of the masks, each named like its case.")],
    dataset: Annotated[str, Option(metavar="DATASET", help="The data set of the masks, or a recipe that uses it.")],
    references: Annotated[Path | None, Option(metavar="DIR", help="Folder of the data, as for `textseg data`.")] = None,
    split: Annotated[Path | None, Option(metavar="FILE", help="Score only test patients of this split file.")] = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="Folder of scores. Default: runs/<name of DIR>.")] = None,
) -> None:
    """Score masks that another tool made, with the same code as a run; `textseg compare` then compares them.

    Example: textseg score nnunet_masks --dataset spider
    """
    from textseg.evaluation.evaluate import headline
    from textseg.evaluation.masks import evaluate_masks
    from textseg.recipe.schema import EvaluationSettings
    from textseg.system.progress import counting

    truth, parts = dataset_of(dataset, references, None), split_parts(split)
    folder = output or Path("runs") / masks.name
    with counting("scoring cases", transient=True) as progress:
        scores, missing, extra = evaluate_masks(
            masks, truth, folder.name, EvaluationSettings(), folder, patients=parts and parts["test"], progress=progress
        )
    if missing:
        print(f"no mask, so every structure is missed: {', '.join(missing)}")
    if extra:
        print(f"of no case, left out: {', '.join(extra)}")
    shown = {row.structure for row in scores if row.status in ("ok", "missed")}
    print(headline(scores, [name for name in truth.atlas.names if name in shown], None, of="in the references"))
    print(folder)
