"""Checks of a data set, case by case, before training."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from textseg.contracts import IGNORED, Atlas, Case, Dataset, LabelMap, Pixels
from textseg.data.preparation import missing_channels
from textseg.errors import DataError, TextsegError, one_line
from textseg.recipe.schema import ReportSettings
from textseg.system.children import end_with
from textseg.system.commands import shell
from textseg.system.messages import counted
from textseg.text.reports import scan_reports
from textseg.volumes.dicom_series import is_dicom
from textseg.volumes.files import FORMATS, READABLE, Volume, is_named, read_labels
from textseg.volumes.geometry import Geometry, downward_axis
from textseg.volumes.label_tables import require_names
from textseg.volumes.scan import read_scan, scan_hash

FEW_VOXELS = 10  # a structure this small is probably a slip of the annotator
UNLIKE = 3.0  # times the median spacing, or a third of it
LISTED = 5  # values that a finding names
MOSTLY = 0.99  # of a mask: less of it inside the image is no question of grids
FEW_CASES = 16  # not worth the start of other processes

_Task = tuple[Case, LabelMap | str, Atlas, bool]  # the arguments of `check_case`


@dataclass(frozen=True)
class Finding:
    """A fault (the case cannot be used as it is) or a doubt (something suspicious), with its remedy."""

    case: str | None  # None: the data set as a whole
    severity: Literal["fault", "doubt"]
    what: str
    remedy: str


@dataclass(frozen=True)
class CaseCheck:
    """The findings in one case; fields that a damaged case can't give are empty."""

    case: str
    findings: tuple[Finding, ...]
    file: str = ""  # hashes of the bytes and of the voxels of the image
    voxels: str = ""
    spacing_mm: tuple[float, ...] = ()
    channel_names: tuple[str, ...] = ()
    values: Mapping[int, int] = field(default_factory=dict)  # voxels of each value of the mask
    slices: Mapping[str, int] = field(default_factory=dict)  # slices that show each structure


@dataclass(frozen=True)
class DatasetCheck:
    """All findings, faults first; `sound` are the cases without a fault."""

    cases: tuple[CaseCheck, ...]
    findings: tuple[Finding, ...]

    @property
    def faulty(self) -> list[str]:
        faulty_cases = {finding.case for finding in self.findings if finding.severity == "fault"}
        return [check.case for check in self.cases if check.case in faulty_cases]

    @property
    def sound(self) -> list[str]:
        return [check.case for check in self.cases if check.case not in self.faulty]

    @property
    def lines(self) -> list[str]:
        """The findings for a reader: two lines each, and a finding of several cases once."""
        cases: dict[tuple[str, str, str], list[str]] = {}
        for finding in self.findings:
            names = cases.setdefault((finding.severity, finding.what, finding.remedy), [])
            names.append("data set" if finding.case is None else finding.case)
        lines = []
        for (severity, what, remedy), names in cases.items():
            more = f" and {len(names) - LISTED} more cases" if len(names) > LISTED else ""
            lines.append(f"{severity}  {', '.join(names[:LISTED])}{more}: {what}\n       {remedy}")
        return lines

    @property
    def clean(self) -> bool:
        return all(finding.severity == "doubt" for finding in self.findings)

    def as_json(self) -> str:
        """Return the number of cases, the sound ones and every finding as JSON, for programs."""
        findings = [asdict(finding) for finding in self.findings]
        content = {"cases": len(self.cases), "sound": self.sound, "leave_out": self.faulty, "findings": findings}
        return json.dumps(content, indent=1) + "\n"


