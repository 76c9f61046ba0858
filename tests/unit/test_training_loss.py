"""The numbers: losses and gradients against TRL and against float64, masks, batches, the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inward.config import Batching, TrainingSettings
from inward.errors import UsageError
from inward.records import Output, Pair
from inward.training.batches import collate, epoch_steps, held_tokens, micro_batches, steps_from
from inward.training.examples import Example, build_examples
from inward.training.logps import check_head, sequence_logps, token_logps
from inward.training.objective import losses, pair_sums
from inward.training.optimiser import learning_rate
from inward.training.support import choose_batching
from inward.training.weights import load_model
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

CPU = torch.device("cpu")
DPO = TrainingSettings()


@pytest.fixture(scope="module")
def seed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), spread=0.1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def policy(path: Path, noise: float = 0.02) -> Any:
    """A model some way from its reference, so that no loss term is at its starting value."""
    model = load_model(path, torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in theirs.values())
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def our_loss(model: Any, examples: list[Example], ref_R: Tensor, settings: TrainingSettings = DPO) -> Tensor:
    batch = collate(examples, CPU)
    return losses(settings, pair_sums(examples, sequence_logps(model, batch), ref_R, batch.counts_R))[0].mean()


def stored(path: Path, examples: list[Example]) -> Tensor:
    found = stored_reference(path, examples, TrainingSettings(), dtype="float32")
    return torch.tensor([logps.chosen for logps in found] + [logps.rejected for logps in found])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("objective", "loss_type", "pairs"),
    [
        ("dpo", ["sigmoid"], 6),
        ("irpo", ["sigmoid", "sft"], 1),
        ("ipo", ["ipo"], 6),
        ("hinge", ["hinge"], 6),
        ("dpo_norm", ["sigmoid_norm"], 6),
    ],
)
def test_loss_and_gradients_are_those_of_trl(
    seed_model: Path, tmp_path: Path, objective: Any, loss_type: list[str], pairs: int
) -> None:
    """IRPO on one pair only: TRL's `sft` term is a mean over the tokens of a batch, IRPO's over its sequences."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    settings = TrainingSettings(objective=objective, nll_weight=0.7 if objective == "irpo" else None)
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        loss_type=loss_type,
        loss_weights=[1.0, 0.7][: len(loss_type)],
        beta=settings.beta,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = DPOTrainer(
        model=policy(seed_model),
        ref_model=load_model(seed_model, torch.float32),
        args=arguments,
        train_dataset=text,
        processing_class=AutoTokenizer.from_pretrained(seed_model),
    )
    examples = made_examples(pairs)
    batch = trainer.data_collator(
        [
            {"prompt_ids": list(e.prompt_tokens), "chosen_ids": list(e.chosen_tokens), "rejected_ids": list(e.rejected_tokens)}
            for e in examples
        ]
    )
    trainer.model.eval()
    theirs = trainer.compute_loss(trainer.model, batch)
    their_gradients = gradients(trainer.model, theirs)

    model = policy(seed_model)
    ref_R = stored(seed_model, examples)
    ours = our_loss(model, examples, ref_R, settings)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.item() != pytest.approx(
        our_loss(load_model(seed_model, torch.float32), examples, ref_R, settings).item(), rel=1e-3
    )
    assert_same_gradients(gradients(model, ours), their_gradients)


