"""Prediction with trained models: a volume gives a mask of named structures, in the geometry of its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.contracts import ArrayImage, Atlas, Task, Visibility
from textseg.data.slice_geometry import PreparedVolume, prepare_volume
from textseg.errors import DataError, PromptError, suggestion
from textseg.inference.averaging import Change, average, views
from textseg.inference.structure_finder import StructureFinder, find_structures, predicted_visibility
from textseg.inference.training_domain import few_values, outside_domain
from textseg.levels.level_order import Naming, find_contradictions, order_levels, stated_stretch
from textseg.recipe.schema import PreparationSettings, ReportSettings
from textseg.runs.task_record import TaskRecord
from textseg.system.messages import counted
from textseg.text.reading import interactive_visibility
from textseg.text.visibility import report_visibility, template_visibility
from textseg.volumes.files import Readable, Volume
from textseg.volumes.geometry import Geometry
from textseg.volumes.mask import Mask
from textseg.volumes.pictures import SUFFIX as PNG
from textseg.volumes.scan import Scan, read_scan, scan_hash

if TYPE_CHECKING:
    from textseg.inference.trained_model import TrainedModel

_READS_NO_TEXT = (
    "'{}' reads no text, so visible structures and facts have no effect. Leave out --visible, --text, --fact and "
    "--prompts, or add "
    "--ordered: it names the levels afterwards as --visible and --text say."
)

LISTED = 5  # values that a remark shows

Prompting = Literal["template", "predicted"]
Image = Readable | Sequence[Readable] | Mapping[str, Readable]  # a file, or the files of all channels
Named = str | tuple[str, str] | list[str]


class Predictor(ABC):
    """A model that segments volumes: one trained model, or several as an ensemble.

    Calling it segments one volume. It reads no annotation: its prompts state the template, the structures that a
    person names, or the structures that a first pass of the model finds.
    """

    name: str
    fingerprint: str  # of its weights
    record: TaskRecord

    @property
    @abstractmethod
    def models(self) -> Sequence[TrainedModel]:
        """The models whose probabilities are averaged; the first prepares the volumes."""

    @property
    def task(self) -> Task:
        """The task of the model."""
        return self.record.task

    @property
    def atlas(self) -> Atlas:
        """The atlas of the structures that the model segments."""
        return self.task.atlas

    @property
    def readers(self) -> list[TrainedModel]:
        """The models that read text."""
        return [model for model in self.models if model.recipe.prompts_read is not None]

    @property
    def reads_text(self) -> bool:
        """True if at least one of the models reads text."""
        return bool(self.readers)

    @property
    def engine(self) -> str:
        """The software that runs its networks: "torch", engines of ONNX bundles, or several joined by " + "."""
        engines = {str(getattr(model.segmenter.network, "engine", "torch")) for model in self.models}
        return " + ".join(sorted(engines))

    @property
    def default_prompts(self) -> Prompting:
        """The prompt source that its recipes evaluate with; the template for reports, which a new scan may lack.

        Raises PromptError where the recipes of an ensemble disagree.
        """
        sources = [(model.name, model.recipe.prompts.evaluation) for model in self.readers if model.recipe.prompts]
        if len({source for _, source in sources}) > 1:
            each = ", ".join(f"'{name}' by {source}" for name, source in sources)
            raise PromptError(f"The models of the ensemble are evaluated with different prompts ({each}): say which.")
        return "predicted" if sources and sources[0][1] == "predicted" else "template"

    def __call__(
        self,
        volume: Image | Volume | NDArray[Any],
        *,
        spacing_mm: tuple[float, float, float] | None = None,
        visible: Named | None = None,
        facts: Mapping[str, str] = {},
        prompts: Prompting | None = None,
        ordered: bool = False,
        test_time_augmentation: Sequence[Change] = (),
    ) -> Mask:
        """Segment a volume: a file, an array, or what `textseg.volumes.read_volume` returned in the plane of the atlas.

        Args:
            volume: MHA, NRRD or NIfTI, or a folder of one DICOM series, in any orientation. For a model of several
                channels, their files in the order of the training, or by name: `{"T1": path, "T2": path}`. Or an array
                [S, H, W], [C, S, H, W] or [H, W] in the plane of the atlas: see `textseg.contracts`.
            spacing_mm: of an array: distances of slices, rows and columns.
            visible: what a person sees in it: "T10:L5", "T10 to L5" or ("T10", "L5") for all from the first to the last
                in an ordered atlas, "L4, L5" or a list for these; see `textseg.text.reading`.
            facts: what is known of it, such as {"sequence": "T2"}: facts that the texts of its training stated, and
                the columns of reports that it was trained on.
            prompts: without `visible`, the source of the prompts: "template" or "predicted"; the default is that of the
                recipe's evaluation.
            ordered: rename pieces that contradict the order of the atlas, or the first and last level of `visible`,
                also for a model that reads no text: see `textseg.levels.level_order`.
            test_time_augmentation: "shift", "scale", "gamma": average over views of the volume, none of them mirrored:
                see `textseg.inference.averaging`.

        Raises DataError for a volume that can't be read, PromptError for words that can't be read as structures of the
        atlas and for `visible` without `ordered` to a model that reads no text.
        """
        if hasattr(volume, "__array__"):
            volume = _array_image(np.asarray(volume), spacing_mm)
        elif spacing_mm is not None:
            raise DataError("spacing_mm belongs to an array: a file has its own. Leave it out.")
        scan = self.read(volume)
        if scan.geometry.plane != self.atlas.plane:
            raise DataError(
                f"The volume was read in {scan.geometry.plane} slices, and '{self.name}' reads {self.atlas.plane} "
                f"ones: read_volume(path, plane='{self.atlas.plane}')."
            )
        content = None if isinstance(volume, Volume) else scan_hash(self.named(volume))
        prepared = self.prepare(scan)
        visibility = self.visibility(prepared, visible, prompts, ordered=ordered, facts=self.checked_facts(facts))
        remarks = self.remarks_on(scan, prepared, content)
        return self.segment(
            prepared, scan.geometry, visibility, remarks, ordered=ordered, test_time_augmentation=test_time_augmentation
        )

    def named(self, image: Image) -> Readable | Mapping[str, Readable]:
        """Return the files of an image by the names of the channels in training; one file alone stays as it is.

        Raises DataError for other names, and for another number of files.
        """
        names = self.task.channel_names
        if not isinstance(image, Mapping) and (isinstance(image, str) or not isinstance(image, Sequence)):
            return image
        given = image if isinstance(image, Mapping) else dict(zip(names, image, strict=False))
        if len(image) != len(names) or given.keys() != set(names):
            got = ", ".join(image) if isinstance(image, Mapping) else counted(len(image), "file")
            raise DataError(f"'{self.name}' reads the channels {', '.join(names)}, and was given {got}.")
        files = [str(file) for file in given.values() if isinstance(file, str | Path)]
        if twice := [file for file in files if files.count(file) > 1]:
            raise DataError(f"'{twice[0]}' is given for two channels of '{self.name}': {', '.join(names)}.")
        return {name: given[name] for name in names}

    def read(self, image: Image | Volume) -> Scan:
        """Read an image with its channels, as the recipe prepares them. Raises DataError for another number of them."""
        named, resample = image if isinstance(image, Volume) else self.named(image), self.preparation.resample_channels
        scan = self._spaced(read_scan(named, self.atlas.plane, resample=resample), named)
        if len(scan.array) != self.task.image_channels:
            expected = f"{counted(self.task.image_channels, 'channel')} ({', '.join(self.task.channel_names)})"
            given = f"'{image}'" if isinstance(image, str | Path) else "the image"
            remedy = "Name the file of each channel; their names end in _0000, _0001, or as --channel-suffixes says."
            if self.task.image_channels == 1:
                remedy = "Convert an image in colour to grey, or name a file with one channel."
            raise DataError(f"'{self.name}' reads {expected}, and {given} has {len(scan.array)}. {remedy}")
        return scan

    def _spaced(self, scan: Scan, image: object) -> Scan:
        """Return pictures, which have no spacing, with that of the training images if it is the same in all of them."""
        known = {tuple(spacing_mm) for spacing_mm in self.task.fingerprint.get("native_spacings_mm", ())}
        files = image.values() if isinstance(image, Mapping) else [image]
        if len(known) != 1 or not all(str(file).lower().endswith(PNG) for file in files):
            return scan
        ((slice_mm, row_mm, column_mm),) = known
        geometry = replace(scan.geometry, spacing=(column_mm, row_mm, slice_mm))
        return replace(scan, spacing_mm=(slice_mm, row_mm, column_mm), geometry=geometry)

    @property
    def preparation(self) -> PreparationSettings:
        """The settings with which volumes are prepared."""
        return self.models[0].recipe.preparation

    def prepare(self, scan: Scan) -> PreparedVolume:
        """Return the slices of an image as the networks read them."""
        return prepare_volume(scan, self.preparation)

    def visibility(
        self,
        prepared: PreparedVolume,
        visible: Named | None,
        prompts: Prompting | None,
        *,
        ordered: bool = False,
        facts: Mapping[str, str] = {},
    ) -> Visibility | None:
        """Return what is stated about a volume; None if nobody states anything and the model reads no text.

        Raises PromptError for names that the atlas does not have, for `prompts` without a reader, and for `visible`
        without a reader where the levels are not `ordered` either. `facts` are checked.
        """
        if not self.reads_text and visible is None and prompts is None:
            return None
        if stated := self.visibility_of(visible, ordered=ordered, facts=facts):
            return stated
        self._require_reader()
        settings = self.readers[0].recipe.prompts
        assert settings is not None
        template = template_visibility(self.atlas, facts, counted=settings.template == "listed")
        self._require_texts(template)
        if (prompts or self.default_prompts) == "template":
            return template
        first_pass = find_structures(self.logits(prepared, template), self.atlas)
        return predicted_visibility(first_pass, self.atlas, settings.predicted_threshold, facts)

    def visibility_of(
        self, visible: Named | None, *, ordered: bool = False, facts: Mapping[str, str] = {}
    ) -> Visibility | None:
        """Return the visibility that a person or a report states; None where neither does.

        Facts that belong to the reports of its training make it a report. With `ordered`, `visible` names the levels
        of the prediction.

        Raises PromptError for words that can't be read as structures of the atlas, for prompts that a bundle has no
        features for, and for words that neither a model nor the order can use.
        """
        columns = [settings for settings in self._reports if settings]
        reported = {name for settings in columns for name in settings.columns} & facts.keys()
        if visible is None and not reported:
            return None
        if not ordered:
            self._require_reader()
        visibility = Visibility((), source="interactive", scope="volume")
        if visible is not None:
            visibility = interactive_visibility(
                self.atlas, ":".join(visible) if isinstance(visible, tuple) else visible
            )
        visibility = replace(visibility, facts=facts)
        if reported:
            spoken = {settings.sentences for settings in columns if settings.sentences} & reported
            if spoken and visible is not None:
                raise PromptError(
                    f"The sentences under '{min(spoken)}' are the whole text of a slice, so no visible structures can "
                    "be stated beside them. Leave out one of them."
                )
            sentence = " ".join(facts[min(spoken)].split()) if spoken else ""
            known = {name: value for name, value in facts.items() if name not in spoken}
            visibility = report_visibility(self.atlas, visibility.visible, known, sentence)
        self._require_texts(visibility)
        if visible is None:
            return visibility
        if not self.reads_text and stated_stretch(self.atlas, visibility.visible) is None:
            levels = f"none of its levels ({', '.join(self.atlas.sequence)}) is named"
            reason = levels if self.atlas.ordered else f"the structures of atlas '{self.atlas.name}' have no order"
            raise PromptError(f"'{self.name}' reads no text, and {reason}: --ordered can't name anything.")
        return visibility

    @property
    def _reports(self) -> list[ReportSettings | None]:
        """The columns of reports that each model was trained on."""
        prompts = [model.recipe.prompts for model in self.readers]
        return [p.report if p is not None and p.training.get("report") else None for p in prompts]

    @property
    def known_facts(self) -> dict[str, list[str]]:
        """The values of each fact that the texts of training stated; none for columns of reports."""
        facts: dict[str, list[str]] = {}
        for known in self.record.facts:
            for name, value in known.items():
                facts.setdefault(name, []).append(value)
        columns = [name for settings in self._reports if settings for name in settings.columns]
        visible = {settings.visible for settings in self._reports if settings}
        facts |= {name: [] for name in columns if name not in visible}
        return {name: sorted(set(values)) for name, values in facts.items()}

    def checked_facts(self, facts: Mapping[str, str]) -> dict[str, str]:
        """Return facts by the names of the training. Raises PromptError for a name that no text of it states."""
        spelled = {name.casefold(): name for name in self.known_facts}
        for name in facts:
            if name.strip().casefold() not in spelled:
                self._require_reader()
                possible = suggestion(name, spelled) if spelled else " They state none."
                raise PromptError(f"The texts of '{self.name}' state no fact '{name}'.{possible}")
        texts = {name: str(value).strip() for name, value in facts.items() if value is not None}
        return {spelled[name.strip().casefold()]: text for name, text in texts.items() if text}

    def require_facts(self, facts: Mapping[str, str]) -> None:
        """Raise PromptError if the template with these facts is too long, or a bundle has no features for it."""
        if facts:
            self._require_texts(template_visibility(self.atlas, facts))

    def doubtful_facts(self, visibility: Visibility | None) -> list[str]:
        """Return sentences on facts and sentences of the training that this text lacks, and on new values."""
        if visibility is None or visibility.sentence:
            return []
        columns = sorted({settings.sentences for settings in self._reports if settings and settings.sentences})
        lines = [
            f"in training, the text of some cases was the sentence of a report ({column}), and now it is none: add "
            f"--fact {column}=SENTENCE"
            for column in columns
        ]
        if not self.record.facts:
            return lines
        given, known = visibility.facts, {n: values for n, values in self.known_facts.items() if values}
        always = {name for name in known if all(name in facts for facts in self.record.facts)}
        missing = {
            name: values for name, values in known.items() if name not in given and (name in always or not given)
        }
        new = [name for name, values in known.items() if name in given and given[name] not in values]
        if missing:
            shown = " and ".join(f"{name} ({', '.join(v[:LISTED])})" for name, v in missing.items())
            name, values = next(iter(missing.items()))
            lines.append(f"in training, the text stated {shown}, and now it does not: add --fact {name}={values[0]}")
        return lines + [
            f"{name} {given[name]} is new to this model; the texts of its training had "
            f"{', '.join(known[name][:LISTED])}"
            for name in new
        ]

    def _require_texts(self, visibility: Visibility) -> None:
        for model in self.readers:
            model.require_texts(visibility)

    def _require_reader(self) -> None:
        if not self.reads_text:
            raise PromptError(_READS_NO_TEXT.format(self.name))

    def remarks_on(self, scan: Scan, prepared: PreparedVolume, content: str | None) -> tuple[str, ...]:
        """Return sentences on reasons to doubt a mask of this image; `content` is the hash of its files."""
        known_case = self.record.seen.get(content or "")
        known = f"it is the {known_case} of this model, so its mask says nothing about new scans"
        values = few_values(scan.array[0])
        mask = f"it holds {len(values)} values ({', '.join(f'{value:g}' for value in values[:LISTED])}): is it a mask?"
        doubts = [*([known] if known_case else ()), *([mask] if values else ())]
        return (*doubts, *outside_domain(self.task, scan, prepared.intensities))

    def segment(
        self,
        prepared: PreparedVolume,
        geometry: Geometry,
        visibility: Visibility | None,
        remarks: tuple[str, ...] = (),
        *,
        ordered: bool = False,
        test_time_augmentation: Sequence[Change] = (),
    ) -> Mask:
        """Return the mask of prepared slices, with prompts that state `visibility`.

        With `ordered`, the levels that a person states also name the pieces of the prediction.
        """
        statement = None
        if visibility is not None and visibility.source in ("interactive", "report") and visibility.counted:
            statement = stated_stretch(self.atlas, visibility.visible)
        finder = StructureFinder(self.atlas)
        logits = self.logits(prepared, visibility, test_time_augmentation=test_time_augmentation)
        naming = Naming()
        if ordered:  # needs the whole volume in memory at once
            all_logits = torch.cat([batch.cpu() for batch in logits]).numpy()
            ordered_logits, naming = order_levels(all_logits, self.atlas, statement)
            logits = iter(torch.from_numpy(ordered_logits)[:, None])
        restored = []
        for batch in logits:
            finder.add(batch)
            restored.append(prepared.slice_geometry.restore(batch).cpu())
        labels = torch.cat(restored).numpy()
        contradictions = naming.contradictions if ordered else find_contradictions(labels, self.atlas, statement)
        return Mask(
            labels,
            geometry,
            self.atlas,
            finder.confidence(),
            visibility,
            (*remarks, *self.doubtful_facts(visibility), *contradictions),
            naming.changes,
            naming.unnamed,
            naming.margins,
        )

    def logits(
        self,
        prepared: PreparedVolume,
        visibility: Visibility | None,
        *,
        batch_size: int | None = None,
        test_time_augmentation: Sequence[Change] = (),
    ) -> Iterator[Tensor]:
        """Give logits [B, K, H, W] of the prepared slices, batch by batch; by default, as many slices as fit.

        Several models or views give the logarithm of their mean probabilities.
        """
        streams = [
            (view, model.view_logits(prepared, visibility, view, batch_size))
            for model in self.models
            for view in views(test_time_augmentation, self.task.image_size)
        ]
        return streams[0][1] if len(streams) == 1 else average(streams)


def _array_image(array: NDArray[Any], spacing_mm: tuple[float, float, float] | None) -> ArrayImage:
    if spacing_mm is None:
        raise DataError("An array has no distances of its own. Give them in mm: spacing_mm=(slices, rows, columns).")
    return ArrayImage("the array", lambda: array, spacing_mm)
