"""Prediction of files: which volumes to read, the names of their masks, the sidecars beside them, and failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import Atlas, Visibility
from textseg.data.slice_geometry import PreparedVolume
from textseg.drawing.volume_pictures import mask_png
from textseg.errors import DataError, PromptError, TextsegError
from textseg.inference.averaging import Change
from textseg.inference.ensemble import Ensemble
from textseg.inference.predictor import Predictor, Prompting
from textseg.registry.component import cause
from textseg.system.files import write_atomically
from textseg.text.reading import read_statements, readings
from textseg.text.visibility import statement
from textseg.version import __version__
from textseg.volumes.dicom_segmentation import SUFFIX as DICOM
from textseg.volumes.dicom_series import DicomSeries, find_series, is_dicom
from textseg.volumes.files import SUFFIXES, file_hash, read_volume
from textseg.volumes.geometry import Geometry
from textseg.volumes.label_tables import SLICER
from textseg.volumes.mask import Mask

MASK_SUFFIXES = (SLICER, *SUFFIXES, DICOM)
Input = Path | DicomSeries


@dataclass(frozen=True)
class Job:
    """A volume to segment, and the file that its mask goes to."""

    input: Input
    mask: Path
    visible: str | None  # the words of a person

    @property
    def name(self) -> str:
        """The name of the mask without its suffix, which is the case in a table of statements."""
        return stem(self.mask)

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the mask that describes it."""
        return self.mask.with_name(f"{self.name}.json")

    @property
    def picture(self) -> Path:
        """The picture of the mask over its volume, if it is requested."""
        return self.mask.with_name(f"{self.name}.png")


@dataclass(frozen=True)
class Outcome:
    """The result of a job: a mask, one that was there already, or an error."""

    job: Job
    state: str  # "written", "there", "failed"
    message: str = ""
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class PredictionSettings:
    """The settings of a prediction, the same for all volumes."""

    prompts: Prompting | None = None
    labels: str = "atlas"
    ordered: bool = False
    test_time_augmentation: tuple[Change, ...] = ()
    overlay: bool = False


@dataclass(frozen=True)
class _Read:
    prepared: PreparedVolume
    geometry: Geometry
    remarks: tuple[str, ...]
    hash: str
    image: NDArray[np.float32] | None  # [S, H, W] of the file, where it is to be drawn


