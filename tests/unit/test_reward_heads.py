"""What a head puts out: one number or several, by transformers or by code of the model's own, and what is not a reward."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from inward.config import RewardModelJudge
from inward.errors import UsageError
from inward.judging.judge import Group, Ruling
from inward.judging.make import check_judge, make_judge
from inward.judging.reward_model.heads import Objective, numbers, readings, resolve
from inward.judging.reward_model.judge import RewardModel
from tests.build import prompt
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer
from tests.tiny_rated import Variant, tiny_rated_model
from tests.tiny_reward import tiny_reward_model

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
PROMPT = prompt("What is a fen?")
RESPONSES = ("A wetland.", "x", "A fen is a kind of peat-forming wetland, fed by ground water. " * 4, "I do not know; sorry.")
GROUP = Group(prompt=PROMPT, responses=RESPONSES)


def settings(path: Path, **change: Any) -> RewardModelJudge:
    return RewardModelJudge(kind="reward_model", path=str(path), **({"dtype": "float32"} | change))


def rulings(path: Path, **change: Any) -> list[Ruling]:
    return RewardModel(settings(path, **change)).judge([GROUP])[0]


def values(path: Path, **change: Any) -> list[float]:
    found = [ruling.value for ruling in rulings(path, **change)]
    assert all(value is not None for value in found)
    return [value for value in found if value is not None]


def outputs(path: Path, *, end: str = "", **trust: bool) -> list[Any]:
    """Score the rendered conversations by hand, one by one, without padding. `end` is what closes them."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path, **trust).eval()
    tokenizer = tiny_tokenizer()
    texts = [f"<|im_start|>user\n{PROMPT.text}<|im_end|>\n<|im_start|>assistant\n{r}<|im_end|>\n{end}" for r in RESPONSES]
    with torch.inference_mode():
        return [model(torch.tensor([tokenizer(text)["input_ids"]])) for text in texts]


@pytest.fixture(scope="module")
def helpsteer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("reward"), names=HELPSTEER)


@pytest.fixture(autouse=True, scope="module")
def _modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code that comes with models is copied to a place of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


def rated(folder: Path, **change: Any) -> tuple[Path, Path]:
    marker = folder / "ran"
    return tiny_rated_model(folder / "model", marker, **change), marker


def test_objectives_are_weighed_by_name_or_by_place(helpsteer: Path) -> None:
    logits = [output.logits[0].tolist() for output in outputs(helpsteer)]
    found = rulings(helpsteer, objectives={"helpfulness": 0.65, "4": -0.2})
    assert [ruling.value for ruling in found] == pytest.approx([0.65 * row[0] - 0.2 * row[4] for row in logits], abs=1e-5)
    for ruling, row in zip(found, logits, strict=True):
        assert json.loads(ruling.detail)["objectives"] == pytest.approx({"helpfulness": row[0], "4": row[4]}, abs=1e-5)


def test_objectives_that_are_not_the_models_show_before_anything_is_sampled(helpsteer: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str, **objectives: float) -> None:
        for ask in (RewardModel, lambda asked: check_judge(asked, [])):
            with pytest.raises(UsageError, match=message):
                ask(settings(path, objectives=objectives))

    refused(helpsteer, r"judge\.objectives names 'helpfulnes', .* did you mean 'helpfulness'\?", helpfulnes=1.0)
    refused(helpsteer, r"names '5', .* it has helpfulness, correctness, coherence, complexity, verbosity\.", **{"5": 1.0})
    refused(helpsteer, r"names 'helpfulness' and '0', which are the same objective", helpfulness=1.0, **{"0": 1.0})
    refused(helpsteer, r"has 5 labels \(helpfulness, .*Set judge\.objectives to their weights")
    single = tiny_reward_model(tmp_path)
    refused(single, r"weighs 1 objectives, but .* gives one number a response\. Take judge\.objectives out", LABEL_0=1.0)


def test_weights_that_are_no_weights_are_refused() -> None:
    for objectives, message in (({"a": 0.0}, "has no weight but 0"), ({"a": math.inf}, "finite"), ({"a": math.nan}, "finite")):
        with pytest.raises(ValidationError, match=message):
            RewardModelJudge(kind="reward_model", path="x", objectives=objectives)


def test_a_head_with_other_numbers_of_labels_than_its_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path)
    saved = folder / "config.json"
    names = {str(place): name for place, name in enumerate(HELPSTEER)}
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"id2label": names}))
    with pytest.raises(UsageError, match="cannot be loaded as a reward model"):
        RewardModel(settings(folder, objectives={"helpfulness": 1.0}))


