"""Tournaments with fewer calls, beside the full one, over simulated judges.

Run: python -m benchmarks.judging [--json] [--prompts 1500] [--k 8] [--rho 0] [--seed 0]

Simulated: K responses a prompt with true qualities ~ N(0, 1) and lengths that lean on quality as little as they do in practice
(correlation 0.3). The first wins a battle where (q_first - q_second) / noise + bias + logistic noise is above `ties`, the
second where it is below -`ties`, and else it is a tie; each ordered pair is decided once and for all. 2% of the battles end in
an error, but for the noise-free judge. "real" stands for a strong LLM judge that was not measured here: noise 0.5 and bias 0.3
give about 82% agreement with the true order and 75% the same verdict in both positions, near what such judges are reported to
reach (about 80%, and 75-80%). "first" is that judge with a bias with which the first wins 80% of the battles, "ties" one that
calls a quarter of them a tie. "smollm2-135m" has the noise that benchmarks/real_judge.py measured on that model, asked in both
orders: its verdict is one for a pair, which counts as two calls.

"listwise" is one call that ranks all K at once, shown in random order, with the noise that comes nearest to the pairwise
judge's: ranks follow u_k = q_k / noise + slope * place + Gumbel noise, so that of any two responses the better one comes first
as often as that judge, unbiased and without ties, says so (Luce's choice rule); the slope favours the earlier of two by `bias`
on average, and a call fails as often as a battle does. That is generous: one model ranking eight texts in one answer is noisier
in practice than one that compares two. Ranks are the scores. A prompt whose call failed has no pair and so no gap.

For each scheme: `calls` a prompt (the full tournament has K (K - 1)), `gap_retained`, the true quality of chosen minus rejected
over that of the full tournament with the same judge, and `same_pair`, the share of prompts with the same chosen and rejected.
Every scheme's battles are scored alike, as a run scores them; "adaptive, paper's scores" scores those of "adaptive" by the
paper's fit, which knows no bias and no ties. `overhead_s` is the time spent outside the judge for 5,000 prompts of 8 responses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from benchmarks.schemes import knockout, random, swiss
from inward.judging.judge import Group
from inward.judging.length_control import length_controlled
from inward.judging.pairwise.comparer import Battle, Outcome
from inward.judging.spending import Spending
from inward.judging.tournament.adaptive import CONFIDENCE, CONFIDENCE_IN_PAIRS, adaptive
from inward.judging.tournament.bradley_terry import PRIOR, posterior
from inward.judging.tournament.run import run_tournament
from inward.judging.tournament.schemes import full, in_pairs
from inward.judging.tournament.state import Battles, Indices, Scheme, TournamentState, initial_state, play
from inward.records import Prompt
from inward.statistics import Counts, Floats

K = 8
OVERHEAD_PROMPTS = 5_000
PAPERS = "adaptive, paper's scores"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A simulated judge. `noise` is in standard deviations of true quality, `bias` in logits for what stands first.

    `ties` is how many logits apart two responses must seem to be for a winner. One asked in `both_orders` at once has one
    verdict for a pair, and no bias; a pair is two calls.
    """

    noise: float
    bias: float
    errors: float
    ties: float = 0.0
    both_orders: bool = False


