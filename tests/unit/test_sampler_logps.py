"""What a sampler notes of its tokens is what a forward pass gives them, whatever they were drawn from and with whom."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from inward.config import TrainingSettings
from inward.engines.engine import Completion, Decoding, Request, Scaffold
from inward.engines.scripted import ScriptedEngine
from inward.engines.transformers.engine import load_engine
from inward.engines.transformers.logps import logsumexp, token_logps
from inward.errors import TrainingError, UsageError
from inward.records import Output, Pair
from inward.runs.shards import read_shard, schema_of, write_shard
from inward.sampling.sample import sample
from inward.stages.engine import start_engine
from inward.thought import BUILT_IN
from inward.training.examples import ReferenceLogps, build_examples
from inward.training.reference import load_reference, reference_logps
from inward.training.sampled import CHECKED, Discrepancy, discrepancy, require_rounding, sampled_logps, to_check
from tests.build import output, prompt
from tests.pairs import made_examples
from tests.tiny import tiny_model
from tests.unit.test_recipes import TREE, changed
from tests.unit.test_sampling_numerics import TEXTS, ask, sliding_window_model

FILTERED = Decoding(max_new_tokens=48, temperature=1.4, top_p=0.7, top_k=40)
SCAFFOLDS = {
    "none": None,
    "both": Scaffold(opening="Here is my thought:\n", closing="\n\n<R>\n", marker="<R>", budget=6),
    "no opening": Scaffold(opening="", closing="\n\n<R>\n", marker="<R>", budget=6),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With end tokens that come often, so that rows end at different times and others take their places."""
    tiny = load_engine(tiny_model(tmp_path_factory.mktemp("tiny")), rows=7, dtype="float32")
    sliding = load_engine(sliding_window_model(tmp_path_factory.mktemp("sliding")), rows=7, dtype="float32")
    stops = frozenset(range(0, 259, 41))
    return {"shared": replace(tiny, stops=stops), "padded": replace(sliding, stops=stops)}


