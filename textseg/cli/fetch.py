"""`textseg fetch`: pretrained weights, before a run needs them."""

from __future__ import annotations

from textseg.cli.options import Recipe, RecipeOverrides


def fetch(recipe: Recipe, overrides: RecipeOverrides = None) -> None:
    """Download the pretrained weights that a recipe needs. No other command does, so runs work offline.

    Example: textseg fetch atmnet_spider
    """
    from textseg.recipe.loading import load_recipe, required_components
    from textseg.registry.discovery import installed_registry, warn_of_faults
    from textseg.system.progress import bytes_bar

    warn_of_faults()
    needed = required_components(load_recipe(recipe, overrides or [], builds=()))
    with bytes_bar() as progress:
        lines = [installed_registry().component(kind, spec.use).fetch(spec.settings, progress) for kind, spec in needed]
    print("\n".join(filter(None, lines)) or f"'{recipe}' needs no weights from elsewhere.")
