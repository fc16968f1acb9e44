from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from textseg.errors import DataError, PromptError, RecipeError
from textseg.recipe.loading import load_recipe
from textseg.reports.prompt_sheet import PromptSheet, prompt_sheet

pytestmark = pytest.mark.usefixtures("stranger", "finished_run")  # whose data are drawn by then


@pytest.fixture(scope="module")
def sheet(tiny_recipe: Path, third_party: Path, finished_run: Path) -> PromptSheet:
    return prompt_sheet(load_recipe(tiny_recipe), slice_number=3)


def test_every_source_at_every_granularity(sheet: PromptSheet) -> None:
    places = [(entry.source, entry.granularity) for entry in sheet.entries]
    assert places == [(s, g) for s in ("template", "interactive", "ground_truth") for g in (1, 2, 3)]
    for entry in sheet.entries:
        assert entry.tokens == len(entry.prompt.holistic.split())  # of the test's encoder, a word is a token
        assert entry.prompt.visibility.slice_index == 2
    template = next(entry.prompt for entry in sheet.entries if (entry.source, entry.granularity) == ("template", 3))
    assert all(name in template.holistic for name in sheet.atlas.names)
    text = str(sheet)
    assert text.startswith(f"case {sheet.case.id}, slice 3 of 5")
    assert "ground truth (oracle), granularity 3: " in text
    assert "interactive (simulated), granularity 3: " in text  # nobody named anything
    assert '<h2 class="oracle">interactive (simulated), granularity 3: ' in sheet.page()
    assert text.endswith("The text encoder reads at most 512 tokens.")


def test_what_a_person_names_and_the_slice_that_shows_most(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    named = prompt_sheet(recipe, named="L3:L5")
    interactive = next(entry for entry in named.entries if entry.source == "interactive")
    assert "L2" not in interactive.prompt.visibility.visible
    assert "interactive, granularity 3: " in str(named)
    assert "read:" not in str(sheet_of_nobody := prompt_sheet(recipe))
    assert sheet_of_nobody.read == ""
    words = prompt_sheet(recipe, named="from L3 to L5")
    assert [entry.prompt for entry in words.entries] == [entry.prompt for entry in named.entries]
    assert "\nread: L3:L5, 5 structures and the spinal canal\n" in str(words)
    assert "<p>read: L3:L5, 5 structures and the spinal canal</p>" in words.page()
    with pytest.raises(PromptError, match="No visible structure is named"):
        prompt_sheet(recipe, named="")
    assert named.slice_index == 2  # the middle of five shows the canal, too


def test_a_report_is_shown_where_the_case_has_one(tiny_recipe: Path, sheet: PromptSheet, tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text(f"case,levels\n{sheet.case.id},L3 to L5\n")
    report = f"prompts.report={{file: {path}, visible: levels}}"
    shown = prompt_sheet(load_recipe(tiny_recipe, [report]))
    entry = shown.entries[-1]
    assert (entry.label, entry.knows_annotation) == ("report", False)
    assert entry.prompt.visibility.visible == sheet.atlas.between("L3", "L5")


def test_the_page_is_one_file_that_holds_every_text(sheet: PromptSheet) -> None:
    page = sheet.page()
    seen: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.extend(str(value) for name, value in attrs if name in ("src", "href"))

    Parser().feed(page)
    assert len(seen) == 1
    assert seen[0].startswith("data:image/png;base64,")
    for entry in sheet.entries:
        assert entry.prompt.holistic in page


def test_mistakes(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    with pytest.raises(DataError, match="--slice 6: case '.*' has slices 1 to 5"):
        prompt_sheet(recipe, slice_number=6)
    with pytest.raises(DataError, match="--case: there is no case 'nobody' with a mask"):
        prompt_sheet(recipe, case_id="nobody")
    with pytest.raises(RecipeError, match="its model reads no text"):
        prompt_sheet(recipe.model_copy(update={"prompts": None}))
