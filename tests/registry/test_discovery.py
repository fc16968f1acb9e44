from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Literal

import pytest

from textseg.contracts import Features, Task
from textseg.errors import DataError, PluginError, RecipeError
from textseg.hookspecs import ReportSection, Run
from textseg.registry.component import Component, Plugin, cause
from textseg.registry.discovery import Register, Registry, discover, installed_registry
from textseg.registry.kinds import KINDS
from textseg.system import interruptions

GOOD = """
from textseg import hookimpl

@hookimpl
def textseg_register(register):
    register.fusion({name!r}, "{module}_parts:Mixer")
    register.atlas({name!r}, "{module}_parts:missing")
"""
PARTS = """
class Mixer:
    '''Mixes text into images.

    More of it.
    '''

    def __init__(self, task, features, *, heads: int = 8):
        self.heads = heads
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a distribution with one entry point on sys.path, as pip does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TEXTSEG_STRICT_PLUGINS", raising=False)

    def put(
        distribution: str, entry_point: str, module: str, source: str, parts: str = PARTS, requires: str = "textseg"
    ) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        (tmp_path / f"{module}_parts.py").write_text(parts)
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\nRequires-Dist: {requires}\n"
        (info / "METADATA").write_text(metadata + "\nRequires-Dist: textseg[api-77] is what its README says.\n")
        (info / "entry_points.txt").write_text(f"[textseg]\n{entry_point} = {module}\n")
        importlib.invalidate_caches()
        for name in (module, f"{module}_parts"):
            sys.modules.pop(name, None)

    installed_registry.cache_clear()
    yield put
    installed_registry.cache_clear()


def plugin(registry: Registry, name: str) -> Plugin:
    return next(plugin for plugin in registry.plugins if plugin.name == name)


def test_a_foreign_plugin_is_found_and_its_component_is_built(install: Callable[..., None]) -> None:
    install("mixing", "mixing", "fake_mixing", GOOD.format(name="mixer", module="fake_mixing"))
    registry = installed_registry()
    assert plugin(registry, "mixing") == Plugin("mixing", "mixing", "1.2", package="fake_mixing")
    assert "fake_mixing_parts" not in sys.modules
    component = registry.component("fusion", "mixer")
    assert (component.plugin, component.distribution, component.version) == ("mixing", "mixing", "1.2")
    assert component.description == "Mixes text into images."
    assert component.settings()["heads"].default == 8
    assert registry.build("fusion", "mixer", None, None, settings={"heads": 4}).heads == 4
    assert registry.build("fusion", "mixer", None, None, settings={}).heads == 8
    with pytest.raises(PluginError, match=r"atlas 'mixer' of plug-in 'mixing' \(mixing 1.2\) is broken: .*missing"):
        registry.build("atlas", "mixer", settings={})


def test_discovery_and_listing_import_nothing_heavy() -> None:
    program = (
        "import sys; from textseg.registry.discovery import installed_registry; installed_registry().components()\n"
        "heavy = {'torch', 'monai', 'lightning', 'transformers', 'pydantic', 'numpy', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_first_party_plugins_are_found_without_a_list_in_the_core() -> None:
    registry = installed_registry()
    assert {"atmnet", "baselines", "spine"} <= {plugin.name for plugin in registry.plugins}
    assert "hasf" in [component.name for component in registry.components("fusion")]
    kinds = [component.kind for component in registry.components()]
    assert kinds == sorted(kinds, key=list(KINDS).index)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import there_is_no_such_module", "ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("import pytest; pytest.skip('not here', allow_module_level=True)", "Skipped: not here"),
        ("raise GeneratorExit('end')", "GeneratorExit: end"),
        ("raise ValueError('a\\ud800b')", r"ValueError: a\ud800b"),
        ("def textseg_register(register): ...", "has a function 'textseg_register' without @hookimpl above it"),
        (
            GOOD.format(name="half", module="m").replace("textseg_register", "textseg_registr"),
            "marks 'textseg_registr' with @hookimpl. Did you mean 'textseg_register'?",
        ),
        (GOOD.format(name="ha.lf", module="m"), "a name is made of letters"),
        (
            GOOD.format(name="half", module="m") + "    register.fusio('x', 'a:b')",
            "There is no kind of component 'fusio'. Did you mean 'fusion'?",
        ),
        (GOOD.format(name="half", module="m") + "    register.fusion('half', 'a:b')", "registered twice"),
        (GOOD.format(name="half", module="m") + "    register.fusion('x', 'a.b')", 'must be written "module:name"'),
        (GOOD.format(name="half", module="m") + "    register.fusion('x', 3)", "a builder is callable"),
        (GOOD.format(name="half", module="m").replace("(register)", "(wrong)"), "PluginValidationError"),
    ],
)
def test_a_broken_plugin_is_noted_and_the_others_go_on(install: Callable[..., None], source: str, cause: str) -> None:
    install("breaking", "breaking", "fake_breaking", source)
    registry = installed_registry()
    error = plugin(registry, "breaking").error
    assert error is not None
    assert cause in error
    assert "\n" not in error
    assert "half" not in [component.name for component in registry.components()]
    assert "hasf" in [component.name for component in registry.components()]
    with pytest.raises(PluginError, match="'breaking'") as caught:
        registry.component("fusion", "half")
    assert cause in str(caught.value)


def test_a_broken_plugin_is_an_error_where_that_is_wanted(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("breaking", "breaking", "fake_breaking", "1 / 0")
    monkeypatch.setenv("TEXTSEG_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match=r"'breaking' \(breaking 1.2\) is broken and left out: ZeroDivisionError"):
        installed_registry()


def test_two_plugins_of_one_name_are_both_used(install: Callable[..., None]) -> None:
    install("first-dist", "twin", "fake_first", GOOD.format(name="a", module="fake_first"))
    install("second-dist", "twin", "fake_second", GOOD.format(name="b", module="fake_second"))
    registry = installed_registry()
    assert registry.faults == []
    assert registry.component("fusion", "a").distribution == "first-dist"
    assert registry.component("fusion", "b").distribution == "second-dist"


def test_two_plugins_of_one_module_are_left_out_and_both_named(install: Callable[..., None]) -> None:
    install("first-dist", "one", "fake_shared", GOOD.format(name="a", module="fake_shared"))
    install("second-dist", "two", "fake_shared", GOOD.format(name="b", module="fake_shared"))
    first, second = installed_registry().faults
    assert first.startswith(
        "plug-in 'one' (first-dist 1.2) is broken and left out: another one has the same module fake_shared, plug-in "
        "'two' (second-dist 1.2); uninstall one of them"
    )
    assert "plug-in 'one' (first-dist 1.2)" in second
    assert "fake_shared" not in sys.modules


def test_rivals_are_an_error_where_their_name_is_used_and_their_distribution_chooses(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("Its.Thief", "thief", "fake_thief", GOOD.format(name="hasf", module="fake_thief"))
    registry = installed_registry()
    (fault,) = registry.faults
    assert fault.startswith("Two plug-ins bring the fusion 'hasf': plug-in 'atmnet' (textseg ")
    assert fault.endswith(
        "'thief' (Its.Thief 1.2). Write 'use: textseg/hasf' or 'use: its-thief/hasf', or uninstall all but one of them."
    )
    with pytest.raises(PluginError) as caught:
        registry.component("fusion", "hasf")
    assert str(caught.value) == fault
    assert registry.component("fusion", "textseg/hasf").plugin == "atmnet"
    for name in ("its-thief/hasf", "Its.Thief/hasf", "its_thief/hasf"):
        assert registry.component("fusion", name).plugin == "thief"
    assert registry.build("fusion", "its-thief/hasf", None, None, settings={"heads": 2}).heads == 2
    assert {"its-thief/hasf", "textseg/hasf"} <= {c.address for c in registry.components("fusion")}
    assert registry.component("atlas", "hasf") is registry.component("atlas", "its-thief/hasf")
    with pytest.raises(PluginError, match=r"no fusion 'film-old/hasf'.*The distribution film-old is not installed"):
        registry.component("fusion", "film-old/hasf")
    with pytest.raises(PluginError, match="no auxiliary_loss 'its-thief/ccae'"):
        registry.component("auxiliary_loss", "its-thief/ccae")
    installed_registry.cache_clear()
    monkeypatch.setenv("TEXTSEG_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match=r"fusion 'hasf'.*\n.* unset TEXTSEG_STRICT_PLUGINS"):
        installed_registry()


def test_two_rivals_of_one_distribution_can_not_be_told_apart() -> None:
    parts = [Component("fusion", "film", "x:y", plugin, "film", "1") for plugin in ("one", "two")]
    registry = Registry((), parts)
    with pytest.raises(PluginError, match=r"'one' \(film 1\) and plug-in 'two' \(film 1\). Uninstall one of them"):
        registry.component("fusion", "film")
    assert registry.components("fusion") == []


def test_a_renamed_rival_keeps_its_distribution() -> None:
    registers = [Register(Plugin(name, name, "1")) for name in ("one", "two")]
    for register in registers:
        register.fusion("film", "x:y")
    registers[0].renamed("fusion", "old_film", "film", until="2")
    registry = Registry((), [component for register in registers for component in register.components])
    assert registry.current_name("fusion", "one/old_film") == "one/film"
    assert registry.component("fusion", "one/old_film").plugin == "one"


HOOKS = """
from textseg import ReportSection, hookimpl

