"""`textseg cervical`: commands of this plug-in, imported only when one of them is called."""

from typer import Typer

from textseg_cervical.atlas import cervical_spine

app = Typer(help="The cervical spine.", no_args_is_help=True)


@app.callback()
def _cervical() -> None:
    """Print facts about the cervical spine."""


@app.command()
def structures() -> None:
    """Print the class, the name and the family of each structure."""
    for structure in cervical_spine().structures:
        print(f"{structure.index:2}  {structure.name:6}  {structure.family}")
