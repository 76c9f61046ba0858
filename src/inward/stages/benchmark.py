"""A run's models on a benchmark: the seed and every iteration of every arm, on the same prompts.

Both arms share their seeds at each iteration.

Stored beside each model under `<arm>/iter_NNN/benchmarks/<name>/`, with the table over all of them in
`benchmarks/<name>.json`. The judge is the verifiable one: a benchmark's prompts bring their constraints or answers along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inward.config import FileSource, PromptSettings, VerifiableJudge
from inward.errors import RunChangedError, UsageError
from inward.evaluation.benchmarks.ifeval import accuracies
from inward.records import Output, Prompt, Verdict, content_id
from inward.runs.shards import read_stage
from inward.stages.inputs import seed_model
from inward.stages.run import ArmIteration, Run
from inward.stages.validation import measure
from inward.storage import read_json, write_json


def run_benchmark(
    run: Run, file: Path, name: str, *, samples: int = 1, max_new_tokens: int | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Measure every finished model that a run has kept; return, and store, the table of accuracies and differences.

    An output that still breaks its format after all tries fails all its constraints: a broken format never helps.
    Raises UsageError where the prompts hold nothing to check.
    """
    prompts = _load(file)[:limit]
    _claim(run, name, prompts, samples, max_new_tokens)
    validation = run.recipe.validation.model_copy(update={"judge": VerifiableJudge(kind="verifiable"), "samples": samples})
    recipe = run.recipe.model_copy(update={"validation": validation})
    checked = replace(run, recipe=recipe)
    rows: list[dict[str, Any]] = []
    figures: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for t in range(recipe.iterations + 1):
        for arm in recipe.arms:
            now = ArmIteration(checked, arm, t)
            if not now.finished or (t and not now.model.exists()):  # a model may not have been kept
                continue
            model = now.model if t else seed_model(run)
            folder = now.folder / "benchmarks" / name
            title = f"{arm} iteration {t}" if t else f"seed, {arm}"
            evaluation = measure(
                now, folder, model, prompts, name=title, purpose=f"benchmark {name}", max_new_tokens=max_new_tokens
            )
            by_prompt = accuracies(prompts, read_stage(folder / "outputs", Output), read_stage(folder / "verdicts", Verdict))
            figures[(str(arm), t)] = by_prompt
            rows.append(
                {
                    "arm": arm,
                    "iteration": t,
                    **{figure: _interval(values, run) for figure, values in by_prompt.items()},
                    "format_errors": evaluation.format_errors,
                    "unresolved": evaluation.unresolved,
                    "thought_length": evaluation.thought_length,
                    "response_length": evaluation.response_length,
                }
            )
    table = {"benchmark": name, "prompts": len(prompts), "models": rows, "differences": _differences(figures, run)}
    write_json(run.dir.root / "benchmarks" / f"{name}.json", table)
    return table


def _load(file: Path) -> list[Prompt]:
    from inward.prompts import load_prompts

    settings = PromptSettings(sources=(FileSource(kind="file", path=str(file)),), unusable="drop")
    prompts = [prompt for prompt in load_prompts(settings).prompts if prompt.constraints]
    if not prompts:
        raise UsageError(f"{file} holds no prompt with constraints to check (columns instruction_id_list and kwargs)")
    return prompts


def _claim(run: Run, name: str, prompts: Sequence[Prompt], samples: int, max_new_tokens: int | None) -> None:
    """Note what a benchmark's figures depend on; refuse to mix them with those of another set-up."""
    path = run.dir.root / "benchmarks" / f"{name}.settings.json"
    settings_now = {
        "prompts": content_id(*(repr(prompt) for prompt in prompts)),
        "samples": samples,
        "max_new_tokens": max_new_tokens or run.recipe.sampling.max_new_tokens,
    }
    if not path.exists():
        write_json(path, settings_now)
    elif read_json(path) != settings_now:
        raise RunChangedError(
            f"benchmark {name!r} of {run.dir.name} was begun with other prompts, --samples or --max-new-tokens: "
            "give the same again, or another --name"
        )


def _interval(values: dict[str, float], run: Run) -> dict[str, Any]:
    from inward.statistics import bootstrap_mean

    interval = bootstrap_mean([values[key] for key in sorted(values)], resamples=run.recipe.validation.bootstrap, seed=0)
    return {**asdict(interval), "prompts": len(values)}


def _differences(figures: dict[tuple[str, int], dict[str, dict[str, float]]], run: Run) -> list[dict[str, Any]]:
    """Compare each model with the direct seed, and thinking with direct at each iteration, in pairs over prompts."""
    from inward.statistics import paired_bootstrap

    rows = []
    pairs = [((arm, t), ("direct", 0)) for arm, t in figures if (arm, t) != ("direct", 0)]
    pairs += [((arm, t), ("direct", t)) for arm, t in figures if arm == "thinking" and t]
    for first, second in pairs:
        if second not in figures:
            continue
        for figure in ("prompt_strict", "prompt_loose", "constraint_strict", "constraint_loose"):
            interval = paired_bootstrap(
                figures[first][figure], figures[second][figure], resamples=run.recipe.validation.bootstrap, seed=0
            )
            names = [f"{arm} iteration {t}" if t else f"seed, {arm}" for arm, t in (first, second)]
            rows.append({"first": names[0], "second": names[1], "figure": figure, **asdict(interval)})
    return rows
