"""`inward evaluate`: measure the seed and every iteration's model of a run on a set of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[str, typer.Argument(help="A run directory, or its URL.")],
    prompts: Annotated[Path, typer.Option(help="JSON lines or Parquet: prompts with constraints to check.")],
    name: Annotated[str | None, typer.Option(help="What to call this benchmark. Default: the file's name.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Outputs to draw of every prompt.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest output. Default: the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N prompts only.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Benchmark every model of a run, both arms side by side with intervals. A stopped benchmark goes on where it was.

    Example: inward evaluate runs/demo --prompts ifeval.jsonl --max-new-tokens 512
    """
    from inward.cli import output
    from inward.cli.progress import make_reporter
    from inward.cli.run import INTERRUPTED
    from inward.execution.choose import executing
    from inward.runs.ledger import compact
    from inward.runs.opening import command_to_go_on, locked, open_existing, run_at
    from inward.runs.progress import tracked
    from inward.stages.benchmark import run_benchmark
    from inward.stages.run import Run

    _, recipe = open_existing(run)
    directory = run_at(run)
    reporter = make_reporter()
    try:
        with locked(directory, reporter) as watched:
            compact(directory.costs)  # else a row torn by a kill would run into the next one
            with (
                tracked(directory.progress, watched, "evaluate") as tracker,
                executing(recipe.execution, directory.seen) as executor,
            ):
                table = run_benchmark(
                    Run(recipe, directory, tracker, executor),
                    prompts,
                    name or prompts.stem,
                    samples=samples,
                    max_new_tokens=max_new_tokens,
                    limit=limit,
                )
    except KeyboardInterrupt:
        reporter.close()
        reporter.say(f"\nStopped. What was measured is kept; to go on:\n  {command_to_go_on()}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        reporter.close()
    if json_output:
        output.json_document(table)
        return
    headers = ("model", "prompt strict", "95%", "prompt loose", "constraint strict", "constraint loose", "unresolved")
    output.table(headers, [_row(row) for row in table["models"]], title=f"{table['benchmark']}, {table['prompts']} prompts")


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    strict = row["prompt_strict"]
    name = f"{row['arm']} iteration {row['iteration']}" if row["iteration"] else f"seed, {row['arm']}"
    others = (row[key]["mean"] for key in ("prompt_loose", "constraint_strict", "constraint_loose"))
    return (name, strict["mean"], f"{strict['low']:.3f}-{strict['high']:.3f}", *others, row["unresolved"])
