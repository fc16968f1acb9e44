"""Prediction of files: which volumes to read, the names of their masks, the sidecars beside them, and failures."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textseg.contracts import Atlas, Visibility
from textseg.data.slice_geometry import PreparedVolume
from textseg.drawing.volume_pictures import mask_png
from textseg.errors import DataError, PromptError, RunError, one_line
from textseg.inference.averaging import Change
from textseg.inference.ensemble import Ensemble
from textseg.inference.predictor import Predictor, Prompting
from textseg.system.files import file_name, write_atomically
from textseg.system.own_files import read_json
from textseg.system.user_files import NEAR
from textseg.text.reading import read_facts, read_statements, readings, unstated
from textseg.text.visibility import statement
from textseg.version import __version__
from textseg.volumes.dicom_segmentation import SUFFIX as DICOM
from textseg.volumes.dicom_series import DicomSeries, find_series, is_dicom
from textseg.volumes.files import (
    FORMATS,
    MASK_SUFFIXES,
    READABLE,
    file_hash,
    find_volumes,
    is_folder,
    is_named,
    require_file,
    stem,
)
from textseg.volumes.geometry import Geometry
from textseg.volumes.label_tables import is_own_mask, sidecar_of
from textseg.volumes.mask import Mask
from textseg.volumes.pictures import SUFFIX as PNG
from textseg.volumes.scan import scan_hash

OVERLAY = "_overlay"  # in the name of a picture whose mask is a PNG file, too


@dataclass(frozen=True)
class ChannelFiles:
    """The files of an image with several channels, by the names of the channels."""

    name: str  # of the files, without the suffixes of the channels and of the format
    files: tuple[tuple[str, Path], ...]
    fault: str = ""  # the channels that are missing

    def __str__(self) -> str:
        return " + ".join(str(path) for _, path in self.files)

    @property
    def first(self) -> Path:
        return self.files[0][1]


Input = Path | DicomSeries | ChannelFiles


@dataclass(frozen=True)
class Job:
    """A volume to segment, and the file that its mask goes to."""

    input: Input
    mask: Path
    name: str  # the case in tables: the input below the output folder, without a suffix, such as "pat1/ses-1/T2"
    visible: str | None = None  # the words of a person
    facts: Mapping[str, str] = field(default_factory=dict)  # what is known of it
    fault: str = ""  # why there can't be a mask

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the mask that describes it."""
        return sidecar_of(self.mask)

    @property
    def picture(self) -> Path:
        """The picture of the mask over its volume, if it is requested."""
        picture = self.sidecar.with_suffix(".png")
        return picture if picture != self.mask else picture.with_name(f"{picture.stem}{OVERLAY}{PNG}")


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


def name_of(volume: Input) -> str:
    """Return the name of a volume in tables and file names of masks."""
    return stem(volume) if isinstance(volume, Path) else volume.name


def find_inputs(names: Sequence[str], output: Path | None = None, *, masks: bool = False) -> dict[Input, Path]:
    """Find the volumes that arguments name: files, folders, and patterns such as "scans/*.mha".

    Folders are searched, and links in them followed. DICOM files are put together to their series. Each volume comes
    with its folder below the argument that named it. What can't be read is one of the volumes, and whoever reads it
    gets the reason. Left out are hidden files, the folder `output` inside an argument, and, without `masks`, masks that
    textseg wrote. Raises DataError where no argument names a volume.
    """
    files: dict[Path, tuple[Path, Path]] = {}  # by absolute path: the path as given, and its folder below the argument
    left_out = frozenset[str]() if output is None else frozenset({os.path.realpath(output)})
    usable, reasons = 0, []
    for name in names:
        given = Path(name)
        matches = [given] if os.path.lexists(given) else _matches(given)
        if not matches:
            reasons.append(f"There is no file '{name}', and no file fits it as a pattern.")
            files.setdefault(_absolute(given), (given, Path()))
        for path in matches:
            if not is_folder(path):
                inside = {path: Path()}
            elif not (inside := _inside(path, left_out)):
                reasons.append(f"'{path}' holds no volume; {FORMATS}.")
                files.setdefault(_absolute(path), (path, Path()))
                continue
            scans = {file: folder for file, folder in inside.items() if masks or not is_own_mask(file)}
            if not scans:
                reasons.append(f"'{path}' holds nothing but masks that textseg wrote; name scans.")
            usable += len(scans)
            for file, folder in scans.items():
                files.setdefault(_absolute(file), (file, folder))
    if not usable:
        raise DataError(reasons[0])
    # A file with the name of a volume is never DICOM, and one without may be.
    slices = {file: folder for file, folder in files.values() if not is_named(file) and is_dicom(file)}
    inputs: dict[Input, Path] = {file: folder for file, folder in files.values() if file not in slices}
    return inputs | {series: slices[series.files[0]].parent for series in find_series(slices)}