def stem(path: Path) -> str:
    """Return the name of a volume or mask without its suffix; ".nii.gz" and ".seg.nrrd" count as one suffix."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in MASK_SUFFIXES if name.lower().endswith(suffix)), name)


def name_of(volume: Input) -> str:
    """Return the name of a volume in tables and file names of masks."""
    return volume.name if isinstance(volume, DicomSeries) else stem(volume)


def find_inputs(names: Sequence[str]) -> list[Input]:
    """Find the volumes that arguments name: files, folders, and patterns such as "scans/*.mha".

    DICOM files are put together to their series. Raises DataError for an argument without a volume.
    """
    files: dict[Path, Path] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in (path, *path.rglob("*")) if _is_input(file))
            if not inside:
                raise DataError(f"'{name}' holds no volume; textseg reads {', '.join(SUFFIXES)} and DICOM series.")
        elif path.exists():
            inside = [path]
        else:
            root = Path(path.anchor)
            inside = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
            if not inside:
                raise DataError(f"There is no file '{name}', and no file fits it as a pattern.")
        for file in inside:
            files.setdefault(file.resolve(), file)
    volumes = [file for file in files.values() if file.name.lower().endswith(SUFFIXES) or not is_dicom(file)]
    series = find_series(file for file in files.values() if file not in volumes)
    return [*volumes, *series]


def _is_input(path: Path) -> bool:
    """Return True if a file of a folder counts as a volume; an empty folder named like one is reported as damaged."""
    if path.name.startswith("."):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return path.is_file() or not any(path.iterdir())
    return path.is_file() and is_dicom(path)


def plan_jobs(
    inputs: Sequence[Input], output: Path, *, suffix: str | None = None, visible: str | None = None
) -> list[Job]:
    """Plan the mask of each input: its name, in `output`; with its folder's name before it where two are equal.

    `suffix` is that of the masks, else each has its input's; `textseg.text.reading.read_statements` reads `visible`.
    Raises DataError where two masks would have one name, a mask would take the place of an input, or is to be DICOM
    where the input is not.
    """
    if suffix is not None and suffix not in MASK_SUFFIXES:
        raise DataError(f"Masks can't be written as '{suffix}'; possible: {', '.join(MASK_SUFFIXES)}.")
    if suffix == DICOM and (no_series := [path for path in inputs if not isinstance(path, DicomSeries)]):
        needed = "a DICOM segmentation refers to the slices of a DICOM series"
        raise DataError(f"--format: {needed}, and '{no_series[0]}' is none.")
    counts = Counter(name_of(volume).lower() for volume in inputs)
    folders = ["" if counts[name_of(volume).lower()] == 1 else f"{_folder(volume).name}_" for volume in inputs]
    names = [folder + name_of(volume) for folder, volume in zip(folders, inputs, strict=True)]
    if twice := [name for name, count in Counter(name.lower() for name in names).items() if count > 1]:
        same = [str(path) for path, name in zip(inputs, names, strict=True) if name.lower() == twice[0]]
        raise DataError(f"{' and '.join(same[:2])} would give one mask '{twice[0]}'. Give them to two commands.")
    statements = read_statements(visible, names) if visible is not None else {}
    jobs = []
    for volume, name in zip(inputs, names, strict=True):
        mask = output / f"{name}{suffix or _own_suffix(volume)}"
        if isinstance(volume, Path) and mask.resolve() == volume.resolve():
            raise DataError(f"The mask of '{volume}' would take its place. Choose another --output.")
        jobs.append(Job(volume, mask, statements.get(name)))
    return jobs


def _folder(volume: Input) -> Path:
    return (volume.folder if isinstance(volume, DicomSeries) else volume).resolve().parent


def _own_suffix(volume: Input) -> str:
    if isinstance(volume, DicomSeries):
        return DICOM
    return next((end for end in SUFFIXES if volume.name.lower().endswith(end)), ".nii.gz")


def predict_files(
    model: Predictor, jobs: Sequence[Job], settings: PredictionSettings = PredictionSettings()
) -> Iterator[Outcome]:
    """Segment each volume; write mask, sidecar and, with `settings.overlay`, picture.

    After a failure the other volumes are still segmented. While one volume is segmented, the next is read and the last
    mask is written. A mask of the same file, weights and options is not computed again.
    """
    # A pipeline of three volumes: one is read, one is computed here, one is written.
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        pending = [reader.submit(_read, model, job, settings) for job in jobs[:1]]
        written: list[Future[Outcome]] = []
        for number, job in enumerate(jobs):
            if number + 1 < len(jobs):
                pending.append(reader.submit(_read, model, jobs[number + 1], settings))
            written.append(_computed(model, job, pending.pop(0), settings, writer))
            while len(written) > 1 or (written and number + 1 == len(jobs)):
                yield written.pop(0).result()


def _computed(
    model: Predictor, job: Job, reading: Future[_Read | None], settings: PredictionSettings, writer: ThreadPoolExecutor
) -> Future[Outcome]:
    try:
        read = reading.result()
        if read is None:
            return writer.submit(Outcome, job, "there")
        ordered, augmentation = settings.ordered, settings.test_time_augmentation
        visibility = model.visibility(read.prepared, job.visible, settings.prompts, ordered=ordered)
        mask = model.segment(
            read.prepared, read.geometry, visibility, read.remarks, ordered=ordered, test_time_augmentation=augmentation
        )
    except TextsegError as error:
        return writer.submit(Outcome, job, "failed", str(error))
    except MemoryError:
        return writer.submit(Outcome, job, "failed", f"{job.input}: there is not enough memory for this volume.")
    except Exception as error:  # whatever a damaged file does to a library: the others must not suffer from it
        return writer.submit(Outcome, job, "failed", f"{job.input} can't be segmented: {cause(error)}.")
    return writer.submit(_write, model, job, mask, read, settings)


def _read(model: Predictor, job: Job, settings: PredictionSettings) -> _Read | None:
    """Read and prepare the volume of a job; return None where its mask is there already."""
    if isinstance(job.input, Path) and not job.input.is_file():
        raise DataError(f"{job.input} is not a file." if job.input.exists() else f"{job.input} does not exist.")
    content = file_hash(job.input)
    if is_done(job, _made(model, content, job, settings)) and (job.picture.is_file() or not settings.overlay):
        return None
    volume = read_volume(job.input, model.atlas.plane)
    prepared, image = model.prepare(volume), volume.array if settings.overlay else None
    return _Read(prepared, volume.geometry, model.remarks_on(volume, prepared, content), content, image)


def _write(model: Predictor, job: Job, mask: Mask, read: _Read, settings: PredictionSettings) -> Outcome:
    try:
        if job.mask.suffix == DICOM:
            assert isinstance(job.input, DicomSeries)
            mask.save_dicom(job.mask, job.input, model=model.name)
        else:
            mask.save(job.mask, settings.labels)
        if read.image is not None:
            write_atomically(job.picture, mask_png(name_of(job.input), mask, read.image))
        sidecar = {
            "mask": job.mask.name,
            "mask_sha256": file_hash(job.mask),
            "labels": {str(value): name for name, value in mask.values(settings.labels).items()},
            "confidence": {name: round(value, 4) for name, value in mask.confidence.items()},
            "volume_ml": {name: round(value, 3) for name, value in mask.volumes_ml.items()},
            "said": None if mask.visibility is None else stated(mask.atlas, mask.visibility, job.visible),
            "remarks": list(mask.remarks),
            "changes": list(mask.changes),
            "unnamed": list(mask.unnamed),
            "margins": dict(mask.margins),
            "made": _made(model, read.hash, job, settings),
            "warning": "Not a medical device: for research only.",
        }
        write_atomically(job.sidecar, json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
    except (TextsegError, OSError) as error:
        return Outcome(job, "failed", str(error))
    return Outcome(job, "written", remarks=mask.remarks)


def stated(atlas: Atlas, visibility: Visibility, words: str | None) -> dict[str, str]:
    """Return the statement of the prompts on a volume, its source, and the words of the person where there is one.

    A template that nobody counted states nothing.
    """
    written = {} if words is None else {"words": words}
    named = statement(atlas, visibility.visible) if visibility.counted else ""
    return {"source": visibility.source, "visible": named, **written}


def _made(model: Predictor, content: str, job: Job, settings: PredictionSettings) -> dict[str, Any]:
    """Return all facts that determine a mask: equal facts give an equal mask."""
    if job.visible is not None:
        visibility = model.visibility_of(job.visible, ordered=settings.ordered)
        prompts = statement(model.atlas, visibility.visible)  # other words may state the same
    else:
        prompts = settings.prompts or (model.default_prompts if model.reads_text else "none")
    members = model.members if isinstance(model, Ensemble) else ()
    return {
        "input": job.input.name,
        "input_sha256": content,
        "model": model.name,
        "model_sha256": model.fingerprint,
        "members": [{"model": member.name, "model_sha256": member.fingerprint} for member in members],
        "engine": model.engine,
        "prompts": prompts,
        "labels": settings.labels,
        "ordered": settings.ordered,
        "test_time_augmentation": list(settings.test_time_augmentation),
        "textseg": __version__,
    }


def is_done(job: Job, made: Mapping[str, Any]) -> bool:
    """Return True if the mask of a job exists, and its JSON file records these facts."""
    try:
        sidecar = json.loads(job.sidecar.read_text(encoding="utf-8"))
        return bool(sidecar["made"] == made and sidecar["mask_sha256"] == file_hash(job.mask))
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return False


def check_words(
    model: Predictor, jobs: Sequence[Job], option: str = "--visible", *, ordered: bool = False
) -> list[str]:
    """Read the words of all jobs before the first volume is read, and return lines that show what was read.

    Raises PromptError for words that the model can't use; the message begins with the option that they come from.
    """
    read = {}
    for job in jobs:
        if job.visible is not None:
            try:
                read[job.name] = model.visibility_of(job.visible, ordered=ordered)
            except PromptError as error:
                raise PromptError(f"{option}: {job.name}: {error}") from None
    return readings(model.atlas, read)
