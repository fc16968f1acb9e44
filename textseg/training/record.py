"""The record of a run, run.json: its origin, its cost, and the validity of its scores."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

from textseg.contracts import HasFirstLayer, HasPlan
from textseg.evaluation.evaluate import stated_as
from textseg.models.cost import measure_cost
from textseg.models.segmenter import Segmenter
from textseg.randomness import DRAWS
from textseg.recipe.loading import complete_settings, dump, required_components
from textseg.recipe.received import code_of
from textseg.recipe.schema import Recipe
from textseg.registry.kinds import SCORING
from textseg.runs.experiment import Experiment
from textseg.runs.folder import RunFolder, environment, first_line
from textseg.runs.identity import Facts, component_changes, scored_with, weight_changes
from textseg.runs.task_record import write_task
from textseg.system.files import content_hash, write_atomically
from textseg.text.embeddings import write_prompt_table
from textseg.training.checkpoints import read_progression
from textseg.training.loggers import peak_memory
from textseg.training.loop import Training
from textseg.training.number_checks import numeric_settings

# Settings of a training that may change when a run resumes.
FREE = {"epochs", "steps", "patience", "workers", "threads", "devices", "nodes", "deterministic"}
FREE |= {"checkpoint_every", "overlay_every", "loggers"}
# Sections of a recipe that must not change when a run resumes, apart from these settings.
BOUND = {"seed", "preparation", "augmentation", "prompts", "model", "segmentation_loss", "auxiliary_losses", "training"}


class RunRecord:
    """The files that the first process of a run writes beside checkpoints and scores, run.json among them."""

    def __init__(self, training: Training, started: float) -> None:
        self.training, self.experiment, self.folder = training, training.experiment, training.folder
        self.started = started  # by `time.monotonic`
        self.before: Mapping[str, Any] = {}  # the record of the earlier parts of an interrupted run

    def write_inputs(self) -> None:
        """Write recipe, split, task and prompts."""
        experiment, folder = self.experiment, self.folder
        write_atomically(folder.recipe, dump(experiment.recipe))
        split = {**asdict(experiment.split), "hash": experiment.split.hash}
        write_atomically(folder.split, json.dumps(split, indent=1) + "\n")
        write_task(folder.task, experiment.record)
        for code in experiment.local_code:
            write_atomically(folder.code / code.name, code.content)
        if experiment.text is not None:
            write_prompt_table(folder.prompts, experiment.text.rows)

    def write_origin(self, precision: Mapping[str, Any]) -> None:
        """Write the origin of the weights (data, settings, versions, hardware) and the cost of the model."""
        experiment, recipe, segmenter = self.experiment, self.experiment.recipe, self.training.segmenter
        now = {"components": experiment.component_facts(), **environment()}
        self.folder.update(
            name=recipe.name,
            seed=recipe.seed,
            fold=recipe.split.fold,
            reference=recipe.reference,
            dataset=recipe.dataset.name,
            precision=dict(precision),
            processes={"devices": recipe.training.devices, "nodes": recipe.training.nodes},
            numerics=numeric_settings(),
            hashes=experiment.hashes(),
            bound=bound(experiment),
            **({"reports": experiment.report_counts} if experiment.reports else {}),
            settings=complete_settings(recipe, experiment.registry),
            code=code_of(spec for _, spec in required_components(recipe)),
            **now,
            **_earlier(self.folder.read(), now, self.training.progression.step),
            **measure_cost(segmenter, experiment.task, self.training.fabric.device),
            **_plan_of_network(segmenter),
            **_first_layers(segmenter),
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the record up to date while a run trains and is scored, and call the hooks at its start and its end."""
        experiment, folder = self.experiment, self.folder
        local_code = {code.name: code.sha256 for code in experiment.local_code}
        self.before = folder.update(failure=None, local_code=local_code)
        experiment.registry.notify("textseg_run_started", experiment.run(folder.path, self.before))
        try:
            yield
        finally:
            self.write_cost()
        experiment.registry.notify("textseg_run_finished", experiment.run(folder.path, folder.read()))

    def write_cost(self) -> None:
        """Write time and memory, including those of the earlier parts of an interrupted run."""
        self.folder.update(
            wall_seconds=round(self.before.get("wall_seconds", 0) + time.monotonic() - self.started, 1),
            training_seconds=round(self.training.progression.seconds, 1),
            peak_memory_bytes=max(self.before.get("peak_memory_bytes", 0), peak_memory(self.training.fabric.device)),
        )


