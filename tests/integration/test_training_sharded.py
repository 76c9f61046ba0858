"""Sharded training: each of several processes holds its part, and it is the training of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inward.config import LoraSettings, parse_recipe
from inward.errors import ShortOfMemory, UsageError
from inward.execution.team import in_processes
from inward.runs.directory import RunDir
from inward.runs.place import Place
from inward.runs.progress import Silent
from inward.stages import training as training_stage
from inward.stages.run import Run
from inward.training.batches import collate
from inward.training.logps import sequence_logps
from inward.training.memory import check_memory
from inward.training.sharding import Root, shard
from inward.training.team import Team, open_team
from inward.training.trainee import make_trainee
from inward.training.weights import load_model
from tests.integration.test_training_processes import PLAIN, SETTINGS, alone, assert_same, inputs, together
from tests.integration.test_training_resume import contents
from tests.integration.training_team import Inputs, hold_a_part, in_team, train_short_of_memory
from tests.pairs import stored_reference

__all__ = ["inputs"]
KINDS = SETTINGS | {
    "recomputed": PLAIN.model_copy(update={"gradient_checkpointing": True, "epochs": 1}),
    "recomputed lora": PLAIN.model_copy(update={"gradient_checkpointing": True, "epochs": 1, "lora": LoraSettings(rank=2)}),
    "padded": PLAIN.model_copy(update={"batching": "padded", "epochs": 1}),
    "many passes": PLAIN.model_copy(update={"batch_tokens": 1, "epochs": 1}),  # pair by pair, so 2 + 2, 2 + 2 and 1 + 0
}
LORA = LoraSettings(rank=2, dropout=0.3)
TREE: dict[str, Any] = {
    "model": {"path": "smollm2"},
    "prompts": {"sources": [{"kind": "tasks", "count": 8}]},
    "judge": {"kind": "verifiable"},
}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_sharded_over_two_is_one(inputs: Inputs, kind: str, tmp_path: Path) -> None:
    one = alone(inputs, KINDS[kind], tmp_path / "one")
    assert_same(together(inputs, KINDS[kind], tmp_path / "two", shard=True), one)
    if kind == "held out":
        rows = [
            [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()] for out in (tmp_path / "two", one)
        ]
        for ours, theirs in zip(*rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_another_architecture_whose_head_is_its_own_and_capped(inputs: Inputs, tmp_path: Path) -> None:
    """Gemma 2: trained padded for its windows, with a head that is differentiated by autograd."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, final_logit_softcapping=2.0, tie_word_embeddings=False, sliding_window=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Gemma2ForCausalLM(config).save_pretrained(tmp_path / "model")
    settings, examples = PLAIN.model_copy(update={"epochs": 1}), inputs[1]
    given = (tmp_path / "model", examples, stored_reference(tmp_path / "model", examples, settings, dtype="float32"))
    assert_same(together(given, settings, tmp_path / "two", shard=True), alone(given, settings, tmp_path / "one"))


