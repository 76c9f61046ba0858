"""A real judge's noise: full tournaments of a language model over real responses, stored, measured, and replayed.

Run: python -m benchmarks.real_judge STORE [--json] [--prompts 32] [--others 4] [--minutes 30] [--model smollm2]

For each of `--prompts` generated tasks (prompts/tasks.py) the model writes K = 8 responses (temperature 0.8, top-p 0.95, at
most 96 tokens), and the same model judges all ordered pairs of different responses: by the probability of `[[A]]` and `[[B]]`
for all prompts; for the first `--others` of them also with a tie, with five levels, and in words. STORE holds one file for each
prompt and judge, so that a run that was stopped, or used up its `--minutes`, goes on where it was. Figures are over what is
stored.

For each judge: `errors`, `ties`, `first` (share of decided battles that the response standing first wins), `consistency` (share
of pairs, decided in both orders, with the same winner), `cycles` (share of triples whose three pairs are all decided, over both
orders together, that go round in a circle), and `gold` (share of decided battles that agree with which response meets more of
the task's constraints, where they differ). `fit` are noise and bias of benchmarks/judging.py's simulated judge with the same
`first` and `consistency`.

`schemes` are replayed on the verdicts of the probability form: `calls` a prompt; `gap_retained`, of the gap between chosen and
rejected in the strengths that the full tournament gives, which is the truth here and so never above 1; `same_pair`; and
`gold_gap`, the difference between chosen and rejected in the share of constraints met, which no judge has a part in.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judging import Found, play_out, schemes_of
from inward.config import VerifiableJudge
from inward.judging import make_judge
from inward.judging.battles import Pairwise
from inward.judging.bradley_terry import Floats, battle_matrix, sigmoid, strengths
from inward.judging.compare import Comparer, Weigher, Weights
from inward.judging.engine_chat import EngineChat, EngineWeigher
from inward.judging.judge import Group
from inward.judging.pairwise import LLMComparer
from inward.judging.probability import ProbabilityComparer
from inward.judging.schemes import Ints, full
from inward.models import local_folder
from inward.prompts.tasks import generate_tasks
from inward.records import Prompt
from inward.sampling.engine import Decoding, Request
from inward.sampling.transformers_engine import load_engine
from inward.storage import read_json, write_json

K = 8
SEED = 2026
BATCH = 4
TOKENS = 96
ANSWER = 256
MAIN = "calibrated, ab"
EVERYWHERE = ("probability, ab", MAIN)
JUDGES = (*EVERYWHERE, *(f"{how}, {form}" for form in ("abc", "arena") for how in ("probability", "calibrated")), "text, ab")


@dataclass(frozen=True, slots=True)
class Stored:
    """G prompts with K places for different responses: verdicts r_mn (NaN: an error or no battle), and which errors were."""

    verdict_GKK: Floats
    error_GKK: Floats
    copies_GK: Ints
    length_GK: Floats
    gold_GK: Floats
    seconds: float
    battles: int


def main() -> None:
    arguments = _parse()
    store: Path = arguments.store
    store.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * arguments.minutes
    prompts = list(islice(generate_tasks(SEED, 3), arguments.prompts))
    _sample(store, prompts, arguments.model, until)
    _judge(store, prompts, arguments.others, arguments.model, until)
    result: dict[str, Any] = {"benchmark": "real_judge", "model": arguments.model, "k": K, "judges": {}}
    for name in JUDGES:
        if (stored := _read(store, name, prompts)) is not None:
            result["judges"][name] = _measure(stored)
    if (stored := _read(store, MAIN, prompts)) is not None:
        result["fit"] = fit(result["judges"][MAIN]["first"], result["judges"][MAIN]["consistency"])
        result["schemes"] = _replay(stored)
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


def fit(first: float, consistency: float) -> dict[str, float]:
    """Return noise and bias with which P(first wins) = sigmoid((q_m - q_n) / noise + bias), q ~ N(0, 1), gives both shares.

    For each noise the bias follows from `first`; consistency then falls as noise grows, so that bisection finds it.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(81)
    weights = weights / weights.sum()

    def bias_of(noise: float) -> float:
        low, high = -60.0, 60.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if weights @ sigmoid(z(noise) + middle) < first else (low, middle)
        return (low + high) / 2

    def z(noise: float) -> Floats:
        return np.asarray(math.sqrt(2) * nodes / noise, dtype=np.float64)

    def agreed(noise: float) -> float:
        bias = bias_of(noise)
        one, other = sigmoid(z(noise) + bias), sigmoid(-z(noise) + bias)
        return float(weights @ (one * (1 - other) + (1 - one) * other))

    low, high = 0.02, 50.0
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if agreed(middle) > consistency else (low, middle)
    return {"noise": round(low, 3), "bias": round(bias_of(low), 3)}


