from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from textseg.system.children import PARENT, environment

# A parent that starts a child as textseg does and is then killed; the child says that it lives, and waits.
CHILD = "from textseg.system.children import end_with_caller; end_with_caller(); print('alive', flush=True); {}"
PARENT_OF = (
    "import subprocess, sys, os; from textseg.system.children import environment; "
    "child = subprocess.Popen([sys.executable, '-c', {!r}], env=environment(), start_new_session=True, stdout=1); "
    "child.wait()"
)


@pytest.mark.parametrize("work", ["import time; time.sleep(600)", "import signal; signal.pause()"])
def test_a_child_ends_with_a_parent_that_is_killed(work: str) -> None:
    code = PARENT_OF.format(CHILD.format(work))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"alive\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == b""  # the end of the file: the child has ended, which held it open, too


def test_a_child_whose_parent_ended_before_it_asked_does_nothing() -> None:
    command = [sys.executable, "-c", CHILD.format("pass")]
    result = subprocess.run(command, env={**os.environ, PARENT: "1"}, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (1, b"")


def test_only_the_child_itself_is_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment()[PARENT] == str(os.getpid())
    code = CHILD.format(f"import os; print({PARENT!r} in os.environ)")
    result = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    assert result.stdout == b"alive\nFalse\n"
