"""`inward status`: how far a run is, what its models score, what it has cost. Reads the run directory, never writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inward.cli import output

if TYPE_CHECKING:
    from inward.config import Recipe
    from inward.running.costs import Cost
    from inward.running.rundir import RunDir

SHARDED = ("outputs", "verdicts")
"""Stages cut by prompts. The reference is cut by pairs; prompts, scores and pairs are always one shard."""


def status(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show how far a run is, its validation scores and its costs.

    \b
    Example:
      inward status runs/demo
    """
    from inward.running.rundir import open_existing

    directory, recipe = open_existing(run)
    if as_json:
        output.json_document(document(directory, recipe))
        return
    state = "finished" if finished(directory, recipe) else "not finished"
    output.styled(f"{directory.root}: {state} (iterations: {recipe.iterations}, arms: {', '.join(recipe.arms)})", "bold")
    _show_stages(stages(directory, recipe))
    print_summary(directory)


def print_summary(directory: RunDir) -> None:
    """Print what a run has come to so far: scores by arm and iteration, one arm against the other, costs."""
    from inward.running.costs import read_costs
    from inward.running.rundir import stored_recipe
    from inward.running.summary import summary

    recipe, costs = stored_recipe(directory), read_costs(directory.costs)
    found = summary(directory, recipe, costs)
    _show_judges(found["arms"])
    _show_figures(found["arms"])
    _show_comparisons(found["thinking_minus_direct"])
    _show_costs(found, costs)


def document(directory: RunDir, recipe: Recipe) -> dict[str, Any]:
    """Return what `--json` prints: the state, every stage's shards, and all that `summary.json` holds."""
    from inward.running.costs import read_costs
    from inward.running.summary import summary

    return {
        "run": str(directory.root),
        "finished": finished(directory, recipe),
        "stages": stages(directory, recipe),
        **summary(directory, recipe, read_costs(directory.costs)),
    }


def finished(directory: RunDir, recipe: Recipe) -> bool:
    wanted = [(arm, t) for arm in recipe.arms for t in range(recipe.iterations + 1)]
    return all((directory.iteration(arm, t) / "evaluation.json").exists() for arm, t in wanted)


def stages(directory: RunDir, recipe: Recipe) -> list[dict[str, Any]]:
    """Return for every iteration begun and every stage how many parts are done, of how many."""
    begun = [(t, arm) for arm in recipe.arms for t in directory.iterations(arm)]
    return [
        {"arm": arm, "iteration": t, "stage": stage, "done": done, "total": total}
        for t, arm in sorted(begun, key=lambda pair: (pair[0], recipe.arms.index(pair[1])))
        for stage, (done, total) in _stages_of(directory.iteration(arm, t), t, recipe).items()
    ]


def _stages_of(folder: Path, t: int, recipe: Recipe) -> dict[str, tuple[int, int]]:
    epochs = recipe.training.epochs
    evaluated = len(list(folder.glob("validation/*/evaluation.json")))
    if t == 0:
        return {"validation": (evaluated, 1)}
    size = recipe.execution.shard_prompts
    found: dict[str, tuple[int, int]] = {"prompts": (_parts(folder / "prompts"), 1)}
    found |= {stage: (_parts(folder / stage), -(-recipe.prompts.per_iteration // size)) for stage in SHARDED}
    found |= {stage: (_parts(folder / stage), 1) for stage in ("scores", "pairs")}
    if recipe.training.needs_reference:
        found["reference"] = (_parts(folder / "reference"), _reference_parts(folder, recipe))
    trained = epochs if (folder / "evaluation.json").exists() else len(list(folder.glob("checkpoints/epoch_[0-9][0-9]")))
    return found | {"training": (trained, epochs), "validation": (evaluated, epochs)}


def _reference_parts(folder: Path, recipe: Recipe) -> int:
    """Return how many shards of log-probabilities the pairs come to: those of a whole iteration until there are pairs."""
    if recipe.training.reference == "sampler":
        return 1
    from inward.storage import read_json

    found = folder / "pairing.json"
    pairs = read_json(found)["pairs"] if found.exists() else recipe.prompts.per_iteration
    return -(-pairs // recipe.execution.shard_prompts)


def _parts(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


def _show_stages(rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["stage"] for row in rows if row["iteration"])) or ["validation"]
    by_place: dict[tuple[int, str], dict[str, str]] = {}
    for row in rows:
        by_place.setdefault((row["iteration"], row["arm"]), {})[row["stage"]] = f"{row['done']}/{row['total']}"
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
            _whole(row.get("thought_length")),
            _whole(row.get("response_length")),
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


def _show_costs(found: dict[str, Any], costs: Sequence[Cost]) -> None:
    from inward.cli.progress import clock

    if not costs:
        return
    output.write()
    output.table(["stage", "time"], [[name, clock(seconds)] for name, seconds in found["seconds"].items()], title="Costs")
    peak = max(cost.peak_memory for cost in costs) / 2**30
    output.write(
        f"{clock(sum(found['seconds'].values()))} in all, {found['tokens']:,} tokens, {found['judge_calls']:,} judgements, "
        f"at most {peak:.1f} GiB of memory"
    )
    judging = found["judging"]
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


def _whole(number: float | None) -> str | None:
    return None if number is None else f"{number:.0f}"
