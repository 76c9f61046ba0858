"""`inward show`: what a model thought and answered, and what the judge made of it. Reads the run directory, never writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inward.cli import output

if TYPE_CHECKING:
    from inward.cli.reading import View

NARROW = 100
"""On a terminal with fewer columns, outputs stand below each other."""


def show(
    run: Annotated[str, typer.Argument(help="A run directory, or its URL.")],
    prompt: Annotated[
        str | None, typer.Option(help="Id of a prompt, or how it begins. Without it: a table of prompts.")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="thinking or direct. Default: the recipe's first arm.")] = None,
    iteration: Annotated[int | None, typer.Option(help="Default: the latest with scores.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the table, widest spread of scores first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look at prompts, thoughts, responses and their scores.

    \b
    Example:
      inward show runs/demo
      inward show runs/demo --prompt 3f2a --iteration 1
    """
    from inward.cli.reading import open_view

    view = open_view(run, arm, iteration, "scores")
    if prompt is None:
        rows = prompt_rows(view)
        if as_json:
            output.json_document(rows)
        else:
            _show_table(view, rows, limit)
        return
    document = prompt_document(view, prompt)
    if as_json:
        output.json_document(document)
    else:
        _show_prompt(view, document)


def prompt_rows(view: View) -> list[dict[str, Any]]:
    """Return one row a prompt, widest spread of scores first; scores are None where nothing was scored."""
    values: dict[str, list[float]] = {}
    for score in view.scores():
        if score.value is not None:
            values.setdefault(score.prompt_id, []).append(score.value)
    errors: dict[str, int] = {}
    for item in view.outputs():
        errors[item.prompt_id] = errors.get(item.prompt_id, 0) + (item.format_error is not None)
    kinds = {pair.prompt_id: pair.kind for pair in view.pairs()}
    rows = [
        {
            "id": prompt.id,
            "prompt": prompt.text,
            "lowest": min(scores, default=None),
            "highest": max(scores, default=None),
            "spread": max(scores) - min(scores) if scores else None,
            "scored": len(scores),
            "format_errors": errors.get(prompt.id, 0),
            "pair": kinds.get(prompt.id),
        }
        for prompt in view.prompts()
        for scores in [values.get(prompt.id, [])]
    ]
    return sorted(rows, key=lambda row: -1.0 if row["spread"] is None else row["spread"], reverse=True)


def prompt_document(view: View, beginning: str) -> dict[str, Any]:
    """Return a prompt and all its outputs, best first; `beginning` is its id or a beginning that only it has."""
    from inward.errors import UsageError

    matches = [prompt for prompt in view.prompts() if prompt.id.startswith(beginning)]
    if len(matches) != 1:
        what = "no prompt's id begins" if not matches else f"{len(matches)} prompts' ids begin"
        raise UsageError(
            f"{what} with {beginning!r} in {view.arm} iteration {view.t}; `inward show {view.run.name}` lists them"
        )
    prompt = matches[0]
    scores = {score.output_id: score for score in view.scores()}
    roles = {id_: role for pair in view.pairs() for id_, role in ((pair.chosen_id, "chosen"), (pair.rejected_id, "rejected"))}
    outputs = [
        {
            "id": item.id,
            "score": scores[item.id].value if item.id in scores else None,
            "unscored": scores[item.id].unscored if item.id in scores else None,
            "role": roles.get(item.id),
            "thought": item.thought,
            "response": item.response,
            "format_error": item.format_error,
            "tokens": len(item.tokens),
            "text": item.text,
        }
        for item in view.outputs()
        if item.prompt_id == prompt.id
    ]
    outputs.sort(key=lambda row: float("-inf") if row["score"] is None else row["score"], reverse=True)
    return {
        "arm": view.arm,
        "iteration": view.t,
        "id": prompt.id,
        "prompt": prompt.text,
        "source": prompt.source,
        "outputs": outputs,
    }


def _show_table(view: View, rows: Sequence[dict[str, Any]], limit: int) -> None:
    heads = ["id", "prompt", "lowest", "highest", "spread", "scored", "format errors", "pair"]
    cells = [[row["id"], output.shorten(row["prompt"], 60), *list(row.values())[2:]] for row in rows[:limit]]
    output.table(heads, cells, title=f"{view.arm}, iteration {view.t}: {min(limit, len(rows))} of {len(rows)} prompts")


def _show_prompt(view: View, document: dict[str, Any]) -> None:
    output.styled(
        f"{document['arm']}, iteration {document['iteration']}, prompt {document['id']} ({output.clean(document['source'])})",
        "bold",
    )
    output.write(output.clean(document["prompt"]))
    output.write()
    if output.on_terminal():
        _show_side_by_side(document["outputs"])
        return
    for item in document["outputs"]:
        output.write(f"--- {_heading(item)}")
        if item["thought"]:
            output.write(f"[thought] {output.clean(item['thought'])}")
        output.write(output.clean(_answer(item)))
        output.write()


def _show_side_by_side(items: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    colours = {"chosen": "green", "rejected": "red", None: "dim"}
    panels = [
        Panel(
            Group(Text(output.clean(item["thought"] or ""), style="dim"), Text(output.clean(_answer(item)))),
            title=Text(_heading(item)),
            title_align="left",
            border_style=colours[item["role"]],
        )
        for item in items
    ]
    console = Console(highlight=False)
    columns = 1 if console.width < NARROW else 2
    grid = Table.grid(expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    for n in range(0, len(panels), columns):
        grid.add_row(*panels[n : n + columns])
    console.print(grid)


def _heading(item: dict[str, Any]) -> str:
    score = f"unscored ({output.clean(str(item['unscored']))})" if item["score"] is None else f"score {item['score']:.3f}"
    parts = [score, f"{item['tokens']} tokens", *([item["role"]] if item["role"] else [])]
    return ", ".join([*parts, *([f"format error: {item['format_error']}"] if item["format_error"] else [])])


def _answer(item: dict[str, Any]) -> str:
    """Return the response; of an output that broke the format what its thought does not show already."""
    if item["response"] is not None:
        return str(item["response"])
    return "(no response)" if item["thought"] else str(item["text"])