def test_irpo_is_equation_1_in_float64(seed_model: Path) -> None:
    examples = made_examples(5, longest=20)
    ref_R = stored(seed_model, examples)
    model = policy(seed_model)
    ours = our_loss(model, examples, ref_R, TrainingSettings(objective="irpo", nll_weight=0.5))

    exact = policy(seed_model).double()
    total = torch.zeros((), dtype=torch.float64)
    for index, example in enumerate(examples):

        def log_pi(tokens: tuple[int, ...], prompt: tuple[int, ...] = example.prompt_tokens) -> Tensor:
            logps_TV = exact(input_ids=torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
            return sum(logps_TV[len(prompt) - 1 + at, token] for at, token in enumerate(tokens))

        won, lost = log_pi(example.chosen_tokens), log_pi(example.rejected_tokens)
        ratio = 0.1 * ((won - ref_R[index].double()) - (lost - ref_R[len(examples) + index].double()))
        total = total - torch.log(torch.sigmoid(ratio)) - 0.5 * won / len(example.chosen_tokens)
    expected = total / len(examples)

    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    expected_gradients = {name: gradient.float() for name, gradient in gradients(exact, expected).items()}
    assert_same_gradients(gradients(model, ours), expected_gradients)


def test_reference_equals_the_policy_bit_for_bit_in_bf16(seed_model: Path) -> None:
    examples, settings = made_examples(9, longest=40), TrainingSettings(batch_pairs=4, batch_tokens=200)
    ref = {r.pair_id: r for r in stored_reference(seed_model, examples, settings, dtype="bfloat16")}
    model = load_model(seed_model, torch.bfloat16)
    batching = choose_batching(model, settings.batching)
    assert batching == "shared"
    for micro in micro_batches(epoch_steps(examples, settings, seed=3, epoch=1)[0], settings.batch_tokens, batching):
        with torch.no_grad():
            found = sequence_logps(model, collate(micro, CPU, batching)).tolist()
        assert found == [ref[e.pair_id].chosen for e in micro] + [ref[e.pair_id].rejected for e in micro]


def test_written_tokens_are_context_and_nothing_else(seed_model: Path) -> None:
    """A masked token's own log-probability is not learned: its gradient is that of a loss that never names it."""
    (example,) = made_examples(1, longest=12, written=4)
    model = policy(seed_model)
    batch = collate([example], CPU)
    assert batch.counts_R.tolist() == [len(example.chosen_tokens) - 4, len(example.rejected_tokens) - 4]
    shown = dataclasses.replace(  # the same tokens, the masked ones as part of the prompt
        example,
        prompt_tokens=example.prompt_tokens + example.chosen_tokens[:4],
        chosen_tokens=example.chosen_tokens[4:],
        chosen_weights=(1.0,) * (len(example.chosen_tokens) - 4),
    )
    torch.testing.assert_close(
        sequence_logps(model, batch)[0], sequence_logps(model, collate([shown], CPU))[0], rtol=1e-5, atol=1e-5
    )
    assert token_logps(model, batch).shape == (int(batch.counts_R.sum()),)  # none of prompts, padding or written tokens


def test_examples_are_found_by_id_and_masked_unless_learned() -> None:
    def output(name: str, tokens: tuple[int, ...]) -> Output:
        return Output(
            id=name, prompt_id="p", index=0, prompt_tokens=(7, 8), tokens=tokens, written=(True, *(False,) * (len(tokens) - 1)),
            text="", thought=None, response="r", format_error=None, finish="stop",
        )  # fmt: skip

    pair = Pair(
        id="x", prompt_id="p", kind="scored", chosen_id="b", rejected_id="a", chosen_score=1.0, rejected_score=0.0, margin=1.0
    )
    outputs = [output("a", (1, 2, 3)), output("b", (4, 5)), output("c", (6,))]
    (example,) = build_examples([pair], outputs, TrainingSettings())
    assert (example.prompt_tokens, example.chosen_tokens, example.rejected_tokens) == ((7, 8), (4, 5), (1, 2, 3))
    assert (example.chosen_weights, example.rejected_weights, example.gap) == ((0.0, 1.0), (0.0, 1.0, 1.0), 1.0)
    (learned,) = build_examples([pair], outputs, TrainingSettings(learn_written=True))
    assert (learned.chosen_weights, learned.rejected_weights) == ((1.0, 1.0), (1.0, 1.0, 1.0))
    with pytest.raises(AssertionError, match="no output a"):
        build_examples([pair], outputs[1:], TrainingSettings())


def test_gradients_do_not_depend_on_padding_or_micro_batches(seed_model: Path) -> None:
    examples = made_examples(8, longest=30)
    ref_R = stored(seed_model, examples)
    model = policy(seed_model)
    settings = TrainingSettings(objective="irpo")
    whole = gradients(model, our_loss(model, examples, ref_R, settings))
    model.zero_grad(set_to_none=True)
    for index, example in enumerate(examples):
        (our_loss(model, [example], ref_R[[index, 8 + index]], settings) / 8).backward()
    assert_same_gradients({name: parameter.grad for name, parameter in model.named_parameters()}, whole)


def test_chunks_give_the_same_values_and_gradients(seed_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = made_examples(4, longest=30)
    ref_R = stored(seed_model, examples)
    model = policy(seed_model)
    whole = our_loss(model, examples, ref_R)
    whole_gradients = gradients(model, whole)
    monkeypatch.setattr("inward.training.logps.CHUNK_LOGITS_CPU", 7 * 259)
    chunked = our_loss(model, examples, ref_R)
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    assert_same_gradients(gradients(model, chunked), whole_gradients)


def test_an_unknown_change_of_the_logits_is_refused(seed_model: Path) -> None:
    model = load_model(seed_model, torch.float32)
    check_head(model)
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        found.logits = found.logits * 3
        return found

    model.forward = scaled
    with pytest.raises(UsageError, match="changes its logits"):
        check_head(model)


def test_known_changes_of_the_logits_are_followed() -> None:
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "initializer_range": 1.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [
            CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25)),
            GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=8.0)),
            Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=2.0)),
        ]
    for model in models:
        check_head(model.eval())


