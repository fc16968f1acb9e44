from __future__ import annotations

from textseg.contracts import Atlas, Structure


def foot(**settings: object) -> Atlas:
    """Return an atlas of two bones, one with synonyms."""
    bones = (
        Structure("calcaneus", "bone", 1, synonyms=("heel bone", "os calcis")),
        Structure("talus", "bone", 2, synonyms=("ankle bone",)),
    )
    return Atlas("foot", bones, region="foot", **settings)  # type: ignore[arg-type]


def test_a_structure_is_found_by_name_and_synonym_in_any_case() -> None:
    atlas = foot()
    for words in ("calcaneus", "Calcaneus", "heel bone", " Heel Bone "):
        structure = atlas.find(words)
        assert structure is not None
        assert structure.name == "calcaneus"
    assert atlas.find("heel") is None


def test_a_name_comes_before_a_synonym_of_another_structure() -> None:
    atlas = Atlas("x", (Structure("RV", "vein", 1, synonyms=("LV",)), Structure("LV", "ventricle", 2)))
    structure = atlas.find("lv")
    assert structure is not None
    assert structure.index == 2


def test_a_label_scheme_may_use_synonyms() -> None:
    atlas = foot(label_schemes={"other tool": {7: "Heel bone", 8: "talus", 9: "navicular"}})
    assert atlas.label_schemes == {"other tool": {7: "calcaneus", 8: "talus", 9: "navicular"}}


def test_a_synonym_keeps_its_own_value_beside_the_name() -> None:
    scheme = {1: "talus", 2: "ankle bone"}
    assert foot(label_schemes={"two parts": scheme}).label_schemes == {"two parts": scheme}
