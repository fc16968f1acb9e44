"""Reader of MRSpineSeg: T2 lumbar MRI with vertebrae, sacrum and discs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from textseg.contracts import Case, LabelMap
from textseg.errors import DataError
from textseg.system import Progress
from textseg_spine.atlas import DISCS, SACRUM, VERTEBRAE, lumbar_mrspineseg

SERIES = 172
IMAGE = re.compile(r"case(?P<number>\d+)\.nii\.gz", re.IGNORECASE)
MASK = re.compile(r"mask_case(?P<number>\d+)\.nii\.gz", re.IGNORECASE)
VALUES = (SACRUM, *VERTEBRAE, *DISCS)  # 1, 2, ... in the masks
LAYOUT = "train/MR/Case<number>.nii.gz, train/Mask/mask_case<number>.nii.gz"
AGREEMENT = (
    "MRSpineSeg is given out under a signed agreement, which no program can sign: ask for it at "
    "www.spinesegmentation-challenge.com, then unpack the training data into that folder"
)


class MRSpineSeg:
    """The folder of MRSpineSeg (Pang et al., IEEE TMI 2021 and 2022), in the layout of its challenge.

    Layout: train/MR/Case<number>.nii.gz, train/Mask/mask_case<number>.nii.gz; names compare without regard to case.
    Each case is another patient. There is no canal, but a sacrum. Every method raises DataError where the folder is
    missing or its names are not those of MRSpineSeg.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)
        self.atlas = lumbar_mrspineseg()

    def cases(self) -> Sequence[Case]:
        """Return every series, sorted by number; `mask` is None without a mask."""
        return self._cases

    def label_map(self, case: Case) -> LabelMap:
        """Class index of 0 (background), 1 (S), 2..6 (L5..L1), 7..10 (T12..T9), 11..19 (L5/S..T9/T10)."""
        return {0: 0, **{value: self.atlas[name].index for value, name in enumerate(VALUES, start=1)}}

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        """Return None, because the masks of the challenge's test cases are not public."""
        return None

    def fetch(self, *, progress: Progress) -> str:
        """Return a sentence on the existing files. Raises DataError with the source if files are missing."""
        del progress  # nothing is downloaded
        labelled = [case for case in self._cases if case.mask is not None]
        if len(labelled) < SERIES:
            raise DataError(
                f"'{self.folder}' holds {len(labelled)} cases with masks, and MRSpineSeg has {SERIES}. {AGREEMENT}: "
                f"{LAYOUT}."
            )
        return f"MRSpineSeg: {len(labelled)} cases with their masks in '{self.folder}'."

    @cached_property
    def _cases(self) -> tuple[Case, ...]:
        images = dict(self._numbered("MR", IMAGE))
        if not images:
            raise DataError(f"No MRSpineSeg images in '{self.folder}'. Expected: {LAYOUT}. {AGREEMENT}.")
        masks = dict(self._numbered("Mask", MASK))
        if lonely := sorted(masks.keys() - images.keys()):
            raise DataError(
                f"'{masks[lonely[0]]}' has no image train/MR/Case{lonely[0]}.nii.gz. Restore it or move it away."
            )
        return tuple(
            Case(
                id=f"Case{number}",
                patient=str(number),
                image=path,
                mask=masks.get(number),
                facts={"sequence": "T2", "view": "sagittal"},
            )
            for number, path in sorted(images.items())
        )

    def _numbered(self, part: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, Path]]:
        """Yield the number and the file of each case."""
        files: dict[int, Path] = {}
        for folder in _folders(self.folder, "train", part):
            for path in sorted(folder.iterdir()):
                if path.name.startswith(".") or not path.name.lower().endswith(".nii.gz"):
                    continue
                if (match := pattern.fullmatch(path.name)) is None:
                    raise DataError(f"{path}: the name is none of MRSpineSeg's ({LAYOUT}). Rename it or move it away.")
                number = int(match["number"])
                if (first := files.setdefault(number, path)) is not path:
                    raise DataError(f"'{first}' and '{path}' are both case {number}. Keep one.")
                yield number, path


def _folders(root: Path, *names: str) -> list[Path]:
    """Return folders below `root` with these nested names, in upper or lower case."""
    here = [root]
    for name in names:
        here = [below for folder in here if folder.is_dir() for below in sorted(folder.iterdir()) if _is(below, name)]
    return here


def _is(path: Path, name: str) -> bool:
    return path.is_dir() and path.name.lower() == name.lower()
