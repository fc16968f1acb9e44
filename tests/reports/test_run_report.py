from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from textseg.contracts import Case
from textseg.data.field_of_view import Window
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import SliceGeometry
from textseg.drawing.tables import format_value, markdown_table, metric_title
from textseg.evaluation.fields_of_view import ExampleWindow
from textseg.metrics.definitions import POLICY
from textseg.metrics.scores import Score
from textseg.reports import run_report
from textseg.reports.run_report import OverlayPicture, window_picture, write_report
from textseg.volumes.files import Volume

PREPARED = PreparedCase(
    case=Case("c1", "p1", Path("scan.mha")),
    folder=Path(),
    key="",
    slice_geometry=SliceGeometry(0, 0, 12, 4, (12, 4)),
    spacing_mm=(4.0, 1.0, 2.0),
    native_spacing_mm=(4.0, 1.0, 2.0),
    intensities=(),
    present=((), (1,), ()),
    image_hash="",
)
EVIL = '<script>alert("x")</script>&'


def score(case, structure, dsc, hd95, status="ok", source="template"):
    rows = (("dsc", "", dsc), ("hd95", "mm", hd95))
    return [
        Score(case, f"p_{case}", None, structure, m, u, "native", v, 99.0 if u else 0.0, status, source)
        for m, u, v in rows
    ]


def table(source="template"):
    return [
        *score("c1", "L4", 0.9, 2.0, source=source),
        *score("c1", "L5", 0.6, 4.0, source=source),
        *score("c2", "L4", 0.0, math.nan, "missed", source=source),
        *score("c2", "L5", 0.8, 2.0, source=source),
        *score("c2", "T10", 0.25, 7.0, source=source),
        *score("c1", "T9", math.nan, math.nan, "absent", source=source),
    ]


def facts(**changes):
    return {
        "name": "net_spider",
        "seed": 7,
        "fold": None,
        "reference": "https://example.org/paper",
        "dataset": "spider",
        "versions": {"textseg": "0.1.0", "torch": "2.9"},
        "hashes": {"data": "abc123"},
        "evaluation": {"metrics": ["dsc", "hd95"], "per": "volume", "space": "native", "unit": "mm"},
        "structures_in_training": ["L4", "L5"],
        "parameters": 1234567,
        "trainable_parameters": 1000000,
        "peak_memory_bytes": 2**30,
        "wall_seconds": 3725.4,
        "best": {"epoch": 1, "validation_dsc": 0.75},
        **changes,
    }


PROMPTS = [
    {"source": "template", "view": "holistic", "structure": None, "text": "the whole spine", "tokens": 5},
    *(
        {"source": "template", "view": "classwise", "structure": f"s{i}", "text": f"text of s{i}", "tokens": i}
        for i in range(9)
    ),
    {"source": "ground_truth", "view": "holistic", "structure": None, "text": "what the mask shows", "tokens": 21},
]
HISTORY = [
    {"epoch": "0", "step": "9", "train_loss": "1.0", "train_dice": "0.5", "validation_dsc": "", "learning_rate": ""},
    {"epoch": "0", "step": "9", "train_loss": "", "train_dice": "", "validation_dsc": "0.5", "learning_rate": "1e-4"},
    {"epoch": "1", "step": "19", "train_loss": "0.5", "train_dice": "0.2", "validation_dsc": "0.75"},
]


def picture(title="best case: c1"):
    mask = np.zeros((40, 30), dtype=np.int64)
    mask[5:15, 5:20], mask[20:30, 5:20] = 1, 2
    image = np.random.default_rng(0).normal(size=mask.shape)
    return OverlayPicture(title, image, mask, np.roll(mask, 2, axis=0), {1: "L4", 2: "L5"})


@pytest.fixture
def report(html_page):
    def write(folder, **changes):
        given = {"run": facts(), "scores": table(), "overlays": [], "prompts": PROMPTS, "history": HISTORY, **changes}
        write_report(folder, **given)
        html = (folder / "report.html").read_text(encoding="utf-8")
        return html, html_page(html)

    return write