def test_a_sigmoid_keeps_the_order_and_has_a_lowest_score(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path)
    raw, squeezed = values(folder), values(folder, output="sigmoid")
    assert squeezed == pytest.approx([1 / (1 + math.exp(-value)) for value in raw], abs=1e-6)
    assert settings(folder, output="sigmoid").lowest_score == 0.0
    assert settings(folder).lowest_score is None


@pytest.mark.parametrize("output", ["raw", "sigmoid"])
def test_what_is_not_finite_is_unscored_and_not_a_sigmoid_of_1(output: str) -> None:
    import torch

    one = settings(Path("x"), output=output)
    found = readings(one, (), torch.tensor([[math.inf], [-math.inf], [math.nan], [800.0], [-800.0]]))
    assert [reading.unscored for reading in found] == [
        *(f"the reward model gave {v}" for v in ("inf", "-inf", "nan")),
        None,
        None,
    ]
    assert [reading.value for reading in found[3:]] == ([800.0, -800.0] if output == "raw" else [1.0, 0.0])
    weighed = (Objective(name="a", index=0, weight=1.0), Objective(name="c", index=2, weight=-2.0))
    rows = torch.tensor([[1.0, math.nan, 3.0], [math.nan, 0.0, 3.0], [math.inf, 0.0, math.inf]])
    fine, partly, wholly = readings(one, weighed, rows)
    assert fine.value is not None  # of what is not weighed nothing is asked
    assert (partly.value, partly.unscored) == (None, "the reward model gave nan for a")
    assert (wholly.value, wholly.unscored) == (None, "the reward model gave inf for a, inf for c")
    assert json.loads(json.dumps(wholly.parts)) == {"a": None, "c": None}


def test_code_of_a_models_own_is_not_run_unless_the_recipe_allows_it(tmp_path: Path) -> None:
    folder, marker = rated(tmp_path)
    for ask in (make_judge, lambda asked: check_judge(asked, [])):
        with pytest.raises(
            UsageError, match=r"code of its own \(modeling_rated\.RatedLlama\).*judge\.trust_remote_code = true"
        ):
            ask(settings(folder))
    assert not marker.exists()
    assert len(values(folder, trust_remote_code=True)) == len(RESPONSES)
    assert marker.exists()