def check_dataset(
    dataset: Dataset,
    split: Mapping[str, Sequence[str]] | None = None,
    *,
    resample: bool = False,
    reports: ReportSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetCheck:
    """Check every case, and then the cases against each other.

    Args:
        dataset: the reader whose `cases()` are checked; its own doubts are included.
        split: the patients of each part; no patient may be in two parts. The official split is always checked.
        resample: True if the channels of an image may lie on several grids: see `preparation.resample_channels`.
        reports: the columns of a recipe that hold the words of each case.
        progress: a function that gets the number of checked cases and of all cases.

    Memory holds as many volumes as there are cores. Many cases are shared out to other processes, so a script must call
    this under `if __name__ == "__main__":`. Raises DataError if the reader finds no cases.
    """
    cases = dataset.cases()
    tasks = [(case, _label_map(dataset, case), dataset.atlas, resample) for case in cases]
    checks = []
    for check in _mapped(tasks):
        checks.append(check)
        progress(len(checks), len(tasks))
    findings = [finding for check in checks for finding in check.findings]
    channels = {
        case.id: check.channel_names or tuple(case.channels)
        for case, check in zip(cases, checks, strict=True)
        if check.channel_names or isinstance(case.image, Mapping)  # a damaged file names no channels
    }
    for case_id, what in missing_channels(channels).items():
        findings.append(Finding(case_id, "fault", what, "add the file, or leave the case out"))
    findings += [*_duplicates(cases, checks), *_unlike(checks), *_overlaps(dataset, split)]
    if reports is not None:
        findings += _reports(dataset.atlas, reports, cases)
    doubts = getattr(dataset, "doubts", None)
    if doubts is not None:
        doubted: Mapping[str, Sequence[str]] = {}
        try:
            doubted = doubts({check.case: set(check.values) for check in checks if check.values})
        except Exception as error:  # the cases have been read, and what was found in them is not lost
            what = one_line(error, "the reader's own checks failed")
            findings.append(Finding(None, "fault", what, "correct what it names"))
        findings += [Finding(case, "doubt", line, "look at it") for case, lines in doubted.items() for line in lines]
    return DatasetCheck(tuple(checks), tuple(sorted(findings, key=lambda finding: finding.severity != "fault")))


def _reports(atlas: Atlas, settings: ReportSettings, cases: Sequence[Case]) -> Iterator[Finding]:
    try:
        read = scan_reports(atlas, settings, cases)
    except TextsegError as error:
        yield Finding(None, "fault", str(error), "correct prompts.report of the recipe, or the table")
        return
    for case_id, fault in read.faults.items():
        yield Finding(case_id, "fault", f"its report can't be read: {fault}", "correct these words, or empty the cell")
    for case in cases:
        if case.id not in read.reports and case.id not in read.faults:
            yield Finding(case.id, "doubt", "it has no report", "it gets the template")
    if read.foreign:
        more = f" and {len(read.foreign) - LISTED} more" if len(read.foreign) > LISTED else ""
        what = f"'{settings.file}' has reports of {', '.join(read.foreign[:LISTED])}{more}, which are no cases"
        yield Finding(None, "doubt", what, "are these names misspelled?")


def check_case(case: Case, label_map: LabelMap | str, atlas: Atlas, resample: bool = False) -> CaseCheck:
    """Check one case; `label_map` is an error message if the reader has no label map for it."""
    if isinstance(label_map, str):
        return CaseCheck(case.id, (Finding(case.id, "fault", label_map, "mend what it names"),))
    try:
        return _check_case(case, label_map, atlas, resample)
    except Exception as error:  # whatever a damaged file does to a library: the other cases are checked all the same
        what = one_line(error, f"'{case.first}' or its mask can't be checked")
        return CaseCheck(case.id, (Finding(case.id, "fault", what, "replace both files, or leave it out"),))


def _check_case(case: Case, label_map: LabelMap, atlas: Atlas, resample: bool) -> CaseCheck:
    if suffix := next(filter(None, map(_unknown_suffix, (*case.channels.values(), case.mask))), ""):
        what = f"it has {suffix} files, and {FORMATS}"
        remedy = "convert them, or let the reader give arrays (ArrayImage of textseg.contracts)"
        return CaseCheck(case.id, (Finding(case.id, "fault", what, remedy),))
    try:
        image = read_scan(case.image, atlas.plane, resample=resample)
        file, voxels = scan_hash(case.image), hashlib.sha256(image.array.tobytes()).hexdigest()
    except DataError as error:
        return CaseCheck(case.id, (Finding(case.id, "fault", str(error), "replace the image"),))
    findings = []
    for name, array in zip(image.channel_names, image.array, strict=True):
        if array.max() == array.min():
            part = f"the image '{case.first}'" if len(image.array) == 1 else f"channel '{name}' of '{case.first}'"
            what = f"{part} is {array.flat[0]:g} everywhere"
            findings.append(Finding(case.id, "fault", what, "export the series again"))
    check = CaseCheck(case.id, (), file, voxels, image.spacing_mm, image.channel_names)
    if case.mask is None:
        what = f"there is no mask for '{case.first}'"
        findings.append(Finding(case.id, "doubt", what, "it is left out of training and tests"))
        return replace(check, findings=tuple(findings))
    try:
        labels = read_labels(case.mask, atlas.plane)
    except DataError as error:
        findings.append(Finding(case.id, "fault", str(error), "replace the mask"))
        return replace(check, findings=tuple(findings))
    findings += _geometry(case, image.geometry, labels)
    counts = {int(v): int(n) for v, n in zip(*np.unique(labels.array, return_counts=True), strict=True)}
    if unknown := sorted(counts.keys() - label_map.keys()):
        listed = ", ".join(f"{value} in {counted(counts[value], 'voxel')}" for value in unknown[:LISTED])
        listed += f", and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        values = "the value" if len(unknown) == 1 else f"{len(unknown)} values:"
        what = f"the mask holds {values} {listed}, which the data set's labels don't name"
        if len(unknown) > len(label_map):
            findings.append(Finding(case.id, "fault", what, "is it an image?"))
            return replace(check, findings=tuple(findings))
        findings.append(Finding(case.id, "fault", what, "correct the mask, or name the value in the labels"))
    try:
        own = {value: atlas.names[index - 1] for value, index in label_map.items() if index not in (0, IGNORED)}
        require_names(case.mask, own, counts, "the data set's labels", atlas)
    except DataError as error:
        findings.append(
            Finding(case.id, "fault", str(error), "correct the labels of the data set, or convert the mask")
        )
    slices, rows, sizes = _structures(labels, label_map, atlas)
    if not sizes:
        what = f"the mask '{case.mask}' shows no structure of atlas '{atlas.name}'"
        findings.append(Finding(case.id, "fault", what, "annotate it, or leave it out"))
    ignored = any(label_map.get(value) == IGNORED for value in counts)
    findings += _sequence(case, atlas, rows, ignored=ignored)
    few = [f"{name} has {counted(size, 'voxel')} only" for name, size in sizes.items() if size < FEW_VOXELS]
    findings += [Finding(case.id, "doubt", what, "is it a slip of the pen?") for what in few]
    return replace(check, findings=tuple(findings), values=counts, slices=slices)


def _unknown_suffix(pixels: Pixels | None) -> str:
    """Return the suffix of a file in a format that textseg does not read; an empty text for all others."""
    unknown = isinstance(pixels, Path) and pixels.is_file() and not is_named(pixels, READABLE) and not is_dicom(pixels)
    return pixels.suffix if unknown and isinstance(pixels, Path) else ""


def _label_map(dataset: Dataset, case: Case) -> LabelMap | str:
    try:
        return dict(dataset.label_map(case))
    except Exception as error:
        return one_line(error, "the labels of the case can't be read")


def _mapped(tasks: Sequence[_Task]) -> Iterator[CaseCheck]:
    cores = os.cpu_count() or 1
    if len(tasks) < FEW_CASES or cores == 1:
        yield from (check_case(*task) for task in tasks)
        return
    remaining = deque(tasks)
    while remaining:
        try:
            with _pool(cores) as pool:
                for check in pool.map(check_case, *zip(*remaining, strict=True)):
                    remaining.popleft()
                    yield check
        except BrokenProcessPool:
            # A library ended its process. Which case it was reading is known only if each is checked alone.
            for _ in range(min(2 * cores, len(remaining))):
                yield _alone(remaining.popleft())


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, get_context("spawn"), initializer=end_with, initargs=(os.getpid(),))


