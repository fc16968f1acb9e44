from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from textseg.cli import entry as cli
from textseg.cli.plugins.diagnosis import describe, diagnose, examine
from textseg.registry.component import Plugin
from textseg.testing import ConformanceError, check_plugin
from textseg.version import API_VERSION

HOSTILE: Mapping[str, Mapping[str, str]] = {
    "absent": {"plugin": "import a_package_that_nobody_has"},
    "miswired": {
        "plugin": """
            from textseg import hookimpl

            @hookimpl
            def textseg_register(register):
                register.fusion("miswired", "hostile_miswired.parts:Fusion")
        """,
        "parts": """
            class Fusion:
                '''Takes no features.'''

                def __init__(self, task, *, heads: int = 8): ...
        """,
    },
    "thief": {
        "plugin": """
            from textseg import hookimpl

            @hookimpl
            def textseg_register(register):
                register.vision_encoder("monai_unet", "hostile_thief.plugin:Encoder")

            class Encoder:
                '''Takes the name of another.'''

                def __init__(self, task): ...
        """,
    },
    "sluggish": {
        "plugin": """
            import time

            from textseg import hookimpl
            from textseg.contracts import Atlas, Structure

            time.sleep(0.6)

            @hookimpl
            def textseg_register(register):
                register.atlas("sluggish", atlas)

            def atlas():
                "One structure, long awaited."
                return Atlas("sluggish", (Structure("SC", "spinal canal", 1),))
        """,
    },
    "liar": {
        "plugin": """
            from textseg import hookimpl

            @hookimpl
            def textseg_register(register):
                register.vision_encoder("liar", "hostile_liar.parts:Encoder")
        """,
        "parts": """
            from torch import nn

            from textseg.contracts import Features, Task

            class Encoder(nn.Module):
                '''Promises 8 channels, gives 4.'''

                features = Features((8,), (1,))
                size_multiple = 1

                def __init__(self, task: Task):
                    super().__init__()
                    self.layer = nn.Conv2d(task.image_channels, 4, 3, padding=1)

                def forward(self, image):
                    return (self.layer(image),)
        """,
    },
}


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory, install_into: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, modules in HOSTILE.items():
        install_into(folder, name, f"hostile_{name}", modules)
    return folder


