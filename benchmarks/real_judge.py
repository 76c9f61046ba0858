"""A real judge's noise: full tournaments of a language model over real responses, stored, measured, and replayed.

Run: python -m benchmarks.real_judge STORE [--json] [--speed] [--prompts 96] [--others 4] [--minutes 30] [--model smollm2]

For each of `--prompts` generated tasks (prompts/tasks.py) the model writes K = 8 responses (temperature 0.8, top-p 0.95, at
most 96 tokens), and the same model judges all ordered pairs of different responses by the probability of `[[A]]` and `[[B]]`
(judging/probability.py); for the first `--others` of them also with a tie, with five levels, and in words (at most 256 tokens).
"both orders" are the verdicts of `judge.both_orders`, which follow from these. STORE holds one file for each prompt and judge,
so that a run that was stopped, or used up its `--minutes`, goes on where it was. Figures are over what is stored.

For each judge: `errors`, `ties`, `first` (share of decided battles that the response standing first wins), `consistency` (share
of pairs, decided in both orders, with the same winner), `cycles` (share of `triples` whose three pairs have one winner each,
in both orders, that go round in a circle; by lot it is a quarter), and `gold` (share of decided battles that agree with which
response meets more of the task's constraints, where they differ; by lot a half).

`fit`, from the log-odds L_mn: strengths e are fitted to (L_mn - L_nm) / 2, their spread being 1. `noise` is what contradicts
them, as the noise of benchmarks/judging.py's simulated judge asked in both orders; `bias` and `bias_std` are mean and standard
deviation, over pairs, of (L_mn + L_nm) / 2, the pull of the first place.

`schemes` are replayed on the verdicts of both orders: `calls` a prompt, two for each pair; `gap_retained`, of the gap between
chosen and rejected in the Bradley-Terry strengths that the full tournament gives, which is the truth here and so never above 1;
`same_pair`; and `gold_gap`, the difference between chosen and rejected in the share of constraints met, in which no judge has
a part. `--speed` measures instead what one prompt's 56 battles take in each way, on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.judging import Outcomes, chosen, play_out, schemes_of
from inward.config import VerifiableJudge
from inward.engines.engine import Decoding, Request
from inward.engines.transformers.engine import TransformersEngine, load_engine
from inward.judging.judge import Group
from inward.judging.make import make_judge
from inward.judging.pairwise.by_probability import ProbabilityComparer
from inward.judging.pairwise.by_text import LLMComparer, conversation
from inward.judging.pairwise.comparer import Battle, Comparer
from inward.judging.pairwise.engine_chat import EngineChat, EngineLabelScorer
from inward.judging.pairwise.judge import Pairwise
from inward.judging.tournament.bradley_terry import posterior
from inward.judging.tournament.schemes import full
from inward.models.names import local_folder
from inward.prompts.tasks import generate_tasks
from inward.records import Prompt
from inward.statistics import Counts, Floats
from inward.storage import read_json, write_json

K = 8
SEED = 2026
BATCH = 4
TOKENS = 96
ANSWER = 256
LOGISTIC = math.pi / math.sqrt(3)
"""Standard deviation of the logistic distribution."""
MAIN, WORDS, BOTH = "probability, ab", "text, ab", "both orders, ab"
OTHERS = ("probability, abc", "probability, arena", WORDS)


@dataclass(frozen=True, slots=True)
class Stored:
    """G prompts with K places for different responses: verdicts r_mn (NaN: an error or no battle), which errors were, and p."""

    verdict_GKK: Floats
    error_GKK: Floats
    logit_GKK: Floats
    copies_GK: Counts
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
    if arguments.speed:
        print(json.dumps(_speed(prompts[0], arguments.model)))
        return
    _sample(store, prompts, arguments.model, until)
    _judge(store, prompts, arguments.others, arguments.model, until)
    result: dict[str, Any] = {"benchmark": "real_judge", "model": arguments.model, "k": K, "judges": {}}
    for name in (MAIN, *OTHERS):
        if (stored := _read(store, name, prompts)) is not None:
            result["judges"][name] = _measure(stored)
            if name == MAIN:
                both = in_both_orders(stored)
                result["judges"][BOTH] = _measure(both)
                result |= {"fit": fit(stored.logit_GKK), "schemes": _replay(both)}
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=1))


def fit(logit_GKK: Floats) -> dict[str, float]:
    """Return what the log-odds say of a judge; NaN where there was no battle. Prompts with an error or a copy are left out."""
    complete_GKK = logit_GKK[np.isfinite(logit_GKK).sum(axis=(1, 2)) == K * (K - 1)]
    own_GKK, turned_GKK = np.nan_to_num(complete_GKK), np.nan_to_num(complete_GKK.swapaxes(1, 2))
    odd_GKK, even_GKK = (own_GKK - turned_GKK) / 2, (own_GKK + turned_GKK) / 2
    e_GK = odd_GKK.sum(axis=2) / K
    rest_GKK = odd_GKK - (e_GK[:, :, None] - e_GK[:, None, :])
    freedom = len(e_GK) * (K * (K - 1) / 2 - (K - 1))
    contradiction = math.sqrt((rest_GKK**2).sum() / 2 / freedom)
    spread = math.sqrt(max(1e-12, float((e_GK**2).sum()) / len(e_GK) / (K - 1) - contradiction**2 / K))
    even = even_GKK[:, *np.triu_indices(K, 1)]
    return {
        "prompts": len(complete_GKK),
        "noise": round(contradiction / LOGISTIC / spread, 3),
        "bias": round(float(even.mean()) / spread, 2),
        "bias_std": round(float(even.std()) / spread, 2),
    }


def in_both_orders(stored: Stored) -> Stored:
    """Return the verdicts of `judge.both_orders`."""
    logit_GKK = (stored.logit_GKK - stored.logit_GKK.swapaxes(1, 2)) / 2
    verdict_GKK = np.where(logit_GKK == 0, np.nan, np.sign(logit_GKK))
    return replace(stored, verdict_GKK=verdict_GKK, logit_GKK=logit_GKK, error_GKK=(logit_GKK == 0).astype(np.float64))


def _sample(store: Path, prompts: Sequence[Prompt], model: str, until: float) -> None:
    todo = [(number, prompt) for number, prompt in enumerate(prompts) if not _file(store, number, "responses").exists()]
    engine = load_engine(local_folder(model), rows=BATCH * K) if todo and time.monotonic() < until else None
    while engine and todo and time.monotonic() < until:
        batch, todo = todo[:BATCH], todo[BATCH:]
        began = time.perf_counter()
        requests = [
            Request(id=prompt.id, tokens=engine.encode([{"role": "user", "content": prompt.text}]), k=K) for _, prompt in batch
        ]
        drawn = engine.generate(requests, Decoding(max_new_tokens=TOKENS), seed=SEED)
        spent = (time.perf_counter() - began) / len(batch)
        for number, prompt in batch:
            texts = [completion.text for completion in drawn if completion.request_id == prompt.id]
            write_json(_file(store, number, "responses"), {"prompt": prompt.text, "responses": texts, "seconds": spent})


def _judge(store: Path, prompts: Sequence[Prompt], others: int, model: str, until: float) -> None:
    todo = [
        (number, name, prompt)
        for number, prompt in enumerate(prompts)
        for name in (MAIN, *(OTHERS if number < others else ()))
        if _file(store, number, "responses").exists() and not _file(store, number, name).exists()
    ]
    todo.sort(key=lambda item: (item[1] != MAIN, item[0]))
    if not todo or time.monotonic() > until:
        return
    engine = load_engine(local_folder(model), rows=32)
    for number, name, prompt in todo:
        if time.monotonic() > until:
            return
        comparer = _comparer(name, engine)
        began = time.perf_counter()
        group = Group(prompt=prompt, responses=_responses(store, number))
        (rulings,) = Pairwise(comparer=comparer, scheme=full, scheme_name="full").judge([group])
        battles = [
            {"first": r.first, "second": r.second, "value": r.value, "unscored": r.unscored, **json.loads(r.detail)}
            for r in rulings
            if r.second is not None
        ]
        spent = time.perf_counter() - began
        write_json(_file(store, number, name), {"judge": comparer.name, "battles": battles, "seconds": spent})


def _comparer(name: str, engine: TransformersEngine, both_orders: bool = False) -> Comparer:
    how, _, form = name.partition(", ")
    if how == "text":
        return LLMComparer(chat=EngineChat(engine=engine, name="judge"), form=form, max_tokens=ANSWER)
    return ProbabilityComparer(label_scorer=EngineLabelScorer(engine=engine, name="judge"), form=form, both_orders=both_orders)


def _speed(prompt: Prompt, model: str) -> dict[str, Any]:
    """Return seconds for the 56 battles of one prompt in each way, nothing remembered, and the text's token counts."""
    engine = load_engine(local_folder(model), rows=32)
    request = Request(id="0", tokens=engine.encode([{"role": "user", "content": prompt.text}]), k=K)
    texts = tuple(completion.text for completion in engine.generate([request], Decoding(max_new_tokens=TOKENS), seed=SEED))
    battles = [Battle(prompt=prompt, first=a, second=b) for a in texts for b in texts if a != b]
    spent = {}
    for name in (MAIN, WORDS):
        comparer = _comparer(name, engine)
        began = time.perf_counter()
        comparer.compare(battles)
        spent[name] = round(time.perf_counter() - began, 2)
    tokens = [len(engine.encode(conversation(battle, "ab"))) for battle in battles]
    return {"battles": len(battles), "prompt_tokens": sum(tokens), "seconds": spent, "threads": torch.get_num_threads()}


