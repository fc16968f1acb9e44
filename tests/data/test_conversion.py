from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from textseg.contracts import Atlas, Structure
from textseg.data import conversion
from textseg.data.conversion import convert_file, known_schemes
from textseg.errors import DataError, PluginError
from textseg.registry.component import Component
from textseg.registry.discovery import Registry
from textseg.volumes.files import file_hash, read_labels, write_labels
from textseg.volumes.geometry import Geometry
from textseg.volumes.labels import convert_labels

FACTS = {  # as each publisher documents them
    "spider": {1: "L5", 5: "L1", 6: "T12", 9: "T9", 100: "SC", 101: "L5 (part)", 201: "L5/S", 209: "T9/T10"},
    "mrspineseg": {1: "S", 2: "L5", 6: "L1", 7: "T12", 10: "T9", 11: "L5/S", 15: "L1/L2", 16: "T12/L1", 19: "T9/T10"},
    "totalspineseg": {
        1: "spinal cord", 2: "SC", 11: "C1", 17: "C7", 21: "T1", 32: "T12", 41: "L1", 45: "L5", 50: "S", 63: "C2/C3",
        67: "C6/C7", 71: "C7/T1", 72: "T1/T2", 82: "T11/T12", 91: "T12/L1", 92: "L1/L2", 95: "L4/L5", 100: "L5/S",
    },
    "totalsegmentator": {25: "S", 26: "S1", 27: "L5", 31: "L1", 32: "T12", 43: "T1", 50: "C1", 79: "spinal cord"},
}  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_a_scheme_says_what_its_publisher_says(name: str) -> None:
    scheme = known_schemes()[name]
    assert {value: scheme[value] for value in FACTS[name]} == FACTS[name]
    assert len(set(scheme.values())) == len(scheme)


def test_how_many_values_there_are() -> None:
    assert {name: len(scheme) for name, scheme in known_schemes().items()} == {
        "spider": 24 + 1 + 24 + 23, "mrspineseg": 19, "totalspineseg": 2 + 24 + 1 + 23, "totalsegmentator": 27,
    }  # fmt: skip


def test_values_follow_their_names_and_what_is_lost_is_listed() -> None:
    schemes = known_schemes()
    labels = np.array([0, 1, 9, 10, 100, 101, 201, 250])
    converted, lost = convert_labels(labels, schemes["spider"], schemes["mrspineseg"])
    assert converted.tolist() == [0, 2, 10, 0, 0, 0, 11, 0]
    assert lost == {10: "T8", 100: "SC", 101: "L5 (part)", 250: None}
    there, lost = convert_labels(labels, schemes["spider"], schemes["totalspineseg"])
    assert there.tolist() == [0, 45, 29, 28, 2, 0, 100, 0]
    assert set(lost) == {101, 250}


@pytest.mark.parametrize("scheme", ["mrspineseg", "totalspineseg"])
def test_there_and_back_is_the_same(scheme: str) -> None:
    schemes = known_schemes()
    labels = np.array([0, *range(1, 10), *range(201, 210)])
    there, lost = convert_labels(labels, schemes["spider"], schemes[scheme])
    back, lost_again = convert_labels(there, schemes[scheme], schemes["spider"])
    assert back.tolist() == labels.tolist()
    assert not lost
    assert not lost_again


def test_a_file_keeps_its_geometry_and_loses_nothing_unasked(tmp_path: Path) -> None:
    geometry = Geometry((3, 4, 5), (0.5, 0.6, 3.0), (1.0, -2.0, 3.5), (0, 0, 1, 1, 0, 0, 0, -1, 0))
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    labels.flat[:3] = (1, 100, 201)
    write_labels(labels, geometry, tmp_path / "a.nii.gz")
    output = tmp_path / "b.mha"
    with pytest.raises(DataError, match=r"holds 100 \(SC\), without a counterpart in mrspineseg. With --drop"):
        convert_file(tmp_path / "a.nii.gz", output, "spider", "mrspineseg")
    assert not output.exists()
    assert convert_file(tmp_path / "a.nii.gz", output, "spider", "mrspineseg", drop=True) == {100: "SC"}
    result = read_labels(output)
    assert result.array.ravel()[:4].tolist() == [2, 0, 11, 0]
    assert not result.geometry.differences(geometry)
    with pytest.raises(DataError, match="exists. Name another file"):
        convert_file(tmp_path / "a.nii.gz", output, "spider", "totalspineseg")
    with pytest.raises(DataError, match="no label scheme 'spidr'. Did you mean 'spider'"):
        convert_file(tmp_path / "a.nii.gz", tmp_path / "c.mha", "spidr", "mrspineseg")


def test_a_mask_that_names_its_values_otherwise_is_not_converted(tmp_path: Path) -> None:
    path = tmp_path / "mask.mha"
    write_labels(
        np.ones((3, 1, 2), np.uint8), Geometry((3, 2, 1), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel())), path
    )
    sidecar = {"mask": path.name, "mask_sha256": file_hash(path), "labels": {"1": "L4"}, "made": {}}
    (tmp_path / "mask.json").write_text(json.dumps(sidecar))
    with pytest.raises(DataError, match="names its value 1 'L4', and the labels 'spider' call it 'L5'"):
        convert_file(path, tmp_path / "out.mha", "spider", "totalspineseg")
    assert not (tmp_path / "out.mha").exists()
    (tmp_path / "mask.json").write_text(json.dumps({**sidecar, "labels": {"1": "L5"}}))
    convert_file(path, tmp_path / "out.mha", "spider", "totalspineseg")
    assert np.unique(read_labels(tmp_path / "out.mha").array).tolist() == [45]


def test_schemes_of_one_name_are_joined_unless_a_value_has_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(*schemes: dict[int, str]) -> None:
        atlases = [
            Atlas(f"a{number}", (Structure("bone", "bone", 1),), label_schemes={"tool": scheme})
            for number, scheme in enumerate(schemes)
        ]
        components = [
            Component("atlas", atlas.name, lambda *, own=atlas: own, "own", "textseg-own", "0.1") for atlas in atlases
        ]
        monkeypatch.setattr(conversion, "installed_registry", lambda: Registry([], components))

    installed({1: "C1", 2: "C2"}, {2: "C2", 3: "C3"})
    assert known_schemes() == {"tool": {1: "C1", 2: "C2", 3: "C3"}}
    installed({1: "C1"}, {1: "L1"})
    with pytest.raises(PluginError, match="scheme 'tool', and differ in the value 1: 'C1' and 'L1' of plug-in 'own'"):
        known_schemes()
