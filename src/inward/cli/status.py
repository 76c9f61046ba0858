"""`inward status`: how far a run is, what its models score, what it has cost. Reads the run directory, never writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inward.cli import output

if TYPE_CHECKING:
    from inward.config import Recipe
    from inward.runs.directory import RunDir
    from inward.runs.ledger import Cost

STORED = ("prompts", "outputs", "verdicts", "scores", "pairs")
"""Stages whose records are stored in shards; the reference's are too, where there is one."""


def status(
    run: Annotated[str, typer.Argument(help="A run directory, or its URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show how far a run is, its validation scores and its costs.

    \b
    Example:
      inward status runs/demo
    """
    from inward.runs.opening import open_existing

    directory, recipe = open_existing(run)
    if as_json:
        output.json_document(document(directory, recipe))
        return
    state = "finished" if finished(directory, recipe) else "not finished"
    output.styled(f"{directory.name}: {state} (iterations: {recipe.iterations}, arms: {', '.join(recipe.arms)})", "bold")
    _show_progress(directory)
    _show_stages(stages(directory, recipe))
    print_summary(directory)


def print_summary(directory: RunDir) -> None:
    """Print what a run has come to so far: scores by arm and iteration, one arm against the other, costs."""
    from inward.runs.ledger import read_costs
    from inward.runs.opening import stored_recipe
    from inward.runs.summary import summary

    recipe, costs = stored_recipe(directory), read_costs(directory.costs)
    figures = summary(directory, recipe, costs)
    _show_judges(figures["arms"])
    _show_figures(figures["arms"])
    _show_comparisons(figures["thinking_minus_direct"])
    _show_costs(figures, costs)


def document(directory: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Return what `--json` prints: the state, every stage's shards, and all that `summary.json` holds."""
    from inward.runs.ledger import read_costs
    from inward.runs.summary import summary
    from inward.storage import read_json

    return {
        "run": directory.name,
        "finished": finished(directory, recipe),
        "progress": read_json(directory.progress) if directory.progress.exists() else None,
        "stages": stages(directory, recipe),
        **summary(directory, recipe, read_costs(directory.costs)),
    }


def finished(directory: RunDir, recipe: Recipe) -> bool:
    iterations = [(arm, t) for arm in recipe.arms for t in range(recipe.iterations + 1)]
    return all((directory.iteration(arm, t) / "evaluation.json").exists() for arm, t in iterations)


def stages(directory: RunDir, recipe: Recipe) -> list[dict[str, Any]]:
    """Return for every iteration begun and every stage how many parts are done, of how many."""
    begun = [(t, arm) for arm in recipe.arms for t in directory.iterations(arm)]
    return [
        {"arm": arm, "iteration": t, "stage": stage, "done": done, "total": total}
        for t, arm in sorted(begun, key=lambda pair: (pair[0], recipe.arms.index(pair[1])))
        for stage, (done, total) in _stages_of(directory.iteration(arm, t), t, recipe).items()
    ]


def _stages_of(folder: Path, t: int, recipe: Recipe) -> dict[str, tuple[int, int | None]]:
    """Return the parts that are done of each stage, and of how many: None where a stage is not begun, so not cut yet."""
    from inward.runs.shards import stored_parts
    from inward.storage import read_json

    epochs = recipe.training.epochs
    evaluated = len(list(folder.glob("validation/*/evaluation.json")))
    if t == 0:
        return {"validation": (evaluated, 1)}
    validated = bool(evaluated) or recipe.validates(t)
    if (folder / "pairing.json").exists() and not read_json(folder / "pairing.json")["pairs"]:
        parts = {stage: stored_parts(folder / stage) for stage in STORED}
        return parts | ({"validation": (evaluated, 1)} if validated else {})  # there is nothing to train
    reference = ("reference",) if recipe.training.needs_reference else ()
    parts = {stage: stored_parts(folder / stage) for stage in (*STORED, *reference)}
    trained = epochs if (folder / "evaluation.json").exists() else len(list(folder.glob("checkpoints/epoch_[0-9][0-9]")))
    return {**parts, "training": (trained, epochs)} | ({"validation": (evaluated, epochs)} if validated else {})


def _show_progress(directory: RunDir) -> None:
    """Say what the run is at, if it was at something when it last said so."""
    from inward.cli.progress import clock
    from inward.storage import read_json

    progress: dict[str, Any] = read_json(directory.progress) if directory.progress.exists() else {"state": None}
    if progress["state"] != "running":
        return
    left = progress["seconds_left"]
    output.write(
        f"{clock(time.time() - progress['updated'])} ago: {progress['arm']} iteration {progress['iteration']}, "
        f"{progress['stage']}, {progress['done']}/{progress['total']} {progress['unit']}"
        + ("" if left is None else f", {clock(left)} left of this stage")
    )


def _show_stages(rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["stage"] for row in rows if row["iteration"])) or ["validation"]
    by_place: dict[tuple[int, str], dict[str, str]] = {}
    for row in rows:
        by_place.setdefault((row["iteration"], row["arm"]), {})[row["stage"]] = f"{row['done']}/{row['total'] or '?'}"
    output.write()
    output.table(
        ["iteration", "arm", *names],
        [[t, arm, *(cells.get(name) for name in names)] for (t, arm), cells in by_place.items()],
        title="Parts done",
    )


def _show_figures(arms: dict[str, list[dict[str, Any]]]) -> None:
    rows = [
        [
            row["iteration"],
            arm,
            row.get("pairs"),
            row.get("checkpoint"),
            row.get("score"),
            _interval(row),
            _percent(row.get("format_errors")),
            _rounded(row.get("thought_length")),
            _rounded(row.get("response_length")),
        ]
        for arm, iterations in arms.items()
        for row in iterations
    ]
    heads = ["iteration", "arm", "pairs", "model", "score", "95% interval", "format errors", "thought", "response"]
    if rows:
        output.write()
        output.table(heads, rows, title="Validation (iteration 0 is the seed; lengths in characters)")


def _show_judges(arms: dict[str, list[dict[str, Any]]]) -> None:
    """Show who ruled on how many prompts, where a judge is made of several."""
    rows = [
        [row["iteration"], arm, part, count]
        for arm, iterations in arms.items()
        for row in iterations
        for part, count in (row.get("prompts_by_judge") or row.get("panel") or {}).items()
    ]
    if rows:
        output.write()
        output.table(["iteration", "arm", "judge", "prompts"], rows, title="Prompts by the judge that ruled on them")


def _show_comparisons(rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        output.write()
        output.table(
            ["iteration", "difference", "95% interval", "p", "prompts", "left out"],
            [[r["iteration"], r["difference"], _interval(r), r["p"], r["prompts"], r["left_out"]] for r in rows],
            title="Thinking minus direct, on the validation prompts scored in both arms",
        )


def _show_costs(figures: dict[str, Any], costs: Sequence[Cost]) -> None:
    from inward.cli.progress import clock

    if not costs:
        return
    output.write()
    rows = [[name, clock(seconds)] for name, seconds in figures["seconds"].items()]
    output.table(["stage", "work"], rows, title="Costs (the work of all workers added up)")
    peak = max(cost.peak_memory for cost in costs) / 2**30
    work = clock(sum(figures["seconds"].values()))
    output.write(
        f"{work} of work in all, {figures['tokens']:,} tokens, {figures['judge_calls']:,} judgements, "
        f"at most {peak:.1f} GiB of memory"
    )
    judging = figures["judging"]
    if judging["answers"] or judging["failures"]:
        least = "at least " if judging["uncounted"] else ""
        output.write(
            f"judging asked for {judging['answers']:,} answers ({judging['retries']:,} retries, {judging['failures']:,} "
            f"failures): {least}{judging['prompt_tokens']:,} tokens read, {judging['completion_tokens']:,} written, "
            f"{least}{judging['money']:.2f} to pay"
        )


def _interval(row: dict[str, Any]) -> str | None:
    low, high = row.get("low"), row.get("high")
    return None if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _rounded(number: float | None) -> str | None:
    return None if number is None else f"{number:.0f}"
