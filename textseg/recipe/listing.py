"""The installed recipes: search by name, the list with their requirements, and copies to edit."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textseg.errors import DataError, RecipeError
from textseg.registry.discovery import Registry, installed_registry
from textseg.system.commands import shell
from textseg.system.files import write_atomically
from textseg.system.user_files import read_text

SUFFIXES = (".yaml", ".yml")
_NEEDS = "Needs:"  # begins the line with the requirements in the first comment of a recipe
_NOT_SHOWN = (_NEEDS, "Base:")


@dataclass(frozen=True)
class InstalledRecipe:
    """A recipe of textseg or of a plug-in; its name is the name of its file."""

    name: str
    path: Path
    distribution: str

    def summary(self) -> RecipeSummary:
        """Read the summary of the recipe from its file, without an import of its components. Raises RecipeError."""
        from textseg.system import yaml_text

        try:
            text = self.path.read_text(encoding="utf-8")
            content, _ = yaml_text.parse(text)
            model, dataset = content["model"], content["dataset"]["use"]
            parts = [model["network"]] if "network" in model else [model["vision_encoder"], model["fusion"]]
            method = " + ".join(part["use"] for part in parts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"{self.path}: this recipe of {self.distribution} can't be listed: {' '.join(str(error).split())}. "
                f"`{shell('textseg', 'run', self.path, '--dry-run')}` names each mistake."
            ) from error
        # The comment at the top of the recipe.
        comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        heading = [line.removeprefix("#").strip() for line in comment]
        shown = " ".join(line for line in heading if not line.startswith(_NOT_SHOWN))
        needed = (line.removeprefix(_NEEDS).strip(" .") for line in heading if line.startswith(_NEEDS))
        needs = next(needed, "not stated")
        return RecipeSummary(self.name, method, str(dataset), needs, re.split(r"(?<=\.)\s", shown)[0])


@dataclass(frozen=True)
class RecipeSummary:
    """A line of `textseg recipes`: the components of the model, the data set, the requirements, and the purpose."""

    name: str
    method: str
    data: str
    needs: str
    shows: str


def installed_recipes(registry: Registry | None = None) -> list[InstalledRecipe]:
    """Return the recipes of textseg and of the plug-ins, those of textseg first, each folder before the folders in it.

    If two recipes have the same name, `recipe_file` refuses it.
    """
    registry = installed_registry() if registry is None else registry
    return [
        InstalledRecipe(path.stem, path, distribution)
        for distribution, folder in (("textseg", _own_folder()), *registry.recipe_folders())
        for path in sorted(folder.rglob("*"), key=lambda path: (len(path.parts), path))
        if path.suffix in SUFFIXES
    ]


def recipe_file(path: Path, registry: Registry | None = None) -> Path:
    """Return the file of a recipe, given its path or the name of an installed recipe; an existing file is preferred.

    A path without a file is returned unchanged. Raises RecipeError for an unknown name, and for a name that two recipes
    have.
    """
    if path.is_file() or path.name != str(path) or path.suffix in SUFFIXES:
        return path
    return installed_recipe(path.name, registry).path


def installed_recipe(name: str, registry: Registry | None = None) -> InstalledRecipe:
    """Return the installed recipe with this name. Raises RecipeError if no recipe or more than one has it."""
    recipes = installed_recipes(registry)
    named = [recipe for recipe in recipes if recipe.name == name]
    if len(named) > 1:
        files = " and ".join(f"'{recipe.path}' ({recipe.distribution})" for recipe in named)
        raise RecipeError(f"Two recipes are called '{name}': {files}. Name the file of the one that you mean.")
    if not named:
        raise RecipeError(
            f"There is no recipe '{name}', neither as a file nor installed.{_nearest(name, recipes)} `textseg recipes` "
            "lists what is installed; a file of yours is named with its path, such as my_recipe.yaml."
        )
    return named[0]


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy an installed recipe into a folder for editing, together with its split file.

    Returns the files, the recipe first. A split file is copied to `folder`/splits, and the copied recipe refers to that
    copy. Nothing is overwritten: raises RecipeError if a file with that name exists, unless it is an equal split.
    """
    source = installed_recipe(name).path
    text, split = _with_split_beside(source)
    copies = {folder / source.name: text, **{folder / path: content for path, content in split.items()}}
    try:
        for path, content in copies.items():
            # A link that leads nowhere is not followed: it would be replaced.
            if os.path.lexists(path) and (path.suffix in SUFFIXES or path.read_bytes() != content.encode()):
                raise RecipeError(f"'{path}' exists already, and nothing is overwritten. Name another folder.")
        for path, content in reversed(copies.items()):  # the recipe last: if it exists, the copy is complete
            write_atomically(path, content)
    except OSError as error:
        raise RecipeError(f"'{source}' can't be copied to '{folder}': {error}. Name another folder.") from error
    return list(copies)


def _own_folder() -> Path:
    """Return the folder with the recipes of textseg.

    A wheel contains them inside the package. A checkout has them in `recipes` beside the package. An editable install
    reads the checkout, so there is no second copy that could be older.
    """
    package = Path(__file__).parents[1]
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def _nearest(name: str, recipes: Sequence[InstalledRecipe]) -> str:
    names = sorted({recipe.name for recipe in recipes})
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def _with_split_beside(source: Path) -> tuple[str, dict[Path, str]]:
    """Return the text of a copied recipe, and the path and the content of the copied split file.

    A split file with an absolute path, or with a variable in its path, stays where it is.
    """
    import yaml

    from textseg.system import yaml_text

    try:
        text = read_text(source)
        node: Any = yaml_text.compose(text)
        for key in ("split", "file"):
            children = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((value for child, value in children if child.value == key), None)
        if not isinstance(node, yaml.ScalarNode) or "${" in node.value or Path(node.value).is_absolute():
            return text, {}
        split = Path(node.value)
        content = read_text(source.parent / split)
    except (DataError, ValueError) as error:
        raise RecipeError(
            f"{source}: this recipe can't be copied: {' '.join(str(error).split()).rstrip('.')}. "
            f"`{shell('textseg', 'run', source, '--dry-run')}` names each mistake."
        ) from error
    copied = Path("splits") / split.name
    return text[: node.start_mark.index] + copied.as_posix() + text[node.end_mark.index :], {copied: content}
