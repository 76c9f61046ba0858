"""What the benchmarks of judging say of a judge whose noise is known: the simulation, its listwise judge, and the fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import judging, real_judge
from benchmarks.judging import Level, listwise, play_all, schemes_of, simulate
from inward.judging.tournament.schemes import full


def test_a_listwise_call_orders_any_two_as_the_unbiased_pairwise_judge_does() -> None:
    """Luce's choice rule: with Gumbel noise, P(one before the other) is the logistic of their difference."""
    judge = Level(noise=0.5, bias=0.0, errors=0.0)
    truth = simulate(judge, 40_000, seed=1)
    outcomes = listwise(judge, truth, 0.0, seed=1)
    groups = np.arange(len(outcomes.best_G))
    softmax_GK = np.exp(truth.quality_GK / judge.noise)
    softmax_GK /= softmax_GK.sum(axis=1, keepdims=True)
    top = np.argsort(truth.quality_GK, axis=1)[:, -1]
    assert (outcomes.best_G == top).mean() == pytest.approx(float(softmax_GK[groups, top].mean()), abs=0.01)


def test_a_listwise_call_that_fails_has_no_pair_and_one_without_noise_the_true_one() -> None:
    truth = simulate(Level(noise=1e-9, bias=0.0, errors=0.0), 300, seed=2)
    exact = listwise(Level(noise=1e-9, bias=0.3, errors=0.0), truth, 0.0, seed=2)
    assert (exact.best_G == truth.quality_GK.argmax(axis=1)).all()
    assert (exact.worst_G == truth.quality_GK.argmin(axis=1)).all()
    broken = listwise(Level(noise=0.5, bias=0.3, errors=1.0), truth, 0.0, seed=2)
    assert set(broken.best_G) == set(broken.worst_G) == {-1}
    assert judging._gap(truth, broken) == 0.0


def test_the_measured_judge_has_its_figures_for_every_scheme() -> None:
    level = judging.LEVELS[judging.MEASURED]
    truth = simulate(level, 400, seed=3)
    turned = truth.verdict_GKK.swapaxes(1, 2)
    off = ~np.eye(8, dtype=bool)
    assert (truth.verdict_GKK == -turned)[:, off].all() == level.both_orders
    outcomes = play_all(truth, 0.0, level.both_orders)
    assert set(outcomes) == {"adaptive", judging.PAPERS, "random", "swiss", "knockout", "full"}
    assert outcomes["full"].calls == 56
    gaps = {name: judging._gap(truth, own) for name, own in outcomes.items()}
    assert gaps["adaptive"] == gaps[judging.PAPERS], "asked in both orders there is no bias, and there are no ties"
    assert gaps["adaptive"] >= 0.96 * gaps["full"]
    assert outcomes["adaptive"].calls < 23.5


def test_levels_have_the_bias_and_the_ties_that_their_names_promise() -> None:
    first, ties = (judging._agreement(simulate(judging.LEVELS[name], 400, seed=4)) for name in ("first", "ties"))
    assert first["first_wins"] == pytest.approx(0.8, abs=0.01)
    assert (first["ties"], ties["ties"]) == (0.0, pytest.approx(0.23, abs=0.02))


@pytest.mark.parametrize(("noise", "bias", "pull"), [(0.4, 3.0, 0.0), (0.8, -1.0, 2.0), (0.2, 40.0, 12.0)])
def test_the_fit_finds_the_noise_that_log_odds_were_made_with(noise: float, bias: float, pull: float) -> None:
    rng = np.random.default_rng(4)
    e_GK = rng.standard_normal((3000, 8))
    contradiction_GKK = rng.normal(0.0, noise * math.pi / math.sqrt(3), (3000, 8, 8))
    pull_GKK = rng.normal(bias, pull, (3000, 8, 8))
    upper = np.triu(np.ones((8, 8), dtype=bool), 1)
    contradiction_GKK = np.where(upper, contradiction_GKK, -contradiction_GKK.swapaxes(1, 2))
    pull_GKK = np.where(upper, pull_GKK, pull_GKK.swapaxes(1, 2))
    logit_GKK = 0.05 * (e_GK[:, :, None] - e_GK[:, None, :] + contradiction_GKK + pull_GKK)
    logit_GKK[:, np.eye(8, dtype=bool)] = np.nan
    found = real_judge.fit(logit_GKK)
    assert found["noise"] == pytest.approx(noise, rel=0.04)
    assert found["bias"] == pytest.approx(bias, rel=0.04)
    assert found["bias_std"] == pytest.approx(pull, rel=0.05, abs=0.02)


def test_cycles_errors_and_positions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three responses that beat each other in a circle, a judge that fails once, and one that likes the first place."""
    pytest.importorskip("if_verifiable", reason="the extra `verifiable` is not installed")
    prompt = next(iter(real_judge.generate_tasks(real_judge.SEED, 3)))
    texts = ["a", "b", "c"] * 2 + ["a", "a"]
    beats = {("a", "b"), ("b", "c"), ("c", "a")}

    def battle(m: int, n: int, value: float | None) -> dict[str, object]:
        return {"first": m, "second": n, "value": value, "unscored": None if value else "no verdict", "raw": "", "round": 0}

    def stored(name: str, verdict: dict[tuple[int, int], float | None]) -> dict[str, float | None]:
        content = {"judge": "j", "seconds": 3.0, "battles": [battle(m, n, value) for (m, n), value in verdict.items()]}
        (tmp_path / f"0000 {name}.json").write_text(json.dumps(content))
        read = real_judge._read(tmp_path, name, [prompt])
        assert read is not None
        assert read.copies_GK[0].tolist() == [4, 2, 2, 0, 0, 0, 0, 0]
        return real_judge._measure(read)

    (tmp_path / "0000 responses.json").write_text(json.dumps({"responses": texts}))
    pairs = [(m, n) for m in range(3) for n in range(3) if m != n]
    circle = stored("circle", {(m, n): 1.0 if (texts[m], texts[n]) in beats else -1.0 for m, n in pairs})
    assert (circle["cycles"], circle["triples"], circle["consistency"], circle["errors"]) == (1.0, 1, 1.0, 0.0)
    first = stored("first", {pair: None if pair == (0, 1) else 1.0 for pair in pairs})
    assert (first["first"], first["consistency"], first["triples"]) == (1.0, 0.0, 0)
    assert first["errors"] == pytest.approx(1 / 6, abs=1e-4)
    assert full is schemes_of(0.0)["full"]