def _read(store: Path, name: str, prompts: Sequence[Prompt]) -> Stored | None:
    """Return what is stored of a judge, prompts with fewer than two different responses left out."""
    numbers = [n for n in range(len(prompts)) if _file(store, n, name).exists() and len(_different(store, n)) > 1]
    if not numbers:
        return None
    gold = make_judge(VerifiableJudge(kind="verifiable", strictness="mean"))
    verdict_GKK = np.full((len(numbers), K, K), np.nan)
    error_GKK, logit_GKK = np.zeros(verdict_GKK.shape), np.full(verdict_GKK.shape, np.nan)
    gold_GK = np.full((len(numbers), K), np.nan)
    copies_GK, length_GK = np.zeros((len(numbers), K), dtype=np.intp), np.zeros((len(numbers), K))
    seconds, battles = 0.0, 0
    for row, number in enumerate(numbers):
        responses, texts = _responses(store, number), _different(store, number)
        copies_GK[row, : len(texts)] = [responses.count(text) for text in texts]
        length_GK[row, : len(texts)] = [len(text) for text in texts]
        (rulings,) = gold.judge([Group(prompt=prompts[number], responses=tuple(texts))])
        for ruling in rulings:
            gold_GK[row, ruling.first] = math.nan if ruling.value is None else ruling.value
        content = read_json(_file(store, number, name))
        seconds += content["seconds"]
        for battle in content["battles"]:
            m, n = (texts.index(responses[battle[end]]) for end in ("first", "second"))
            error_GKK[row, m, n] = battle["value"] is None
            verdict_GKK[row, m, n] = math.nan if battle["value"] is None else battle["value"]
            if (p := battle.get("p")) is not None:
                logit_GKK[row, m, n] = math.log((p + 1e-6) / (1 - p + 1e-6))
            battles += 1
    return Stored(verdict_GKK, error_GKK, logit_GKK, copies_GK, length_GK, gold_GK, seconds, battles)