def test_code_for_the_configuration_alone_is_not_run_either(tmp_path: Path) -> None:
    folder, marker = rated(tmp_path)
    (folder / "configuration_rated.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\n")
    own = {"model_type": "rated", "auto_map": {"AutoConfig": "configuration_rated.RatedConfig"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(UsageError, match=r"code of its own \(configuration_rated\.RatedConfig\)"):
        make_judge(settings(folder))
    assert not marker.exists()


@pytest.mark.parametrize("end", ["", "<|endoftext|>"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_head_of_its_own_gives_the_score_it_gives_alone(tmp_path: Path, shared: bool, end: str) -> None:
    """Its gate looks into the prompt, and it takes the first padding token, which a template may hold, for the text's end."""
    folder, _ = rated(tmp_path, chat_template=CHAT_TEMPLATE + end)
    expected = [output.score.item() for output in outputs(folder, end=end, trust_remote_code=True)]
    judge = RewardModel(settings(folder, trust_remote_code=True, share_prompts=shared))
    assert (judge.why_unshared is None) == shared
    assert [ruling.value for ruling in judge.judge([GROUP])[0]] == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == len(RESPONSES)


def test_its_rewards_can_be_weighed_by_name_where_the_labels_are_its_objectives(tmp_path: Path) -> None:
    folder, _ = rated(tmp_path / "named", names=("help", "truth", "length"))
    expected = [output.rewards[0].tolist() for output in outputs(folder, trust_remote_code=True)]
    found = values(folder, trust_remote_code=True, objectives={"truth": 2.0, "2": -1.0})
    assert found == pytest.approx([2 * row[1] - row[2] for row in expected], abs=1e-5)
    nameless, _ = rated(tmp_path / "nameless")
    assert values(nameless, trust_remote_code=True, objectives={"1": 2.0, "2": -1.0}) == pytest.approx(found, abs=1e-5)
    with pytest.raises(UsageError, match=r"names 'truth', which .* does not have; it has \"0\" to \"2\"\."):
        RewardModel(settings(nameless, trust_remote_code=True, objectives={"truth": 1.0}))


def test_its_scores_in_bf16_come_from_a_head_in_fp32(tmp_path: Path) -> None:
    import torch

    folder, _ = rated(tmp_path)
    exact, rough = (values(folder, trust_remote_code=True, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rough == pytest.approx(exact, abs=0.3)
    assert any(torch.tensor(value).bfloat16().item() != value for value in rough)


def test_code_made_for_another_version_of_transformers_says_so(tmp_path: Path) -> None:
    """As ArmoRM's own does, which takes a name out of transformers 4 that is gone from 5."""
    folder, _ = rated(tmp_path)
    code = folder / "modeling_rated.py"
    code.write_text("from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING\n" + code.read_text())
    with pytest.raises(UsageError, match=r"cannot import name .* may need another version of transformers"):
        RewardModel(settings(folder, trust_remote_code=True))


@pytest.mark.parametrize(
    ("variant", "dtype", "message"),
    [
        ("wide", "float32", r"puts out score of shape \(4, 3\) for 4 responses instead of \(4,\)"),
        ("short", "float32", r"puts out score of shape \(1,\) for 4 responses instead of \(4,\)"),
        ("sums", "float32", r"puts out score of shape \(\) for 4 responses instead of \(4,\)"),
        ("broken", "float32", "cannot score an ordinary conversation: no such luck$"),
        ("cast", "bfloat16", r"cannot score an ordinary conversation: .*set judge\.dtype = 'float32'"),
    ],
)
def test_a_head_that_puts_out_something_else_is_refused_when_it_is_loaded(
    tmp_path: Path, variant: Variant, dtype: str, message: str
) -> None:
    folder, _ = rated(tmp_path, variant=variant)
    with pytest.raises(UsageError, match=message):
        RewardModel(settings(folder, trust_remote_code=True, dtype=dtype))


@pytest.mark.parametrize("variant", ["mean", "layers", "several bodies"])
def test_a_head_that_cannot_bear_padding_or_two_steps_is_spared_them(tmp_path: Path, variant: Variant) -> None:
    folder, _ = rated(tmp_path, variant=variant)
    judge = RewardModel(settings(folder, trust_remote_code=True))
    reasons = {
        "mean": "padding changes its scores",
        "layers": "a trial failed: its head asks its body for output_hidden_states",
        "several bodies": "a trial failed: its head does not call its body once",
    }
    assert judge.why_unshared == reasons[variant]
    expected = [output.score.item() for output in outputs(folder, trust_remote_code=True)]
    assert [ruling.value for ruling in judge.judge([GROUP])[0]] == pytest.approx(expected, abs=1e-5)


def test_an_output_without_numbers_is_refused() -> None:
    import torch

    with pytest.raises(UsageError, match="puts out neither score nor logits"):
        numbers(settings(Path("x")), SimpleNamespace(score=0.5), 1)
    with pytest.raises(UsageError, match="puts out neither rewards nor logits"):
        numbers(settings(Path("x"), objectives={"a": 1.0}), SimpleNamespace(score=torch.zeros(1)), 1)
    assert numbers(settings(Path("x")), SimpleNamespace(score=None, logits=torch.zeros(2, 1)), 2).shape == (2, 1)


def test_two_objectives_need_a_model_with_two(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gives one number a response"):
        resolve(settings(tmp_path, objectives={"a": 1.0}), SimpleNamespace(id2label={}), 1)


def test_the_name_tells_weights_and_forms_apart(helpsteer: Path) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"objectives": {"helpfulness": 0.65, "verbosity": -0.2}},
        {"objectives": {"helpfulness": 0.65, "verbosity": -0.1}},
        {"objectives": {"helpfulness": 0.65, "verbosity": -0.2}, "output": "sigmoid"},
        {"objectives": {"helpfulness": 0.65, "verbosity": -0.2}, "input": "pair"},
        {"objectives": {"helpfulness": 0.65, "verbosity": -0.2}, "dtype": "bfloat16"},
        {"objectives": {"helpfulness": 0.65, "verbosity": -0.2}, "dtype": "bfloat16", "share_prompts": False},
    )
    names = [RewardModel(settings(helpsteer, **change)).name for change in changes]
    assert len(set(names)) == len(names)
    assert names[0].endswith(", float32, max_tokens=1024, +0.65 helpfulness -0.2 verbosity)")
    assert names[4].endswith(", prompts read once)")
    exact = RewardModel(settings(helpsteer, **changes[0], share_prompts=False)).name
    assert exact == names[0]  # in fp32 the scores are the same
