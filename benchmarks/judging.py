"""Tournaments with fewer calls, beside the full one, over simulated judges.

Run: python -m benchmarks.judging [--json] [--prompts 1500] [--rho 0]

Simulated: K = 8 responses a prompt with true qualities ~ N(0, 1) and lengths that lean on quality as little as they do in
practice (correlation 0.3). P(first wins) = sigmoid((q_first - q_second) / noise + bias), each ordered pair decided once and for
all; 2% of the battles end in an error, but for the noise-free judge. "real" stands for a strong LLM judge that was not measured
here: noise 0.5 and bias 0.3 give about 82% agreement with the true order and 75% the same verdict in both positions, near what
such judges are reported to reach (about 80%, and 75-80%). "smollm2-135m" has the noise that benchmarks/real_judge.py measured
on that model, asked in both orders: its verdict is one for a pair, which counts as two calls.

"listwise" is one call that ranks all K at once, shown in random order, with the noise that comes nearest to the pairwise
judge's: ranks follow u_k = q_k / noise + slope * place + Gumbel noise, so that of any two responses the better one comes first
as often as that judge, unbiased, says so (Luce's choice rule); the slope favours the earlier of two by `bias` on average, and a
call fails as often as a battle does. That is generous: one model ranking eight texts in one answer is noisier in practice than
one that compares two. Ranks are the scores. A prompt whose call failed has no pair and so no gap.

For each scheme: `calls` a prompt (the full tournament has 56), `gap_retained`, the true quality of chosen minus rejected over
that of the full tournament with the same judge, and `same_pair`, the share of prompts with the same chosen and rejected. Every
other scheme's battles are scored alike, by Bradley-Terry. `overhead_s` is the time spent outside the judge for 5,000 prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inward.judging.judge import Group
from inward.judging.pairwise.comparer import Battle, Outcome
from inward.judging.spending import Spending
from inward.judging.tournament.adaptive import CONFIDENCE, CONFIDENCE_IN_PAIRS, adaptive, controlled
from inward.judging.tournament.bradley_terry import Floats, battle_matrix, sigmoid, strengths
from inward.judging.tournament.run import run_tournament
from inward.judging.tournament.schemes import (
    Battles,
    Ints,
    Scheme,
    TournamentState,
    full,
    in_pairs,
    initial_state,
    knockout,
    play,
    random,
    swiss,
)
from inward.records import Prompt

K = 8
OVERHEAD_PROMPTS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A simulated judge. `noise` is in standard deviations of true quality, `bias` in logits for what stands first.

    One asked in `both_orders` at once has one verdict for a pair, and no bias; a pair is two calls.
    """

    noise: float
    bias: float
    errors: float
    both_orders: bool = False


