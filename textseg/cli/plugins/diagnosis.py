"""Faults of the installed plug-ins; each plug-in is examined in a process of its own.

A fresh process times an import without those of other plug-ins, and a plug-in that ends its process ends no other.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

from textseg.cli.plugins.commands import GROUP, imported_command, rivalry
from textseg.errors import PluginError, TextsegError
from textseg.registry.api_version import misfit
from textseg.registry.component import Component, Plugin
from textseg.registry.discovery import collision, hook_caller, plugin_of, reason_of, register
from textseg.system.messages import counted
from textseg.version import API_VERSION, __version__

HEAVY = frozenset(
    {"jax", "lightning", "matplotlib", "monai", "pandas", "scipy", "SimpleITK", "sklearn"}
    | {"tensorflow", "timm", "torch", "torchvision", "transformers"}
)
SLOW_SECONDS = 0.5  # every command imports every plug-in
PATIENCE_SECONDS = 300.0  # for one plug-in
PATIENCE_CHECKING_SECONDS = 1800.0  # with all of its components held against their contracts

_CHILD = "from textseg.cli.plugins.diagnosis import examine_alone; examine_alone()"


@dataclass(frozen=True)
class Finding:
    """A fault of a plug-in where `broken` is set, and otherwise a remark."""

    what: str
    broken: bool = True
    details: str = ""  # the traceback


@dataclass(frozen=True)
class Diagnosis:
    """The findings about one plug-in, with its components and the seconds of its import."""

    plugin: Plugin
    import_seconds: float | None = None  # None where it did not end
    components: tuple[tuple[str, str], ...] = ()  # kind, name
    findings: tuple[Finding, ...] = ()
    command: bool = False  # True for a command of a plug-in, which is imported only when it is called

    @property
    def title(self) -> str:
        """The name, as `textseg plugins doctor` shows it."""
        return f"command {self.plugin.name}" if self.command else self.plugin.name

    @property
    def broken(self) -> bool:
        return any(finding.broken for finding in self.findings)


Depth = Literal["register", "import", "check"]


def diagnose(entry_points: Sequence[EntryPoint], *, only: Collection[str] = (), check: bool = False) -> list[Diagnosis]:
    """Examine each plug-in, or those named in `only`, also for names that they share with any other; sorted by name.

    With `check`, every component that can be built without settings is tested against its contract (`textseg.testing`).
    """
    ordered = sorted(entry_points, key=lambda entry_point: entry_point.name)
    wanted = {entry_point.name for entry_point in ordered if not only or entry_point.name in only}
    deep: Depth = "check" if check else "import"
    diagnoses = [_examined(point, deep if point.name in wanted else "register") for point in ordered]
    return [_with_collisions(diagnosis, diagnoses) for diagnosis in diagnoses if diagnosis.plugin.name in wanted]


def _with_collisions(diagnosis: Diagnosis, everything: Sequence[Diagnosis]) -> Diagnosis:
    own = diagnosis.plugin
    others = [each for each in everything if each.command == diagnosis.command and each is not diagnosis]
    if diagnosis.command:
        rivals = [own, *(each.plugin for each in others if each.plugin.name == own.name)]
        more = [Finding(rivalry(own.name, rivals).rstrip("."))] if len(rivals) > 1 else []
        return replace(diagnosis, findings=(*diagnosis.findings, *more))
    twins = [each.plugin.origin for each in others if each.plugin.package == own.package]
    findings = [Finding(f"its module {own.package} is that of {twin}, too; neither is used") for twin in twins]
    for kind, name in diagnosis.components:
        sharers = [each.plugin for each in everything if (kind, name) in each.components]
        if len(sharers) > 1:
            message = collision([Component(kind, name, "", p.name, p.distribution, p.version) for p in sharers])
            findings.append(Finding(message.rstrip(".")))
    return replace(diagnosis, findings=(*diagnosis.findings, *findings))


def _examined(entry_point: EntryPoint, depth: Depth) -> Diagnosis:
    from pydantic import TypeAdapter  # here, so that a child's import of a plug-in is timed with it

    plugin = plugin_of(entry_point)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        point = [entry_point.name, entry_point.value, entry_point.group]
        command = [sys.executable, "-P", "-c", _CHILD, json.dumps([point, asdict(plugin), depth]), str(answer)]
        patience = PATIENCE_CHECKING_SECONDS if depth == "check" else PATIENCE_SECONDS
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
            ending, output = f"ended its process with code {done.returncode}", done.stderr
        except subprocess.TimeoutExpired as error:
            ending, output = f"did not end within {patience:g} s", str(error)
        if not answer.exists():
            command_only = entry_point.group == GROUP
            return Diagnosis(
                plugin, findings=(Finding(f"looking at it {ending}", details=output),), command=command_only
            )
        return TypeAdapter(Diagnosis).validate_json(answer.read_bytes())


def examine_alone() -> None:
    """Examine one plug-in: read the request from the first argument, write the answer to the file in the second."""
    point, plugin, depth = json.loads(sys.argv[1])
    diagnosis = examine(EntryPoint(*point), Plugin(**plugin), depth)
    Path(sys.argv[2]).write_text(json.dumps(asdict(diagnosis)))


def examine(entry_point: EntryPoint, plugin: Plugin, depth: Depth) -> Diagnosis:
    """Return the findings about one plug-in, which is imported into this process."""
    findings: list[Finding] = []
    components: list[Component] = []
    before, started, seconds = set(sys.modules), time.perf_counter(), None
    if entry_point.group == GROUP:
        try:
            imported_command(entry_point, plugin)
            return Diagnosis(plugin, time.perf_counter() - started, command=True)
        except PluginError as error:
            return Diagnosis(plugin, findings=(_finding(error, str(error).rstrip(".")),), command=True)
    try:
        if misfit(plugin, __version__) is None:
            importlib.import_module(entry_point.module)
            seconds = time.perf_counter() - started
        components = register(hook_caller(), entry_point, plugin)
    except BaseException as error:
        findings.append(_finding(error, reason_of(error)))
    if heavy := sorted(HEAVY & (set(sys.modules) - before)):
        findings.append(Finding(_LOADS.format(", ".join(heavy)), broken=False))
    if seconds is not None and seconds > SLOW_SECONDS:
        findings.append(Finding(_SLOW.format(seconds), broken=False))
    if depth != "register":
        findings += _component_findings(components, check=depth == "check")
    names = tuple((component.kind, component.name) for component in components)
    return Diagnosis(plugin, seconds, names, tuple(findings))


_LOADS = 'registering loads {}, and every command waits for it: give the builders as "module:name" and import it there'
_SLOW = "importing it takes {:.1f} s, and every command waits for it"


def _component_findings(components: Sequence[Component], *, check: bool) -> Iterator[Finding]:
    unchecked, complete = [], []
    for component in components:
        name = f"{component.kind} '{component.name}'"
        try:
            settings = component.settings()
        except PluginError as error:
            yield _finding(error, f"{name}: {str(error).partition(' is broken: ')[2].rstrip('.')}")
            continue
        if required := [key for key, parameter in settings.items() if parameter.default is parameter.empty]:
            unchecked.append(f"{name} ({', '.join(required)} has no default)")
        else:
            complete.append(component)
    if check:
        yield from _broken_promises(complete)
    if unchecked:
        yield Finding(f"only tests of the plug-in's own can check {', '.join(unchecked)}", broken=False)


def _broken_promises(components: Sequence[Component]) -> Iterator[Finding]:
    from textseg.testing import ConformanceError, checks
    from textseg.testing.conformance import subjects_among

    for subject in subjects_among(components, {}):
        for conformance_check in checks(subject.component.kind):
            try:
                conformance_check(subject)
            except ConformanceError as error:
                needs = isinstance(error.__cause__, TextsegError) and not isinstance(error.__cause__, PluginError)
                yield replace(_finding(error, str(error).rstrip(".")), broken=not needs)  # weights that nobody fetched
                if conformance_check.fundamental:
                    break


def _finding(error: BaseException, what: str) -> Finding:
    return Finding(what, details="".join(traceback.format_exception(error)).encode(errors="backslashreplace").decode())


def describe(diagnoses: Sequence[Diagnosis], *, verbose: bool, checked: bool = False) -> str:
    """Return the text that `textseg plugins doctor` prints; with tracebacks if `verbose`.

    `checked` is True if each component was tested against the contract of its kind.
    """
    paragraphs = [_paragraph(diagnosis, verbose) for diagnosis in diagnoses]
    return "\n\n".join([*paragraphs, _summary(diagnoses, checked=checked)])


def _paragraph(diagnosis: Diagnosis, verbose: bool) -> str:
    plugin, seconds = diagnosis.plugin, diagnosis.import_seconds
    imported = "not imported" if seconds is None else f"imported in {1000 * seconds:.0f} ms"
    known = f"API {API_VERSION}"
    asked = "asks for no API" if plugin.api is None else f"asks for API {plugin.api}"
    asked = f"part of textseg, {known}" if plugin.distribution == "textseg" else f"{asked}, textseg has {known}"
    lines = [f"{diagnosis.title}: {plugin.distribution} {plugin.version}, {asked}, {imported}"]
    by_kind: dict[str, list[str]] = {}
    for kind, name in diagnosis.components:
        by_kind.setdefault(kind, []).append(name)
    lines += [f"  {kind:16}  {', '.join(names)}" for kind, names in by_kind.items()]
    for finding in sorted(diagnosis.findings, key=lambda finding: not finding.broken):
        lines.append(f"  {'BROKEN' if finding.broken else 'note'}: {finding.what}.")
        if verbose and finding.details:
            lines += [f"    {line}" for line in finding.details.rstrip().splitlines()]
    return "\n".join(lines)


def _summary(diagnoses: Sequence[Diagnosis], *, checked: bool) -> str:
    broken = [diagnosis.title for diagnosis in diagnoses if diagnosis.broken]
    count = sum(len(diagnosis.components) for diagnosis in diagnoses)
    state = f"broken: {', '.join(dict.fromkeys(broken))}" if broken else "nothing is broken"
    commands = sum(diagnosis.command for diagnosis in diagnoses)
    some = f", {counted(commands, 'command')}" if commands else ""
    tested = ", each tested against the contract of its kind" if checked and count else ""
    return f"{counted(len(diagnoses) - commands, 'plug-in')}, {counted(count, 'component')}{tested}{some}; {state}."
