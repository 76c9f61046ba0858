"""A judge's settings each have an effect or are refused, and its models are known by their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inward.config import CascadeJudge, JudgeSettings, PairingSettings, PairwiseJudge, Recipe, VerifiableJudge
from inward.config.recipe import parse_recipe, recipe_json
from inward.errors import UsageError
from inward.judging.make import judge_contents
from inward.models.identity import content_digest
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_reward import tiny_reward_model

ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}


def parse(judge: dict[str, Any]) -> Recipe:
    prompts = {"sources": [{"kind": "tasks", "count": 9}], "per_iteration": 2, "validation": 2}
    validation = {"judge": {"kind": "verifiable"}}
    return parse_recipe({"model": {"path": "smollm2"}, "prompts": prompts, "judge": judge, "validation": validation})


def test_a_bound_of_a_length_control_that_is_set_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"pairing\.rho_max has no effect.*pairing\.rho = 'auto'"):
        PairingSettings(rho=0.1, rho_max=0.3)
    assert PairingSettings(rho="auto", rho_max=0.3).rho_max == 0.3
    stored = PairingSettings(rho=0.1).model_dump(mode="json")
    assert PairingSettings(**stored) == PairingSettings(rho=0.1), "what a run has stored names every key"


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"endpoint": ENDPOINT, "rows": 8}, ("judge.rows", "judge.endpoint")),
        ({"endpoint": ENDPOINT, "dtype": "float32"}, ("judge.dtype", "judge.endpoint")),
        ({"endpoint": ENDPOINT, "trust_remote_code": True}, ("judge.trust_remote_code", "judge.endpoint")),
        ({"path": "m", "verdict": "probability", "max_tokens": 9}, ("judge.max_tokens", "judge.verdict = 'probability'")),
        ({"path": "m", "scheme": "full", "confidence": 0.9}, ("judge.confidence", "judge.scheme = 'full'")),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused_with_both_keys(settings: dict[str, Any], keys: tuple[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse({"kind": "pairwise", **settings})
    for part in (*keys, "has no effect", "Leave"):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="has no effect"):
        parse({"kind": "cascade", "first": {"kind": "verifiable"}, "then": {"kind": "pairwise", **settings}})


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": ENDPOINT},
        {"path": "m", "rows": 8, "dtype": "float32", "trust_remote_code": True, "max_tokens": 9, "confidence": 0.9},
        {"path": "m", "verdict": "probability", "scheme": "full"},
        {"endpoint": ENDPOINT | {"extra_body": {"reasoning_effort": "low"}, "temperature": "unset"}, "max_tokens": 9},
    ],
)
def test_a_recipe_as_a_run_stores_it_holds_every_key_and_is_read_again(settings: dict[str, Any]) -> None:
    recipe = parse({"kind": "pairwise", **settings})
    assert Recipe.model_validate_json(recipe_json(recipe)) == recipe


def test_an_endpoints_settings_are_checked() -> None:
    for wrong in ({"temperature": "hot"}, {"temperature": -1.0}, {"limit_name": "length"}, {"extra_body": []}):
        with pytest.raises(ValidationError):
            PairwiseJudge.model_validate({"kind": "pairwise", "endpoint": ENDPOINT | wrong})


def test_the_models_of_a_judge_are_known_by_their_content(tmp_path: Path) -> None:
    model, rated = tiny_model(tmp_path / "model"), tiny_reward_model(tmp_path / "rated")
    fights = {"kind": "pairwise", "path": str(model)}
    rates = {"kind": "reward_model", "path": str(rated)}
    checks = {"kind": "verifiable"}
    served = {"kind": "pairwise", "endpoint": ENDPOINT}

    def identity(judge: dict[str, Any]) -> dict[str, str]:
        return judge_contents(parse(judge).judge)

    digests = {"model": content_digest(model), "rated": content_digest(rated)}
    assert identity(checks) == identity(served) == {}
    assert identity(fights) == {"judge.path": digests["model"]}
    assert identity(rates) == {"judge.path": digests["rated"]}
    assert identity({"kind": "cascade", "first": rates, "then": fights}) == {
        "judge.first.path": digests["rated"],
        "judge.then.path": digests["model"],
    }
    assert identity({"kind": "panel", "members": [checks, served, fights]}) == {"judge.members.2.path": digests["model"]}
    routes = [{"verifiable": True, "judge": checks}, {"source": "tasks", "judge": rates}]
    assert identity({"kind": "routed", "routes": routes, "otherwise": fights}) == {
        "judge.routes.1.judge.path": digests["rated"],
        "judge.otherwise.path": digests["model"],
    }
    validation: JudgeSettings = parse(rates).judge
    assert judge_contents(validation, key="validation.judge") == {"validation.judge.path": digests["rated"]}
    tiny_model(model, seed=1)
    assert identity(fights)["judge.path"] not in digests.values()


def test_a_tokenizer_is_known_by_the_tokens_that_are_read_from_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    settings = PairwiseJudge.model_validate({"kind": "pairwise", "endpoint": ENDPOINT | {"tokenizer": str(tmp_path)}})
    (key,) = before = judge_contents(settings)
    assert key == "judge.endpoint.tokenizer"
    assert judge_contents(settings) == before
    tokenizer.add_tokens(["<start_of_image>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    assert judge_contents(settings) != before


def test_a_judge_whose_model_is_nowhere_is_named() -> None:
    missing = PairwiseJudge(kind="pairwise", path="./nowhere")
    with pytest.raises(UsageError, match="nowhere"):
        judge_contents(CascadeJudge(kind="cascade", first=VerifiableJudge(kind="verifiable"), then=missing))