LEVELS = {
    "noise-free": Level(noise=1e-9, bias=0.0, errors=0.0),
    "sharp": Level(noise=0.25, bias=0.3, errors=0.02),
    "real": Level(noise=0.5, bias=0.3, errors=0.02),
    "poor": Level(noise=0.8, bias=0.6, errors=0.02),
    "smollm2-135m": Level(noise=0.416, bias=0.0, errors=0.0, both_orders=True),
}
MEASURED = "smollm2-135m"
MEASURED_ON = (
    "SmolLM2-135M-Instruct by the probability of its verdicts in both orders, on its own responses "
    "(benchmarks/real_judge.py). It agrees with itself, not with which response meets more constraints. How noisy a strong "
    "judge is was not measured; the level 'real' has figures that others report"
)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is simulated: qualities, lengths, and the verdict r_mn that the judge would give on every ordered pair."""

    quality_GK: Floats
    length_GK: Floats
    verdict_GKK: Floats


@dataclass(frozen=True, slots=True)
class Oracle:
    """A comparer that decides by the qualities written in the responses, and counts its own time."""

    spent: list[float]
    name: str = "simulated"

    def costs(self) -> Spending:
        return Spending()

    def compare(self, battles: Sequence[Battle]) -> list[Outcome]:
        began = time.perf_counter()
        rng = np.random.default_rng(len(battles))
        margins = [float(battle.first.split()[0]) - float(battle.second.split()[0]) for battle in battles]
        wins = rng.random(len(battles)) < sigmoid(np.array(margins) / LEVELS["real"].noise + LEVELS["real"].bias)
        outcomes = [Outcome(value=1.0 if win else -1.0, raw="[[A]]" if win else "[[B]]") for win in wins]
        self.spent[0] += time.perf_counter() - began
        return outcomes


@dataclass(frozen=True, slots=True)
class Found:
    """What a scheme came to: calls a prompt, and the positions of chosen and rejected, -1 where there is no pair."""

    calls: float
    best_G: Ints
    worst_G: Ints


def main() -> None:
    arguments = _parse()
    rho: float = arguments.rho
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in (*schemes_of(rho), "listwise")}
    agreement: dict[str, dict[str, float]] = {}
    for at, (level, judge) in enumerate(LEVELS.items()):
        truth = simulate(judge, arguments.prompts, seed=at)
        agreement[level] = _agreement(truth)
        alone = np.ones(truth.quality_GK.shape, dtype=np.intp)
        found = {
            name: play_out(truth.verdict_GKK, truth.length_GK, alone, scheme, rho)
            for name, scheme in schemes_of(rho, judge.both_orders).items()
        }
        found["listwise"] = listwise(judge, truth, rho, seed=at)
        for name, one in found.items():
            table[name][level] = _compare(truth, one, found["full"])
    result: dict[str, Any] = {
        "benchmark": "judging",
        "judge": MEASURED_ON,
        "k": K,
        "prompts": arguments.prompts,
        "rho": rho,
        "confidence": CONFIDENCE_IN_PAIRS if LEVELS[MEASURED].both_orders else CONFIDENCE,
        "calls_full": K * (K - 1),
        **table["adaptive"][MEASURED],
        "judges": {
            level: {"noise": j.noise, "bias": j.bias, "errors": j.errors, **agreement[level]} for level, j in LEVELS.items()
        },
        "schemes": table,
        "overhead_s": round(overhead(OVERHEAD_PROMPTS), 2),
    }
    print(json.dumps(result) if arguments.json else _readable(result))


def schemes_of(rho: float, both_orders: bool = False) -> dict[str, Scheme]:
    """Return the schemes by name, those of about 20 calls; in both orders a call is one order, as always."""
    if both_orders:
        best = adaptive(rho=rho, confidence=CONFIDENCE_IN_PAIRS, paired=True)
        few = {"adaptive": best, "random": random(11), "swiss": swiss(3)}  # which come to about 20
        return {**{name: in_pairs(scheme) for name, scheme in few.items()}, "knockout": knockout, "full": full}
    return {"adaptive": adaptive(rho=rho), "random": random(20), "swiss": swiss(5), "knockout": knockout, "full": full}


def simulate(judge: Level, prompts: int, seed: int) -> Truth:
    """Draw qualities, lengths and all verdicts; an error is NaN."""
    rng = np.random.default_rng(seed)
    quality_GK = rng.standard_normal((prompts, K))
    length_GK = 1000 + 300 * (0.3 * quality_GK + np.sqrt(1 - 0.3**2) * rng.standard_normal((prompts, K)))
    logit_GKK = (quality_GK[:, :, None] - quality_GK[:, None, :]) / judge.noise + judge.bias
    verdict_GKK = np.where(rng.random(logit_GKK.shape) < sigmoid(logit_GKK), 1.0, -1.0)
    verdict_GKK[rng.random(logit_GKK.shape) < judge.errors] = np.nan
    if judge.both_orders:
        upper = np.triu(np.ones((K, K), dtype=bool), 1)
        verdict_GKK = np.where(upper, verdict_GKK, -verdict_GKK.swapaxes(1, 2))
    return Truth(quality_GK, length_GK, verdict_GKK)


def overhead(prompts: int) -> float:
    """Return the seconds that the default tournament spends outside the judge, real groups and battles included."""
    rng = np.random.default_rng(0)
    groups = [
        Group(
            prompt=Prompt(id=str(at), text="Question?", source="simulated"),
            responses=tuple(f"{quality:.6f} {'word ' * int(length)}" for quality, length in zip(row, lengths, strict=True)),
        )
        for at, (row, lengths) in enumerate(
            zip(rng.standard_normal((prompts, K)), rng.integers(50, 300, (prompts, K)), strict=True)
        )
    ]
    judge = Oracle([0.0])
    began = time.perf_counter()
    run_tournament(groups, judge, adaptive())
    return time.perf_counter() - began - judge.spent[0]


def play_out(verdict_GKK: Floats, length_GK: Floats, copies_GK: Ints, scheme: Scheme, rho: float) -> Found:
    """Let a scheme ask for battles whose verdicts are all known beforehand."""

    def decide(battles: Battles) -> Floats:
        return verdict_GKK[battles]

    known: TournamentState = play(initial_state(copies_GK, length_GK), scheme, decide)
    s_GK = controlled(strengths(battle_matrix(known.results_GKK)), length_GK, copies_GK, rho)
    return Found(float(known.fought_G.mean()), np.nanargmax(s_GK, axis=1), np.nanargmin(s_GK, axis=1))


def listwise(judge: Level, truth: Truth, rho: float, seed: int) -> Found:
    """Rank all K of each prompt in one call, by the noise model above."""
    rng = np.random.default_rng([seed, 1])
    prompts = len(truth.quality_GK)
    place_GK = rng.permuted(np.tile(np.arange(K), (prompts, 1)), axis=1)
    slope = -judge.bias * 3 / (K + 1)  # two of K stand (K + 1) / 3 places apart on average
    utility_GK = truth.quality_GK / judge.noise + slope * place_GK + rng.gumbel(size=place_GK.shape)
    rank_GK = utility_GK.argsort(axis=1).argsort(axis=1).astype(np.float64)
    s_GK = controlled(rank_GK, truth.length_GK, np.ones(place_GK.shape, dtype=np.intp), rho)
    failed_G = rng.random(prompts) < judge.errors
    best_G, worst_G = (np.where(failed_G, -1, pick(s_GK, axis=1)) for pick in (np.argmax, np.argmin))
    return Found(1.0, best_G, worst_G)


def _compare(truth: Truth, found: Found, reference: Found) -> dict[str, float]:
    same_G = (found.best_G == reference.best_G) & (found.worst_G == reference.worst_G)
    return {
        "calls": round(found.calls, 2),
        "gap_retained": round(_gap(truth, found) / _gap(truth, reference), 4),
        "same_pair": round(float(same_G.mean()), 4),
    }


def _gap(truth: Truth, found: Found) -> float:
    at = np.arange(len(found.best_G))
    gap_G = truth.quality_GK[at, found.best_G] - truth.quality_GK[at, found.worst_G]
    return float(np.where(found.best_G >= 0, gap_G, 0.0).mean())


def _agreement(truth: Truth) -> dict[str, float]:
    """Return how often a verdict follows the true order, and how often both positions give the same winner."""
    true_GKK = np.sign(truth.quality_GK[:, :, None] - truth.quality_GK[:, None, :])
    given = np.isfinite(truth.verdict_GKK) & (true_GKK != 0)
    turned_GKK = -truth.verdict_GKK.swapaxes(1, 2)
    both = given & np.isfinite(turned_GKK)
    return {
        "agreement": round(float((truth.verdict_GKK == true_GKK)[given].mean()), 3),
        "position_consistency": round(float((truth.verdict_GKK == turned_GKK)[both].mean()), 3),
    }


def _readable(result: dict[str, Any]) -> str:
    lines = [f"{key:14} {value}" for key, value in result.items() if not isinstance(value, dict)]
    lines += [f"{name:10} {level:12} {figures}" for name, by in result["schemes"].items() for level, figures in by.items()]
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tournaments with fewer calls beside the full one, over simulated judges.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--rho", type=float, default=0.0, help="length control, 0 to 0.5")
    return parser.parse_args()


if __name__ == "__main__":
    main()