def _alone(task: _Task) -> CaseCheck:
    """Check a case in a process of its own."""
    case = task[0]
    try:
        with _pool(1) as pool:
            return pool.submit(check_case, *task).result()
    except BrokenProcessPool:
        what = f"reading '{case.first}' or its mask ended the process: damaged, or too large for the memory"
        return CaseCheck(case.id, (Finding(case.id, "fault", what, "replace both files, or leave it out"),))


def _geometry(case: Case, image: Geometry, labels: Volume) -> Iterator[Finding]:
    """Yield the difference between the grids of mask and image, with the command that solves it where there is one."""
    mask, path = labels.geometry, str(case.mask)
    if not (differences := image.grid_differences(mask)):
        return
    # The header is copied only where the stored voxels run as those of the image; else the mask would be mirrored.
    alike = image.size == mask.size and np.allclose(image.direction, mask.direction, rtol=0.0, atol=1e-3)
    share = _share_inside(labels, image)
    step = "m.CopyInformation(i)" if alike else "m = s.Resample(m, i, s.Transform(), s.sitkNearestNeighbor)"
    code = (
        f"import SimpleITK as s; i, m = s.ReadImage({str(case.first)!r}), s.ReadImage({path!r}); {step}; "
        f"s.WriteImage(m, {f'mended_{Path(path).name}'!r}, True)"
    )
    sure = "if it was drawn on this image" if alike else "if it is a mask of this patient"
    remedy = f"{sure}: {shell('python', '-c', code)}"
    if not alike and share < MOSTLY:
        remedy = f"only {share:.0%} of it lies inside the image: export it again from the program that drew it"
    what = f"image and mask do not lie on each other: {'; '.join(differences)}"
    yield Finding(case.id, "fault", what, remedy)


def _share_inside(labels: Volume, image: Geometry) -> float:
    """Return the share of the labelled voxels whose centres lie inside the grid of an image; 1 for an empty mask."""
    grid, target = labels.geometry.canonical, image.canonical
    voxels = np.argwhere(labels.array)[:, ::-1]  # columns, rows, slices
    if not len(voxels):
        return 1.0
    points = (voxels * grid.spacing) @ np.reshape(grid.direction, (3, 3)).T + grid.origin
    steps = np.reshape(target.direction, (3, 3)) * target.spacing
    indices = np.linalg.solve(steps, (points - target.origin).T).T
    inside = (indices > -0.5) & (indices < np.array(target.size) - 0.5)
    return float(inside.all(axis=1).mean())