@contextmanager
def failure_kept(folder: RunFolder, recipe: Recipe) -> Iterator[None]:
    """Write an error into run.json, where `textseg runs` finds it, also of a run that has not written any file yet."""
    try:
        yield
    except Exception as error:
        if not folder.recipe.exists():
            write_atomically(folder.recipe, dump(recipe))
        experiment = {"name": recipe.name, "seed": recipe.seed, "fold": recipe.split.fold}
        folder.update(**experiment, failure=first_line(error))
        raise


def _earlier(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return what the steps of a resumed run were made with up to here, where it differs, behind earlier parts."""
    differs = {key: before[key] for key in now if key in before and before[key] != json.loads(json.dumps(now[key]))}
    differs.pop("command", None)
    return {"earlier": [*before.get("earlier", []), {"until_step": step, **differs}]} if step and differs else {}


def bound(experiment: Experiment) -> dict[str, Any]:
    """Return the facts that must not change between the beginning of a run and its continuation."""
    # The words of the reports are part of the text, so their file may lie elsewhere.
    free: Any = {"training": FREE, "prompts": {"evaluation": True, "also_evaluate": True, "report": {"file": True}}}
    settings = experiment.recipe.model_dump(mode="json", include=BOUND, exclude=free)
    # A switch that is off equals one that an older version did not have.
    settings["training"] = {key: value for key, value in settings["training"].items() if value is not False}
    hashes = experiment.hashes()
    # A recipe without prompts has no such key.
    return {
        "prompts": None,
        "draws": DRAWS,
        **_without_distributions(settings),
        "data": hashes["data"],
        "split": hashes["split"],
        "text": hashes["prompts"],
        "reports": content_hash(experiment.words) if experiment.reports else None,
    }


def causes_of_changes(before: Facts, experiment: Experiment) -> dict[str, list[str]]:
    """Return sentences on what may have changed the data, the text and the reports of a run with these components."""
    now, prompts = experiment.component_facts(), experiment.recipe.prompts
    report = prompts.report if prompts else None
    where = "" if report is None else f"'{report.file}'" if report.file else "the facts of the data set"
    return {
        "data": component_changes(before, now, of={"dataset"}),
        "text": [*component_changes(before, now, of={"prompt_generator", "atlas"}), *weight_changes(before, now)],
        "reports": [f"prompts.report: the words of cases changed in {where}"] if report else [],
    }


def _without_distributions(node: Any) -> Any:
    """Return settings in which "distribution/name" is "name": the record of components names the distribution."""
    if isinstance(node, list):
        return [_without_distributions(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _without_distributions(value) for key, value in node.items()}
    return {**plain, "use": plain["use"].rpartition("/")[2]} if isinstance(plain.get("use"), str) else plain


def finished_earlier(experiment: Experiment, folder: RunFolder) -> bool:
    """Return True if the training of this experiment has ended, and the folder has its scores.

    The model is not built, since code that changed may no longer fit the weights.
    """
    settings, record = experiment.recipe.training, folder.read()
    if record.get("scored_step") is None:
        return False
    try:
        progression = read_progression(folder.load_checkpoint("last"))
    except (KeyError, TypeError, ValueError):
        return False  # the attempt to resume says what is wrong
    finished = len(progression.history)
    epochs = settings.epochs_of(progression.step // finished) if finished else 0
    if not finished or finished > epochs or not progression.is_over(settings, epochs):
        return False
    evaluation = experiment.recipe.evaluation.model_dump(mode="json")
    evaluation["prompts"] = experiment.evaluation_source or "none"
    same = record["scored_step"] == progression.step and record.get("evaluation") == evaluation
    if component_changes(scored_with(record), experiment.component_facts(), of=SCORING):
        return False
    files = [folder.scores, folder.report, *[folder.fields_of_view] * bool(experiment.recipe.evaluation.fields_of_view)]
    files += [folder.evaluation(stated_as(source)).report for source in experiment.further_sources]
    return same and all(file.exists() for file in files)


def _first_layers(segmenter: Segmenter) -> dict[str, Any]:
    """Return what became of pretrained weights for images of other channels; nothing without them."""
    modules = [module for module in segmenter.modules() if isinstance(module, HasFirstLayer)]
    sentences = dict.fromkeys(module.first_layer for module in modules if module.first_layer)
    return {"first_layer": "; ".join(sentences)} if sentences else {}


def _plan_of_network(segmenter: Segmenter) -> dict[str, Any]:
    """Return the settings that a network has derived from the data; nothing for other networks."""
    plan = segmenter.network.plan if isinstance(segmenter.network, HasPlan) else None
    return {"plan": asdict(plan)} if is_dataclass(plan) and not isinstance(plan, type) else {}
