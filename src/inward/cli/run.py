"""`inward run`: train a model to think, or go on with a run that was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inward.stages.run import Run

INTERRUPTED = 130


def run(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped recipe (`inward recipes`).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as training.beta=0.2 or iterations=3."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="The run directory: a path, or a URL such as s3://bucket/run. Default: runs/<name of the recipe>."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run nothing: say what is amiss, and what each stage will take at most.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON document at the end: summary.json, or what --check found.")
    ] = False,
) -> None:
    """Run a recipe: sample, judge, pair, train, validate, for every iteration and arm. Also continues a stopped run.

    \b
    Example:
      inward run demo --check
      inward run demo --out runs/mine iterations=1 sampling.k=4
    """
    from inward.cli.progress import make_reporter
    from inward.cli.recipes import find_recipe
    from inward.config import load_recipe
    from inward.execution.choose import executing
    from inward.loop import run_loop
    from inward.runs.ledger import compact
    from inward.runs.opening import command_to_go_on, locked, prepare, run_at, to_check
    from inward.runs.progress import tracked
    from inward.stages.run import Run

    path = find_recipe(recipe)
    settings = load_recipe(path, overrides)
    directory = run_at(out or Path("runs") / path.stem)
    reporter = make_reporter()
    if check:
        return _check(Run(settings, to_check(directory), reporter), json_output)
    try:
        with locked(directory, reporter) as watched:
            fresh = prepare(directory, settings, path.read_text(encoding="utf-8"))
            reporter.say(f"{'Starting' if fresh else 'Continuing'} {directory.name}")
            compact(directory.costs)
            with tracked(directory.progress, watched) as tracker, executing(settings.execution, directory.seen) as executor:
                started = Run(settings, directory, tracker, executor)
                _announce(started)
                run_loop(started)
            compact(directory.costs)
    except KeyboardInterrupt:
        reporter.close()
        reporter.say(f"\nStopped. Everything finished is kept in {directory.name}; to go on:\n  {command_to_go_on()}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        reporter.close()
    if json_output:
        sys.stdout.write(directory.summary.read_text(encoding="utf-8"))
    else:
        from inward.cli.status import print_summary

        print_summary(directory)
    return None


def _check(run: Run, as_json: bool) -> None:
    """Print what a run will take, then raise what would stop it."""
    from inward.cli import check, output
    from inward.stages.check import check as check_run
    from inward.stages.findings import Findings

    checked = check_run(run)
    if as_json:
        output.json_document(check.document(checked))
    else:
        check.show(checked)
    Findings(problems=list(checked.problems)).require_none()
    output.note("Nothing stands in the way.")


def _announce(run: Run) -> None:
    """Say over how many processes a training goes, before the first stage: there may not be as many GPUs."""
    shard = run.recipe.execution.shard
    if (processes := run.training_processes) > 1:
        parts = ", each with its part of the weights" if shard else ""
        run.reporter.say(f"Training over {processes} processes{parts}")
    elif shard:
        run.reporter.say("execution.shard = true has nothing to cut: training is one process (execution.processes)")