@pytest.mark.parametrize("batching", ["shared", "packed", "padded"])
def test_batches_hold_every_pair_once_within_the_budget_whatever_the_order(batching: Batching) -> None:
    examples, settings = made_examples(23, longest=60), TrainingSettings(batch_pairs=5, batch_tokens=300, epochs=2)
    steps = epoch_steps(examples, settings, seed=1, epoch=1)
    assert [len(step) for step in steps] == [5, 5, 5, 5, 3]
    assert sorted(e.pair_id for step in steps for e in step) == [e.pair_id for e in examples]
    cut = [micro_batches(step, 300, batching) for step in steps]
    assert [sorted(e.pair_id for micro in c for e in micro) for c in cut] == [sorted(e.pair_id for e in s) for s in steps]
    for micro in (micro for micros in cut for micro in micros):
        assert len(micro) == 1 or held_tokens(micro, batching) <= 300
        assert collate(micro, CPU, batching).tokens.numel() == held_tokens(micro, batching)
    assert any(len(micro) > 1 for micros in cut for micro in micros)
    assert micro_batches(steps[0][::-1], 300, batching) == cut[0]
    assert epoch_steps(examples[::-1], settings, seed=1, epoch=1) == steps
    assert epoch_steps(examples, settings, seed=1, epoch=2) != steps
    every = list(steps_from(0, examples, settings, seed=1))
    assert [(step, epoch) for step, epoch, _ in every] == [(i, 1 + i // 5) for i in range(10)]
    assert list(steps_from(7, examples, settings, seed=1)) == every[7:]


def test_weights_weigh_each_tokens_log_probability(seed_model: Path) -> None:
    """Against one row at a time through the bare model in float64; a weight of 0 is a token that is not there."""
    examples = made_examples(3, longest=12)
    draw = torch.Generator().manual_seed(0)

    def weights(tokens: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(torch.randint(0, 4, (len(tokens),), generator=draw).div(2).tolist())

    examples = [
        dataclasses.replace(e, chosen_weights=weights(e.chosen_tokens), rejected_weights=weights(e.rejected_tokens))
        for e in examples
    ]
    batch = collate(examples, CPU)
    exact, expected, counts = load_model(seed_model, torch.float32).double(), [], []
    for e, tokens, weights_T in [
        *((e, e.chosen_tokens, e.chosen_weights) for e in examples),
        *((e, e.rejected_tokens, e.rejected_weights) for e in examples),
    ]:
        logps_TV = exact(input_ids=torch.tensor([e.prompt_tokens + tokens])).logits[0].log_softmax(-1)
        start = len(e.prompt_tokens) - 1
        expected.append(
            sum(w * logps_TV[start + at, t].item() for at, (w, t) in enumerate(zip(weights_T, tokens, strict=True)))
        )
        counts.append(sum(weights_T))
    assert batch.counts_R.tolist() == counts
    assert len(batch.weights_N) == sum(w > 0 for e in examples for w in e.chosen_weights + e.rejected_weights)
    with torch.no_grad():
        assert sequence_logps(load_model(seed_model, torch.float32), batch).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_rises_then_falls_and_is_never_zero(schedule: Any) -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup=0.2, schedule=schedule)
    rates = [learning_rate(step, 20, settings) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert min(rates) > 0
    assert (rates[-1] == 1.0) == (schedule == "constant")


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_schedules_are_those_of_transformers_between_their_zeros(schedule: Any, warmup: float) -> None:
    """Theirs, over one step more of warm-up and of all, starts and ends at a rate of 0; ours leaves those two steps out."""
    from transformers import get_scheduler

    settings, steps = TrainingSettings(learning_rate=3e-4, warmup=warmup, schedule=schedule), 20
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimiser, num_warmup_steps=round(warmup * steps) + 1, num_training_steps=steps + 1)
    for step in range(steps):
        optimiser.step()
        theirs.step()
        assert learning_rate(step, steps, settings) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
