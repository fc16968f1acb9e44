"""The commands that take a trained model to new scans; what a command needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

FORMS = ("bundle", "onnx", "grand-challenge")


def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a bundle.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Volumes: files, folders, or patterns.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder that the masks go to.")],
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="Another run or bundle for an ensemble; may be repeated."),
    ] = None,
    visible: Annotated[
        str | None,
        typer.Option(metavar="FIRST:LAST", help="What a person sees in the volumes, or a CSV file."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Without --visible: template or predicted; else the recipe's."),
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="SCHEME", help="Values in the masks: atlas, or a label scheme such as spider.")
    ] = "atlas",
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Name levels anew that contradict their order along the atlas.")
    ] = False,
    augmentation: Annotated[
        str | None,
        typer.Option(
            "--test-time-augmentation", metavar="CHANGES", help="Average over views: shift, scale, gamma, or several."
        ),
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Beside each mask a PNG of slices with its structures named.")
    ] = False,
    suffix: Annotated[
        str | None,
        typer.Option("--format", metavar="SUFFIX", help="Such as .seg.nrrd; else that of each input."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="ENGINE", help="Of an ONNX bundle: onnxruntime (the default) or openvino.")
    ] = None,
) -> None:
    """Segment volumes: a mask in each one's own geometry, with a sidecar that names its values.

    Example: textseg predict runs/quickstart scans/*.nii.gz --output masks
    """
    from textseg.errors import DataError, RunError, suggestion
    from textseg.inference.averaging import checked_changes
    from textseg.inference.files import check_names, find_inputs, plan_jobs, predict_files
    from textseg.inference.loading import load
    from textseg.inference.onnx_networks import checked_engine
    from textseg.inference.predictor import Prompting
    from textseg.system.messages import counted
    from textseg.volumes.dicom_segmentation import SUFFIX as DICOM
    from textseg.volumes.dicom_segmentation import require_highdicom

    if prompts == "ground_truth":
        raise RunError(
            "--prompts: 'ground_truth' reads the annotation, and a new scan has none. Name what you see with --visible."
        )
    if prompts is not None and prompts not in get_args(Prompting):
        raise RunError(f"--prompts: there is no source '{prompts}'.{suggestion(prompts, get_args(Prompting))}")
    if prompts is not None and visible is not None:
        raise RunError("--prompts and --visible exclude each other: a person has said what the prompts say.")
    source = cast("Prompting | None", prompts)
    changes = checked_changes(augmentation) if augmentation is not None else ()
    jobs = plan_jobs(find_inputs(inputs), output, suffix=suffix, visible=visible)
    if any(job.mask.suffix == DICOM for job in jobs):
        require_highdicom()
        if labels != "atlas":
            raise DataError(f"--labels: segments of a DICOM file have no '{labels}' values; add --format .nii.gz.")
    trained = load(model, *(others or ()), engine=checked_engine(engine) if engine else None)
    if prompts is not None and not trained.reads_text:
        raise RunError(f"--prompts: '{model}' reads no text.")
    if prompts is None and any(job.visible is None for job in jobs):
        _ = trained.default_prompts  # which an ensemble may not agree on
    trained.check_labels(labels)
    check_names(trained, jobs)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: '{output}' can't be made: {error.strerror}.") from error

    from textseg.system.progress import progress_bar

    failed, written, there = [], 0, 0
    with progress_bar() as bar:
        outcomes = predict_files(
            trained,
            jobs,
            prompts=source,
            labels=labels,
            ordered=ordered,
            test_time_augmentation=changes,
            overlay=overlay,
        )
        for outcome in bar.track(outcomes, total=len(jobs), description="predicting"):
            written += outcome.state == "written"
            there += outcome.state == "there"
            if outcome.state == "failed":
                failed.append(outcome)
            for remark in outcome.remarks:
                bar.console.print(f"{outcome.job.input}: {remark}", highlight=False, soft_wrap=True)
    print(
        f"{counted(written, 'mask')} written to {output}"
        + (f", {there} {'was' if there == 1 else 'were'} there already" if there else "")
    )
    if failed:
        print(f"{len(failed)} of {counted(len(jobs), 'volume')} failed:", file=sys.stderr)
        for outcome in failed:
            print(f"  {outcome.message}", file=sys.stderr)
        raise typer.Exit(1)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[str, typer.Option(metavar="FORM", help="What to make of it: bundle, onnx or grand-challenge.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new folder.")],
    slug: Annotated[
        str | None, typer.Option(metavar="IN[:OUT]", help="Of a challenge's images and masks; for grand-challenge.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="SCHEME", help="Values in the masks, for grand-challenge: spider, or another.")
    ] = None,
) -> None:
    """Make of a run what predicts elsewhere, offline and without its data.

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
    model = load_model(folder.path, device="cpu")
    if slug:
        print(export_container(folder, model, output, slug=slug, labels=labels or LABELS))
        return
    print(export_bundle(folder, model, output, onnx=to == "onnx"))
