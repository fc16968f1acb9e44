from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from textseg.cli import entry as cli
from textseg.cli.plugins.commands import GROUP, listed_commands
from textseg.cli.plugins.diagnosis import Diagnosis, describe, examine
from textseg.registry.component import Plugin
from textseg.version import API_VERSION

APP = """
import typer
from textseg.errors import DataError

app = typer.Typer(no_args_is_help=True)

@app.callback()
def _about():
    "Facts about the neck."

@app.command()
def levels(count: int, wrong: bool = False):
    "Print some levels."
    if wrong:
        raise DataError("There is no neck.")
    print(*[f"C{n}" for n in range(2, 2 + count)])
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a distribution with one command on sys.path, as pip does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = []

    def put(distribution: str, command: str, source: str = APP, api: int = API_VERSION) -> None:
        module = f"fake_{distribution.replace('-', '_')}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\nSummary: The neck\n"
        (info / "METADATA").write_text(f"{metadata}Requires-Dist: textseg[api-{api}]\n\nSummary: a README\n")
        (info / "entry_points.txt").write_text(f"[textseg.commands]\n{command} = {module}:app\n")
        listed_commands.cache_clear()

    yield put
    for module in modules:
        sys.modules.pop(module, None)
    listed_commands.cache_clear()


@pytest.mark.parametrize("name", ["textseg_neck.egg-info", "Textseg.Neck-1.1.dist-info"])
def test_the_help_names_a_distribution_once(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    install("textseg-neck", "neck")
    again = tmp_path / "source" / name
    again.mkdir(parents=True)
    (again / "entry_points.txt").write_text("[textseg.commands]\nneck = fake:app\n")
    monkeypatch.syspath_prepend(str(tmp_path / "source"))
    listed_commands.cache_clear()
    assert listed_commands()["neck"] == [str(again)]  # the first on the path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `textseg ARGUMENTS`: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["textseg", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (int(caught.value.code or 0), *capsys.readouterr())

    return run


def test_help_shows_a_command_of_a_plugin_and_imports_nothing(
    install: Callable[..., None], call: Callable[..., tuple[int, str, str]]
) -> None:
    install("its-neck", "neck")
    code, printed, _ = call("--help")
    assert code == 0
    assert "neck" in printed
    assert "The neck (its-neck)." in printed
    assert "a README" not in printed
    assert "fake_its_neck" not in sys.modules


def test_a_command_of_a_plugin_is_like_one_of_textseg(
    install: Callable[..., None], call: Callable[..., tuple[int, str, str]]
) -> None:
    install("its-neck", "neck")
    assert call("neck", "levels", "3") == (0, "C2 C3 C4\n", "")
    assert call("neck", "levels", "3", "--wrong") == (2, "", "There is no neck.\n")
    assert "Print some levels." in call("neck", "--help")[1]
    assert call("neck", "levles")[0] == 2


def test_rivals_are_named_and_the_distribution_chooses(
    install: Callable[..., None], call: Callable[..., tuple[int, str, str]]
) -> None:
    install("its-neck", "neck")
    install("other-neck", "neck", APP.replace("C{n}", "N{n}"))
    code, _, message = call("neck", "levels", "1")
    assert code == 2
    assert message == (
        "2 plug-ins bring the command 'neck': plug-in 'neck' (its-neck 1.2) and plug-in 'neck' (other-neck 1.2). Write "
        "textseg its-neck/neck or textseg other-neck/neck, or uninstall all but one of them.\n"
    )
    assert call("its-neck/neck", "levels", "1") == (0, "C2\n", "")
    assert call("Other.Neck/neck", "levels", "1") == (0, "N2\n", "")
    assert call("no-neck/neck", "levels", "1")[0] == 2


def test_a_command_of_textseg_can_not_be_taken(
    install: Callable[..., None], call: Callable[..., tuple[int, str, str]]
) -> None:
    install("thief", "components")
    assert "Print some levels." not in call("components", "--help")[1]
    assert "The neck" not in call("--help")[1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import there_is_no_such_module", "ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        ("raise GeneratorExit(3)", "GeneratorExit: 3"),
        ("apps = 1", "AttributeError: module 'fake_its_neck' has no attribute 'app'"),
        ("app = print", "TypeError: a command is a typer.Typer, not builtin_function_or_method"),
    ],
)
def test_a_broken_command_is_a_message_here_and_in_the_doctor(
    install: Callable[..., None], call: Callable[..., tuple[int, str, str]], source: str, message: str
) -> None:
    install("its-neck", "neck", source)
    code, _, printed = call("neck", "levels")
    assert code == 2
    whole = f"The command 'neck' of plug-in 'neck' (its-neck 1.2) is broken: 'fake_its_neck:app': {message}."
    assert printed == f"{whole}\n"
    sys.modules.pop("fake_its_neck", None)
    assert f"  BROKEN: {whole}\n" in doctor(Plugin("neck", "its-neck", "1.2", api=API_VERSION))


def test_a_command_for_another_api_is_not_imported(
    install: Callable[..., None], call: Callable[..., tuple[int, str, str]]
) -> None:
    install("its-neck", "neck", api=API_VERSION + 1)
    code, _, message = call("neck", "levels", "1")
    assert code == 2
    assert f"can't be used: it asks for API {API_VERSION + 1}, and textseg" in message
    assert "fake_its_neck" not in sys.modules


def test_the_doctor_counts_commands(install: Callable[..., None]) -> None:
    install("its-neck", "neck")
    printed = doctor(Plugin("neck", "its-neck", "1.2", api=API_VERSION))
    assert printed.startswith(
        f"command neck: its-neck 1.2, asks for API {API_VERSION}, textseg has API {API_VERSION}, imp"
    )
    assert printed.endswith("0 plug-ins, 0 components, 1 command; nothing is broken.")


def doctor(plugin: Plugin) -> str:
    diagnosis: Diagnosis = examine(EntryPoint("neck", "fake_its_neck:app", GROUP), plugin, "import")
    return describe([diagnosis], verbose=False)
