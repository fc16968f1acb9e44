"""`textseg export`: a trained model for other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from textseg.cli.options import TrustCode

FORMS = ("bundle", "onnx", "grand-challenge")


def export(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[str, Option(metavar="FORM", help="The form to write: bundle, onnx or grand-challenge.")],
    output: Annotated[Path, Option(metavar="DIR", help="The folder to write.")],
    slug: Annotated[str | None, Option(metavar="IN[:OUT]", help="For grand-challenge: image and mask names.")] = None,
    labels: Annotated[
        str | None, Option(metavar="SCHEME", help="For grand-challenge: the label values of the masks, such as spider.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Export the model of a run, to predict on other machines, offline and without the data.

    Example: textseg export runs/quickstart --to bundle --output quickstart_bundle
    """
    from textseg.errors import RunError, suggestion

    if to not in FORMS:
        raise RunError(f"--to: there is no form '{to}'.{suggestion(to, FORMS)}")
    if to != "grand-challenge" and (slug or labels):
        raise RunError("--slug and --labels belong to --to grand-challenge. Leave them out.")
    if to == "grand-challenge" and not slug:
        raise RunError("--slug: say how the challenge calls the images that it gives and takes, such as mri:mask.")
    from textseg.export.bundle import export_bundle
    from textseg.export.grand_challenge import LABELS, export_container
    from textseg.inference.loading import load_model
    from textseg.runs.folder import RunFolder

    folder = RunFolder.existing(run)
    model = load_model(folder.path, device="cpu", trust_code=trust_code)
    if slug:
        print(export_container(folder, model, output, slug=slug, labels=labels or LABELS))
        return
    print(export_bundle(folder, model, output, onnx=to == "onnx"))