LEVELS = {
    "noise-free": Level(noise=1e-9, bias=0.0, errors=0.0),
    "sharp": Level(noise=0.25, bias=0.3, errors=0.02),
    "real": Level(noise=0.5, bias=0.3, errors=0.02),
    "poor": Level(noise=0.8, bias=0.6, errors=0.02),
    "first": Level(noise=0.5, bias=2.8, errors=0.02),
    "ties": Level(noise=0.5, bias=0.3, errors=0.02, ties=1.0),
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
        wins = rng.random(len(battles)) < expit(np.array(margins) / LEVELS["real"].noise + LEVELS["real"].bias)
        outcomes = [Outcome(value=1.0 if win else -1.0, raw="[[A]]" if win else "[[B]]") for win in wins]
        self.spent[0] += time.perf_counter() - began
        return outcomes


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a scheme came to: calls a prompt, and the positions of chosen and rejected, -1 where there is no pair."""

    calls: float
    best_G: Indices
    worst_G: Indices


def main() -> None:
    arguments = _parse()
    rho: float = arguments.rho
    names = (*schemes_of(rho, arguments.k), PAPERS, "listwise")
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    agreement: dict[str, dict[str, float]] = {}
    for number, (level, judge) in enumerate(LEVELS.items()):
        seed = number + 100 * arguments.seed
        truth = simulate(judge, arguments.prompts, seed=seed, k=arguments.k)
        agreement[level] = _agreement(truth)
        outcomes = play_all(truth, rho, judge.both_orders)
        outcomes["listwise"] = listwise(judge, truth, rho, seed=seed)
        for name, own in outcomes.items():
            table[name][level] = _compare(truth, own, outcomes["full"])
    result: dict[str, Any] = {
        "benchmark": "judging",
        "judge": MEASURED_ON,
        "k": arguments.k,
        "prompts": arguments.prompts,
        "seed": arguments.seed,
        "rho": rho,
        "confidence": CONFIDENCE_IN_PAIRS if LEVELS[MEASURED].both_orders else CONFIDENCE,
        "calls_full": arguments.k * (arguments.k - 1),
        **table["adaptive"][MEASURED],
        "judges": {
            level: {"noise": j.noise, "bias": j.bias, "errors": j.errors, **agreement[level]} for level, j in LEVELS.items()
        },
        "schemes": table,
        "overhead_s": round(overhead(OVERHEAD_PROMPTS), 2),
    }
    print(json.dumps(result) if arguments.json else _readable(result))


def schemes_of(rho: float, k: int = K, both_orders: bool = False) -> dict[str, Scheme]:
    """Return the schemes by name, those of about 20 calls for K = 8; in both orders a call is one order, as always."""
    if both_orders:
        best = adaptive(rho=rho, confidence=CONFIDENCE_IN_PAIRS, paired=True)
        few = {"adaptive": best, "random": random(11 * k // 8), "swiss": swiss(3)}  # which come to about 20
        return {**{name: in_pairs(scheme) for name, scheme in few.items()}, "knockout": knockout, "full": full}
    few = {"adaptive": adaptive(rho=rho), "random": random(20 * k // 8), "swiss": swiss(5)}
    return {**few, "knockout": knockout, "full": full}


def simulate(judge: Level, prompts: int, seed: int, k: int = K) -> Truth:
    """Draw qualities, lengths and all verdicts; an error is NaN."""
    rng = np.random.default_rng(seed)
    quality_GK = rng.standard_normal((prompts, k))
    length_GK = 1000 + 300 * (0.3 * quality_GK + np.sqrt(1 - 0.3**2) * rng.standard_normal((prompts, k)))
    logit_GKK = (quality_GK[:, :, None] - quality_GK[:, None, :]) / judge.noise + judge.bias
    drawn_GKK = rng.random(logit_GKK.shape)
    first_GKK, second_GKK = drawn_GKK < expit(logit_GKK - judge.ties), drawn_GKK >= expit(logit_GKK + judge.ties)
    verdict_GKK = first_GKK.astype(np.float64) - second_GKK
    verdict_GKK[rng.random(logit_GKK.shape) < judge.errors] = np.nan
    if judge.both_orders:
        upper = np.triu(np.ones((k, k), dtype=bool), 1)
        verdict_GKK = np.where(upper, verdict_GKK, -verdict_GKK.swapaxes(1, 2))
    return Truth(quality_GK, length_GK, verdict_GKK)


def overhead(prompts: int) -> float:
    """Return the seconds that the default tournament spends outside the judge, real groups and battles included."""
    rng = np.random.default_rng(0)
    groups = [
        Group(
            prompt=Prompt(id=str(number), text="Question?", source="simulated"),
            responses=tuple(f"{quality:.6f} {'word ' * int(length)}" for quality, length in zip(row, lengths, strict=True)),
        )
        for number, (row, lengths) in enumerate(
            zip(rng.standard_normal((prompts, K)), rng.integers(50, 300, (prompts, K)), strict=True)
        )
    ]
    judge = Oracle([0.0])
    began = time.perf_counter()
    run_tournament(groups, judge, adaptive())
    return time.perf_counter() - began - judge.spent[0]


def play_all(truth: Truth, rho: float, both_orders: bool) -> dict[str, Outcomes]:
    """Return what every scheme comes to, and the adaptive one's battles scored by the paper's fit as well."""
    schemes = schemes_of(rho, truth.quality_GK.shape[1], both_orders)
    copies_GK = np.ones(truth.quality_GK.shape, dtype=np.intp)
    states = {name: play_out(truth.verdict_GKK, truth.length_GK, copies_GK, scheme) for name, scheme in schemes.items()}
    outcomes = {name: chosen(state, rho) for name, state in states.items()}
    return outcomes | {PAPERS: chosen(states["adaptive"], rho, papers_fit=True)}


def play_out(verdict_GKK: Floats, length_GK: Floats, copies_GK: Counts, scheme: Scheme) -> TournamentState:
    """Let a scheme ask for battles whose verdicts are all known beforehand."""

    def decide(battles: Battles) -> Floats:
        return verdict_GKK[battles]

    return play(initial_state(copies_GK, length_GK), scheme, decide)


def chosen(state: TournamentState, rho: float, *, papers_fit: bool = False) -> Outcomes:
    """Return best and worst by the scores that a run gives, or by those of the paper's fit: no position bias and no ties."""
    results_GKK = state.results_GKK
    if papers_fit:
        fitted = posterior(np.where(results_GKK == 0, np.nan, results_GKK), PRIOR, position_prior=None)
    else:
        fitted = posterior(results_GKK)
    s_GK = length_controlled(fitted.e_GK, state.lengths_GK, state.copies_GK, rho)
    return Outcomes(float(state.fought_G.mean()), np.nanargmax(s_GK, axis=1), np.nanargmin(s_GK, axis=1))


def listwise(judge: Level, truth: Truth, rho: float, seed: int) -> Outcomes:
    """Rank all K of each prompt in one call, by the noise model above."""
    rng = np.random.default_rng([seed, 1])
    prompts, k = truth.quality_GK.shape
    place_GK = rng.permuted(np.tile(np.arange(k), (prompts, 1)), axis=1)
    slope = -judge.bias * 3 / (k + 1)  # two of K stand (K + 1) / 3 places apart on average
    utility_GK = truth.quality_GK / judge.noise + slope * place_GK + rng.gumbel(size=place_GK.shape)
    rank_GK = utility_GK.argsort(axis=1).argsort(axis=1).astype(np.float64)
    s_GK = length_controlled(rank_GK, truth.length_GK, np.ones(place_GK.shape, dtype=np.intp), rho)
    failed_G = rng.random(prompts) < judge.errors
    best_G, worst_G = (np.where(failed_G, -1, pick(s_GK, axis=1)) for pick in (np.argmax, np.argmin))
    return Outcomes(1.0, best_G, worst_G)


def _compare(truth: Truth, outcomes: Outcomes, reference: Outcomes) -> dict[str, float]:
    same_G = (outcomes.best_G == reference.best_G) & (outcomes.worst_G == reference.worst_G)
    return {
        "calls": round(outcomes.calls, 2),
        "gap_retained": round(_gap(truth, outcomes) / _gap(truth, reference), 4),
        "same_pair": round(float(same_G.mean()), 4),
    }


def _gap(truth: Truth, outcomes: Outcomes) -> float:
    groups = np.arange(len(outcomes.best_G))
    gap_G = truth.quality_GK[groups, outcomes.best_G] - truth.quality_GK[groups, outcomes.worst_G]
    return float(np.where(outcomes.best_G >= 0, gap_G, 0.0).mean())


def _agreement(truth: Truth) -> dict[str, float]:
    """Return how often a decided battle follows the true order, is won by the first, and has the same winner in both orders.

    `ties` is the share of the battles with a verdict that are ties.
    """
    verdict_GKK = truth.verdict_GKK
    off_GKK = np.broadcast_to(~np.eye(verdict_GKK.shape[1], dtype=bool), verdict_GKK.shape)
    true_GKK = np.sign(truth.quality_GK[:, :, None] - truth.quality_GK[:, None, :])
    decided = off_GKK & (np.abs(verdict_GKK) == 1)
    turned_GKK = -verdict_GKK.swapaxes(1, 2)
    both = decided & (np.abs(turned_GKK) == 1)
    return {
        "agreement": round(float((verdict_GKK == true_GKK)[decided].mean()), 3),
        "first_wins": round(float((verdict_GKK == 1)[decided].mean()), 3),
        "position_consistency": round(float((verdict_GKK == turned_GKK)[both].mean()), 3),
        "ties": round(float((verdict_GKK == 0)[off_GKK & np.isfinite(verdict_GKK)].mean()), 3),
    }


def _readable(result: dict[str, Any]) -> str:
    lines = [f"{key:14} {value}" for key, value in result.items() if not isinstance(value, dict)]
    lines += [f"{name:24} {level:12} {figures}" for name, by in result["schemes"].items() for level, figures in by.items()]
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tournaments with fewer calls beside the full one, over simulated judges.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--k", type=int, default=K, help="responses a prompt")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other prompts and verdicts")
    parser.add_argument("--rho", type=float, default=0.0, help="length control, 0 to 0.5")
    return parser.parse_args()


if __name__ == "__main__":
    main()
