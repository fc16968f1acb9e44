"""Registration of the components of this plug-in."""

from pathlib import Path

from textseg import hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.atlas("cervical_spine", "textseg_cervical.atlas:cervical_spine")
    register.prompt_generator("cervical_prompts", "textseg_cervical.cervical_prompts:CervicalPrompts")
    register.dataset("cervical_phantom", "textseg_cervical.cervical_phantom:CervicalPhantom")


@hookimpl
def textseg_recipes() -> Path:
    return Path(__file__).with_name("recipes")
