"""The pairwise judge from its chat to pairs: who fights, what a battle comes to, and what stays unscored."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from inward.config import PairingSettings, PairwiseJudge, VerdictForm, parse_recipe
from inward.engines.scripted import ScriptedEngine
from inward.errors import UsageError
from inward.judging.make import check_judge, make_judge
from inward.judging.pairwise.by_text import LLMComparer, Wording, conversation
from inward.judging.pairwise.comparer import Battle
from inward.judging.pairwise.engine_chat import EngineChat
from inward.judging.pairwise.judge import ALONE, Pairwise
from inward.judging.pairwise.scripted import ScriptedChat, prefer_longer
from inward.judging.stage import judge_outputs, score_outputs
from inward.judging.tournament.adaptive import adaptive
from inward.judging.tournament.bradley_terry import posterior
from inward.judging.tournament.schemes import full
from inward.judging.tournament.scores import Judged, score_battles
from inward.pairing.pair import pair_outputs
from inward.records import Output, Verdict
from tests.build import output, prompt
from tests.tiny import tiny_model

PROMPTS = [prompt("first", id="p"), prompt("second", id="q")]


def recording(asked: list[tuple[str, str]]) -> ScriptedChat:
    """Return a chat that prefers the longer answer and notes what it reads."""

    def script(first: str, second: str) -> str:
        asked.append((first, second))
        return prefer_longer(first, second)

    return ScriptedChat(script=script)


def pairwise(chat: ScriptedChat | None = None, *, scheme: str = "full") -> Pairwise:
    comparer = LLMComparer(chat=chat or ScriptedChat())
    return Pairwise(comparer=comparer, scheme=full if scheme == "full" else adaptive(), scheme_name=scheme)


def many(prompts: int, k: int, draw: random.Random) -> list[Output]:
    return [
        output(f"{n}-{i}", f"p{n}", None if draw.random() < 0.1 else "x" * draw.randint(1, 12))
        for n in range(prompts)
        for i in range(k)
    ]


def test_a_comparer_asks_in_the_order_of_the_battle_and_reads_who_won() -> None:
    asked: list[tuple[str, str]] = []
    chat = recording(asked)
    comparer = LLMComparer(chat=chat)
    battles = [Battle(prompt=PROMPTS[0], first=a, second=b) for a, b in (("xx", "x"), ("x", "xx"))]
    outcomes = comparer.compare(battles)
    assert asked == [("xx", "x"), ("x", "xx")]
    assert [(o.value, o.error) for o in outcomes] == [(1.0, None), (-1.0, None)]
    assert outcomes[0].raw == "The longer one.\n[[A]]"
    assert comparer.compare([]) == []
    assert len({LLMComparer(chat=chat, form=form).name for form in ("ab", "abc", "arena")}) == 3


def test_a_cut_or_missing_answer_is_an_error_never_a_win() -> None:
    chat = ScriptedChat(failure_rate=1.0)
    outcomes = LLMComparer(chat=chat).compare([Battle(prompt=PROMPTS[0], first="x" * n, second="y") for n in range(1, 60)])
    assert {outcome.value for outcome in outcomes} == {None}
    reasons = {outcome.error for outcome in outcomes}
    assert {"HTTP 500", "an empty answer", "no verdict", "verdicts that contradict each other: A, B"} < reasons
    assert "the reasoning was not closed, so no answer follows it" in reasons
    assert "the answer was cut off at 2048 tokens" in reasons


def test_all_battles_of_a_prompt_begin_alike_and_share_no_later_text_at_another_place() -> None:
    """Only an exact prefix may be reused: position-independent reuse of an answer's cache corrupts verdicts."""
    battles = [Battle(prompt=PROMPTS[0], first=a, second=b) for a, b in (("x", "y"), ("y", "x"))]
    for form, wording in itertools.product(get_args(VerdictForm), get_args(Wording)):
        begin_alike(*(conversation(battle, form, wording=wording) for battle in battles))


def begin_alike(one: list[dict[str, str]], two: list[dict[str, str]]) -> None:
    assert one[0] == two[0]
    head, _, _ = one[1]["content"].partition("begins (")
    assert one[1]["content"].partition("\nx\n")[0] == two[1]["content"].partition("\ny\n")[0]
    assert head == "--- question "
    assert one != two