@pytest.mark.slow
def test_rows_that_do_not_share_out_evenly_and_processes_without_pairs(inputs: Inputs, tmp_path: Path) -> None:
    """Three processes: 16 rows are 6, 6 and 4, an adapter's 2 leave one process with none, and so do steps of 2 pairs."""
    settings = PLAIN.model_copy(update={"batch_pairs": 2, "epochs": 1, "lora": LoraSettings(rank=2)})
    assert_same(together(inputs, settings, tmp_path / "three", size=3, shard=True), alone(inputs, settings, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_each_process_holds_its_part_and_the_gradient_is_the_sum(
    inputs: Inputs, lora: LoraSettings | None, tmp_path: Path
) -> None:
    model, examples, _ = inputs
    settings = PLAIN.model_copy(update={"lora": lora})
    assert in_team(2, hold_a_part, model, examples, settings, tmp_path / "report") == [0, 0]
    first, second = (json.loads((tmp_path / f"report-{rank}").read_text()) for rank in (0, 1))

    assert first["layers"] == second["layers"] == 2
    trainee = make_trainee(model, settings, seed=5, dtype="bfloat16")
    every = sum(p.numel() for p in trainee.model.parameters())
    trained = sum(p.numel() for p in trainee.weights.working)
    for kind, total in {"parameters": every, "masters": trained, "gradients": trained, "moments": 2 * trained}.items():
        numbers, size = zip(first["held"][kind], second["held"][kind], strict=True)
        assert sum(numbers) == total, kind
        assert max(numbers) <= 0.52 * total, kind
        frozen = every - trained if kind == "parameters" else 0
        assert sum(size) == 2 * frozen + 4 * (total - frozen), f"{kind}: bf16 where frozen, fp32 where trained"

    sequence_logps(trainee.model, collate(examples, torch.device("cpu"), trainee.batching)).sum().backward()
    assert second["whole"] == {}, "files are the main process's"
    for name, master in zip(trainee.weights.names, trainee.weights.master, strict=True):
        assert master.grad is not None
        torch.testing.assert_close(torch.tensor(first["whole"][name]), 2 * master.grad, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dies_after", ["step_00000002", "epoch_01"])
def test_killed_sharded_it_goes_on_with_one_and_the_reverse(inputs: Inputs, dies_after: str, tmp_path: Path) -> None:
    one = alone(inputs, PLAIN, tmp_path / "one")
    together(inputs, PLAIN, tmp_path / "joined", dies_after=dies_after, shard=True)
    assert_same(alone(inputs, PLAIN, tmp_path / "joined"), one)
    together(inputs, PLAIN, tmp_path / "cut", size=1, dies_after=dies_after)
    assert_same(together(inputs, PLAIN, tmp_path / "cut", shard=True), one)


@pytest.mark.slow
def test_each_process_stores_its_rows_and_others_go_on_from_them(inputs: Inputs, tmp_path: Path) -> None:
    """Three write 6, 6 and 4 of 16 rows; two, which hold 8 each, go on, and then one."""
    settings = PLAIN.model_copy(update={"lora": LoraSettings(rank=2)})  # of whose rows the third process holds none
    for kind, trained in {"full": PLAIN, "lora": settings}.items():
        expected, out = alone(inputs, trained, tmp_path / f"{kind} alone"), tmp_path / kind
        together(inputs, trained, out, size=3, dies_after="step_00000003", shard=True)
        state = out / "state" / "step_00000002"
        for stored in ("masters", "moments"):
            parts = [load_file(state / f"{stored}-{rank:05d}-of-00003.safetensors") for rank in range(3)]
            numbers = [sum(tensor.numel() for tensor in part.values()) for part in parts]
            assert max(numbers) < 0.5 * sum(numbers), stored
        together(inputs, trained, out, size=2, dies_after="step_00000006", shard=True)
        assert_same(alone(inputs, trained, out), expected)


@pytest.mark.slow
def test_killed_sharded_and_resumed_sharded_it_stores_the_very_bytes(inputs: Inputs, tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"lora": LORA})  # with random numbers
    whole = contents(together(inputs, settings, tmp_path / "whole", shard=True))
    together(inputs, settings, tmp_path / "killed", dies_after="step_00000004", shard=True)
    assert contents(together(inputs, settings, tmp_path / "killed", shard=True)) == whole


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_of_them(inputs: Inputs, tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"learning_rate": 1e38, "warmup": 0.0})
    together(inputs, settings, tmp_path / "out", shard=True)
    said = {(tmp_path / f"out-report-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    assert said.pop().startswith("TrainingError: the loss of step 2 is not finite; its pairs are pair-")
    assert json.loads((tmp_path / "out" / "bad_batch.json").read_text())["step"] == 2
    assert not list((tmp_path / "out").glob("epoch_*"))


@pytest.mark.slow
def test_out_of_memory_all_start_again_with_less(inputs: Inputs, tmp_path: Path) -> None:
    """The process that ran out ends the others, which wait for it, and what it can hold is known to those who go on."""
    longest = max(example.unique_tokens for example in inputs[1])
    settings, out = PLAIN.model_copy(update={"batch_tokens": 4 * longest}), tmp_path / "out"
    given = (inputs, settings, out, longest)
    with open_team(2) as addresses, pytest.raises(ShortOfMemory, match="all start again from the last state, with"):
        in_processes(train_short_of_memory, [(address, *given) for address in addresses], advance=print, label="training")
    stored = {path.name: json.loads(path.read_text()) for path in (out / "state").glob("tokens_*.json")}
    assert stored.keys() == {"tokens_1.json"}
    assert stored["tokens_1.json"] <= longest
    with open_team(2) as addresses:
        in_processes(train_short_of_memory, [(address, *given) for address in addresses], advance=print, label="training")
    assert_same(out, alone(inputs, settings, tmp_path / "one"))


def test_stages_start_again_when_memory_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tries: list[int] = []

    def short_twice(function: Any, calls: Any, **_: Any) -> None:
        tries.append(len(calls))
        if len(tries) < 3:
            raise ShortOfMemory("with 7 tokens at a time")

    monkeypatch.setattr(training_stage, "in_processes", short_twice)
    monkeypatch.setattr(Silent, "say", lambda self, line: said.append(line))
    monkeypatch.setattr(Silent, "begin", lambda self, *what: said.append(f"begin {what}"))
    recipe = parse_recipe(TREE | {"execution": {"processes": 2, "shard": True}})
    place = Place(arm="direct", iteration=1, stage="training")
    call: Any = ()
    training_stage.train_together(Run(recipe, RunDir(tmp_path), Silent()), call, place, 60)
    assert tries == [2, 2, 2]
    assert said == [f"{place}: with 7 tokens at a time", f"begin {(place, 60, 'steps')}"] * 2


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"optimiser": "adamw_8bit"}, r"optimiser = 'adamw_8bit'"),
        ({"lora": {"quantise_base": "nf4"}}, r"lora\.quantise_base = 'nf4'"),
    ],
)
def test_what_comes_in_blocks_is_not_cut(training: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=rf"execution\.shard does not go with training\.{named}"):
        parse_recipe(TREE | {"execution": {"shard": True}, "training": training})