@hookimpl
def textseg_run_started(run):
    {started}

@hookimpl
def textseg_report_sections():
    return {sections}
"""
RUN = Run(Path("runs/x/seed1"), {"name": "x"}, {"seed": 1})


def registry_with(*names: str) -> Registry:
    return discover([point for point in importlib.metadata.entry_points(group="textseg") if point.name in names])


def test_hooks_are_called_in_every_plugin(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    started = "print('started', run.folder, run.recipe['name'], run.record['seed'])"
    install("one", "one", "fake_one", HOOKS.format(started=started, sections="[ReportSection('One', '<p>1</p>')]"))
    install("two", "two", "fake_two", HOOKS.format(started=started, sections="()"))
    registry = registry_with("one", "two")
    assert registry.faults == []
    assert registry.components() == []
    registry.notify("textseg_run_started", RUN)
    registry.notify("textseg_run_finished", RUN)
    assert registry.report_sections(RUN) == [ReportSection("One", "<p>1</p>")]
    assert capsys.readouterr() == ("started runs/x/seed1 x 1\n" * 2, "")
    with pytest.raises(FrozenInstanceError):
        RUN.folder = Path()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("started", "cause"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("raise GeneratorExit(4)", "GeneratorExit: 4"),
    ],
)
def test_a_hook_that_raises_is_a_line_and_the_others_go_on(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str], started: str, cause: str
) -> None:
    install("ill", "ill", "fake_ill", HOOKS.format(started=started, sections="['no section']"))
    install("well", "well", "fake_well", HOOKS.format(started="print('well')", sections="[ReportSection('W', '')]"))
    registry = registry_with("ill", "well")
    registry.notify("textseg_run_started", RUN)
    printed, warned = capsys.readouterr()
    assert printed == "well\n"
    expected = (
        rf"Warning: textseg_run_started of plug-in 'ill' \(ill 1.2\) failed: {cause} \(.*fake_ill.*, line \d+\)\. "
    )
    assert re.fullmatch(expected + r"The command goes on\.\n", warned)
    registry.notify("textseg_run_started", RUN)  # a hook of an epoch may fail in each
    assert capsys.readouterr() == ("well\n", "")
    assert registry.report_sections(RUN) == [ReportSection("W", "")]
    assert "'ill' (ill 1.2) failed: TypeError: it gives 'no section'" in capsys.readouterr().err


def test_a_hook_without_its_mark_is_named(install: Callable[..., None]) -> None:
    marked = HOOKS.format(started="pass", sections="()")
    install("bare", "bare", "fake_bare", marked + "\n\ndef textseg_run_finished(run): pass\n")
    (fault,) = registry_with("bare").faults
    assert "has a function 'textseg_run_finished' without @hookimpl above it, so nothing would call it" in fault


def test_ctrl_c_ends_the_program_and_the_same_exception_of_a_plugin_does_not(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("ctrl", "ctrl", "fake_ctrl", "raise KeyboardInterrupt")
    monkeypatch.setattr(interruptions, "_watched", True)
    assert plugin(installed_registry(), "ctrl").error == "KeyboardInterrupt"
    sys.modules.pop("fake_ctrl", None)
    installed_registry.cache_clear()
    monkeypatch.setattr(interruptions, "_came", True)
    with pytest.raises(KeyboardInterrupt):
        installed_registry()


@pytest.mark.parametrize("error", ["BaseException('x')", "GeneratorExit('x')", "SystemExit('x')"])
def test_whatever_a_component_raises_names_it(error: str) -> None:
    def builder(task: object, features: object) -> None:
        raise eval(error)

    with pytest.raises(PluginError, match="fusion 'mixer' of plug-in .* can't be built with its defaults: .*: x"):
        registry_of(builder).build("fusion", "mixer", None, None, settings={})


def test_whatever_a_module_raises_names_its_component(install: Callable[..., None]) -> None:
    source = GOOD.format(name="mixer", module="fake_mixing")
    install("mixing", "mixing", "fake_mixing", source, "raise BaseException('x')")
    with pytest.raises(PluginError, match="can't be imported from 'fake_mixing_parts:Mixer': BaseException: x"):
        installed_registry().component("fusion", "mixer").load()


def test_an_error_that_can_not_be_printed_is_one_line() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert cause(OddError()) == "OddError"
    assert cause(ValueError("a\nb. ")) == "ValueError: a b"


def test_a_broken_plugin_is_told_nothing(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    source = HOOKS.format(started="print('called')", sections="()") + GOOD.format(name="ha.lf", module="m")
    install("half", "half", "fake_half", source)
    registry_with("half").notify("textseg_run_started", RUN)
    assert capsys.readouterr() == ("", "")


def mixer(
    task: Task,
    features: Features,
    *,
    heads: int,
    rate: float = 0.1,
    mode: Literal["add", "gate"] = "add",
    widths: tuple[int, ...] = (),
    folder: Path | None = None,
    on: bool = True,
    steps: int | Literal["auto"] = "auto",
    names: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, object]:
    return {**locals()}


def registry_of(builder: object, kind: str = "fusion") -> Registry:
    register = Register(Plugin("here", "here-dist", "3"))
    getattr(register, kind)("mixer", builder)
    return Registry([register.plugin], register.components)


def test_settings_get_their_types() -> None:
    given = {"heads": 2, "rate": 1, "widths": [1, 2], "folder": "a/b", "steps": 3, "names": {"a": [1]}}
    built = registry_of(mixer).build("fusion", "mixer", "task", "features", settings=given)
    assert built["rate"] == 1.0
    assert isinstance(built["rate"], float)
    assert built["widths"] == (1, 2)
    assert built["folder"] == Path("a/b")
    assert (built["task"], built["features"], built["mode"], built["steps"]) == ("task", "features", "add", 3)
    assert registry_of(mixer).build("fusion", "mixer", 0, 0, settings={"heads": 2, "folder": Path("x")})[
        "folder"
    ] == Path("x")


@pytest.mark.parametrize(
    ("settings", "mistakes"),
    [
        ({"heads": "3"}, ["at.heads: should be a valid integer, not '3'."]),
        ({"heads": True}, ["at.heads: should be a valid integer, not True."]),
        ({"heads": 1, "on": 1}, ["at.on: should be true or false, not 1."]),
        ({"heads": 1, "rate": "0.1"}, ["at.rate: should be a valid number, not '0.1'."]),
        ({"heads": 1, "rate": False}, ["at.rate: should be a valid number, not False."]),
        ({"heads": 1, "mode": "gat"}, ["at.mode: unknown value 'gat'. Did you mean 'gate'? Possible: add, gate."]),
        ({"heads": 1, "widths": [1, "x"]}, ["at.widths.1: should be a valid integer, not 'x'."]),
        ({"heads": 1, "widths": 5}, ["at.widths: should be a list, not 5."]),
        ({"heads": 1, "steps": "atuo"}, ["at.steps: should be a valid integer or 'auto', not 'atuo'."]),
        ({}, ["at.heads: required by fusion 'mixer' but missing."]),
        (
            {"head": 1, "rate": None},
            [
                (
                    "at.head: unknown setting. Did you mean 'heads'? "
                    "Possible: folder, heads, mode, names, on, rate, steps, widths."
                ),
                "at.rate: should be a valid number, not None.",
                "at.heads: required by fusion 'mixer' but missing.",
            ],
        ),
    ],
)
def test_every_mistake_in_settings_is_found(settings: dict[str, object], mistakes: list[str]) -> None:
    assert registry_of(mixer).check("fusion", "mixer", settings, "at") == mistakes
    with pytest.raises(RecipeError) as caught:
        registry_of(mixer).build("fusion", "mixer", 0, 0, settings=settings)
    assert str(caught.value) == "\n".join(line.replace("at.", "fusion 'mixer': ", 1) for line in mistakes)


def test_unknown_names_come_with_the_nearest() -> None:
    registry = registry_of(mixer)
    with pytest.raises(PluginError, match=r"no fusion 'mixr'\. Did you mean 'mixer'\? Possible: mixer\."):
        registry.component("fusion", "mixr")
    with pytest.raises(PluginError, match=r"no kind of component 'fusoin'\. Did you mean 'fusion'\?"):
        registry.component("fusoin", "mixer")
    with pytest.raises(PluginError, match=r"no network 'mixer'\. There is none\."):
        registry.component("network", "mixer")


def hint_that_is_not_there(*, folder: Pth) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("kind", "builder", "message"),
    [
        ("dataset", hint_that_is_not_there, r"plug-in 'here' \(here-dist 3\) is broken: name 'Pth' is not defined"),
        ("fusion", lambda task, *, x=1: None, r"\(task\); a builder of this kind takes \(task, features\)"),
        ("network", lambda task, *extra: None, r"\(task, \*extra\); a builder of this kind takes \(task\)"),
        ("atlas", lambda name="x": None, r"\(name\); a builder of this kind takes \(\)"),
        ("dataset", "there_is_no_such_module:x", "can't be imported from 'there_is_no_such_module:x': ModuleNotFound"),
        ("dataset", "json:there_is_none", "has no attribute 'there_is_none'"),
    ],
)
def test_a_bad_builder_names_its_plugin(kind: str, builder: object, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        registry_of(builder, kind).check(kind, "mixer", {}, "at")
    assert "here-dist 3" in str(caught.value)


def test_a_setting_that_no_recipe_can_write_names_its_plugin() -> None:
    def build(*, thing: inspect.Parameter) -> None: ...

    with pytest.raises(PluginError, match="'thing' has a type that no recipe can write"):
        registry_of(build, "dataset").check("dataset", "mixer", {"thing": 1}, "at")


def test_a_failing_builder_becomes_a_plugin_error_but_a_users_mistake_stays() -> None:
    def fail(*, error: str) -> None:
        raise {"value": ValueError, "data": DataError}[error]("size 7 is odd")

    registry = registry_of(fail, "dataset")
    with pytest.raises(PluginError, match=r"'here' .* can't be built with error='value': ValueError: size 7 is odd"):
        registry.build("dataset", "mixer", settings={"error": "value"})
    with pytest.raises(DataError, match=r"^size 7 is odd$"):
        registry.build("dataset", "mixer", settings={"error": "data"})


def test_a_builder_may_be_nested_in_a_class() -> None:
    component = Component("atlas", "x", "json:JSONDecoder.decode", "p", "d", "1")
    assert component.load() is json.JSONDecoder.decode


RENAMING = """
from textseg import hookimpl