def raw_logps(model: Any, request: Request, one: Completion) -> torch.Tensor:
    """Return the log-softmax of one plain forward pass over the finished text, at the completion's tokens."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logits = model(torch.tensor([[*request.tokens, *one.tokens]]), use_cache=False).logits[0].double()
    model.set_attn_implementation(usual)
    logps = logits.log_softmax(-1)[len(request.tokens) - 1 : -1]
    return logps.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]


@pytest.mark.parametrize("scaffold", SCAFFOLDS)
@pytest.mark.parametrize("kind", ["shared", "padded"])
def test_each_token_has_the_log_probability_of_a_forward_pass(engines: dict[str, Any], kind: str, scaffold: str) -> None:
    engine = engines[kind]
    requests = [*ask(engine), Request(id="one token", tokens=(65,), k=4)]
    plain = engine.generate(requests, FILTERED, seed=4, scaffold=SCAFFOLDS[scaffold])
    drawn = engine.generate(requests, replace(FILTERED, logps=True), seed=4, scaffold=SCAFFOLDS[scaffold])
    assert [replace(one, logps=None) for one in drawn] == plain, "noting them changed what is drawn"
    assert all(one.logps is None for one in plain)
    assert len({len(one.tokens) for one in drawn}) > 3, "the rows end together"
    assert {one.finish for one in drawn} == {"stop", "length"}
    assert any(any(one.written) for one in drawn) == (scaffold != "none")
    by_id = {request.id: request for request in requests}
    for one in drawn:
        assert one.logps is not None
        expected = raw_logps(engine.model, by_id[one.request_id], one)
        torch.testing.assert_close(torch.tensor(one.logps).double(), expected, rtol=1e-5, atol=2e-5)


def test_sums_are_taken_in_fp32_whatever_the_logits_are_in() -> None:
    logits = 8 * torch.randn(70, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(logsumexp(logits).double(), logits.double().logsumexp(-1), rtol=1e-6, atol=1e-5)
    tokens = list(range(70))
    expected = logits.double().log_softmax(-1)[tokens, tokens]
    torch.testing.assert_close(token_logps(logits, torch.tensor(tokens)).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batching", ["shared", "padded"])
@pytest.mark.parametrize("learn_written", [False, True])
@pytest.mark.parametrize("arm", ["generic", "direct"])
def test_the_reference_is_the_same_as_by_a_forward_pass(
    tmp_path: Path, engines: dict[str, Any], arm: str, learn_written: bool, batching: Any
) -> None:
    engine = engines["shared"]
    settings = TrainingSettings(learn_written=learn_written, batching=batching, reference="sampler")
    prompts = [prompt(text) for text in TEXTS]
    decoding, budget = replace(FILTERED, logps=True, max_new_tokens=64), 5 if arm == "generic" else None
    outputs = sample(prompts, engine, BUILT_IN[arm], decoding, k=2, seed=1, scaffold_budget=budget)
    pairs = [pair(f"{n:02d}", *outputs[2 * n : 2 * n + 2]) for n in range(len(TEXTS))]
    examples = build_examples(pairs, outputs, settings)
    model = engine.model.config._name_or_path
    live = reference_logps(load_reference(Path(model), settings, dtype="float32"), examples, settings)
    noted = sampled_logps(pairs, outputs, examples)
    assert [logps.pair_id for logps in noted] == [logps.pair_id for logps in live]
    for ours, theirs in zip(noted, live, strict=True):
        assert (ours.chosen, ours.rejected) == pytest.approx((theirs.chosen, theirs.rejected), rel=1e-5, abs=1e-4)
    found = discrepancy(to_check(examples), noted, live)
    assert found.pairs == len(TEXTS)
    assert 0 < found.per_token < 1e-5
    assert found.mean <= found.largest < 1e-3
    require_rounding(found, "here")


def pair(id: str, chosen: Output, rejected: Output) -> Pair:
    return Pair(
        id=id, prompt_id=chosen.prompt_id, kind="scored", chosen_id=chosen.id, rejected_id=rejected.id,
        chosen_score=1.0, rejected_score=0.0, margin=1.0,
    )  # fmt: skip


def test_tokens_that_count_must_have_a_probability_and_others_need_none() -> None:
    tokens, minus = (1, 2, 3), float("-inf")
    written = replace(output("a"), tokens=tokens, written=(True, False, False), logps=(minus, -1.0, -0.5))
    broken = replace(written, id="b", logps=(-1.0, minus, -0.5))
    pairs = [pair("fine", written, replace(written, id="c", logps=(minus, -2.0, -0.25))), pair("bad", written, broken)]
    outputs = [written, broken, replace(written, id="c", logps=(minus, -2.0, -0.25))]
    examples = build_examples(pairs, outputs, TrainingSettings(thought_weight=0.5, response_weight=0.5))
    assert sampled_logps(pairs, outputs, examples[:1]) == [ReferenceLogps(pair_id="fine", chosen=-0.75, rejected=-1.125)]
    with pytest.raises(TrainingError, match=r"the sampler gave pair bad .*-inf.*model\.dtype = 'float32'"):
        sampled_logps(pairs, outputs, examples)


def test_the_same_few_pairs_are_checked_in_whatever_order() -> None:
    examples = made_examples(30)
    chosen = to_check(examples)
    assert len({example.pair_id for example in chosen}) == CHECKED
    assert to_check(random.Random(1).sample(examples, 30)) == chosen
    assert len(to_check(examples[:3])) == 3


def test_what_is_no_rounding_is_refused_by_the_tokens_it_is_spread_over() -> None:
    examples = made_examples(3, longest=9, written=2)
    weight = sum(sum(example.chosen_weights) + sum(example.rejected_weights) for example in examples)
    live = [ReferenceLogps(pair_id=example.pair_id, chosen=-9.0, rejected=-8.0) for example in examples]
    noted = [replace(logps, chosen=logps.chosen - at, rejected=logps.rejected + 2 * at) for at, logps in enumerate(live)]
    found = discrepancy(examples, noted[::-1], live)
    assert (found.pairs, found.mean, found.largest) == (3, pytest.approx(9 / 6), 4.0)
    assert found.per_token == pytest.approx(9 / weight)
    with pytest.raises(TrainingError, match=r"arm iteration 2: .* start a new run without training\.reference = 'sampler'"):
        require_rounding(found, "arm iteration 2")
    require_rounding(replace(found, mean=found.allowed), "arm iteration 2")


def test_rounding_may_be_more_a_token_in_short_outputs() -> None:
    def apart(tokens: int, each: float) -> Discrepancy:
        example = replace(
            made_examples(1)[0],
            chosen_tokens=(5,) * tokens,
            chosen_weights=(1.0,) * tokens,
            rejected_tokens=(6,) * tokens,
            rejected_weights=(1.0,) * tokens,
        )
        live = ReferenceLogps(pair_id=example.pair_id, chosen=-9.0, rejected=-8.0)
        noted = replace(live, chosen=live.chosen - tokens * each, rejected=live.rejected - tokens * each)
        return discrepancy([example], [noted], [live])

    require_rounding(apart(1, 0.07), "as seen in bf16")
    for tokens, each in ((57, 0.12), (16, 0.06), (1, 0.3)):
        with pytest.raises(TrainingError):
            require_rounding(apart(tokens, each), "no rounding")


def test_an_engine_without_log_probabilities_is_refused_before_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from inward.config import parse_recipe

    monkeypatch.setattr("inward.engines.load.load_engine", lambda *_, **__: ScriptedEngine())
    with pytest.raises(UsageError, match=r"training\.reference = 'sampler' needs an engine .* leave training\.reference out"):
        start_engine(parse_recipe(changed(training__reference="sampler")), Path("model"), None, date(2026, 1, 2))
    assert isinstance(start_engine(parse_recipe(TREE), Path("model"), None, date(2026, 1, 2)), ScriptedEngine)


COLUMNS = [
    "id", "prompt_id", "index", "prompt_tokens", "tokens", "written", "text", "thought", "response", "format_error",
    "finish", "tries",
]  # fmt: skip


def test_outputs_without_log_probabilities_are_stored_as_before_and_as_before_read(tmp_path: Path) -> None:
    """One file serves versions that know of the column and those that do not."""
    import pyarrow as pa

    plain, noted = output("a"), replace(output("b"), logps=(-0.1,))
    write_shard(tmp_path / "plain", Output, [plain, plain])
    assert pq.read_schema(tmp_path / "plain").names == COLUMNS
    assert read_shard(tmp_path / "plain", Output) == [plain, plain]
    write_shard(tmp_path / "noted", Output, [plain, noted])
    assert pq.read_schema(tmp_path / "noted").names == [*COLUMNS, "logps"]
    first, second = read_shard(tmp_path / "noted", Output)
    assert first == plain
    assert second.logps == pytest.approx((-0.1,), rel=1e-7), "they are kept in fp32"
    before = pa.schema([field for field in schema_of(Output) if field.name != "logps"])
    assert pq.read_table(tmp_path / "noted", schema=before).equals(
        pa.concat_tables([pq.read_table(tmp_path / name, schema=before) for name in ("plain", "noted")]).slice(2)
    ), "a version without the column reads past it"
