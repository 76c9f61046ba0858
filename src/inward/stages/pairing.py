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

MOST_WITHOUT_PAIRS = 3
"""So many iterations in a row without a pair end the run: prompts, judge and model do not go together."""


def pair(now: ArmIteration, outputs: Sequence[Output], scores: Sequence[Score], model: Path) -> list[Pair]:
    """Make the pairs; `pairing.json` counts them and says why the other prompts gave none.

    There may be none at all. Raises TrainingError where that is so for the third time in a row, or in all iterations.
    """
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
        _go_on_or_stop(now, read_json(account), model)
    return pairs


def without_pairs(now: ArmIteration) -> int:
    """Return how many iterations in a row gave no pair, this one, which gave none, among them."""
    return 1 + (now.before.without_pairs if now.t > 1 else 0)


def _go_on_or_stop(now: ArmIteration, account: dict[str, Any], model: Path) -> None:
    """Say that an iteration gave no pair, or stop the run for it."""
    count = without_pairs(now)
    reasons, advice = _reasons(account), _advice(account)
    if count == MOST_WITHOUT_PAIRS or count == now.run.recipe.iterations:
        which = "no prompt" if count == 1 else f"this iteration is number {count} in a row in which no prompt"
        start = "" if now.t == count else f", from model.path = {str(model)!r} if you like"
        raise TrainingError(f"{now.name}: {which} gave a pair ({reasons}): {advice}; then start a new run{start}")
    now.run.reporter.say(
        f"{now.name}: no prompt gave a pair ({reasons}), so that it goes on with the model as it is ({count} in a row; "
        f"{MOST_WITHOUT_PAIRS} end the run)"
    )


def _reasons(account: dict[str, Any]) -> str:
    """Return why prompts gave no pair, and what broke the format of outputs."""
    skipped, malformed = (
        "; ".join(f"{why}: {n}" for why, n in sorted(account[key].items())) for key in ("skipped", "malformed")
    )
    return skipped + (f"; outputs that break the format: {malformed}" if malformed else "")


def _advice(account: dict[str, Any]) -> str:
    advice = "use prompts on which the model's outputs differ, a larger sampling.k, or a judge with finer scores"
    if "cut_off_response" in account["malformed"]:
        advice += "; or raise sampling.max_new_tokens, so that fewer responses are cut off"
    return advice