def _measure(stored: Stored) -> dict[str, float | None]:
    v = stored.verdict_GKK
    turned, decided = v.swapaxes(1, 2), np.abs(v) == 1
    both = decided & (np.abs(turned) == 1)
    margin = np.nan_to_num(v) - np.nan_to_num(turned)
    wins = np.where(both & (v == -turned), np.sign(margin), 0.0)
    truth = np.sign(stored.gold_GK[:, :, None] - stored.gold_GK[:, None, :])
    comparable = decided & (np.abs(truth) == 1)
    return {
        "prompts": len(v),
        "battles": stored.battles,
        "errors": _share(stored.error_GKK.sum(), stored.battles),
        "ties": _share((v == 0).sum(), np.isfinite(v).sum()),
        "first": _share((v == 1).sum(), decided.sum()),
        "consistency": _share((both & (v == -turned)).sum(), both.sum()),
        **_cycles(wins),
        "gold": _share((comparable & (v == truth)).sum(), comparable.sum()),
        "gold_battles": int(comparable.sum()),
        "seconds_per_battle": round(stored.seconds / max(1, stored.battles), 4),
    }


def _cycles(wins_GKK: Floats) -> dict[str, float | None]:
    """Return the share of triples, all three pairs decided, in which each beats one and loses to one, and their number."""
    circles = triples = 0
    k = wins_GKK.shape[1]
    for a in range(k):
        for b in range(a + 1, k):
            for c in range(b + 1, k):
                ab_G, bc_G, ca_G = wins_GKK[:, a, b], wins_GKK[:, b, c], wins_GKK[:, c, a]
                triples += int(((ab_G != 0) & (bc_G != 0) & (ca_G != 0)).sum())
                circles += int(((ab_G != 0) & (ab_G == bc_G) & (bc_G == ca_G)).sum())
    return {"cycles": _share(circles, triples), "triples": triples}


