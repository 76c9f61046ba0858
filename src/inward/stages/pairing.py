"""Scores to pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inward.errors import TrainingError
from inward.records import Output, Pair, Score
from inward.stages.lengths import measure_of
from inward.stages.run import ArmIteration
from inward.storage import read_json, write_json


def pair(now: ArmIteration, outputs: Sequence[Output], scores: Sequence[Score], model: Path) -> list[Pair]:
    """Make the pairs; `pairing.json` counts them and says why the other prompts gave none."""
    from inward.pairing.pair import describe, pair_outputs

    settings, seed, measure = now.run.recipe.pairing, now.seed("pairs"), measure_of(now, model)
    account = now.folder / "pairing.json"

    def work(items: Sequence[Score]) -> list[Pair]:
        lengths = None if measure is None else measure(outputs)
        pairing = pair_outputs(outputs, items, settings, seed=seed, lengths=lengths)
        write_json(account, describe(pairing, outputs, lengths=lengths))
        return list(pairing.pairs)

    pairs = now.complete_at_once("pairs", Pair, scores, work, identify=lambda score: score.output_id)
    if not pairs:
        raise TrainingError(f"{now.name}: no prompt gave a pair ({_reasons(read_json(account))}; then start a new run")
    return pairs


def _reasons(account: dict[str, Any]) -> str:
    """Return why prompts gave no pair, what broke the format of outputs, and what to do about it."""
    skipped, malformed = (
        "; ".join(f"{why}: {n}" for why, n in sorted(account[key].items())) for key in ("skipped", "malformed")
    )
    broken = f"; outputs that break the format: {malformed}" if malformed else ""
    advice = "use prompts on which the model's outputs differ, a larger sampling.k, or a judge with finer scores"
    if "cut_off_response" in account["malformed"]:
        advice += "; or raise sampling.max_new_tokens, so that fewer responses are cut off"
    return f"{skipped}{broken}): {advice}"