def _sample(store: Path, prompts: Sequence[Prompt], model: str, until: float) -> None:
    todo = [(at, prompt) for at, prompt in enumerate(prompts) if not _file(store, at, "responses").exists()]
    engine = load_engine(local_folder(model), rows=BATCH * K) if todo and time.monotonic() < until else None
    while engine and todo and time.monotonic() < until:
        batch, todo = todo[:BATCH], todo[BATCH:]
        began = time.perf_counter()
        requests = [
            Request(id=prompt.id, tokens=engine.encode([{"role": "user", "content": prompt.text}]), k=K) for _, prompt in batch
        ]
        drawn = engine.generate(requests, Decoding(max_new_tokens=TOKENS), seed=SEED)
        spent = (time.perf_counter() - began) / len(batch)
        for at, prompt in batch:
            texts = [one.text for one in drawn if one.request_id == prompt.id]
            write_json(_file(store, at, "responses"), {"prompt": prompt.text, "responses": texts, "seconds": spent})


@dataclass
class Remembering:
    """A weigher that weighs no conversation twice: a judge and its calibrated form ask the same battles."""

    weigher: Weigher
    known: dict[str, Weights] = field(default_factory=dict)
    bare: bool = False

    @property
    def name(self) -> str:
        return self.weigher.name

    def weigh(self, conversations: Sequence[Sequence[dict[str, str]]], labels: Sequence[str]) -> list[Weights]:
        keys = [json.dumps([list(turns), list(labels)]) for turns in conversations]
        new = {key: turns for key, turns in zip(keys, conversations, strict=True) if key not in self.known}
        self.known.update(zip(new, self.weigher.weigh(list(new.values()), labels), strict=True))
        return [self.known[key] for key in keys]


def _judge(store: Path, prompts: Sequence[Prompt], others: int, model: str, until: float) -> None:
    todo = [
        (at, name, prompt)
        for at, prompt in enumerate(prompts)
        for name in (JUDGES if at < others else EVERYWHERE)
        if _file(store, at, "responses").exists() and not _file(store, at, name).exists()
    ]
    todo.sort(key=lambda one: (one[1] not in EVERYWHERE, one[0]))
    if not todo or time.monotonic() > until:
        return
    engine = load_engine(local_folder(model), rows=32)
    weigher = Remembering(EngineWeigher(engine=engine, name=model))
    for at, name, prompt in todo:
        if time.monotonic() > until:
            return
        how, _, form = name.partition(", ")
        comparer: Comparer = (
            LLMComparer(chat=EngineChat(engine=engine, name=model), max_tokens=ANSWER)
            if how == "text"
            else ProbabilityComparer(weigher=weigher, form=form, calibrate=how == "calibrated")
        )
        began = time.perf_counter()
        group = Group(prompt=prompt, responses=_responses(store, at))
        (rulings,) = Pairwise(comparer=comparer, scheme=full, scheme_name="full").judge([group])
        battles = [
            {"first": r.first, "second": r.second, "value": r.value, "unscored": r.unscored, **json.loads(r.detail)}
            for r in rulings
            if r.second is not None
        ]
        spent = time.perf_counter() - began
        write_json(_file(store, at, name), {"judge": comparer.name, "battles": battles, "seconds": spent})


def _read(store: Path, name: str, prompts: Sequence[Prompt]) -> Stored | None:
    """Return what is stored of a judge, prompts with fewer than two different responses left out."""
    places = [at for at in range(len(prompts)) if _file(store, at, name).exists() and len(_different(store, at)) > 1]
    if not places:
        return None
    gold = make_judge(VerifiableJudge(kind="verifiable", strictness="mean"))
    verdict_GKK = np.full((len(places), K, K), np.nan)
    error_GKK, gold_GK = np.zeros(verdict_GKK.shape), np.full((len(places), K), np.nan)
    copies_GK, length_GK = np.zeros((len(places), K), dtype=np.intp), np.zeros((len(places), K))
    seconds, battles = 0.0, 0
    for row, at in enumerate(places):
        responses, texts = _responses(store, at), _different(store, at)
        copies_GK[row, : len(texts)] = [responses.count(text) for text in texts]
        length_GK[row, : len(texts)] = [len(text) for text in texts]
        (ruled,) = gold.judge([Group(prompt=prompts[at], responses=tuple(texts))])
        for ruling in ruled:
            gold_GK[row, ruling.first] = math.nan if ruling.value is None else ruling.value
        content = read_json(_file(store, at, name))
        seconds += content["seconds"]
        for battle in content["battles"]:
            m, n = (texts.index(responses[battle[end]]) for end in ("first", "second"))
            error_GKK[row, m, n] = battle["value"] is None
            verdict_GKK[row, m, n] = math.nan if battle["value"] is None else battle["value"]
            battles += 1
    return Stored(verdict_GKK, error_GKK, copies_GK, length_GK, gold_GK, seconds, battles)


