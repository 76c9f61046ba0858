"""What is decided about a model before its weights are loaded: how it is sampled and trained, how long its texts may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inward.config import TrainingSettings
from inward.engines.engine import Decoding, Request
from inward.engines.transformers.engine import TransformersEngine, load_engine
from inward.engines.transformers.padded import PaddedDecoder
from inward.engines.transformers.trial import choose_decoder
from inward.errors import UsageError
from inward.models import architectures
from inward.models.architectures import Way, choose_way, position_limit
from inward.models.miniature import miniature
from inward.training.batches import collate
from inward.training.examples import Example
from inward.training.flops import work_of
from inward.training.logps import sequence_logps
from inward.training.memory import training_needs
from inward.training.reference import load_reference, reference_logps
from inward.training.support import check_architecture
from tests.pairs import made_examples
from tests.tiny import tiny_model, tiny_tokenizer

ORIGINAL = 96
SETTINGS = TrainingSettings()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save(path: Path, kind: str, **values: Any) -> Path:
    """Save a random model of a family with the tiny tokenizer."""
    import transformers

    sizes = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 258, "pad_token_id": 256,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **values})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def longrope(path: Path) -> Path:
    """Save a Phi3 whose rotary frequencies change for all texts of a batch as soon as one is longer than `ORIGINAL`."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [6.0] * 4, "rope_theta": 10000.0, "factor": 8.0}
    return save(
        path,
        "Phi3",
        max_position_embeddings=8 * ORIGINAL,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={**rope, "original_max_position_embeddings": ORIGINAL},
        sliding_window=None,
    )


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return longrope(tmp_path_factory.mktemp("phi3"))


@pytest.fixture(scope="module")
def engine(phi3: Path) -> TransformersEngine:
    return load_engine(phi3, rows=4, dtype="float32")


def plain_logps(path: Path, prompt: tuple[int, ...], output: tuple[int, ...]) -> Tensor:
    from transformers import AutoModelForCausalLM

    logits = AutoModelForCausalLM.from_pretrained(path)(torch.tensor([prompt + output])).logits[0].detach()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(output)[:, None])[:, 0]


def example(prompt: int, chosen: int, rejected: int) -> Example:
    tokens = made_examples(1, longest=max(prompt, chosen, rejected) + 1)[0].prompt_tokens * 40
    return Example(
        pair_id=f"{prompt}-{chosen}",
        prompt_tokens=tokens[:prompt],
        chosen_tokens=tokens[1 : chosen + 1],
        chosen_weights=(1.0,) * chosen,
        rejected_tokens=tokens[2 : rejected + 2],
        rejected_weights=(1.0,) * rejected,
    )


def test_with_longrope_company_changes_no_log_probability_and_the_trainer_finds_the_samplers(
    phi3: Path, engine: TransformersEngine
) -> None:
    prompts = [(65, 66, 67), (70, *range(60, 90))]
    requests = [Request(id=str(index), tokens=prompt, k=2) for index, prompt in enumerate(prompts)]
    drawn = engine.generate(requests, Decoding(max_new_tokens=ORIGINAL - 31, logps=True), seed=1)
    alone = engine.generate(requests[:1], Decoding(max_new_tokens=ORIGINAL - 31, logps=True), seed=1)
    assert max(len(prompts[1]) + len(one.tokens) for one in drawn) == ORIGINAL
    for ours, theirs in zip(drawn[:2], alone, strict=True):
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)
    model = load_reference(phi3, SETTINGS, dtype="float32").model
    for one in drawn:
        prompt = prompts[int(one.request_id)]
        assert one.logps == pytest.approx(plain_logps(phi3, prompt, one.tokens).tolist(), abs=1e-4)
        row = Example(
            pair_id="x", prompt_tokens=prompt, chosen_tokens=one.tokens, chosen_weights=(1.0,) * len(one.tokens),
            rejected_tokens=one.tokens[:1], rejected_weights=(1.0,),
        )  # fmt: skip
        batch = collate([row, example(ORIGINAL - 9, 9, 4)], torch.device("cpu"), "shared")
        assert float(sequence_logps(model, batch)[0].detach()) == pytest.approx(sum(one.logps or ()), abs=1e-3)


