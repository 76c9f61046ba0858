"""`inward recipes`: the recipes that come with the package, found in a source checkout as well as in an installed one."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from inward.cli import output

app = typer.Typer(
    help="List the shipped recipes, or show one to copy from.\n\n"
    "\b\nExample:\n  inward recipes\n  inward recipes show demo > mine.toml",
    invoke_without_command=True,
    rich_markup_mode=None,
)


def shipped() -> dict[str, Path]:
    """Return the shipped recipes by name. A checkout's own folder comes before the files of an installed package."""
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file() and (checkout / "recipes").is_dir():
        return {path.stem: path for path in sorted((checkout / "recipes").glob("*.toml"))}
    from importlib import metadata

    files = metadata.files("inward") or []
    paths = [Path(str(file.locate())).resolve() for file in files if file.suffix == ".toml" and file.parent.name == "recipes"]
    return {path.stem: path for path in sorted(paths)}


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: an existing path as it is, else the shipped recipe of that name.

    Raises UsageError, naming the nearest, where there is neither.
    """
    from inward.errors import UsageError

    if Path(name).is_file():
        return Path(name)
    recipes = shipped()
    if name in recipes:
        return recipes[name]
    near = difflib.get_close_matches(Path(name).stem, recipes, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{name} is neither a recipe file nor the name of a shipped recipe{hint} (`inward recipes` lists them)")


def description(path: Path) -> str:
    """Return a recipe's first comment line."""
    for text in path.read_text(encoding="utf-8").splitlines():
        if text.startswith("#"):
            return text.lstrip("#").strip()
    return ""


@app.callback()
def list_recipes(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False
) -> None:
    if context.invoked_subcommand is not None:
        return
    rows = [{"name": name, "description": description(path), "path": str(path)} for name, path in shipped().items()]
    if as_json:
        output.json_document(rows)
    else:
        output.table(["name", "description"], [[row["name"], row["description"]] for row in rows])


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name of a shipped recipe.")]) -> None:
    """Print a recipe, comments included.

    \b
    Example:
      inward recipes show demo > mine.toml
    """
    output.write(find_recipe(name).read_text(encoding="utf-8").rstrip("\n"))


@app.command("settings")
def settings() -> None:
    """Print every setting of a recipe with its type and default, as Markdown.

    \b
    Example:
      inward recipes settings | less
    """
    from inward.cli.settings import document

    output.write(document().rstrip("\n"))