def _inside(folder: Path, left_out: frozenset[str]) -> dict[Path, Path]:
    """Return the volumes below a folder with their own folders below it; pictures only where there are no volumes."""
    pictures = (path for path in find_volumes(folder, left_out, suffixes=(PNG,)) if not _is_overlay(path))
    volumes = list(find_volumes(folder, left_out, dicom=True)) or list(pictures)
    return {file: file.relative_to(folder).parent for file in volumes}


def _is_overlay(path: Path) -> bool:
    """Return True for the picture that `--overlay` writes beside a mask that is a PNG file."""
    name = path.stem.removesuffix(OVERLAY)
    return name != path.stem and is_own_mask(path.with_name(f"{name}{PNG}"))


def nnunet_suffixes(channels: Sequence[str]) -> list[str]:
    """Return the ends of the names of nnU-Net's files, one for each channel: _0000, _0001."""
    return [f"_{number:04}" for number in range(len(channels))]


def join_channels(
    inputs: Mapping[Input, Path], channels: Sequence[str], suffixes: Sequence[str] | None = None
) -> dict[Input, Path]:
    """Join files that are the channels of one image, by the suffixes of their names; other inputs stay as they are.

    Args:
        inputs: the result of `find_inputs`.
        channels: the names of the channels that the model reads.
        suffixes: one for each channel; by default nnU-Net's, `_0000`, `_0001`, where the model reads several.

    An image that lacks channels has a fault. Raises RunError for another number of suffixes, and DataError for two
    files of one channel.
    """
    if suffixes is None:
        suffixes = nnunet_suffixes(channels) if len(channels) > 1 else ()
    elif len(set(suffixes)) != len(channels):
        raise RunError(f"--channel-suffixes: {len(channels)} are needed, one for each of {', '.join(channels)}.")
    joined: dict[Input, Path] = {}
    images: dict[tuple[Path, str], dict[str, tuple[Path, Path]]] = {}
    for volume, folder in inputs.items():
        name = name_of(volume)
        pairs = zip(channels, suffixes, strict=False)
        matching = [(channel, end) for channel, end in pairs if isinstance(volume, Path) and name.endswith(end)]
        if not matching:
            joined[volume] = folder
            continue
        assert isinstance(volume, Path)
        channel, end = max(matching, key=lambda pair: len(pair[1]))
        parts = images.setdefault((volume.parent, name.removesuffix(end)), {})
        if channel in parts:
            raise DataError(f"'{parts[channel][0]}' and '{volume}' are the same channel of one image. Keep one.")
        parts[channel] = volume, folder
    for (parent, name), parts in images.items():
        missing = [
            f"'{channel}' ({name}{end})"
            for channel, end in zip(channels, suffixes, strict=False)
            if channel not in parts
        ]
        fault = f"'{parent / name}' has no channel {', '.join(missing)}." if missing else ""
        files = tuple((channel, parts[channel][0]) for channel in channels if channel in parts)
        joined[ChannelFiles(name, files, fault)] = next(iter(parts.values()))[1]
    return joined


def _matches(pattern: Path) -> list[Path]:
    """Return the files and folders that fit a pattern, without hidden ones."""
    root = Path(pattern.anchor)
    try:
        return sorted(path for path in root.glob(str(pattern.relative_to(root))) if not path.name.startswith("."))
    except ValueError:  # of pathlib, for a pattern such as "**.mha"
        return []


