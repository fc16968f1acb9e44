from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from textseg.cli import entry as cli
from textseg.comparison import text as leaderboard_text
from textseg.errors import RunError
from textseg.registry import discovery as registry
from textseg.registry.component import Plugin
from textseg.registry.discovery import Registry, installed_registry
from textseg.training import many_runs
from textseg.training.many_runs import PlannedRun
from textseg.version import __version__

HEAVY = ("torch", "monai", "lightning", "transformers", "matplotlib", "numpy", "SimpleITK")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `textseg ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["textseg", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code if isinstance(caught.value.code, int) else 0


@pytest.mark.parametrize(
    "arguments", [["components"], ["plugins", "list"], ["recipes"], ["--help"], ["--version"], ["run", "--help"]]
)
def test_listing_and_help_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from textseg import cli; sys.argv = ['textseg', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        f"finally: print('heavy:', sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "heavy: []\n"
    assert done.stdout.strip()


def test_components_are_listed_with_their_origin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "components", "fusion") == 0
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["kind", "name", "plug-in", "distribution"]
    assert set(rule) == {"-", " "}
    assert ["fusion", "hasf", "atmnet", "textseg"] in [row.split()[:4] for row in rows]
    assert {row.split()[0] for row in rows} == {"fusion"}
    assert rows[0].index("hasf") == header.index("name")


@pytest.mark.parametrize(
    "arguments", [["--cost"], ["fusion", "--cost"], ["network", "--size", "8,8"], ["network", "--recipe", "x.yaml"]]
)
def test_costs_are_those_of_networks(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "components", *arguments) == 2
    assert "--cost goes with network" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_costs_are_a_table_with_what_they_are_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from textseg.reports import cost_table

    asked = []

    def rows(registry: Registry, recipes: Sequence[Path], size: str | None) -> Iterator[tuple[str, ...]]:
        asked.append((list(recipes), size))
        yield "unet", "1.492 M", "1.492 M", "1.492 M", "1.66 G"

    monkeypatch.setattr(cost_table, "cost_rows", rows)
    arguments = ("components", "network", "--cost", "--recipe", "a.yaml", "--size", "64,96")
    assert call(monkeypatch, *arguments) == 0
    header, _, row, note = capsys.readouterr().out.splitlines()
    assert header.index("trainable") == row.index("1.492 M", 10)
    assert "1 x 64 x 96" in note
    assert asked == [([Path("a.yaml")], "64,96")]


def test_an_unknown_kind_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "components", "fusoin") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("There is no kind of component 'fusoin'. Did you mean 'fusion'? Possible: ")
    assert printed.err.count("\n") == 1


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"textseg {__version__}\n"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plugins = [Plugin("fine", "fine-dist", "1"), Plugin("ill", "ill-dist", "2", "ImportError: no x")]
    monkeypatch.setattr(registry, "installed_registry", lambda: Registry(plugins))
    yield
    installed_registry.cache_clear()


@pytest.mark.usefixtures("broken")
def test_plugins_are_listed_with_the_cause(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "plugins", "list") == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(None, 3) for row in rows] == [
        ["fine", "fine-dist", "1", "ok"],
        ["ill", "ill-dist", "2", "broken: ImportError: no x"],
    ]


class Recorder:
    """Stands in for a module of the core, and keeps how its function was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, function: str) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.error: BaseException | None = None
        stand_in = ModuleType(f"textseg.{module}")
        setattr(stand_in, function, self)
        monkeypatch.setitem(sys.modules, f"textseg.{module}", stand_in)

    def __call__(self, *arguments: Any, **named: Any) -> str:
        self.calls.append((arguments, named))
        if self.error is not None:
            raise self.error
        return "what it says"


def read_recipe(path: Path, overrides: Sequence[str], **_: bool) -> SimpleNamespace:
    """Stands in for a recipe: its name and what the overrides give it."""
    given = dict(value.split("=", 1) for value in overrides)
    fold = given.get("split.fold")
    return SimpleNamespace(
        name=path.stem,
        seed=int(given.get("seed", 2025)),
        split=SimpleNamespace(
            folds=3 if "folded" in path.stem else None, fold=None if fold is None else int(fold), file=None
        ),
    )


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(many_runs, "load_recipe", read_recipe)
    return Recorder(monkeypatch, "training.run", "run")


@pytest.fixture
def running_all(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[PlannedRun], dict[str, Any]]]:
    calls: list[tuple[list[PlannedRun], dict[str, Any]]] = []

    def run_all(runs: list[PlannedRun], **named: Any) -> int:
        calls.append((runs, named))
        return 2

    monkeypatch.setattr(many_runs, "load_recipe", read_recipe)
    monkeypatch.setattr(many_runs, "run_all", run_all)
    return calls


NO_CODE: dict[str, Any] = {"code": [], "trust_code": False, "changed_code": False}


def test_one_run_is_done_in_this_process(running: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--set", "a.b=1", "--set", "c=[1,2]", "--seeds", "7", "--output", "o", "--fresh", "--dry-run"]
    assert call(monkeypatch, "run", "x.yaml", *options) == 0
    named: dict[str, Any] = {"overrides": ("a.b=1", "c=[1,2]"), "output": Path("o"), "fresh": True, "dry_run": True}
    assert running.calls == [((Path("x.yaml"),), {**named, **NO_CODE, "seed": 7})]


def test_run_without_options(running: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "run", "x.yaml") == 0
    named: dict[str, Any] = {"overrides": (), "seed": None, "output": Path("runs"), "fresh": False, "dry_run": False}
    assert running.calls == [((Path("x.yaml"),), {**named, **NO_CODE})]


def test_a_run_is_repeated_from_its_folder(running: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    repeating = Recorder(monkeypatch, "training.reproduce", "reproduce")
    assert call(monkeypatch, "reproduce", "runs/x/seed1") == 0
    consent = ["--trust-code", "--changed-code"]
    assert call(monkeypatch, "reproduce", "r", "--set", "a=1", "--output", "o", "--fresh", "--dry-run", *consent) == 0
    named: dict[str, Any] = {"overrides": [], "output": Path("repeated"), "fresh": False, "dry_run": False}
    others: dict[str, Any] = {"overrides": ["a=1"], "output": Path("o"), "fresh": True, "dry_run": True}
    named |= {"trust_code": False, "changed_code": False}
    others |= {"trust_code": True, "changed_code": True}
    assert repeating.calls == [((Path("runs/x/seed1"),), named), ((Path("r"),), others)]
    for wrong in ([], ["r", "--seeds", "1"], ["r", "--jobs", "2"]):
        assert call(monkeypatch, "reproduce", *wrong) == 2
    assert call(monkeypatch, "run") == 2
    assert running.calls == []


@pytest.mark.parametrize(
    ("old", "spelling"),
    [
        (["run", "--from", "runs/x"], "textseg reproduce RUN"),
        (["evaluate", "--predictions=masks", "--dataset", "spider"], "textseg score DIR --dataset DATASET"),
        (["compare", "--only-published", "--published", "spider"], "textseg published [DATASET]"),
    ],
)
def test_an_old_spelling_answers_with_the_new_one(
    old: list[str], spelling: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *old) == 2
    assert spelling in capsys.readouterr().err


def test_several_runs_are_planned_and_their_exit_code_is_that_of_all(
    running: Recorder,
    running_all: list[tuple[list[PlannedRun], dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--set", "a=1", "--seeds", "1,2", "--output", "o", "--jobs", "3", "--fresh", "--trust-code"]
    assert call(monkeypatch, "run", "x.yaml", "y.yaml", *options) == 2
    ((runs, named),) = running_all
    assert [(run.recipe.name, run.overrides, run.seed, str(run.folder)) for run in runs] == [
        (f"{name}.yaml", ("a=1",), seed, f"o/{name}/seed{seed}") for name in ("x", "y") for seed in (1, 2)
    ]
    assert named == {"jobs": 3, "fresh": True, "dry_run": False, "trust_code": True, "changed_code": False}
    assert not running.calls


@pytest.mark.parametrize(("folds", "expected"), [("all", [0, 1, 2]), ("2,0,2", [2, 0])])
def test_run_goes_through_folds(
    folds: str,
    expected: list[int],
    running_all: list[tuple[list[PlannedRun], dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call(monkeypatch, "run", "folded.yaml", "--set", "a=1", "--folds", folds, "--seeds", "1,2") == 2
    ((runs, _),) = running_all
    planned = [(run.overrides, run.seed) for run in runs]
    assert planned == [(("a=1", f"split.fold={fold}"), seed) for fold in expected for seed in (1, 2)]


@pytest.mark.parametrize(
    ("recipe", "folds", "message"),
    [
        ("folded.yaml", "0,3", "has folds 0, 1, 2, and 3 is none of them"),
        ("x.yaml", "all", "'x.yaml' has no folds to choose from"),
    ],
)
def test_folds_that_there_are_not_are_a_mistake(
    recipe: str,
    folds: str,
    message: str,
    running: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "run", recipe, "--folds", folds) == 2
    assert not running.calls
    assert message in capsys.readouterr().err


def test_two_runs_in_one_folder_are_a_mistake(
    running: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "a/x.yaml", "a/x.yaml") == 0  # named twice by two patterns
    assert len(running.calls) == 1
    assert call(monkeypatch, "run", "a/x.yaml", "b/x.yaml") == 2
    assert "'a/x.yaml' and 'b/x.yaml' would both run in 'runs/x/seed2025'" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_jobs_are_a_number_above_0(jobs: str, running: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "run", "x.yaml", "--jobs", jobs) == 2
    assert not running.calls


@pytest.mark.usefixtures("broken")
def test_run_warns_of_a_broken_plugin_in_one_line(
    running: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "x.yaml") == 0
    assert len(running.calls) == 1
    expected = "Warning: plug-in 'ill' (ill-dist 2) is broken and left out: ImportError: no x.\n"
    assert capsys.readouterr().err == expected


def test_a_mistake_in_the_last_recipe_stops_before_the_first_one_trains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Recorder(monkeypatch, "training.run", "run")
    (tmp_path / "x.yaml").write_text("name: y\n")
    assert call(monkeypatch, "run", str(tmp_path / "x.yaml")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{tmp_path}/x.yaml:1: ")
    assert any("name: 'y' must be the name of its file" in line for line in lines)
    assert running.calls == []


@pytest.mark.parametrize("seeds", ["a", "1,", "1;2"])
def test_seeds_are_numbers(running: Recorder, seeds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "run", "x.yaml", "--seeds", seeds) == 2
    assert running.calls == []


def test_a_users_mistake_is_one_message_and_an_interruption_is_130(
    running: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running.error = RunError("The run is in use.")
    assert call(monkeypatch, "run", "x.yaml") == 2
    assert capsys.readouterr().err == "The run is in use.\n"
    running.error = KeyboardInterrupt()
    assert call(monkeypatch, "run", "x.yaml") == 130
    running.error = ZeroDivisionError("a defect of textseg, not a user's mistake")
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_evaluate_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = Recorder(monkeypatch, "reports.run_evaluation", "evaluate_run")
    assert call(monkeypatch, "evaluate", "runs/x") == 0
    assert call(monkeypatch, "evaluate", "runs/x", "--prompts", "ground_truth") == 0
    assert call(monkeypatch, "evaluate", "runs/x", "--prompts", "interactive", "--visible", "T10:L5") == 0
    assert call(monkeypatch, "evaluate", "runs/x", "--fields-of-view", "0.7,0.5") == 0
    for mistake in ("half", "50", "0.5,1", "0"):
        assert call(monkeypatch, "evaluate", "runs/x", "--fields-of-view", mistake) == 2
    given = [
        (None, None, None),
        ("ground_truth", None, None),
        ("interactive", "T10:L5", None),
        (None, None, [0.7, 0.5]),
    ]
    assert call(monkeypatch, "evaluate", "runs/x", "--trust-code") == 0
    options: dict[str, Any] = {"overrides": [], "trust_code": False}
    expected = [((Path("runs/x"),), {"prompts": p, "visible": v, "fields_of_view": f, **options}) for p, v, f in given]
    expected.append((expected[0][0], {**expected[0][1], "trust_code": True}))
    assert evaluation.calls == expected


def test_compare_prints_what_comes_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = Recorder(monkeypatch, "comparison.compare", "compare")
    monkeypatch.setattr(
        leaderboard_text,
        "print_leaderboard",
        lambda board, file, details, output: file.write(f"{board} {details} {output}\n"),
    )
    assert call(monkeypatch, "compare", "a", "b", "--output", "o", "--details") == 0
    assert call(monkeypatch, "compare", "a", "--rare", "0.1", "--single-runs", "--force", "--published", "spider") == 0
    given = {"output": Path("o"), "published": None, "rare": 0.2, "single_runs": False, "force": False}
    more = {"output": None, "published": "spider", "rare": 0.1, "single_runs": True, "force": True}
    assert comparison.calls == [(([Path("a"), Path("b")],), given), (([Path("a")],), more)]
    assert capsys.readouterr().out == "what it says True o\nwhat it says False None\n"


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["reproduce"],
        ["score"],
        ["evaluate"],
        ["compare"],
        ["published"],
        ["components"],
        ["recipes"],
        ["recipes", "copy"],
        ["plugins", "list"],
    ],
)
def test_every_command_has_help_with_an_example(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *command, "--help") == 0
    assert f"Example: textseg {' '.join(command)}" in capsys.readouterr().out


def test_published_results_need_no_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "published") == 0
    out = capsys.readouterr().out
    assert out.count("52 means computed again") == 2
    assert call(monkeypatch, "published", "mrspineseg") == 0
    assert "spider" not in capsys.readouterr().out
    assert call(monkeypatch, "published", "spyder") == 2
    assert "Did you mean 'spider'" in capsys.readouterr().err


def test_published_results_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "compare", "a", "--published", "spyder") == 2


@pytest.mark.parametrize("arguments", [(), ("--published", "spider"), ("a", "--rare", "2")])
def test_compare_needs_runs_and_a_share(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "compare", *arguments) == 2


def test_a_run_imports_nothing_that_no_recipe_has_asked_for() -> None:
    names = (
        "monai",
        "timm",
        "wandb",
        "mlflow",
        "textseg.comparison.compare",
        "textseg.comparison.leaderboard",
        "textseg.export.bundle",
    )
    program = (
        "import sys; import textseg.training.many_runs, textseg.training.run\n"
        "from textseg.registry.discovery import installed_registry\n"
        "from textseg.recipe.loading import load_recipe, required_components\n"
        "recipe = load_recipe(__import__('pathlib').Path('recipes/quickstart.yaml'))\n"
        "for kind, spec in required_components(recipe): installed_registry().component(kind, spec.use).load()\n"
        f"print([name for name in {names} if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "scans"), "'scans': Permission denied. Change its permis"),
        (FileExistsError(errno.EEXIST, "File exists", "a.yaml"), "'a.yaml': File exists. Name another file"),
        (OSError(errno.ENOSPC, "No space left on device"), "The output: No space left on device. Make room"),
        (OSError(errno.EFBIG, "File too large", "x.png"), "'x.png': File too large. Raise the limit on the size of f"),
        (OSError(errno.ELOOP, "Too many levels", "run/.lock"), "'run/.lock': Too many levels. It is a link where"),
        (OSError(errno.EIO, "Input/output error", "x"), "'x': Input/output error. Name another file or folder."),
    ],
)
def test_rights_and_a_full_disk_are_one_message(
    error: OSError, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert call(monkeypatch, "runs") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_a_full_disk_behind_the_error_of_a_library_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "best.ckpt")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch does

    monkeypatch.setattr(cli, "app", fail)
    assert call(monkeypatch, "export") == 2
    assert capsys.readouterr().err.startswith("'best.ckpt': No space left on device. Make room")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_an_output_that_goes_to_a_full_disk_is_one_message() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "textseg", "plugins", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("The output: No space left on device.")


def test_an_error_that_is_not_of_the_system_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("a library's own")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["textseg", "runs"])
    with pytest.raises(OSError, match="a library's own"):
        cli.main()