def _structures(
    labels: Volume, label_map: LabelMap, atlas: Atlas
) -> tuple[dict[str, int], dict[str, float], dict[str, int]]:
    """Return for each structure in the mask: slices that show it, mm from the top to its centroid, voxels."""
    down = downward_axis(atlas.plane) if atlas.ordered else 1
    across = tuple({0, 1, 2} - {down})
    classes = np.zeros(labels.array.shape, dtype=np.uint8)
    for value in np.unique(labels.array).tolist():
        classes[labels.array == value] = label_map.get(value, 0)
    slices, rows, sizes = {}, {}, {}
    for structure in atlas.structures:
        region = classes == structure.index
        if size := int(region.sum()):
            sizes[structure.name] = size
            slices[structure.name] = int(region.any(axis=(1, 2)).sum())
            rows[structure.name] = float((region.sum(axis=across) @ np.arange(region.shape[down])) / size)
    return slices, {name: row * labels.spacing_mm[down] for name, row in rows.items()}, sizes


def _sequence(case: Case, atlas: Atlas, rows: Mapping[str, float], *, ignored: bool) -> Iterator[Finding]:
    """Yield levels that are missing between others of their group, and neighbours in the wrong order.

    Groups are checked one by one. A vertebra's centroid may lie below that of the disc under it because of its
    posterior elements, and the uppermost vertebra may appear without that disc because its spinous process hangs down.
    """
    for group in atlas.groups.values() or (atlas.names,):
        kind = [name for name in atlas.sequence if name in group]
        shown = [name for name in kind if name in rows]
        if not shown:
            continue
        stretch = kind[kind.index(shown[0]) : kind.index(shown[-1]) + 1]
        if missing := [name for name in stretch if name not in rows]:
            what = f"label gap: {', '.join(missing)} missing between {shown[0]} and {shown[-1]}"
            if ignored:
                yield Finding(case.id, "doubt", what, "does it lie in the voxels that are ignored?")
            else:
                yield Finding(case.id, "fault", what, "annotate it, or correct the names above or below it")
        for upper, lower in pairwise(shown):
            if rows[upper] >= rows[lower]:
                what = f"wrong order: {upper} lies {rows[upper] - rows[lower]:.0f} mm below {lower}"
                yield Finding(case.id, "fault", what, "correct the names, or the orientation of the file")


def _duplicates(cases: Sequence[Case], checks: Sequence[CaseCheck]) -> Iterator[Finding]:
    """Yield cases with the same name and cases with equal images, which could be in two parts of a split."""
    for case_id, count in Counter(case.id for case in cases).items():
        if count > 1:
            yield Finding(case_id, "fault", f"{count} cases have this name", "give each series a name of its own")
    patients = {case.id: case.patient for case in cases}
    files = {check.case: check.file for check in reversed(checks)}  # of the first case of each name
    for kind, same in (("file", "the same file as"), ("voxels", "the same voxels as")):
        first: dict[str, str] = {}
        for check in checks:
            content = getattr(check, kind)
            earlier = first.setdefault(content, check.case) if content else check.case
            if earlier != check.case and (kind == "file" or files[earlier] != check.file):
                whose = "of the same patient" if patients[earlier] == patients[check.case] else "of another patient"
                what = f"its image is {same} that of {earlier}, {whose}"
                yield Finding(check.case, "fault", what, "keep one of them")


def _unlike(checks: Sequence[CaseCheck]) -> Iterator[Finding]:
    """Yield cases whose spacing differs much from the median spacing."""
    known = [check for check in checks if check.spacing_mm]
    if len(known) < 3:
        return
    medians = np.median([check.spacing_mm for check in known], axis=0)
    for check in known:
        for axis, distance, usual in zip(("slice", "row", "column"), check.spacing_mm, medians, strict=True):
            if not usual / UNLIKE <= distance <= usual * UNLIKE:
                what = f"its {axis} distance is {distance:.3g} mm, and the median is {usual:.3g} mm"
                yield Finding(check.case, "doubt", what, "is its header right?")


def _overlaps(dataset: Dataset, split: Mapping[str, Sequence[str]] | None) -> Iterator[Finding]:
    """Yield patients in two parts of a split."""
    remedy = "give each patient one side"
    try:
        official = dataset.official_split()
    except DataError as error:
        yield Finding(None, "fault", str(error), remedy)
        official = None
    for name, parts in (("official split", official), ("split", split)):
        for (first, patients), (second, others) in combinations((parts or {}).items(), 2):
            for patient in sorted({*patients} & {*others}):
                yield Finding(None, "fault", f"{name}: patient {patient} is in both {first} and {second}", remedy)