def plan_jobs(
    inputs: Mapping[Input, Path] | Sequence[Input],
    output: Path,
    *,
    suffix: str | None = None,
    ending: str = "",
    visible: str | None = None,
) -> list[Job]:
    """Plan the mask of each input: its name in `output`, in the folder below the argument that named the input.

    Where two would have one name, each keeps its folders below the one that holds both. `suffix` is that of the masks,
    else each has its input's; `ending` stands before it; `textseg.text.reading.read_statements` reads `visible`. A job
    has a fault where two masks would still have one name, or one is to be DICOM where its input is not. Raises
    DataError where every job has one, a mask would take the place of an input, or a suffix is impossible.
    """
    if suffix is not None and suffix not in MASK_SUFFIXES:
        raise DataError(f"Masks can't be written as '{suffix}'; possible: {', '.join(MASK_SUFFIXES)}.")
    if not re.fullmatch(r"[\w.-]*", ending):
        raise DataError(f"--mask-suffix: '{ending}' must be letters, digits, '_', '-' and '.', such as _seg.")
    places = inputs if isinstance(inputs, Mapping) else dict.fromkeys(inputs, Path())
    names = {volume: folder / name_of(volume) for volume, folder in places.items()}
    if twice := _same(names):
        common = os.path.commonpath([_folder(volume) for volume in twice])
        names.update({volume: _folder(volume).relative_to(common) / name_of(volume) for volume in twice})
    twice = _same(names)
    statements = read_statements(visible, map(Path.as_posix, names.values())) if visible is not None else {}
    facts = read_facts(visible) if visible is not None else {}
    taken = {os.path.realpath(path): path for volume in names for path in _files(volume)}
    jobs = []
    for volume, name in names.items():
        own = suffix or _own_suffix(volume)
        longest = max(own, ".json", key=len)  # beside the mask
        mask = output / name.parent / f"{file_name(name.name + ending, longest).removesuffix(longest)}{own}"
        if replaced := taken.get(os.path.realpath(mask)):
            raise DataError(f"The mask of '{volume}' would take the place of '{replaced}'. Choose another --output.")
        fault = volume.fault if isinstance(volume, ChannelFiles) else ""
        if volume in twice:
            same = [str(path) for path in twice if names[path].as_posix().lower() == name.as_posix().lower()]
            fault = f"{' and '.join(same[:2])} would give one mask '{name}'. Give them to two commands."
        elif not Path(os.path.realpath(mask.parent)).is_relative_to(os.path.realpath(output)):
            fault = f"{volume}: '{mask.parent}' is a link out of --output. Choose another --output."
        elif suffix == DICOM and not isinstance(volume, DicomSeries):
            needed = "a DICOM segmentation refers to the slices of a DICOM series"
            fault = f"--format: {needed}, and '{volume}' is none."
        words, known = statements.get(name.as_posix()), facts.get(name.as_posix(), {})
        jobs.append(Job(volume, mask, name.as_posix(), words, known, fault))
    if jobs and all(job.fault for job in jobs):
        raise DataError(jobs[0].fault)
    return jobs


def _same(names: Mapping[Input, Path]) -> list[Input]:
    """Return the inputs whose names are equal in a file system that does not tell capitals from small letters."""
    counts = Counter(name.as_posix().lower() for name in names.values())
    return [volume for volume, name in names.items() if counts[name.as_posix().lower()] > 1]


def _folder(volume: Input) -> Path:
    if isinstance(volume, ChannelFiles):
        volume = volume.first
    return _absolute(volume.folder if isinstance(volume, DicomSeries) else volume).parent


def _files(volume: Input) -> list[Path]:
    """Return the files of an input; none of a DICOM series, whose names no mask has."""
    if isinstance(volume, ChannelFiles):
        return [path for _, path in volume.files]
    return [volume] if isinstance(volume, Path) else []


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))  # links stay: two links to one file are two inputs


def _own_suffix(volume: Input) -> str:
    if isinstance(volume, DicomSeries):
        return DICOM
    if isinstance(volume, ChannelFiles):
        volume = volume.first
    return next((end for end in READABLE if volume.name.lower().endswith(end)), ".nii.gz")


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
        visibility = model.visibility(read.prepared, job.visible, settings.prompts, ordered=ordered, facts=job.facts)
        mask = model.segment(
            read.prepared, read.geometry, visibility, read.remarks, ordered=ordered, test_time_augmentation=augmentation
        )
    except Exception as error:  # whatever a damaged file does to a library: the others must not suffer from it
        return writer.submit(Outcome, job, "failed", one_line(error, f"{job.input} can't be segmented"))
    return writer.submit(_write, model, job, mask, read, settings)