def test_a_task_can_stand_in_the_user_turn() -> None:
    battle = Battle(prompt=PROMPTS[0], first="x", second="y")
    system, user = conversation(battle, "ab", "system")
    (both,) = conversation(battle, "ab", "user")
    assert both == {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}


def test_one_battle_serves_all_copies_and_thoughts_and_malformed_outputs_stay_out() -> None:
    outputs = [output("b", "p", "xx", thought="SECRET"), output("a", "p", "xx"), output("c", "p", "x"), output("d", "p", None)]
    outputs.append(output("e", "q", "alone"))
    asked: list[tuple[str, str]] = []
    chat = recording(asked)
    verdicts = judge_outputs(PROMPTS, outputs, pairwise(chat))
    assert sorted(asked) == [("x", "xx"), ("xx", "x")]
    assert {(v.first, v.second, v.value) for v in verdicts} == {("a", "c", 1.0), ("c", "a", -1.0), ("e", None, None)}
    assert len({v.id for v in verdicts}) == 3
    found = {score.output_id: (score.value, score.unscored) for score in score_outputs(outputs, verdicts, prior=0.1)}
    assert found["a"] == found["b"]
    assert (found["a"][0] or 0) > 0 > (found["c"][0] or 0)
    assert found["d"] == (None, "format error: no_response_marker")
    assert found["e"] == (None, ALONE)
    assert "SECRET" not in repr(verdicts)
    assert all(json.loads(v.detail)["raw"] for v in verdicts if v.second)
    again = {score.output_id: score.value for score in score_outputs(outputs[::-1], verdicts[::-1], prior=0.1)}
    assert again == pytest.approx({id_: value for id_, (value, _) in found.items()})


def battle(first: str, second: str, value: float | None, unscored: str | None = None) -> Verdict:
    return Verdict(id=f"{first}{second}", prompt_id="p", judge="j", first=first, second=second, value=value, unscored=unscored)


def scored(*battles: Verdict, prior: float | None = None) -> dict[str, Judged]:
    (judged,) = score_battles([battles], prior)
    return judged


def test_a_response_without_a_decided_battle_is_unscored_with_its_reasons() -> None:
    """Not zero and not a tie: fairseq2's (0, 0) would put it in the middle, and a pair."""
    judged = scored(battle("a", "b", 1.0), battle("a", "c", None, "HTTP 500"), battle("c", "b", None, "cut"), prior=0.1)
    assert judged["c"] == (None, "none of its 2 battles was decided, 1 for: HTTP 500")
    assert judged["a"][0] == pytest.approx(-(judged["b"][0] or 0))
    assert scored(battle("a", "b", None, "cut"))["a"][0] is None
    assert scored(battle("a", "b", 0.0), battle("b", "a", 0.0)) == {"a": (0.0, None), "b": (0.0, None)}
    assert score_battles([], None) == []


def test_scores_are_those_of_the_posterior_that_the_tournament_is_planned_by() -> None:
    """Stood first, won: that is worth less with a judge whom all other battles show to prefer the first."""
    battles = [battle("a", "b", 1.0), battle("c", "d", 1.0), battle("d", "c", 1.0), battle("b", "d", 0.0)]
    judged = scored(*battles, prior=0.3)
    index_of = {id_: index for index, id_ in enumerate("abcd")}
    results_GKK = np.full((1, 4, 4), np.nan)
    for made in battles:
        results_GKK[0, index_of[made.first], index_of[str(made.second)]] = made.value
    fitted = posterior(results_GKK, 0.3)
    assert [judged[id_] for id_ in "abcd"] == [(float(e), None) for e in fitted.e_GK[0]]
    assert fitted.bias_G[0] > 0
    alone = scored(*battles[:1], prior=0.3)
    assert (alone["a"][0] or 0) - (alone["b"][0] or 0) > (judged["a"][0] or 0) - (judged["b"][0] or 0)


def test_groups_of_any_size_are_scored_as_each_is_alone() -> None:
    groups = [
        [battle("a", "b", 1.0)],
        [battle("c", "d", 0.0), battle("d", "e", 1.0), battle("e", "f", None, "cut")],
        [battle("g", "h", None, "cut")],
    ]
    assert score_battles(groups, 0.4) == [scored(*group, prior=0.4) for group in groups]