def _replay(stored: Stored) -> dict[str, dict[str, float | None]]:
    """Play every scheme on the stored verdicts. Strengths of the full tournament, both positions, are the true quality."""
    strength_GK = posterior(stored.verdict_GKK).e_GK
    groups = np.arange(len(strength_GK))

    def gap(quality_GK: Floats, outcomes: Outcomes) -> float:
        return float(np.nanmean(quality_GK[groups, outcomes.best_G] - quality_GK[groups, outcomes.worst_G]))

    outcomes_of = {
        name: chosen(play_out(stored.verdict_GKK, stored.length_GK, stored.copies_GK, scheme), 0.0)
        for name, scheme in schemes_of(0.0, both_orders=True).items()
    }
    reference = outcomes_of["full"]
    return {
        name: {
            "calls": round(outcomes.calls, 2),
            "gap_retained": _share(gap(strength_GK, outcomes), gap(strength_GK, reference)),
            "same_pair": round(
                float(((outcomes.best_G == reference.best_G) & (outcomes.worst_G == reference.worst_G)).mean()), 4
            ),
            "gold_gap": round(gap(stored.gold_GK, outcomes), 4),
        }
        for name, outcomes in outcomes_of.items()
    }


def _responses(store: Path, number: int) -> tuple[str, ...]:
    return tuple(read_json(_file(store, number, "responses"))["responses"])


def _different(store: Path, number: int) -> list[str]:
    return sorted(set(_responses(store, number)))


def _file(store: Path, number: int, name: str) -> Path:
    return store / f"{number:04d} {name}.json"


def _share(part: float, total: float) -> float | None:
    return round(float(part) / float(total), 4) if total else None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A language model's noise as a judge, and every tournament on its verdicts.")
    parser.add_argument("store", type=Path, help="folder that keeps responses and verdicts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--speed", action="store_true", help="measure the time of one prompt's battles instead")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--others", type=int, default=4, help="prompts that the other forms judge as well")
    parser.add_argument("--minutes", type=float, default=30.0, help="start nothing new after so long")
    parser.add_argument("--model", default="smollm2", help="a model folder, a Hub name or the embedded model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