def test_memory_is_reckoned_for_a_part(inputs: Inputs) -> None:
    """Twice the processes, half of what is cut; what stands whole at once stays."""
    model = inputs[0]
    parameters = sum(p.numel() for p in make_trainee(model, PLAIN, seed=0, dtype="float32").model.parameters())
    needs = [check_memory(model, PLAIN, dtype="bfloat16", tokens=64, processes=n, sharded=True) for n in (2, 4)]
    assert needs[0] is not None
    assert needs[1] is not None
    assert needs[0].optimiser == 8 * parameters // 2
    assert needs[0].weights - needs[1].weights == 8 * parameters // 4
    assert needs[0].activations == needs[1].activations
    lora = PLAIN.model_copy(update={"lora": LoraSettings(rank=2)})
    frozen = [check_memory(model, lora, dtype="bfloat16", tokens=64, processes=n, sharded=True) for n in (2, 4)]
    assert frozen[0] is not None
    assert frozen[1] is not None
    assert frozen[0].weights - frozen[1].weights == pytest.approx(2 * parameters / 4 + frozen[0].optimiser / 2, abs=2)


def test_a_model_whose_layers_are_not_known_is_not_cut(inputs: Inputs) -> None:
    """It would be put together whole for every pass."""
    model = load_model(inputs[0], torch.float32)
    model._no_split_modules = None
    with pytest.raises(UsageError, match=r"execution\.shard does not know the layers of LlamaForCausalLM"):
        shard(Root(model), torch.float32, Team(0, 2))


def test_one_process_cuts_nothing(inputs: Inputs, tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"epochs": 1})
    whole = contents(alone(inputs, settings, tmp_path / "one"))
    assert contents(alone(inputs, settings, tmp_path / "cut", shard=True)) == whole
