"""Responses that the length limit cut off: a format error to learn from, a response where models are measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inward.config import PairingSettings, parse_recipe
from inward.engines.engine import Decoding
from inward.engines.scripted import ScriptedEngine
from inward.errors import JudgeError
from inward.judging.scripted import Scripted
from inward.judging.stage import judge_outputs, require_some_scores, score_outputs
from inward.pairing.pair import describe, pair_outputs
from inward.records import Output, Prompt
from inward.sampling.sample import sample
from inward.thought import BUILT_IN, CUT_OFF_RESPONSE, ThoughtFormat, join

PROMPTS = [Prompt(id=name, text=f"Tell me about {name}", source="test") for name in ("tea", "rain", "bees")]
K = 4


@dataclass(frozen=True)
class Draws:
    """A format, whether its markers are written by the engine, what the model writes each time, and the length limit."""

    fmt: ThoughtFormat
    scaffolded: bool
    texts: dict[tuple[str, int], tuple[str, str]]
    limit: int

    def sample(self, *, allow: bool, tries: int = 1) -> list[Output]:
        def script(heard: str, index: int, seed: int) -> str:
            name = next(prompt.id for prompt in PROMPTS if prompt.text in heard)
            thought, response = self.texts[name, index]
            if self.scaffolded:
                return response if heard.endswith(f"{self.fmt.response_marker}\n") else thought
            return join(self.fmt, thought, response)

        budget = 20 if self.scaffolded else None
        decoding = Decoding(max_new_tokens=self.limit)
        return sample(
            PROMPTS,
            ScriptedEngine(script),
            self.fmt,
            decoding,
            k=K,
            seed=1,
            scaffold_budget=budget,
            tries=tries,
            allow_cut_off=allow,
        )


@st.composite
def draws(draw: st.DrawFn) -> Draws:
    fmt = BUILT_IN[draw(st.sampled_from(sorted(BUILT_IN)))]
    lengths = st.tuples(st.integers(0, 30), st.integers(0, 60))
    texts = {
        (prompt.id, index): ("t" * thought, "r" * response)
        for prompt in PROMPTS
        for index, (thought, response) in enumerate(draw(st.lists(lengths, min_size=K, max_size=K)))
    }
    scaffolded = fmt.thinks and draw(st.booleans())
    return Draws(fmt, scaffolded, texts, draw(st.integers(90 if scaffolded else 1, 140)))


@settings(max_examples=60, deadline=None)
@given(draws())
def test_rejecting_changes_cut_off_responses_and_nothing_else(drawn: Draws) -> None:
    for allowed, rejected in zip(drawn.sample(allow=True), drawn.sample(allow=False), strict=True):
        if allowed.response is not None and allowed.finish == "length":
            assert rejected == replace(allowed, response=None, format_error=CUT_OFF_RESPONSE)
        else:
            assert rejected == allowed
        assert allowed.format_error != CUT_OFF_RESPONSE


@settings(max_examples=60, deadline=None)
@given(draws(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.5, "auto"]))
def test_a_cut_off_response_is_never_judged_or_chosen_and_every_one_is_counted(
    drawn: Draws, share: float, rho: float | str
) -> None:
    outputs = drawn.sample(allow=False)
    shown: list[str] = []

    def by_length(_: str, response: str) -> float:
        shown.append(response)
        return float(len(response) % 7)

    scores = score_outputs(outputs, judge_outputs(PROMPTS, outputs, Scripted(score=by_length)))
    pairing = pair_outputs(outputs, scores, PairingSettings(format_errors=share, rho=rho), seed=0)
    of = {output.id: output for output in outputs}
    whole = {output.response for output in outputs if output.finish == "stop"}
    assert set(shown) <= whole
    assert all(of[pair.chosen_id].finish == "stop" for pair in pairing.pairs)
    assert all(of[pair.rejected_id].finish == "stop" for pair in pairing.pairs if pair.kind == "scored")
    assert sum(pair.kind == "format_error" for pair in pairing.pairs) <= share * len(pairing.pairs)
    malformed = describe(pairing, outputs)["malformed"]
    assert malformed == dict(Counter(output.format_error for output in outputs if output.response is None))
    cut = {o.id for o in drawn.sample(allow=True) if o.response is not None and o.finish == "length"}
    assert malformed.get(CUT_OFF_RESPONSE, 0) == len(cut)


@settings(max_examples=30, deadline=None)
@given(draws())
def test_where_models_are_measured_a_cut_off_response_is_judged_and_not_drawn_again(drawn: Draws) -> None:
    outputs = drawn.sample(allow=True, tries=3)
    scores = score_outputs(outputs, judge_outputs(PROMPTS, outputs, Scripted(score=lambda _, response: float(len(response)))))
    value_of = {score.output_id: score.value for score in scores}
    for output in outputs:
        if output.finish == "length" and output.response is not None:
            assert output.tries == 1
            assert value_of[output.id] == len(output.response)


def test_a_cut_off_response_can_be_the_rejected_one() -> None:
    texts = {(prompt.id, index): ("t", "r" * length) for prompt in PROMPTS for index, length in enumerate((5, 60, 60, 60))}
    outputs = Draws(BUILT_IN["direct"], False, texts, 50).sample(allow=False)
    scores = score_outputs(outputs, judge_outputs(PROMPTS, outputs, Scripted(score=lambda *_: 1.0)))
    pairing = pair_outputs(outputs, scores, PairingSettings(format_errors=1.0), seed=0)
    of = {output.id: output for output in outputs}
    assert [pair.kind for pair in pairing.pairs] == ["format_error"] * 3
    assert {of[pair.rejected_id].format_error for pair in pairing.pairs} == {CUT_OFF_RESPONSE}
    assert pair_outputs(outputs, scores, PairingSettings(format_errors=0.0), seed=0).skipped == {"fewer than two scored": 3}


def test_a_stage_in_which_every_response_was_cut_off_says_what_to_raise() -> None:
    texts = {(prompt.id, index): ("t", "r" * 60) for prompt in PROMPTS for index in range(K)}
    outputs = Draws(BUILT_IN["direct"], False, texts, 50).sample(allow=False)
    with pytest.raises(JudgeError, match=r"12 x format error: cut_off_response\n.*sampling\.max_new_tokens.*'allow'"):
        require_some_scores(score_outputs(outputs, []))


def test_the_setting_rejects_unless_it_is_told_to_allow() -> None:
    tree = {
        "model": {"path": "smollm2"},
        "prompts": {"sources": [{"kind": "tasks", "count": 8}]},
        "judge": {"kind": "verifiable"},
    }
    assert parse_recipe(tree).sampling.cut_off_responses == "reject"
    assert parse_recipe(tree | {"sampling": {"cut_off_responses": "allow"}}).sampling.cut_off_responses == "allow"
