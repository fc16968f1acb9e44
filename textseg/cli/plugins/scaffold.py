"""A plug-in to start from: a distribution with one component, its tests, and a recipe that runs it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import re
from collections.abc import Iterator
from pathlib import Path

from textseg.errors import PluginError
from textseg.registry.discovery import installed_registry
from textseg.registry.kinds import KINDS, kind_of
from textseg.system.files import new_folder, write_atomically
from textseg.version import API_VERSION, __version__

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 24  # letters of a name: what is written stays within its lines
LINE = 120  # letters of a line of code
RESERVED = ("atlas", "plugin")  # modules beside the component's own


class NewPlugin:
    """The names of a plug-in with one component, which its templates use, and its files."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        self.package = f"textseg_{name}"
        self.distribution = self.package.replace("_", "-")
        self.class_name = "".join(part.capitalize() for part in name.split("_"))
        self.phantom_class = f"{self.class_name}Phantom"
        self.with_data = kind in ("atlas", "dataset")  # these bring a phantom, so that a recipe has data to run on
        self.atlas = name if kind == "atlas" else f"{name}_atlas"
        self.recipe = f"unet_{name}_phantom" if self.with_data else f"{name}_lumbar_phantom"
        self.builder = self.atlas if kind == "atlas" else self.class_name
        # The module and the name of the builder of each component, by kind and name.
        self.components = {(kind, name): f"{name}:{self.builder}"}
        if kind == "dataset":
            self.components["atlas", self.atlas] = f"atlas:{self.atlas}"
        if self.with_data:
            self.components["dataset", f"{name}_phantom"] = f"{name}_phantom:{self.phantom_class}"

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield the path of each file in the distribution, and its content."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # what is written is Python, YAML, TOML and Markdown
        )
        words = {**vars(self), "what": KINDS[self.kind].summary, "textseg_version": __version__, "api": API_VERSION}
        templates = {name: name for name in ("pyproject.toml", "README.md")}
        templates |= {f"{self.package}/{name}": name for name in ("__init__.py", "plugin.py")}
        templates[f"{self.package}/{self.name}.py"] = f"{self.kind}.py"
        if self.kind == "dataset":
            templates[f"{self.package}/atlas.py"] = "atlas.py"
        if self.with_data:
            templates[f"{self.package}/{self.name}_phantom.py"] = "phantom.py"
        templates[f"{self.package}/recipes/{self.recipe}.yaml"] = "recipe.yaml"
        templates[f"tests/test_{self.name}.py"] = f"test_{self.kind}.py"
        templates["tests/test_recipe.py"] = "test_recipe.py"
        for path, template in templates.items():
            yield path, environment.get_template(f"{template}.template").render(words, line=LINE)
        yield f"{self.package}/py.typed", ""


def write_plugin(name: str, kind: str, output: Path) -> list[Path]:
    """Write the distribution `textseg-<name>` into `output`, whole or not at all. Returns its folder, then its files.

    Raises PluginError for an unknown kind, and for a name that is invalid, taken, or that of an existing folder.
    """
    plugin = NewPlugin(kind_of(kind).name, name)
    _check_name(name)
    _check_free(plugin)
    folder = output / plugin.distribution
    if folder.exists():
        raise PluginError(f"'{folder}' exists already. Remove it, or choose another name or --output.")
    try:
        with new_folder(folder) as unfinished:
            for path, content in plugin.files():
                write_atomically(unfinished / path, content)
    except OSError as error:
        raise PluginError(
            f"'{folder}' can't be written: {error.strerror or error}. Choose another --output."
        ) from error
    return [folder, *(folder / path for path, _ in plugin.files())]


def _check_name(name: str) -> None:
    words = re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) and len(name) <= LONGEST
    if not words or keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in RESERVED:
        raise PluginError(
            f"'{name}' can't name a plug-in. A name is made of small letters, digits and single '_', begins with a "
            f"letter, has at most {LONGEST} of them, and is no word of Python and none of {', '.join(RESERVED)}."
        )


def _check_free(plugin: NewPlugin) -> None:
    registry = installed_registry()
    for installed in registry.plugins:
        if installed.name == plugin.name:
            raise PluginError(f"The name '{plugin.name}' is taken by {installed.origin}. Choose another one.")
    for kind, name in plugin.components:
        for component in registry.components(kind):
            if component.name == name:
                raise PluginError(f"There is a {kind} '{name}' already, of {component.origin}. Choose another name.")
    if importlib.util.find_spec(plugin.package) is not None:
        raise PluginError(f"There is a package '{plugin.package}' already. Choose another name than '{plugin.name}'.")
    if plugin.distribution in {d.name for d in importlib.metadata.distributions()}:
        raise PluginError(f"The distribution '{plugin.distribution}' is installed already. Choose another name.")