def _read(model: Predictor, job: Job, settings: PredictionSettings) -> _Read | None:
    """Read and prepare the volume of a job; return None where its mask is there already."""
    if job.fault:
        raise DataError(job.fault)
    for path in _files(job.input):
        require_file(path)
    image = dict(job.input.files) if isinstance(job.input, ChannelFiles) else job.input
    content = scan_hash(image)
    if is_done(job, _made(model, content, job, settings)) and (job.picture.is_file() or not settings.overlay):
        return None
    scan = model.read(image)
    prepared, shown = model.prepare(scan), scan.array[0] if settings.overlay else None
    return _Read(prepared, scan.geometry, model.remarks_on(scan, prepared, content), content, shown)


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
            "case": job.name,
            "mask": job.mask.name,
            "mask_sha256": file_hash(job.mask),
            "labels": {str(value): name for name, value in mask.values(settings.labels).items()},
            "confidence": {name: round(value, 4) for name, value in mask.confidence.items()},
            "volume_ml": {name: round(value, 3) for name, value in mask.volumes_ml.items()},
            "said": None if mask.visibility is None else stated(mask.atlas, mask.visibility, job.visible, job.facts),
            "remarks": list(mask.remarks),
            "changes": list(mask.changes),
            "unnamed": list(mask.unnamed),
            "margins": dict(mask.margins),
            "made": _made(model, read.hash, job, settings),
            "warning": "Not a medical device: for research only.",
        }
        write_atomically(job.sidecar, json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
    except Exception as error:
        return Outcome(job, "failed", one_line(error, f"{job.mask} can't be written"))
    return Outcome(job, "written", remarks=mask.remarks)


def stated(atlas: Atlas, visibility: Visibility, words: str | None, facts: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return the statement of the prompts on a volume, its source, the words of the person, and facts, if any.

    A template that nobody counted states nothing.
    """
    written: dict[str, Any] = {} if words is None else {"words": words}
    written |= {"facts": dict(facts)} if facts else {}
    named = statement(atlas, visibility.visible) if visibility.counted else ""
    return {"source": visibility.source, "visible": named, **written}


def _channels(image: ChannelFiles) -> dict[str, str]:
    """Return the name of the file that was read as each channel."""
    return {channel: path.name for channel, path in image.files}


def _made(model: Predictor, content: str, job: Job, settings: PredictionSettings) -> dict[str, Any]:
    """Return all facts that determine a mask: equal facts give an equal mask."""
    prompts: str = settings.prompts or (model.default_prompts if model.reads_text else "none")
    if visibility := model.visibility_of(job.visible, ordered=settings.ordered, facts=job.facts):
        # Other words may state the same.
        prompts = statement(model.atlas, visibility.visible) if visibility.counted else "report"
    members = model.members if isinstance(model, Ensemble) else ()
    return {
        "input": ", ".join(path.name for path in _files(job.input)) or job.input.name,
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
        **({"channels": _channels(job.input)} if isinstance(job.input, ChannelFiles) else {}),
        **({"facts": dict(job.facts)} if job.facts else {}),
    }


def is_done(job: Job, made: Mapping[str, Any]) -> bool:
    """Return True if the mask of a job exists, and its JSON file records these facts."""
    try:
        sidecar = read_json(job.sidecar, dict[str, Any], "")
        return bool(sidecar.get("made") == made and sidecar.get("mask_sha256") == file_hash(job.mask))
    except (FileNotFoundError, RunError, DataError):
        return False


def with_facts(model: Predictor, jobs: Sequence[Job], facts: Mapping[str, str]) -> list[Job]:
    """Return the jobs with the facts that hold for all, and those of their rows in a table, which come first.

    Columns of a table that are no facts of the model are left alone, unless their name is close to one. Raises
    PromptError for such a column, and for facts that the model does not know.
    """
    common, known = model.checked_facts(facts), [name.casefold() for name in model.known_facts]
    for column in dict.fromkeys(name for job in jobs for name in job.facts):
        near = difflib.get_close_matches(column, known, n=1, cutoff=NEAR)
        if near and column not in known:
            raise PromptError(f"--visible: the column '{column}' may be meant as '{near[0]}'. Call it '{near[0]}'.")
    own = [{name: value for name, value in job.facts.items() if name in known} for job in jobs]
    return [replace(job, facts={**common, **model.checked_facts(row)}) for job, row in zip(jobs, own, strict=True)]


def check_words(
    model: Predictor, jobs: Sequence[Job], option: str = "--visible", *, ordered: bool = False
) -> list[str]:
    """Read the words of all jobs before the first volume is read, and return lines that show what was read.

    Raises PromptError for words that the model can't use; the message begins with the option that they come from.
    """
    read, stated_jobs = {}, set()
    for job in jobs:
        try:
            visibility = model.visibility_of(job.visible, ordered=ordered, facts=job.facts)
            if visibility is None:
                model.require_facts(job.facts)
        except PromptError as error:
            raise PromptError(f"{option if job.visible is not None else '--fact'}: {job.name}: {error}") from None
        if visibility is not None:
            stated_jobs.add(job.name)
        if visibility is not None and visibility.counted:
            read[job.name] = visibility
    lines = readings(model.atlas, read)
    if stated_jobs and len(stated_jobs) < len(jobs):
        prompts = model.default_prompts if model.reads_text else "none"
        lines += unstated((job.name for job in jobs), stated_jobs, prompts)
    return lines
