"""Model cards: the data, scores, intended use and limits of a trained model."""

from __future__ import annotations

from collections.abc import Sequence

from textseg.data.splits import PARTS
from textseg.drawing.tables import format_value, markdown_table, metric_title
from textseg.export.onnx import Agreement
from textseg.inference.files import nnunet_suffixes
from textseg.inference.trained_model import TrainedModel
from textseg.metrics.scores import read_scores, summarise
from textseg.metrics.statistics import small_sample_warning
from textseg.runs.folder import RunFolder, measured_obedience
from textseg.system.commands import shell
from textseg.system.messages import counted
from textseg.text.visibility import statement


def model_card(
    folder: RunFolder, model: TrainedModel, agreement: Agreement | None = None, configurations: Sequence[str] = ()
) -> str:
    """Write a card in Markdown: data, split, scores with their prompt sources, intended use, limits, provenance.

    `agreement` is how the ONNX form of its network differs from torch, for a bundle that holds that; `configurations`
    are the models of a hub that its network is built like.
    """
    run = folder.read()
    hashes = run.get("hashes", {})
    atlas = model.atlas
    limits = (
        f"- It knows these structures only: {statement(atlas, atlas.names)}. It numbers levels by what it sees"
        f"{' and by its text' if model.segmenter.uses_text else ''}.\n"
        "- Scans unlike those of the training (sequence, field strength) may fail without a sign; `textseg predict`\n"
        "  remarks on spacings, fields of view and a brightness that it was not trained on.\n"
        "- Its scores are those of few patients of one data set, and say nothing about other hospitals."
    )
    provenance = (
        f"Recipe: `recipe.yaml`. Weights: step {run.get('scored_step')}, checkpoint {model.fingerprint}.\n"
        f"Data {hashes.get('data')}, split {hashes.get('split')}. {model.recipe.reference}"
    )
    paragraphs = [
        f"# {model.name}",
        f"Segments {counted(len(atlas.structures), 'structure')} in volumes and names each: {', '.join(atlas.names)}.",
        "## Use",
        *_use(model),
        "For research. Not a medical device: no clinical decision may rest on its masks.",
        "## Made of",
        markdown_table(("", ""), [*_made_of(folder, model)]),
        "## Scores",
        *_scores(folder, model),
        *(_network(model, agreement) if agreement else ()),
        *(_built_like(configurations) if configurations else ()),
        "## Limits",
        limits,
        "## Provenance",
        provenance,
    ]
    return "\n\n".join(paragraphs) + "\n"


def _use(model: TrainedModel) -> list[str]:
    """Return the command that segments a scan, with a file for each channel, and which file is which channel."""
    names = model.task.channel_names
    ends = nnunet_suffixes(names) if len(names) > 1 else [""]
    command = shell("textseg", "predict", model.name, *(f"scan{end}.mha" for end in ends), "--output", "masks")
    channels = ", ".join(f"`scan{end}.mha` is {name}" for end, name in zip(ends, names, strict=True))
    note = f"It reads {counted(len(names), 'channel')}: {channels}. One file may also hold all, in this order."
    return [f"```bash\n{command}\n```", *([note] if len(names) > 1 else [])]


def _network(model: TrainedModel, agreement: Agreement) -> list[str]:
    task = model.task
    height, width = task.image_size
    structures = task.class_count - 1
    rows = [["`image`", f"S x {task.image_channels} x {height} x {width}", "prepared slices, 32 bits"]]
    if model.segmenter.uses_text:
        rows += [
            ["`tokens`", f"S x {task.text_length} x {task.text_size}", "features of the holistic prompt, 32 bits"],
            ["`mask`", f"S x {task.text_length}", "true where a token is"],
            ["`classwise`", f"S x {structures} x {task.text_size}", "features of each structure's prompt, 32 bits"],
            ["`present`", f"S x {structures}", "true where the text calls a structure visible"],
        ]
    rows.append(["`logits`", f"S x {task.class_count} x {height} x {width}", "what it gives; 0 is background"])
    table = markdown_table(("tensor", "shape, S slices", ""), rows)
    note = f"The scores above are those of the weights in torch. {agreement}"
    return ["## Network", "`network.onnx` takes and gives:", table, note]


def _built_like(configurations: Sequence[str]) -> list[str]:
    note = f"It is built like {', '.join(configurations)}, from a configuration that lies in `hub/` beside the weights."
    return ["## Network", f"{note} No hub is asked, but opening it may import transformers."]


def _made_of(folder: RunFolder, model: TrainedModel) -> list[list[str]]:
    run, recipe = folder.read(), model.recipe
    split = folder.read_split()
    patients = ", ".join(f"{len(split.get(part, ()))} in {part}" for part in PARTS)
    prompts = "none: it reads no text"
    if recipe.prompts is not None:
        shares = ", ".join(f"{share:g} {source}" for source, share in recipe.prompts.training.items())
        prompts = f"{recipe.prompts.generator.use}, read by {recipe.prompts.text_encoder.use}; in training {shares}"
        if report := recipe.prompts.report:
            use = "sentences as they are" if report.sentences else "read, then written by the generator"
            prompts += f"; reports: {', '.join(report.columns)} ({use})"
        if facts := [name for name, values in model.known_facts.items() if values]:
            prompts += f"; facts: {', '.join(facts)} (give them with --fact)"
    parameters = run.get("parameters")
    return [
        ["data", f"{recipe.dataset.use}; patients: {patients}"],
        ["slices", " x ".join(map(str, recipe.preparation.size))],
        ["parameters", "unknown" if parameters is None else f"{parameters / 1e6:.2f} M"],
        ["prompts", prompts],
        ["epochs", str(recipe.training.epochs)] if recipe.training.epochs else ["steps", str(recipe.training.steps)],
    ]


def _scores(folder: RunFolder, model: TrainedModel) -> list[str]:
    if not folder.scores.exists():
        return ["It has not been evaluated."]
    from textseg.metrics.aggregation import intervals

    scores = read_scores(folder.scores)
    structures = folder.read().get("structures_in_training") or list(model.atlas.names)
    overall, spans = summarise(scores, structures=structures).overall, intervals(scores, structures)
    rows = []
    for metric, mean in overall.items():
        span = spans.get(metric)
        between = "" if span is None else f"{format_value(span.low, mean.unit)} to {format_value(span.high, mean.unit)}"
        counts = [str(mean.n), str(mean.missed), str(mean.spurious)]
        rows.append([metric_title(metric, mean.unit), format_value(mean.value, mean.unit), between, *counts])
    patients = len({row.patient for row in scores})
    sources = ", ".join(sorted({row.prompt_source for row in scores}))
    note = f"On {counted(patients, 'test patient')}, with prompts of source {sources}; macro means over structures."
    if "report" in sources:
        note += " Reports came with the cases, by authors who may have seen the reference masks."
    warning = small_sample_warning(patients)
    header = ("metric", "mean", "95 % interval", "structures", "missed", "spurious")
    obedience = measured_obedience(folder.read())
    text = f"Right and wrong texts (`textseg probe`): {obedience['conclusion']}." if obedience else ""
    return [note, markdown_table(header, rows), *filter(None, [text, warning])]