@pytest.fixture(scope="module")
def hostile(
    hostile_folder: Path, third_party: Path, installed_from: Callable[[Path], AbstractContextManager[None]]
) -> Iterator[None]:
    """All of them are installed, and the stranger whose components the tiny recipe uses."""
    with installed_from(third_party), installed_from(hostile_folder):
        yield


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `textseg ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["textseg", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code if isinstance(caught.value.code, int) else 0


@pytest.mark.slow
@pytest.mark.usefixtures("hostile")
def test_the_doctor_names_each_of_five_hostile_plugins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEXTSEG_STRICT_PLUGINS", "1")  # the doctor looks all the same
    assert call(monkeypatch, "plugins", "doctor", "--check", "--verbose", *HOSTILE) == 1
    printed = capsys.readouterr().out
    paragraphs = {part.partition(":")[0]: part for part in printed.split("\n\n")}
    assert "absent: hostile-absent 1.0, asks for no API, textseg has API 1, not imported\n" in printed
    assert "  BROKEN: ModuleNotFoundError: No module named 'a_package_that_nobody_has'.\n" in paragraphs["absent"]
    assert "    Traceback (most recent call last):\n" in paragraphs["absent"]
    assert 'hostile_absent/plugin.py", line' in paragraphs["absent"]
    assert "  fusion            miswired\n" in paragraphs["miswired"]
    assert "BROKEN: fusion 'miswired': its builder takes the positional parameters (task); a" in paragraphs["miswired"]
    assert (
        "BROKEN: Two plug-ins bring the vision_encoder 'monai_unet': plug-in 'atmnet' (textseg " in paragraphs["thief"]
    )
    assert (
        "plug-in 'thief' (hostile-thief 1.0). Write 'use: textseg/monai_unet' or 'use: hostile-thief/monai_unet'"
        in paragraphs["thief"]
    )
    assert "note: importing it takes 0." in paragraphs["sluggish"]
    assert "BROKEN: vision_encoder 'liar' breaks 'shapes': expected maps [(2, 8, " in paragraphs["liar"]
    assert "\n5 plug-ins, 4 components, each tested against the contract of its kind; broken: " in printed
    assert printed.endswith("broken: absent, liar, miswired, thief.\n")


@pytest.mark.usefixtures("hostile")
def test_every_other_command_works_beside_them(
    finished_run: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = str(finished_run), str(tiny_recipe)
    output = str(tiny_recipe.parent / "beside_hostile")
    data = ["lumbar_phantom", "--folder", str(tiny_recipe.parent / "data"), "--set", "size=[96, 80]"]
    for command in (
        ["components"],
        ["plugins", "list"],
        ["fetch", recipe],
        ["run", recipe, "--dry-run"],
        ["run", recipe, "--set", "training.epochs=1", "--output", output],
        ["evaluate", run],
        ["compare", run],
        ["prompts", recipe],
        ["data", "check", *data, "--set", "cases=8", "--set", "slices=5", "--set", "spacing_mm=3.0"],
        ["data", "cache"],
    ):
        assert call(monkeypatch, *command) == 0, command
        printed = capsys.readouterr()
        assert printed.out, command
        if command[0] in ("components", "fetch", "run"):  # those that may need what is left out
            first, second = printed.err.splitlines()[:2]
            assert first.startswith("Warning: plug-in 'absent' (hostile-absent 1.0) is broken and left out: ModuleNotF")
            assert second.startswith("Warning: Two plug-ins bring the vision_encoder 'monai_unet': ")
    taken = "model.vision_encoder={use: monai_unet}"
    assert call(monkeypatch, "run", recipe, "--dry-run", "--set", taken) == 2
    assert "Two plug-ins bring the vision_encoder 'monai_unet'" in capsys.readouterr().err.splitlines()[-1]
    assert call(monkeypatch, "run", recipe, "--dry-run", "--set", "model.fusion={use: miswired}") == 2
    assert "fusion 'miswired' of plug-in 'miswired' (hostile-miswired 1.0) is broken" in capsys.readouterr().err


def test_strict_mode_fails_beside_them(hostile_folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(hostile_folder), "TEXTSEG_STRICT_PLUGINS": "1"}
    command = [sys.executable, "-m", "textseg", "components"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "plug-in 'absent' (hostile-absent 1.0) is broken" in done.stderr
    assert "the vision_encoder 'monai_unet'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_knows_only_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plugins", "doctor", "spin") == 2
    assert capsys.readouterr().err.startswith("There is no plug-in 'spin'. Did you mean 'spine'? Possible: ")


def test_the_doctor_does_not_import_a_plugin_for_another_api() -> None:
    plugin = Plugin("late", "textseg-late", "1.0", api=API_VERSION + 1)
    diagnosis = examine(EntryPoint("late", "this_would_fail.plugin", "textseg"), plugin, "import")
    first, second = describe([diagnosis], verbose=False).split("\n\n")[0].splitlines()
    assert first.endswith(f"asks for API {API_VERSION + 1}, textseg has API {API_VERSION}, not imported")
    assert second.startswith(f"  BROKEN: it asks for API {API_VERSION + 1}, and textseg ")


def test_two_hundred_plugins_are_listed_without_anything_heavy(
    tmp_path: Path, install_into: Callable[..., None]
) -> None:
    for index in range(200):
        source = f"""
            from textseg import hookimpl

            @hookimpl
            def textseg_register(register):
                register.network("network_{index}", "crowd_{index}.parts:Network")
        """
        install_into(tmp_path, f"crowd_{index}", f"crowd_{index}", {"plugin": source, "parts": "import torch"})
    program = (
        "import sys; from textseg import cli; sys.argv = ['textseg', 'components', 'network']\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'numpy', 'crowd_7.parts'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    rows = done.stdout.splitlines()
    assert sum(row.startswith("network  network_") for row in rows) == 200
    assert rows[-1] == "[]"


OWN_ATLAS = {
    "plugin": """
        from textseg import hookimpl

        @hookimpl
        def textseg_register(register):
            register.atlas("hand", "hostile_foot.parts:hand")
            register.atlas("foot", "hostile_foot.parts:foot")
            register.prompt_generator("foot", "hostile_foot.parts:Prompter")
            register.prompt_generator("nowhere", "hostile_foot.parts:Nowhere")
    """,
    "parts": """
        from textseg.contracts import Atlas, Structure
        from textseg.text import RegionPrompts

        GROUPS = {"talus": "hindfoot", "calcaneus": "hindfoot"}

        def hand() -> Atlas:
            '''Another region of the same plug-in.'''
            return Atlas("hand", (Structure("lunate", "carpal bone", 1),))

        def foot() -> Atlas:
            '''Bones of the foot.'''
            return Atlas("foot", (Structure("talus", "bone", 1), Structure("calcaneus", "bone", 2)))

        class Prompter(RegionPrompts):
            '''Knows the bones of the foot.'''

            image = "MRI of the foot"

            def __init__(self, atlas: Atlas):
                super().__init__(atlas)
                self.groups = [GROUPS[name] for name in atlas.names]

        class Nowhere(Prompter):
            '''Fails at each call.'''

            def __call__(self, visibility):
                return {}[visibility.visible]
    """,
}


def test_the_doctor_and_pytest_agree_on_a_generator_for_the_atlas_of_its_plugin(
    tmp_path: Path,
    install_into: Callable[..., None],
    installed_from: Callable[[Path], AbstractContextManager[None]],
) -> None:
    install_into(tmp_path, "foot", "hostile_foot", OWN_ATLAS)
    with installed_from(tmp_path):
        installed = [point for point in entry_points(group="textseg") if point.name == "foot"]
        (diagnosis,) = diagnose(installed, check=True)
        with pytest.raises(ConformanceError) as caught:
            check_plugin("foot")
    broken = [finding.what for finding in diagnosis.findings if finding.broken]
    assert [f"{what}." for what in broken] == str(caught.value).splitlines()
    assert len(broken) == 1
    assert broken[0].startswith("prompt_generator 'nowhere' breaks 'construction': expected no error, came KeyError: ")
    assert f"({tmp_path}/hostile_foot/parts.py, line 28)" in broken[0]
