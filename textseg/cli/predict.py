"""`textseg predict`: masks for new scans."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

from typer import Argument, Exit, Option

from textseg.cli.options import TrustCode

if TYPE_CHECKING:
    from textseg.inference.files import Outcome


def predict(
    model: Annotated[Path, Argument(metavar="RUN", help="A run folder or a bundle.")],
    inputs: Annotated[list[str], Argument(metavar="INPUT", help="Volumes: files, folders, or patterns.")],
    output: Annotated[Path, Option(metavar="DIR", help="The folder for the masks.")],
    others: Annotated[
        list[Path] | None,
        Option("--with", metavar="RUN", help="Another run or bundle, to make an ensemble. May be repeated."),
    ] = None,
    visible: Annotated[
        str | None,
        Option(metavar="FIRST:LAST", help="The structures that a person sees in the volumes, or a CSV file."),
    ] = None,
    text: Annotated[
        str | None,
        Option(metavar="WORDS", help="In place of --visible: the same in words, such as 'T11 to L3, no canal'."),
    ] = None,
    fact: Annotated[
        list[str] | None,
        Option(metavar="KEY=VALUE", help="A fact of all volumes, such as sequence=T2. May be repeated."),
    ] = None,
    prompts: Annotated[
        str | None,
        Option(
            metavar="SOURCE", help="Without --visible and --text: template, predicted. Default: as the recipe says."
        ),
    ] = None,
    labels: Annotated[str, Option(metavar="SCHEME", help="Label values: atlas, or a scheme such as spider.")] = "atlas",
    ordered: Annotated[
        bool, Option("--ordered", help="Rename levels that contradict the order of the atlas, or --visible or --text.")
    ] = False,
    augmentation: Annotated[
        str | None,
        Option(
            "--test-time-augmentation",
            metavar="CHANGES",
            help="Average predictions of changed images: shift, scale, gamma, or several.",
        ),
    ] = None,
    overlay: Annotated[bool, Option("--overlay", help="Also write a PNG of each mask, its structures named.")] = False,
    suffix: Annotated[
        str | None,
        Option("--format", metavar="SUFFIX", help="The file format, such as .seg.nrrd. Default: that of each input."),
    ] = None,
    ending: Annotated[
        str, Option("--mask-suffix", metavar="TEXT", help="Put after the name of each mask, such as _seg.")
    ] = "",
    channel_suffixes: Annotated[
        str | None,
        Option(
            metavar="SUFFIXES",
            help="Models of several channels: the ends of their files' names, such as _t1,_t2. Default: _0000,_0001.",
        ),
    ] = None,
    engine: Annotated[
        str | None, Option(metavar="ENGINE", help="ONNX bundles: onnxruntime (default), openvino.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Segment volumes. Each mask has the geometry of its volume, and a JSON file that names its values.

    Example: textseg predict runs/quickstart scans/*.nii.gz --output masks
    """
    from textseg.errors import DataError, RunError, suggestion
    from textseg.inference.averaging import checked_changes
    from textseg.inference.files import (
        PredictionSettings,
        check_words,
        find_inputs,
        join_channels,
        plan_jobs,
        predict_files,
        with_facts,
    )
    from textseg.inference.loading import load
    from textseg.inference.onnx_networks import checked_engine
    from textseg.inference.predictor import Prompting
    from textseg.volumes.dicom_segmentation import SUFFIX as DICOM
    from textseg.volumes.dicom_segmentation import require_highdicom
    from textseg.volumes.mask import label_values

    if prompts == "ground_truth":
        raise RunError(
            "--prompts: 'ground_truth' reads the annotation, and a new scan has none. Say what you see with --visible "
            "or --text."
        )
    if prompts is not None and prompts not in get_args(Prompting):
        raise RunError(f"--prompts: there is no source '{prompts}'.{suggestion(prompts, get_args(Prompting))}")
    if visible is not None and text is not None:
        raise RunError("--visible and --text exclude each other: both state what the volumes show. Leave out one.")
    option, words = ("--visible", visible) if text is None else ("--text", text)
    if prompts is not None and words is not None:
        raise RunError(f"--prompts and {option} exclude each other: a person has said what the prompts say.")
    source = cast("Prompting | None", prompts)
    changes = checked_changes(augmentation) if augmentation is not None else ()
    facts = read_pairs(fact or ())
    files = find_inputs(inputs, output)
    trained = load(model, *(others or ()), engine=checked_engine(engine) if engine else None, trust_code=trust_code)
    files = join_channels(files, trained.task.channel_names, channel_suffixes.split(",") if channel_suffixes else None)
    jobs = plan_jobs(files, output, suffix=suffix, ending=ending, visible=words)
    if any(job.mask.suffix == DICOM for job in jobs):
        require_highdicom()
        if labels != "atlas":
            raise DataError(f"--labels: segments of a DICOM file have no '{labels}' values; add --format .nii.gz.")
    if prompts is not None and not trained.reads_text:
        raise RunError(f"--prompts: '{model}' reads no text.")
    if prompts is None and any(job.visible is None for job in jobs):
        _ = trained.default_prompts  # which an ensemble may not agree on
    label_values(trained.atlas, labels)  # refuses labels that the atlas does not have
    jobs = with_facts(trained, jobs, facts)
    for line in check_words(trained, jobs, option, ordered=ordered):
        print(line)
    settings = PredictionSettings(source, labels, ordered, changes, overlay)
    write_masks(predict_files(trained, jobs, settings), len(jobs), output, "volume", "predicting")


def read_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """Return the names and values of `--fact name=value`. Raises PromptError for another form, or a name twice."""
    from textseg.errors import PromptError

    facts: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = (part.strip() for part in pair.partition("="))
        if not (name and sign and value):
            raise PromptError(f"--fact: '{pair}' must be KEY=VALUE, such as sequence=T2.")
        if facts.setdefault(name.casefold(), value) is not value:
            raise PromptError(f"--fact: '{name}' is given twice. Keep one.")
    return facts


def write_masks(outcomes: Iterable[Outcome], count: int, output: Path, kind: str, doing: str) -> None:
    """Make the output folder, work through the outcomes behind a progress bar, and print what became of each job.

    Raises Exit(1) if a job failed, and DataError if the folder can't be made.
    """
    from textseg.errors import DataError
    from textseg.system.files import remove_leftovers
    from textseg.system.messages import counted
    from textseg.system.progress import progress_bar

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: '{output}' can't be made: {error.strerror}.") from error
    remove_leftovers(output)  # also where all masks are there already
    failed, written, existing = [], 0, 0
    with progress_bar() as bar:
        for outcome in bar.track(outcomes, total=count, description=doing):
            written += outcome.state == "written"
            existing += outcome.state == "there"
            if outcome.state == "failed":
                failed.append(outcome)
            for remark in outcome.remarks:
                bar.console.print(f"{outcome.job.input}: {remark}", highlight=False, soft_wrap=True)
    there = f", {existing} {'was' if existing == 1 else 'were'} there already" if existing else ""
    print(f"{counted(written, 'mask')} written to {output}{there}")
    if failed:
        heading = f"{len(failed)} of {counted(count, kind)} failed:"
        print(heading, *(f"  {outcome.message}" for outcome in failed), sep="\n", file=sys.stderr)
        raise Exit(1)
