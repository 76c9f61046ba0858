"""`inward export`: take pairs or a model out of a run, in the forms that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inward.cli import output

if TYPE_CHECKING:
    from inward.cli.reading import View

ArmOption = Annotated[str | None, typer.Option(help="thinking or direct. Default: the recipe's first arm.")]
IterationOption = Annotated[int | None, typer.Option(help="Default: the latest that has it.")]
RunOption = Annotated[str, typer.Argument(help="A run directory, or its URL.")]
Form = Literal["jsonl", "parquet"]


def export(
    run: RunOption,
    what: Annotated[Literal["pairs", "model"], typer.Argument(help="pairs, or model.")],
    out: Annotated[Path, typer.Option(help="The file (pairs) or folder (model) to write; it must not exist yet.")],
    arm: ArmOption = None,
    iteration: IterationOption = None,
    form: Annotated[Form | None, typer.Option("--format", help="Of the pairs. Default: by the ending of --out.")] = None,
) -> None:
    """Write a run's preference pairs, or a trained model, for use elsewhere.

    Pairs have the conversational columns prompt, chosen and rejected that TRL, Axolotl and LLaMA-Factory take. A model is
    an ordinary transformers folder, with its thought format beside it in thought_format.json.

    \b
    Example:
      inward export runs/demo pairs --arm thinking --iteration 1 --out pairs.jsonl
      inward export runs/demo model --out my-thinking-model
    """
    from inward.cli.reading import open_view
    from inward.errors import UsageError

    if out.exists():
        raise UsageError(f"{out} exists already; give another --out, or remove it first")
    if what == "model":
        if form is not None:
            raise UsageError("--format is for pairs; a model is always a transformers folder")
        _export_model(open_view(run, arm, iteration, "model", weights=True), out)
    else:
        view = open_view(run, arm, iteration, "pairs")
        form = form or ("parquet" if out.suffix == ".parquet" else "jsonl")
        rows = pair_rows(view)
        _write_pairs(rows, out, form)
        output.note(f"{len(rows)} pairs of {view.arm} iteration {view.t} in {out}")


def pair_rows(view: View) -> list[dict[str, Any]]:
    """Return the pairs as chat turns. Chosen and rejected are whole outputs, thought and response, as trained on."""
    from inward.thought import messages

    prompts = {prompt.id: prompt for prompt in view.prompts()}
    outputs = {item.id: item for item in view.outputs()}
    return [
        {
            "prompt": messages(view.format, prompts[pair.prompt_id].text),
            "chosen": [{"role": "assistant", "content": outputs[pair.chosen_id].text}],
            "rejected": [{"role": "assistant", "content": outputs[pair.rejected_id].text}],
        }
        for pair in view.pairs()
    ]


def _write_pairs(rows: list[dict[str, Any]], out: Path, form: Form) -> None:
    import json

    from inward.storage import write_bytes

    if form == "jsonl":
        write_bytes(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([(name, pa.list_(turn)) for name in ("prompt", "chosen", "rejected")])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    write_bytes(out, sink.getvalue().to_pybytes())


def _export_model(view: View, out: Path) -> None:
    import shutil
    from dataclasses import asdict

    from inward.storage import whole_folder, write_json

    budget = view.recipe.thought.scaffold.budget if view.recipe.thought.scaffold and view.format.thinks else None
    with whole_folder(out) as folder:
        shutil.copytree(view.folder / "model", folder, dirs_exist_ok=True)
        write_json(folder / "thought_format.json", {**asdict(view.format), "scaffold_budget": budget})
    output.note(f"the model of {view.arm} iteration {view.t} in {out}; try it: inward chat {out}")
