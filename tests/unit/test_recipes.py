"""Every shipped recipe parses, and what is wrong with a recipe is said in words that help."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from inward.cli.recipes import description, find_recipe, shipped
from inward.config import JudgeLimits, Recipe, Settings, harmless_keys, load_recipe, parse_recipe, recipe_json
from inward.errors import UsageError

TREE: dict[str, Any] = {
    "model": {"path": "smollm2"},
    "prompts": {"sources": [{"kind": "tasks", "count": 8}]},
    "judge": {"kind": "verifiable"},
}


def changed(**keys: Any) -> dict[str, Any]:
    """Return a minimal recipe with `table__key=value` settings, or `key=value` at the top."""
    tree = copy.deepcopy(TREE)
    for name, value in keys.items():
        *tables, key = name.split("__")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
        node[key] = value
    return tree


def complaint(tree: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        parse_recipe(tree)
    return str(caught.value)


def test_recipes_are_shipped() -> None:
    assert "demo" in shipped()
    assert shipped().keys() == {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.toml")}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_parses_and_says_what_it_is(name: str) -> None:
    path = shipped()[name]
    recipe = load_recipe(path)
    assert Recipe.model_validate_json(recipe_json(recipe)) == recipe
    assert len(description(path)) > 20


def test_a_quantised_base_has_no_reference_in_the_sampler() -> None:
    tree = changed(training__lora={"rank": 4, "quantise_base": "nf4"})
    assert parse_recipe(tree).training.quantise == "nf4"
    tree["training"]["reference"] = "sampler"
    assert "training.lora.quantise_base" in complaint(tree)
    assert "training.reference" in complaint(tree)


def test_a_minimal_recipe_is_the_papers_setting() -> None:
    recipe = parse_recipe(TREE)
    assert (recipe.sampling.k, recipe.sampling.temperature, recipe.sampling.top_p) == (8, 0.8, 0.95)
    assert (recipe.prompts.per_iteration, recipe.prompts.validation, recipe.training.epochs) == (5000, 1500, 10)
    assert recipe.arms == ("thinking", "direct")
    assert recipe.training.reference == "previous"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"training__lerning_rate": 1e-6}, ("unknown key 'training.lerning_rate'", "'learning_rate'")),
        ({"iteration": 2}, ("unknown key 'iteration'", "'iterations'")),
        ({"training__lora": {"rnk": 8}}, ("unknown key 'training.lora.rnk'", "'rank'")),
        ({"judge__stricktness": "loose"}, ("stricktness", "'strictness'")),
        ({"prompts__sources": [{"kind": "tasks", "count": 8, "sed": 1}]}, ("sed", "'seed'")),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(keys: dict[str, Any], said: tuple[str, ...]) -> None:
    message = complaint(changed(**keys))
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"iterations": "four"}, ("iterations", "'four'")),
        ({"iterations": 2.5}, ("iterations", "2.5")),
        ({"sampling__k": 1}, ("sampling.k", "2")),
        ({"sampling__k": True}, ("sampling.k", "True")),
        ({"pairing__rho": 0.6}, ("pairing.rho", "0.5")),
        ({"sampling__top_p": 0.0}, ("sampling.top_p",)),
        ({"training__objective": "ppo"}, ("training.objective", "ppo")),
        ({"judge__kind": "oracle"}, ("judge", "oracle", "verifiable")),
        ({"arms": []}, ("arms",)),
    ],
)
def test_a_wrong_value_names_the_key_and_the_value(keys: dict[str, Any], said: tuple[str, ...]) -> None:
    message = complaint(changed(**keys))
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"training__nll_weight": 1.0}, ("training.nll_weight", "training.objective", "irpo")),
        (
            {"thought__scaffold": {"budget": 1024}, "sampling__max_new_tokens": 1024},
            ("thought.scaffold.budget", "sampling.max_new_tokens"),
        ),
        ({"thought__response_marker": "<R>"}, ("thought.thought_marker/response_marker", "thought.template")),
        ({"thought__turn": "system"}, ("thought.turn", "thought.template")),
        ({"thought__format": "direct"}, ("thought.format", "direct arm")),
        ({"thought__format": "mine"}, ("thought.format", "generic", "thought.template")),
        ({"thought__format": "mine", "thought__template": "no slot", "thought__response_marker": "<R>"}, ("{prompt}",)),
        ({"arms": ["thinking", "thinking"]}, ("arms", "twice")),
    ],
)
def test_a_contradiction_names_both_keys(keys: dict[str, Any], said: tuple[str, ...]) -> None:
    message = complaint(changed(**keys))
    assert all(part in message for part in said), message


def test_all_mistakes_are_said_at_once_and_a_missing_table_too() -> None:
    tree = changed(iterations=0, sampling__temprature=0.7)
    del tree["judge"]
    message = complaint(tree)
    assert "iterations" in message
    assert "'temperature'" in message
    assert "judge is required" in message


def test_irpo_takes_the_weight_that_dpo_refuses() -> None:
    recipe = parse_recipe(changed(training__objective="irpo", training__nll_weight=0.5))
    assert recipe.training.nll_weight == 0.5


def test_overrides_change_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "iterations = 3\n[model]\npath = 'a'\n[judge]\nkind = 'verifiable'\n[prompts]\nsources = [{kind='tasks', count=8}]\n"
    )
    recipe = load_recipe(path, ["iterations=1", "training.beta=0.2", "model.path=some/model", "training.lora.rank=4"])
    assert (recipe.iterations, recipe.training.beta, recipe.model.path) == (1, 0.2, "some/model")
    assert recipe.training.lora is not None
    assert recipe.training.lora.rank == 4
    for override, said in [("iterations", "key.sub=value"), ("iterations.x=1", "not a table"), ("=1", "key.sub=value")]:
        with pytest.raises(UsageError, match=said):
            load_recipe(path, [override])


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(UsageError, match="does not exist"):
        load_recipe(path)
    path.write_text("iterations = = 3")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(path)


def test_a_recipe_is_found_by_path_then_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.toml"
    own.write_text(json.dumps("x"))
    monkeypatch.chdir(tmp_path)
    assert find_recipe("own.toml") == Path("own.toml")
    assert find_recipe("demo") == shipped()["demo"]
    with pytest.raises(UsageError, match="did you mean 'demo'"):
        find_recipe("recipes/demmo.toml")


def all_settings(parent: type[Settings] = Settings) -> list[type[Settings]]:
    return [table for child in parent.__subclasses__() for table in (child, *all_settings(child))]


def test_the_reference_of_settings_is_current_and_names_every_key() -> None:
    from inward.cli.settings import document

    text = document()
    stored = Path(__file__).parents[2] / "docs" / "settings.md"
    assert stored.read_text(encoding="utf-8") == text, "run: inward recipes settings > docs/settings.md"
    for table in all_settings():
        for name, field in table.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
            assert nested or f"`{name}`" in text or f".{name}]" in text or f"[{name}]" in text, f"{table.__name__}.{name}"


def test_the_settings_that_alter_nothing_are_marked_wherever_they_stand() -> None:
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m"}
    tree = changed(
        judge={
            "kind": "routed",
            "routes": [{"source": "tasks", "judge": {"kind": "pairwise", "endpoint": endpoint}}],
            "otherwise": {"kind": "python", "function": "mine.py:score"},
        },
        validation__judge={"kind": "verifiable"},
        judge_limits__prompts=30,
    )
    keys = harmless_keys(parse_recipe(tree))
    asked = "judge.routes.0.judge.endpoint."
    assert {key for key in keys if not key.startswith("judge_limits.")} >= {
        "execution.isolate", "execution.processes", "execution.shard", "judge_limits", "training.trackers",
        "training.tracker_project", "training.tracker_run", "judge.routes.0.judge.cache", "judge.otherwise.parallel",
        *(asked + name for name in ("concurrency", "key_env", "timeout_s", "retries", "price_in", "price_out")),
    }  # fmt: skip
    assert {f"judge_limits.{name}" for name in JudgeLimits.model_fields} <= keys
    for stored in ("judge.routes.0.judge.endpoint", f"{asked}model", "judge.otherwise.function", "training.beta", "seed"):
        assert stored not in keys
    stored_tables = ("validation", "pairing", "prompts", "model", "thought")
    assert not any(key.startswith(stored_tables) for key in keys)
    assert all(key.startswith(("sampling.vllm", "sampling.endpoint")) for key in keys if key.startswith("sampling"))