@hookimpl
def textseg_register(register):
    register.fusion("mixer", "fake_renaming_parts:Mixer")
    register.renamed("fusion", "blender", "mixer", until="{until}")
"""


def test_a_renamed_component_answers_to_its_old_name_with_one_warning(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("renaming", "renaming", "fake_renaming", RENAMING.format(until="1.10"))
    registry = installed_registry()
    assert registry.build("fusion", "blender", None, None, settings={"heads": 2}).heads == 2
    assert registry.component("fusion", "blender") is registry.component("fusion", "mixer")
    assert capsys.readouterr().err == (
        "Warning: fusion 'blender' is now called 'mixer'. Write that: the old name goes with version 1.10 of "
        "renaming.\n"
    )
    assert "blender" not in [component.name for component in registry.components()]
    (old,) = registry.old_names("fusion")
    assert (old.name, old.now, old.until) == ("blender", "mixer", "1.10")
    assert registry.old_names("network") == []


@pytest.mark.parametrize("until", ["1.2", "1.2.0", "1.1.9", "1"])
def test_an_old_name_that_is_dropped_names_the_new_one(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str], until: str
) -> None:
    install("renaming", "renaming", "fake_renaming", RENAMING.format(until=until))
    with pytest.raises(
        PluginError, match=f"no fusion 'blender': since version {until} of renaming it is called 'mixer'"
    ):
        installed_registry().component("fusion", "blender")
    assert installed_registry().old_names() == []
    assert installed_registry().component("fusion", "mixer").name == "mixer"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('register.renamed("fusion", "blender", "mixr", until="2")', "is renamed to 'mixr', which is not registered"),
        (
            'register.renamed("network", "blender", "mixer", until="2")',
            "is renamed to 'mixer', which is not registered",
        ),
        ('register.renamed("fusion", "blender", "mixer", until="soon")', "must be a version such as 1.2"),
        ('register.renamed("fusion", "mixer", "mixer", until="2")', "is registered twice"),
    ],
)
def test_a_renaming_that_leads_nowhere_breaks_its_plugin(install: Callable[..., None], line: str, cause: str) -> None:
    source = GOOD.format(name="mixer", module="fake_renaming") + f"    {line}\n"
    install("renaming", "renaming", "fake_renaming", source)
    assert cause in str(plugin(installed_registry(), "renaming").error)


def test_a_recipe_under_an_old_name_is_the_recipe_under_the_new_one(
    install: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from textseg.recipe.loading import load_recipe

    install("renaming", "renaming", "fake_renaming", RENAMING.format(until="2"))
    text = Path("recipes/quickstart.yaml").read_text(encoding="utf-8")
    assert "use: hasf" in text
    loaded = []
    for name in ("mixer", "blender"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "quickstart.yaml"
        path.write_text(re.sub(r"fusion: .*", f"fusion: {{use: {name}, heads: 2}}", text), encoding="utf-8")
        loaded.append(load_recipe(path))
    assert loaded[0] == loaded[1]
    assert capsys.readouterr().err.count("is now called 'mixer'") == 1


def test_textseg_components_shows_old_names(install: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    from textseg.cli.components import components

    install("renaming", "renaming", "fake_renaming", RENAMING.format(until="2"))
    components("fusion")
    assert "fusion  blender (now mixer, until 2)  renaming  renaming 1.2" in capsys.readouterr().out


def test_textseg_components_shows_one_with_its_settings(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    from textseg.cli.components import components

    install("mixing", "mixing", "fake_mixing", GOOD.format(name="mixer", module="fake_mixing"))
    components("fusion", "mixer")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fusion 'mixer' of plug-in 'mixing' (mixing 1.2), fake_mixing_parts:Mixer"
    assert "Mixes text into images." in lines
    assert "More of it." in lines
    assert [lines[-3].split(), lines[-1].split()] == [["setting", "default", "type"], ["heads", "8", "int"]]
    with pytest.raises(PluginError, match="no fusion 'mixr'. Did you mean 'mixer'"):
        components("fusion", "mixr")
