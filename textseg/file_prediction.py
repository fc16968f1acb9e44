"""Volume files in, mask files out: which files, under which names, what stands beside them, and what failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textseg import __version__
from textseg.component import cause
from textseg.errors import DataError, PromptError, TextsegError
from textseg.files import write_atomically
from textseg.mask import Mask
from textseg.placement import PreparedVolume
from textseg.prompts import read_named, spoken
from textseg.trained import Prompting, TrainedModel
from textseg.volumes import SUFFIXES, Geometry, file_hash, read_volume


@dataclass(frozen=True)
class Job:
    """A volume to segment, and the file that its mask goes to."""

    input: Path
    mask: Path
    visible: str | None  # what a person named

    @property
    def sidecar(self) -> Path:
        """What stands beside the mask, in words."""
        return self.mask.with_name(f"{stem(self.mask)}.json")


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a mask, one that was there already, or an error."""

    job: Job
    state: str  # "written", "there", "failed"
    message: str = ""
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class _How:
    """What a person asked for, for every volume."""

    prompts: Prompting | None
    labels: str
    ordered: bool


@dataclass(frozen=True)
class _Read:
    prepared: PreparedVolume
    geometry: Geometry
    remarks: tuple[str, ...]
    hash: str


def stem(path: Path) -> str:
    """The name of a volume without its suffix; ".nii.gz" is one."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def find_inputs(given: Sequence[str]) -> list[Path]:
    """The volumes that a person named: files, folders, and patterns such as "scans/*.mha".

    Raises DataError for a name that stands for nothing.
    """
    found: dict[Path, Path] = {}
    for name in given:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _is_volume(file))
            if not inside:
                raise DataError(f"'{name}' holds no volume; textseg reads {', '.join(SUFFIXES)}.")
        elif path.exists():
            inside = [path]
        else:
            root = Path(path.anchor)
            inside = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
            if not inside:
                raise DataError(f"There is no file '{name}', and no file fits it as a pattern.")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def plan_jobs(
    inputs: Sequence[Path], output: Path, *, suffix: str | None = None, visible: str | None = None
) -> list[Job]:
    """Where the mask of each input goes: its name, in `output`; with its folder's name before it where two are equal.

    `suffix` is that of the masks, else each has its input's; `visible` as `textseg.prompts.read_named` reads it. Raises
    DataError where two masks would have one name or a mask would take the place of an input.
    """
    if suffix is not None and suffix not in SUFFIXES:
        raise DataError(f"Masks can't be written as '{suffix}'; possible: {', '.join(SUFFIXES)}.")
    alike = Counter(stem(path).lower() for path in inputs)
    names = [
        stem(path) if alike[stem(path).lower()] == 1 else f"{path.resolve().parent.name}_{stem(path)}"
        for path in inputs
    ]
    if twice := [name for name, count in Counter(name.lower() for name in names).items() if count > 1]:
        same = [str(path) for path, name in zip(inputs, names, strict=True) if name.lower() == twice[0]]
        raise DataError(f"{' and '.join(same[:2])} would give one mask '{twice[0]}'. Give them to two commands.")
    named = read_named(visible, names) if visible else {}
    jobs = []
    for path, name in zip(inputs, names, strict=True):
        own = next((end for end in SUFFIXES if path.name.lower().endswith(end)), ".nii.gz")
        mask = output / f"{name}{suffix or own}"
        if mask.resolve() == path.resolve():
            raise DataError(f"The mask of '{path}' would take its place. Choose another --output.")
        jobs.append(Job(path, mask, named.get(name)))
    return jobs


def predict_files(
    model: TrainedModel,
    jobs: Sequence[Job],
    *,
    prompts: Prompting | None = None,
    labels: str = "atlas",
    ordered: bool = False,
) -> Iterator[Outcome]:
    """Segment each volume and write its mask and sidecar; one that fails is told and the others go on.

    The next volume is read, and the last mask written, while one is computed. A mask that the same model made of the
    same file in the same way is left as it is.
    """
    how = _How(prompts, labels, ordered)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        pending = [reader.submit(_read, model, job, how) for job in jobs[:1]]
        written: list[Future[Outcome]] = []
        for number, job in enumerate(jobs):
            if number + 1 < len(jobs):
                pending.append(reader.submit(_read, model, jobs[number + 1], how))
            written.append(_computed(model, job, pending.pop(0), how, writer))
            while len(written) > 1 or (written and number + 1 == len(jobs)):
                yield written.pop(0).result()


def _computed(
    model: TrainedModel,
    job: Job,
    reading: Future[_Read | None],
    how: _How,
    writer: ThreadPoolExecutor,
) -> Future[Outcome]:
    try:
        read = reading.result()
        if read is None:
            return writer.submit(Outcome, job, "there")
        said = model.visibility(read.prepared, job.visible, how.prompts)
        mask = model.segment(read.prepared, read.geometry, said, read.remarks, ordered=how.ordered)
    except TextsegError as error:
        return writer.submit(Outcome, job, "failed", str(error))
    except MemoryError:
        return writer.submit(Outcome, job, "failed", f"{job.input}: there is not enough memory for this volume.")
    except Exception as error:  # whatever a damaged file does to a library: the others must not suffer from it
        return writer.submit(Outcome, job, "failed", f"{job.input} can't be segmented: {cause(error)}.")
    return writer.submit(_write, model, job, mask, read.hash, how)


def _read(model: TrainedModel, job: Job, how: _How) -> _Read | None:
    """None where the mask is there already."""
    if not job.input.is_file():
        raise DataError(f"{job.input} does not exist.")
    content = file_hash(job.input)
    if _is_done(job, _made(model, content, job, how)):
        return None
    volume = read_volume(job.input, model.atlas.plane)
    return _Read(model.prepare(volume), volume.geometry, model.remarks_on(volume, content), content)


def _write(model: TrainedModel, job: Job, mask: Mask, content: str, how: _How) -> Outcome:
    try:
        mask.save(job.mask, how.labels)
        sidecar = {
            "mask": job.mask.name,
            "mask_sha256": file_hash(job.mask),
            "labels": {str(value): name for name, value in mask.values(how.labels).items()},
            "confidence": {name: round(value, 4) for name, value in mask.confidence.items()},
            "volume_ml": {name: round(value, 3) for name, value in mask.volumes_ml.items()},
            "said": None if mask.said is None else said_of(mask),
            "remarks": list(mask.remarks),
            "changes": list(mask.changes),
            "made": _made(model, content, job, how),
            "warning": "Not a medical device: for research only.",
        }
        write_atomically(job.sidecar, json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
    except (TextsegError, OSError) as error:
        return Outcome(job, "failed", str(error))
    return Outcome(job, "written", remarks=mask.remarks)


def said_of(mask: Mask) -> Mapping[str, Any]:
    """What the prompts told the model of a volume, and who said so."""
    assert mask.said is not None
    return {"source": mask.said.source, "visible": spoken(mask.atlas, mask.said.visible)}


def _made(model: TrainedModel, content: str, job: Job, how: _How) -> dict[str, Any]:
    """By what a mask was made: with the same, it would be the same."""
    asked = job.visible or how.prompts or (model.default_prompts if model.recipe.prompts else "none")
    return {
        "input": job.input.name,
        "input_sha256": content,
        "model": model.name,
        "model_sha256": model.fingerprint,
        "prompts": asked,
        "labels": how.labels,
        "ordered": how.ordered,
        "textseg": __version__,
    }


def _is_done(job: Job, made: Mapping[str, Any]) -> bool:
    try:
        sidecar = json.loads(job.sidecar.read_text(encoding="utf-8"))
        return bool(sidecar["made"] == made and sidecar["mask_sha256"] == file_hash(job.mask))
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return False


def check_names(model: TrainedModel, jobs: Sequence[Job]) -> None:
    """What a person named must exist before the first volume is read. Raises PromptError."""
    for job in jobs:
        if job.visible is not None:
            try:
                model.visibility_of(job.visible)
            except PromptError as error:
                raise PromptError(f"--visible: {stem(job.input)}: {error}") from None