def row_of(html, structure):
    cells = re.search(rf'<tr[^>]*><th scope="row">{structure}</th>(.*?)</tr>', html)[1]
    return [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", cells)]


def test_the_numbers_of_the_table_by_hand(report, tmp_path):
    html, page = report(tmp_path)
    assert row_of(html, "L4") == ["0.4500", "2.00", "2", "1", "0"]
    assert row_of(html, "L5") == ["0.7000", "3.00", "2", "0", "0"]
    assert row_of(html, "mean over structures") == ["0.5750", "2.50", "", "1", "0"]
    assert "0.5750 mean DSC, 2 structures" in page.text
    assert "2 test patients" in page.text
    assert POLICY in page.text
    assert "Scores per volume in native space; distances in mm." in page.text
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_structures_only_in_test_stand_apart_and_absent_ones_nowhere(report, tmp_path):
    html, page = report(tmp_path)
    apart = html[html.index("Structures that occur only in test") :]
    assert row_of(apart, "T10") == ["0.2500", "7.00", "1", "0", "0"]
    assert ">T10<" not in html[: html.index("Structures that occur only in test")]
    assert "T9" not in page.text
    html, _ = report(tmp_path, run=facts(structures_in_training=["L4", "L5", "T10", "T9"]))
    assert "only in test" not in html
    assert row_of(html, "T9") == ["–", "–", "0", "0", "0"]


def test_an_oracle_is_called_so_and_others_are_not(report, tmp_path):
    marks = {"template": None, "interactive": None, "none": None, "ground_truth": "ORACLE", "simulated": "SIMULATED"}
    for source, expected in marks.items():
        _, page = report(tmp_path, scores=table(source))
        assert [mark for mark in ("ORACLE", "SIMULATED") if mark in page.text] == ([expected] if expected else [])
        assert f"test prompts: {source.replace('_', ' ')}" in page.text


def test_prompts_show_each_source_with_token_counts(report, tmp_path):
    _, page = report(tmp_path)
    assert "the whole spine holistic · 5 tokens" in page.text
    assert "text of s2 class-wise, s2 · 2 tokens" in page.text
    assert "text of s5" not in page.text
    assert "what the mask shows holistic · 21 tokens" in page.text
    assert "1 holistic and 9 class-wise texts, at most 8 tokens each" in page.text
    assert "The model reads no text." in report(tmp_path, prompts=[])[1].text
    shared = {"source": "template", "view": "classwise", "structure": None, "text": "not visible", "tokens": 4}
    assert "not visible class-wise, several structures · 4 tokens" in report(tmp_path, prompts=[shared])[1].text


def test_provenance_shows_all_of_run_json_readably(report, tmp_path):
    _, page = report(tmp_path)
    for words in ("1,234,567", "1,000,000", "1.00 GiB", "1 h 02 min 05 s", "abc123", "torch 2.9", "fold –"):
        assert words in page.text


def test_curves_are_drawn_from_the_log(report, tmp_path):
    html, page = report(tmp_path)
    assert page.tags.count("svg") == 3
    assert page.tags.count("polyline") == 4  # loss, dice, validation DSC, learning rate
    assert "best: 0.7500 at epoch 1" in page.text
    assert page.tags.count("figcaption") == 3
    assert "nan" not in "".join(re.findall("<svg.*?</svg>", html, re.DOTALL))
    assert "Nothing was logged" in report(tmp_path, history=[])[1].text


def test_overlays_are_inside_the_page_and_nothing_is_fetched(report, tmp_path):
    html, page = report(tmp_path, overlays=[picture()])
    sources = [link for link in page.links if link.startswith("data:")]
    assert len(sources) == 1
    with Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))) as png:
        assert png.width > 1000
    assert set(page.links) - set(sources) == {"https://example.org/paper"}
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "default-src 'none'" in html
    assert "url(" not in html


