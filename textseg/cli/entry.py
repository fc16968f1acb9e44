"""The application: it collects the commands and turns a user's mistake into one message.

Each command imports what it needs when it runs, so that help and lists are quick.
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Annotated

from typer import Exit, Option, Typer

from textseg.cli.compare import compare
from textseg.cli.components import components
from textseg.cli.data import data
from textseg.cli.evaluate import evaluate
from textseg.cli.export import export
from textseg.cli.fetch import fetch
from textseg.cli.figure import figure
from textseg.cli.plugins import plugins
from textseg.cli.predict import predict
from textseg.cli.probe import probe
from textseg.cli.prompts import prompts
from textseg.cli.published import published
from textseg.cli.recipes import recipes
from textseg.cli.rename import rename
from textseg.cli.reproduce import reproduce
from textseg.cli.run import run
from textseg.cli.runs import runs
from textseg.cli.score import score
from textseg.errors import TextsegError, printable
from textseg.system.children import end_with_caller
from textseg.version import __version__

# What is written otherwise now: command and option, and the new spelling.
MOVED = {
    ("run", "--from"): "textseg reproduce RUN",
    ("evaluate", "--predictions"): "textseg score DIR --dataset DATASET",
    ("compare", "--only-published"): "textseg published [DATASET]",
}

# Errors of the operating system that a user can correct, wherever they arise, and how.
CORRECTABLE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Change its permissions, or name another file or folder."),
    **dict.fromkeys((errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "Name another file or folder."),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on the disk, or name another folder."),
}

app = Typer(
    help="Text-guided medical image segmentation, assembled from plug-ins.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(run, reproduce, fetch, evaluate, score, runs, compare),
    *(published, figure, predict, rename, export, prompts, probe, components),
):
    app.command()(command)
app.add_typer(recipes, name="recipes")
app.add_typer(plugins, name="plugins")
app.add_typer(data, name="data")


def main() -> None:
    """Run the command line: a user's mistake is one message on stderr and exit code 2; an interruption is 130."""
    for stream in (sys.stdout, sys.stderr):
        # A file name may hold bytes that are no text; to print it must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    end_with_caller()
    try:
        _refuse_old_spelling(sys.argv[1:])
        app()
    except TextsegError as error:
        print(printable(str(error)), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in CORRECTABLE:
            raise
        subject = f"'{error.filename}'" if error.filename else "The output"
        print(f"{subject}: {error.strerror}. {CORRECTABLE[error.errno]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse_old_spelling(arguments: list[str]) -> None:
    for (name, option), spelling in MOVED.items():
        if arguments[:1] == [name] and option in {argument.partition("=")[0] for argument in arguments}:
            raise TextsegError(f"'textseg {name} {option}' is a separate command now. Write: {spelling}")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"textseg {__version__}")
        raise Exit


@app.callback()
def _textseg(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...
