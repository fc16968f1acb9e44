"""Registration of the components of this plug-in."""

from pathlib import Path

from textseg import hookimpl
from textseg.registry import Register


@hookimpl
def textseg_register(register: Register) -> None:
    register.atlas("heart_acdc", "textseg_cardiac.atlas:heart_acdc")
    register.atlas("heart_short_axis", "textseg_cardiac.atlas:heart_short_axis")
    register.prompt_generator("cardiac_prompts", "textseg_cardiac.cardiac_prompts:CardiacPrompts")
    register.dataset("acdc", "textseg_cardiac.acdc:ACDC")
    register.dataset("cardiac_phantom", "textseg_cardiac.cardiac_phantom:CardiacPhantom")


@hookimpl
def textseg_recipes() -> Path:
    return Path(__file__).with_name("recipes")
