"""The application: it collects the commands and turns a user's mistake into one message.

Each command imports what it needs when it runs, so that help and lists are quick.
"""

from __future__ import annotations

import errno
import io
import os
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
from textseg.cli.plugins.commands import Commands
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
from textseg.system.files import full_disk
from textseg.system.interruptions import watch_interruptions
from textseg.version import __version__

# What is written otherwise now: command and option, and the new spelling.
MOVED = {
    ("run", "--from"): "textseg reproduce RUN",
    ("evaluate", "--predictions"): "textseg score DIR --dataset DATASET",
    ("compare", "--only-published"): "textseg published [DATASET]",
}

# What a user can do about errors of the operating system, wherever they arise.
REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Change its permissions, or name another file or folder."),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on the disk, or name another folder."),
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or make the output smaller.",
    errno.ELOOP: "It is a link where none is followed: remove it, or name another file or folder.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}

app = Typer(
    cls=Commands,
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
    watch_interruptions()
    try:
        _refuse_old_spelling(sys.argv[1:])
        try:
            app()
        finally:
            _flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        sys.exit(1)
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        print(message, file=sys.stderr)
        sys.exit(2)


def _flush() -> None:
    """Write what is left of the output, so that a full disk is noticed while it can be reported."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries it again when it ends
        raise


def _message(error: Exception) -> str | None:
    """Return the message for a mistake of the user or an error of the operating system, or None for a fault of ours.

    A full disk among the causes of an error counts, since libraries hide it behind errors of their own.
    """
    if isinstance(error, TextsegError):
        return printable(str(error))
    reason = error if isinstance(error, OSError) and error.errno is not None else full_disk(error)
    if reason is None:
        return None
    subject = f"'{reason.filename}'" if reason.filename else "The output"
    return f"{subject}: {reason.strerror}. {REMEDIES.get(reason.errno or 0, 'Name another file or folder.')}"


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