@pytest.mark.parametrize("scheme", ["full", "adaptive"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
def test_no_unscored_output_enters_a_pair_however_the_judge_fails(scheme: str, rate: float) -> None:
    """open-instruct and tinker-cookbook: a failed call becomes 0.0 or a tie, and so a training pair."""
    for seed in range(3):
        outputs = many(20, 6, random.Random(seed))
        prompts = [prompt(f"text {n}", id=f"p{n}") for n in range(20)]
        chat = ScriptedChat(failure_rate=rate, seed=seed)
        verdicts = judge_outputs(prompts, outputs, pairwise(chat, scheme=scheme))
        scores = score_outputs(outputs, verdicts, prior=0.1)
        scored = {score.output_id for score in scores if score.value is not None}
        decided = {id_ for v in verdicts if v.value is not None for id_ in (v.first, v.second)}
        response_of = {o.id: (o.prompt_id, o.response) for o in outputs}
        assert {response_of[id_] for id_ in scored} == {response_of[str(id_)] for id_ in decided}
        pairs = pair_outputs(outputs, scores, PairingSettings(format_errors=0.0), seed=seed).pairs
        assert {id_ for pair in pairs for id_ in (pair.chosen_id, pair.rejected_id)} <= scored
        assert bool(pairs) == (rate < 1.0)
        if rate == 0.0:
            by_id = {o.id: o for o in outputs}
            assert all(len(by_id[p.chosen_id].response or "") > len(by_id[p.rejected_id].response or "") for p in pairs)


def test_an_engine_is_a_chat_that_refuses_what_is_too_long_cut_or_empty() -> None:
    def script(text: str, index: int, seed: int) -> str:
        return "" if "silent" in text else "word " * 100 if "chatty" in text else "[[A]]"

    chat = EngineChat(engine=ScriptedEngine(script, context=300), name="fake")
    turns = [[{"role": "user", "content": text}] for text in ("fine", "silent", "chatty", "long" * 100, "fine")]
    fine, silent, chatty, long, again = chat.complete(turns, max_tokens=50)
    assert (fine.text, fine.error) == ("[[A]]", None)
    assert again == fine
    assert (silent.text, silent.finish) == ("", "stop")
    assert (chatty.text or "").startswith("word word"), "what was cut off is kept"
    assert (chatty.finish, chatty.completion_tokens) == ("length", 50)
    assert long.text is None
    assert "context of 300" in str(long.error)
    assert chat.complete([], max_tokens=50) == []


def test_a_real_model_judges_and_checks_out(tmp_path: Path) -> None:
    settings = PairwiseJudge(kind="pairwise", path=str(tiny_model(tmp_path, context=4096)), dtype="float32", max_tokens=8)
    check_judge(settings, PROMPTS)
    judge = make_judge(settings, rho=0.1)
    verdicts = judge_outputs(PROMPTS, [output("a", "p", "x"), output("b", "p", "y")], judge)
    assert {(v.first, v.second) for v in verdicts} == {("a", "b"), ("b", "a")}
    assert all(v.value is not None or v.unscored for v in verdicts)
    assert settings.holds_model
    assert settings.lowest_score is None
    with pytest.raises(UsageError, match=r"judge\.max_tokens \(4000\) leaves no room"):
        check_judge(settings.model_copy(update={"max_tokens": 4000}), PROMPTS)


def recipe(judge: dict[str, Any], *, validate: dict[str, Any] | None = None) -> Any:
    tree = {"model": {"path": "smollm2"}, "prompts": {"sources": [{"kind": "tasks", "count": 8}]}, "judge": judge}
    return parse_recipe(tree | {"validation": {"judge": validate} if validate else {}})


def test_settings_name_what_contradicts() -> None:
    judge = {"kind": "pairwise", "path": "smollm2"}
    assert recipe(judge).validation_judge == recipe(judge, validate=judge).validation_judge
    good = recipe(judge, validate={"kind": "verifiable"})
    assert good.validation_judge.kind == "verifiable"
    assert recipe({"kind": "verifiable"}).validation_judge.kind == "verifiable"
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m"}
    for broken in ({"kind": "pairwise"}, judge | {"endpoint": endpoint}):
        with pytest.raises(UsageError, match=r"exactly one of judge\.path .* and judge\.endpoint"):
            recipe(broken, validate={"kind": "verifiable"})
    remote = recipe({"kind": "pairwise", "endpoint": endpoint, "scheme": "full"}, validate={"kind": "verifiable"}).judge
    check_judge(remote, [])
    assert not remote.holds_model
    assert make_judge(remote).name.endswith("m at http://localhost:1/v1|full")