def test_beyond_that_length_company_would_change_log_probabilities(phi3: Path) -> None:
    """Why the length is limited: the plain forward pass of transformers, with one longer text in the batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(phi3)
    short = torch.arange(60, 60 + 20)[None]
    longer = torch.arange(ORIGINAL + 1)[None]
    padded = torch.nn.functional.pad(short, (0, longer.shape[1] - short.shape[1]))
    with torch.no_grad():
        alone = model(short).logits[0].log_softmax(-1)
        together = model(torch.cat([padded, longer])).logits[0, :20].log_softmax(-1)
    assert float((alone - together).abs().max()) > 0.1


def test_with_longrope_what_is_longer_is_refused_by_sampler_likelihood_and_trainer(
    phi3: Path, engine: TransformersEngine, caplog: pytest.LogCaptureFixture
) -> None:
    assert engine.context == ORIGINAL
    request = Request(id="a", tokens=tuple(range(60, 60 + 30)), k=1)
    with pytest.raises(
        UsageError, match=rf"sampling\.max_new_tokens = {ORIGINAL - 29} it exceeds the model's context of {ORIGINAL}"
    ):
        engine.generate([request], Decoding(max_new_tokens=ORIGINAL - 29), seed=0)
    with pytest.raises(UsageError, match=f"exceeds the model's context of {ORIGINAL}"):
        engine.logps([tuple(range(ORIGINAL))], [(5,)])
    reference = load_reference(phi3, SETTINGS, dtype="float32")
    reference_logps(reference, [example(ORIGINAL - 10, 10, 3)], SETTINGS)
    with pytest.raises(UsageError, match=f"a pair has {ORIGINAL + 1} tokens.*at most {ORIGINAL}"):
        reference_logps(reference, [example(9, 9, 9), example(ORIGINAL - 10, 11, 3)], SETTINGS)
    load_engine(phi3, dtype="float32")
    assert f"at most {ORIGINAL} tokens (original_max_position_embeddings" in caplog.text


def test_only_positions_that_look_at_the_batch_limit_a_text() -> None:
    from transformers import LlamaConfig

    def limit(**rope: Any) -> int | None:
        return position_limit(LlamaConfig(max_position_embeddings=512, rope_parameters={"rope_theta": 10000.0, **rope}))

    assert limit(rope_type="default") is None
    assert limit(rope_type="yarn", factor=4.0, original_max_position_embeddings=128) is None
    assert limit(rope_type="dynamic", factor=2.0) == 512
    factors = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    assert limit(rope_type="longrope", factor=4.0, original_max_position_embeddings=128, **factors) == 128


def test_an_estimate_stops_nothing_where_layers_differ(caplog: pytest.LogCaptureFixture) -> None:
    """Gemma 4 has heads of two widths, which its configuration refuses to name by one number."""
    from transformers import Gemma4TextConfig

    config = Gemma4TextConfig()
    assert training_needs(config, 10**6, SETTINGS, torch.float32, tokens=64, on=torch.device("cpu")) is None
    assert work_of(miniature(config)) is None
    assert "not known" in caplog.text


def test_before_weights_are_read_the_configuration_tells_or_nothing_does(tmp_path: Path) -> None:
    support = check_architecture(tiny_model(tmp_path / "llama"))
    assert support == architectures.Support(sampling="shared", training="packed")
    sliding = check_architecture(save(tmp_path / "mistral", "Mistral", sliding_window=16, num_key_value_heads=2))
    assert sliding is not None
    assert (sliding.sampling, sliding.training) == ("padded", "padded")
    assert sliding.reasons[0] == "sampling: it attends within a sliding window"


def test_a_model_whose_state_cannot_be_carried_is_refused_by_name_before_and_after_loading(tmp_path: Path) -> None:
    path = save(tmp_path, "Rwkv", context_length=64, attention_hidden_size=32)
    with pytest.raises(UsageError, match=r"RwkvForCausalLM cannot be sampled: .*does not keep what it has read.*Use a model"):
        check_architecture(path)
    elsewhere = check_architecture(path, sampled_here=False)
    assert elsewhere is not None
    assert (elsewhere.sampling, elsewhere.training) == ("refused", "padded")
    with pytest.raises(UsageError, match="RwkvForCausalLM cannot be sampled"):
        load_engine(path, dtype="float32")


def test_a_way_that_fails_or_gives_nan_is_not_taken() -> None:
    def fails(model: Any, exact: bool) -> float:
        raise IndexError("no such layer\nand more")

    ways = [
        Way("a", False, fails),
        Way("b", False, lambda model, exact: float("nan")),
        Way("c", False, lambda model, exact: 0.0),
    ]
    name, reasons = choose_way(None, ways, object())
    assert name == "c"
    assert reasons[0] == "a trial failed with IndexError: no such layer"
    assert "differed" in reasons[1]


def test_what_is_right_in_the_miniature_must_be_right_in_the_model_too() -> None:
    seen: list[bool] = []

    def differs(model: Any, exact: bool) -> float:
        seen.append(exact)
        return 0.0 if exact else 0.5

    assert choose_way(object(), [Way("a", False, differs)], object())[0] is None
    assert seen == [True, False]


@pytest.mark.parametrize("family", ["Bloom", "GPT2", "Mistral", "Mamba"])
def test_the_trial_finds_one_token_too_many_in_a_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    small = miniature(getattr(transformers, f"{family}Config")(), layers=2)
    assert choose_decoder(None, None, small=small)[0] is not None
    monkeypatch.setattr(architectures, "why_not_plain", lambda model: "only the padded decoder is tried here")
    assert choose_decoder(None, None, small=small)[0] == "padded"
    forward = PaddedDecoder._forward

    def careless(self: PaddedDecoder, ids: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> Any:
        seen = mask.clone()
        for row in seen:
            row[: int((row == 0).sum())][-1:] = 1  # the last token of the padding
        return forward(self, ids, seen, positions, **more)

    monkeypatch.setattr(PaddedDecoder, "_forward", careless)
    assert choose_decoder(None, None, small=small)[0] is None