def _measure(stored: Stored) -> dict[str, float]:
    v = stored.verdict_GKK
    turned, decided = v.swapaxes(1, 2), np.abs(v) == 1
    both = decided & (np.abs(turned) == 1)
    margin = np.nan_to_num(v) - np.nan_to_num(turned)
    wins = np.where(both & (v == -turned), np.sign(margin), 0.0)
    truth = np.sign(stored.gold_GK[:, :, None] - stored.gold_GK[:, None, :])
    known = decided & (np.abs(truth) == 1)
    return {
        "prompts": len(v),
        "battles": stored.battles,
        "errors": _share(stored.error_GKK.sum(), stored.battles),
        "ties": _share((v == 0).sum(), np.isfinite(v).sum()),
        "first": _share((v == 1).sum(), decided.sum()),
        "consistency": _share((both & (v == -turned)).sum(), both.sum()),
        "cycles": _cycles(wins),
        "gold": _share((known & (v == truth)).sum(), known.sum()),
        "gold_battles": int(known.sum()),
        "seconds_per_battle": round(stored.seconds / max(1, stored.battles), 4),
    }


def _cycles(wins_GKK: Floats) -> float:
    """Return the share of triples, all three pairs decided, in which each beats one and loses to one."""
    circles = triples = 0
    k = wins_GKK.shape[1]
    for a in range(k):
        for b in range(a + 1, k):
            for c in range(b + 1, k):
                one, two, three = wins_GKK[:, a, b], wins_GKK[:, b, c], wins_GKK[:, c, a]
                triples += int(((one != 0) & (two != 0) & (three != 0)).sum())
                circles += int(((one != 0) & (one == two) & (two == three)).sum())
    return _share(circles, triples)


def _replay(stored: Stored) -> dict[str, dict[str, float]]:
    """Play every scheme on the stored verdicts. Strengths of the full tournament, both positions, are the true quality."""
    strength_GK = strengths(battle_matrix(stored.verdict_GKK))
    at = np.arange(len(strength_GK))

    def gap(quality_GK: Floats, found: Found) -> float:
        return float(np.nanmean(quality_GK[at, found.best_G] - quality_GK[at, found.worst_G]))

    played = {
        name: play_out(stored.verdict_GKK, stored.length_GK, stored.copies_GK, scheme, 0.0)
        for name, scheme in schemes_of(0.0).items()
    }
    whole = played["full"]
    return {
        name: {
            "calls": round(found.calls, 2),
            "gap_retained": round(gap(strength_GK, found) / gap(strength_GK, whole), 4),
            "same_pair": round(float(((found.best_G == whole.best_G) & (found.worst_G == whole.worst_G)).mean()), 4),
            "gold_gap": round(gap(stored.gold_GK, found), 4),
        }
        for name, found in played.items()
    }


def _responses(store: Path, at: int) -> tuple[str, ...]:
    return tuple(read_json(_file(store, at, "responses"))["responses"])


def _different(store: Path, at: int) -> list[str]:
    return sorted(set(_responses(store, at)))


def _file(store: Path, at: int, name: str) -> Path:
    return store / f"{at:04d} {name}.json"


def _share(part: float, whole: float) -> float:
    return round(float(part) / float(whole), 4) if whole else math.nan


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A language model's noise as a judge, and every tournament on its verdicts.")
    parser.add_argument("store", type=Path, help="folder that keeps responses and verdicts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--others", type=int, default=4, help="prompts that the other forms judge as well")
    parser.add_argument("--minutes", type=float, default=30.0, help="start nothing new after so long")
    parser.add_argument("--model", default="smollm2", help="a model folder, a Hub name or the embedded model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
