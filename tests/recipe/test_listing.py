from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from textseg import hookimpl
from textseg.errors import RecipeError
from textseg.recipe import listing
from textseg.recipe.listing import copy_recipe, installed_recipe, installed_recipes, recipe_file
from textseg.recipe.loading import load_recipe
from textseg.registry.component import Plugin
from textseg.registry.discovery import Registry, hook_caller

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a stranger stands in: no clone around it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    return folder


def registry_with(folder: object) -> Registry:
    """The plug-in `mine`, whose hook names a folder of recipes, and no other."""

    @hookimpl
    def textseg_recipes() -> object:
        return folder

    hooks = hook_caller()
    plugin = Plugin("mine", "textseg-mine", "1.0")
    hooks.register(SimpleNamespace(textseg_recipes=textseg_recipes), plugin.origin)
    return Registry([plugin], hooks=hooks)


def recipe_with(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(f"# A trial.\nname: {name}\nmodel: {{network: {{use: unet}}}}\ndataset: {{use: spider}}\n")
    return path


def test_a_name_is_enough_from_anywhere() -> None:
    recipe = load_recipe(Path("atmnet_spider_small"), ["training.epochs=7"])
    assert (recipe.name, recipe.training.epochs) == ("atmnet_spider_small", 7)
    assert recipe.split.file is not None
    assert recipe.split.file.is_file()


def test_a_file_that_exists_wins_over_a_name_and_a_folder_does_not() -> None:
    Path("quickstart").mkdir()
    assert load_recipe(Path("quickstart")).name == "quickstart"
    Path("quickstart").rmdir()
    Path("quickstart").write_text("name: another\n")
    with pytest.raises(RecipeError, match=r"^quickstart:1: "):
        load_recipe(Path("quickstart"))


def test_a_path_is_never_taken_for_a_name() -> None:
    for path in ("recipes/quickstart", "quickstart.yaml", "./quickstart.yml"):
        with pytest.raises(RecipeError, match="there is no such file; a recipe is a YAML file"):
            load_recipe(Path(path))


def test_an_unknown_name_gives_the_nearest_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("atmnet_spyder"))
    message = str(caught.value)
    assert "no recipe 'atmnet_spyder'" in message
    assert "'atmnet_spider' or '" in message
    assert "textseg recipes" in message
    with pytest.raises(RecipeError, match=r"nor installed\. `textseg recipes` lists") as caught:
        recipe_file(Path("zzz"))
    assert "Possible" not in str(caught.value)  # a list of all recipes would hide the message


def test_a_summary_says_what_a_recipe_is_and_needs() -> None:
    summary = installed_recipe("atmnet_spider_granularity_1").summary()
    assert (summary.method, summary.data, summary.needs) == ("swin_unetr + hasf", "spider", "data, GPU, weights")
    assert summary.shows.startswith("ATM-Net without CCAE")
    assert summary.shows.endswith("table `prompt_granularity` of the paper's ablations.")


def test_a_plugin_brings_recipes(tmp_path: Path) -> None:
    path = recipe_with(tmp_path / "recipes", "mine_spider")
    registry = registry_with(tmp_path / "recipes")
    assert recipe_file(Path("mine_spider"), registry) == path
    recipe = installed_recipes(registry)[-1]
    assert (recipe.distribution, recipe.summary().needs, recipe.summary().shows) == (
        "textseg-mine",
        "not stated",
        "A trial.",
    )


def test_a_name_that_two_recipes_bear_is_refused(tmp_path: Path) -> None:
    registry = registry_with(recipe_with(tmp_path, "quickstart").parent)
    with pytest.raises(RecipeError, match=r"Two recipes are called 'quickstart': .*\(textseg\).*\(textseg-mine\)"):
        recipe_file(Path("quickstart"), registry)