def test_everything_written_is_escaped(report, tmp_path):
    rows = [*table(), *score(EVIL, EVIL, 0.5, 1.0), *score("c1", EVIL, 0.5, 1.0)]
    prompts = [
        {"source": EVIL, "view": view, "structure": EVIL, "text": EVIL, "tokens": 3}
        for view in ("holistic", "classwise")
    ]
    run = facts(name=EVIL, dataset=EVIL, reference=EVIL, versions={EVIL: [EVIL]}, **{EVIL: EVIL})
    history = [{"epoch": 0, f"train_{EVIL}": 1.0}, {"epoch": 1, f"train_{EVIL}": 2.0}]
    evaluation = {"per": EVIL, "space": EVIL, "unit": EVIL}
    html, page = report(
        tmp_path,
        run={**run, "evaluation": evaluation, "fold": EVIL, "seed": EVIL},
        scores=rows,
        prompts=prompts,
        history=history,
        overlays=[picture(EVIL)],
    )
    assert "script" not in page.tags
    assert "<script" not in html
    assert EVIL in page.text


def test_a_reference_that_is_no_web_address_is_not_a_link(report, tmp_path):
    _, page = report(tmp_path, run=facts(reference="javascript:alert(1)"))
    assert page.links == []
    assert "javascript:alert(1)" in page.text


def test_a_run_with_almost_nothing_still_has_a_page(report, tmp_path):
    _, page = report(tmp_path, run={}, scores=[], prompts=[], history=[])
    assert "There are no scores." in page.text


def test_titles_and_values():
    assert [metric_title(name) for name in ("dsc", "jaccard", "hd95", "asd")] == ["DSC", "Jaccard", "HD95", "ASD"]
    assert metric_title("hd95", "pixel") == "HD95 (pixel)"
    assert [format_value(0.87654), format_value(1.239, "mm"), format_value(math.nan), format_value(None)] == [
        "0.8765",
        "1.24",
        "–",
        "–",
    ]


def test_markdown_table_cannot_be_broken_out_of():
    assert markdown_table(["a", "b"], [["x|y", "1\n2"], ["<b>", "&"]]) == (
        "| a | b |\n|:---|---:|\n| x\\|y | 1 2 |\n| &lt;b> | &amp; |\n"
    )


@pytest.mark.parametrize("value", ["inf", "nan", "", None, "x"])
def test_what_is_no_number_in_the_log_is_left_out(report, tmp_path, value):
    _, page = report(tmp_path, history=[*HISTORY, {"epoch": "2", "train_loss": value}])
    assert page.tags.count("svg") == 3


def window_example(predictions):
    shown = np.zeros((6, 4), np.uint8)
    shown[2:4] = 1
    statements = {"simulated": "T12:L3", "moved down": "L1:L4"}
    return ExampleWindow(
        case=PREPARED,
        share=0.5,
        location="lower",
        window=Window(6, 0, 6, 4),
        index=1,
        reference=shown,
        predictions=dict.fromkeys(predictions, shown),
        statements={author: statements.get(author, "") for author in predictions},
        dsc=0.5,
    )


def test_a_window_is_drawn_under_each_text_beside_its_reference(small_atlas, monkeypatch):
    volume = np.arange(3 * 12 * 4, dtype=np.float32).reshape(3, 12, 4)
    monkeypatch.setattr(run_report, "read_picture", lambda path, plane: Volume(volume, (4.0, 1.0, 2.0), None))
    panels = window_picture(window_example(["template", "simulated", "moved down"]), small_atlas, "best")
    assert list(panels.masks) == ["image", "reference", "right: T12:L3", "template", "one level down: L1:L4"]
    assert panels.title == "best: case c1, lower 50 % of the rows, slice 2 of 3, mean DSC 0.500 under the right text"
    np.testing.assert_array_equal(panels.image, volume[1, 6:])
    assert panels.pixel_aspect == 0.5
    assert list(window_picture(window_example(["none"]), small_atlas).masks) == ["image", "reference", "prediction"]
