from __future__ import annotations

from textseg.registry.kinds import SCORING
from textseg.runs.identity import changed_facts, component_changes, scored_with, weight_changes

FILM = {"distribution": "textseg-film", "version": "0.1.0", "source": {"film.py": "a", "blocks.py": "b"}}
METRIC = {"distribution": "textseg-film", "version": "0.1.0", "source": {"sharp.py": "a"}}
ENCODER = {"distribution": "textseg", "version": "1", "source": {}, "weights": "9de57"}


def test_a_change_names_component_and_file() -> None:
    now = {"fusion film": {**FILM, "source": {"film.py": "c", "new.py": "d"}}}
    expected = ["fusion 'film': its code changed: blocks.py (gone), film.py, new.py (new) (of textseg-film)"]
    assert component_changes({"fusion film": FILM}, now) == expected
    assert component_changes({"fusion film": FILM}, {"fusion film": FILM}) == []


def test_a_change_names_the_versions_and_the_distributions() -> None:
    now = {"fusion film": {**FILM, "version": "0.2.0"}}
    assert component_changes({"fusion film": FILM}, now) == ["fusion 'film': textseg-film was 0.1.0, and is 0.2.0"]
    now = {"fusion film": {**FILM, "distribution": "rival"}}
    expected = ["fusion 'film': it came from textseg-film, and comes from rival"]
    assert component_changes({"fusion film": FILM}, now) == expected


def test_what_a_record_does_not_hold_is_no_change() -> None:
    assert component_changes({}, {"fusion film": FILM}) == []
    assert component_changes({"fusion film": FILM}, {}) == []


def test_a_change_of_weights_names_the_encoder() -> None:
    before, now = {"text_encoder minilm": ENCODER}, {"text_encoder minilm": {**ENCODER, "weights": "841f"}}
    changed = "its weights, tokenizer or settings changed (fingerprint 9de57, now 841f)"
    assert weight_changes(before, now) == [f"text_encoder 'minilm': {changed}"]
    assert weight_changes(before, before) == []
    assert component_changes(before, now) == []


def test_a_metric_takes_part_in_the_scores_alone() -> None:
    edited = {**METRIC, "source": {"sharp.py": "b"}}
    before, now = {"fusion film": FILM, "metric sharp": METRIC}, {"fusion film": FILM, "metric sharp": edited}
    assert component_changes(before, now, but=["metric"]) == []
    assert component_changes(before, now, of=["metric"]) == [
        "metric 'sharp': its code changed: sharp.py (of textseg-film)"
    ]
    record = {"components": before, "scored_with": changed_facts({"components": before}, now)}
    assert record["scored_with"] == {"metric sharp": edited}
    assert component_changes(scored_with(record), now, of=["metric"]) == []


def test_only_metrics_change_scores_and_no_weights() -> None:
    assert {"metric"} == SCORING, "an augmentation, which an evaluation needs for its texts, changes weights"