@pytest.mark.parametrize("answer", [None, "no/such/folder", 3])
def test_a_plugin_whose_folder_is_none_is_left_out_with_a_warning(
    answer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {recipe.distribution for recipe in installed_recipes(registry_with(answer))} == {"textseg"}
    assert capsys.readouterr().err.startswith("Warning: textseg_recipes of plug-in 'mine' (textseg-mine 1.0) failed: ")


def test_a_recipe_that_can_not_be_listed_is_named(tmp_path: Path) -> None:
    path = recipe_with(tmp_path / "recipes", "mine_spider")
    path.write_text("model: 3\n")
    with pytest.raises(RecipeError, match="mine_spider.yaml --dry-run"):
        installed_recipes(registry_with(tmp_path / "recipes"))[-1].summary()


def test_a_copy_brings_its_split_and_reads_as_the_original_does() -> None:
    recipe, split = copy_recipe("atmnet_spider_small", Path("mine"))
    assert (recipe, split) == (Path("mine/atmnet_spider_small.yaml"), Path("mine/splits/spider_small.json"))
    original = installed_recipe("atmnet_spider_small").path
    differing = set(recipe.read_text().splitlines()) ^ set(original.read_text().splitlines())
    assert all(line.startswith("split:") for line in differing)
    copied, expected = load_recipe(recipe), load_recipe(original)
    assert copied.split.file == split.resolve()
    assert copied.model_dump(exclude={"split"}) == expected.model_dump(exclude={"split"})
    assert json.loads(split.read_text()) == json.loads(expected.split.file.read_text())  # type: ignore[union-attr]


def test_a_copy_overwrites_nothing() -> None:
    copy_recipe("unet_spider_small", Path())
    assert copy_recipe("unetr_spider_small", Path())  # beside an equal split
    Path("unet_spider_small.yaml").write_text("mine\n")
    with pytest.raises(RecipeError, match=r"'unet_spider_small\.yaml' exists already"):
        copy_recipe("unet_spider_small", Path())
    assert Path("unet_spider_small.yaml").read_text() == "mine\n"
    Path("splits/spider_small.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"'splits/spider_small\.json' exists already"):
        copy_recipe("tevia_spider_small", Path())
    assert not Path("tevia_spider_small.yaml").exists()


def test_a_copy_replaces_no_link_that_leads_nowhere() -> None:
    Path("quickstart.yaml").symlink_to("elsewhere/quickstart.yaml")
    with pytest.raises(RecipeError, match=r"'quickstart\.yaml' exists already"):
        copy_recipe("quickstart", Path())
    assert Path("quickstart.yaml").is_symlink()


def test_a_copy_beside_an_unreadable_split_is_refused() -> None:
    Path("splits").mkdir()
    Path("splits/spider_small.json").write_bytes(b"\xe4")
    with pytest.raises(RecipeError, match="exists already"):
        copy_recipe("unet_spider_small", Path())


@pytest.mark.parametrize("content", [b"split: [", b"# \xe4\n", b"split: {file: missing.json}\n"])
def test_a_recipe_that_can_not_be_copied_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = recipe_with(tmp_path / "recipes", "broken")
    broken.write_bytes(content)
    registry = registry_with(broken.parent)
    monkeypatch.setattr(listing, "installed_registry", lambda: registry)
    with pytest.raises(RecipeError, match=r"broken\.yaml: this recipe can't be copied: .* --dry-run`"):
        copy_recipe("broken", Path("mine"))
    assert not Path("mine").exists()


@pytest.mark.parametrize("split", ["{file: '${oc.env:HOME}/split.json'}", "{file: /data/split.json}", "{file: [a, b]}"])
def test_a_split_that_is_no_file_beside_the_recipe_is_left_as_it_is(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = recipe_with(tmp_path / "recipes", "original")
    original.write_text(f"split: {split}\n")
    registry = registry_with(original.parent)
    monkeypatch.setattr(listing, "installed_registry", lambda: registry)
    (copied,) = copy_recipe("original", Path("mine"))
    assert copied.read_text() == original.read_text()


def test_a_dry_run_of_a_copy_writes_nothing_outside_the_cache(
    empty_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from textseg.training.run import run

    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    (path,) = copy_recipe("quickstart_swin_unetr", Path())
    light = ["dataset.cases=8", "dataset.slices=3", "dataset.size=[96, 80]", "dataset.spacing_mm=3.0"]
    run(path, overrides=[*light, "preparation.size=[64, 64]"], dry_run=True)
    assert "model: " in capsys.readouterr().out
    assert [entry.name for entry in empty_folder.iterdir()] == [path.name]
    assert {entry.name for entry in (tmp_path / "cache").iterdir()} == {"slices"}  # and no phantom is left there


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder


def built(source: Path, kind: str, folder: Path) -> Path:
    """The archive that a build makes of a source tree: a `wheel`, an `sdist` or an `editable`."""
    program = "import sys, hatchling.build as b; print(getattr(b, f'build_{sys.argv[1]}')(sys.argv[2]))"
    command = [sys.executable, "-c", program, kind, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    return built(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def textseg(installation: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command of an installation in a folder, beside the packages of this environment but for its own textseg."""
    others = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    program = (
        f"import site, sys; sys.path += {others}; site.addsitedir(sys.argv.pop(1))\n"
        "import textseg; print(textseg.__file__, file=sys.stderr)\n"
        "from textseg.cli import main; main()"
    )
    # -S: the hook that leads to the checkout, where this environment is an editable one, is not installed
    command = [sys.executable, "-S", "-P", "-c", program, str(installation), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installation(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """A folder with an installed textseg, and the folder that its recipes lie in."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "wheel":
        yield unpacked(wheel, folder), folder / "textseg" / "recipes"
    else:
        unpacked(built(ROOT, "editable", tmp_path_factory.mktemp("built")), folder)
        assert list(folder.rglob("*.yaml")) == []  # a copy would be older than the checkout one day
        yield folder, ROOT / "recipes"


def test_an_installation_lists_and_copies_recipes_anywhere(installation: tuple[Path, Path]) -> None:
    folder, recipes = installation
    done = textseg(folder, "recipes")
    assert Path(done.stderr.strip()) == recipes.parent / (
        "__init__.py" if recipes.parent != ROOT else "textseg/__init__.py"
    )
    names = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "recipes").rglob("*.yaml"))
    assert textseg(folder, "recipes", "copy", "unet_spider_small").stdout.split() == [
        "unet_spider_small.yaml",
        "splits/spider_small.json",
    ]
    assert Path("splits/spider_small.json").is_file()


def test_the_wheel_runs_a_recipe_by_its_name(wheel: Path, tmp_path: Path, empty_folder: Path) -> None:
    folder = unpacked(wheel, tmp_path / "site")
    light = ["--set", "dataset.cases=8", "--set", "dataset.slices=3", "--set", "dataset.size=[96, 80]"]
    done = textseg(folder, "run", "quickstart_swin_unetr", *light, "--dry-run")
    assert "name: quickstart_swin_unetr" in done.stdout
    assert list(empty_folder.iterdir()) == []


def test_a_wheel_built_from_the_source_archive_is_the_same(wheel: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(built(ROOT, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()

    def content(path: Path) -> Sequence[tuple[str, int]]:
        with zipfile.ZipFile(path) as archive:
            return sorted((file.filename, file.CRC) for file in archive.infolist())

    assert content(built(source, "wheel", tmp_path)) == content(wheel)
