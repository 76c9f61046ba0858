"""Training over several processes: the trajectory of one, whatever dies in between and whoever goes on."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inward.config import EarlyStopSettings, LoraSettings, TrainingSettings, parse_recipe
from inward.errors import InwardError, TrainingError, UsageError
from inward.execution.team import in_processes
from inward.runs.directory import RunDir
from inward.runs.progress import Silent
from inward.stages.run import Run
from inward.training import team
from inward.training.team import deal, open_team
from inward.training.train import train
from tests.integration.test_training_resume import contents
from tests.integration.training_team import Inputs, in_team, train_and_lose_one, train_in_team
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

PLAIN = TrainingSettings(epochs=3, batch_pairs=4, batch_tokens=64, save_steps=2, learning_rate=1e-3, objective="irpo")
SETTINGS = {
    "full": PLAIN,
    "lora": PLAIN.model_copy(update={"lora": LoraSettings(rank=2)}),
    "held out": PLAIN.model_copy(update={"early_stop": EarlyStopSettings(share=0.3, patience=2)}),
}
MEASURED = ("loss", "pair_loss", "nll", "margin", "accuracy", "chosen_logp", "rejected_logp", "kl_on_pairs", "grad_norm", "lr")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    model = tiny_model(tmp_path_factory.mktemp("tiny"), hidden=16, spread=0.1)
    examples = made_examples(9)  # steps of 4, 4 and 1 pairs: in the last one a process has none
    return model, examples, stored_reference(model, examples, PLAIN, dtype="float32")


def alone(inputs: Inputs, settings: TrainingSettings, out: Path, *, dtype: str = "float32", shard: bool = False) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(*inputs, settings, out, seed=5, dtype=dtype, shard=shard)
    torch.set_num_threads(threads)
    return out


def together(
    inputs: Inputs,
    settings: TrainingSettings,
    out: Path,
    *,
    size: int = 2,
    dies_after: str | None = None,
    fails: str | None = None,
    dtype: str = "float32",
    shard: bool = False,
) -> Path:
    report = out.with_name(f"{out.name}-report")
    codes = in_team(size, train_in_team, inputs, settings, out, dies_after, fails, report, dtype, shard)
    assert codes == ([0] * size if dies_after is None else [-signal.SIGKILL] * size)
    return out


def steps(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(found: Path, expected: Path) -> None:
    """Same files, and in them the same trajectory and weights, but for rounding."""
    names = [sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (found, expected)]
    assert names[0] == names[1]
    assert len(steps(found)) == len(steps(expected))
    for ours, theirs in zip(steps(found), steps(expected), strict=True):
        assert (ours["step"], ours["epoch"], ours["tokens"], ours["flops"]) == tuple(
            theirs[name] for name in ("step", "epoch", "tokens", "flops")
        )
        for name in MEASURED:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), (ours["step"], name)
    for path in expected.rglob("*.safetensors"):
        theirs = load_file(path)
        for name, tensor in load_file(found / path.relative_to(expected)).items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-4)


def test_dealing_loses_nothing_is_even_and_knows_no_order() -> None:
    for count, hands in ((1, 1), (1, 3), (9, 2), (40, 4)):
        examples = made_examples(count, longest=60)
        dealt = deal(examples, hands)
        assert sorted(e.pair_id for hand in dealt for e in hand) == [e.pair_id for e in examples]
        held = [sum(e.unique_tokens for e in hand) for hand in dealt]
        assert max(held) - min(held) <= max(e.unique_tokens for e in examples)
        shuffled = random.Random(1).sample(examples, len(examples))
        assert deal(shuffled, hands) == dealt


def test_a_process_a_gpu_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "model": {"path": "smollm2"},
        "prompts": {"sources": [{"kind": "tasks", "count": 8}]},
        "judge": {"kind": "verifiable"},
    }

    def processes(gpus: int, wish: int | None) -> int:
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        recipe = parse_recipe(tree | ({"execution": {"processes": wish}} if wish else {}))
        return Run(recipe, RunDir(tmp_path), Silent()).training_processes

    assert [processes(0, None), processes(1, None), processes(4, None)] == [1, 1, 4]
    assert [processes(0, 2), processes(4, 2)] == [2, 2]
    with pytest.raises(UsageError, match=r"execution\.processes = 2 needs as many GPUs, one for each, and there are 1"):
        processes(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_two_processes_are_one(inputs: Inputs, kind: str, tmp_path: Path) -> None:
    one, two = alone(inputs, SETTINGS[kind], tmp_path / "one"), together(inputs, SETTINGS[kind], tmp_path / "two")
    assert_same(two, one)
    if kind == "held out":
        rows = [[json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()] for out in (two, one)]
        assert len(rows[0]) == 3
        for ours, theirs in zip(*rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_two_processes_are_one_in_bf16(inputs: Inputs, tmp_path: Path) -> None:
    """Gradients of other packs round otherwise, coarsely; two processes go the same way all the same. Sharded or not, they
    compute the same packs, and agree as closely as fp32 does."""
    model, examples, _ = inputs
    given = (model, examples, stored_reference(model, examples, PLAIN, dtype="bfloat16"))
    one = alone(given, PLAIN, tmp_path / "one", dtype="bfloat16")
    two = together(given, PLAIN, tmp_path / "two", dtype="bfloat16")
    assert_same(together(given, PLAIN, tmp_path / "sharded", dtype="bfloat16", shard=True), two)
    for ours, theirs in zip(steps(two), steps(one), strict=True):
        for name in ("loss", "pair_loss", "nll", "chosen_logp", "rejected_logp", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2), (ours["step"], name)
    began, ended, other = (torch.cat([t.flatten() for t in load_file(path / "model.safetensors").values()]) for path in (
        model, one / "epoch_03", two / "epoch_03"
    ))  # fmt: skip
    assert torch.linalg.norm(ended - other) <= 0.1 * torch.linalg.norm(ended - began)


@pytest.mark.slow
def test_more_processes_than_pairs(inputs: Inputs, tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"batch_pairs": 2, "epochs": 1})
    assert_same(together(inputs, settings, tmp_path / "three", size=3), alone(inputs, settings, tmp_path / "one"))


@pytest.mark.slow
def test_a_process_that_runs_out_of_memory_goes_on_by_itself(inputs: Inputs, tmp_path: Path) -> None:
    one, two = alone(inputs, PLAIN, tmp_path / "one"), together(inputs, PLAIN, tmp_path / "two", fails="memory")
    assert [(tmp_path / f"two-report-{rank}").read_text() for rank in (0, 1)] == ["had enough", "took all memory"]
    assert_same(two, one)


@pytest.mark.slow
@pytest.mark.parametrize("dies_after", ["step_00000002", "epoch_01", "step_00000004"])
def test_killed_on_two_it_goes_on_with_one_or_two(inputs: Inputs, dies_after: str, tmp_path: Path) -> None:
    """The same number of processes gives the very bytes, with LoRA's dropout too; another one differs by rounding."""
    settings = PLAIN.model_copy(update={"lora": LoraSettings(rank=2, dropout=0.3)})
    whole = contents(together(inputs, settings, tmp_path / "whole"))
    assert contents(together(inputs, settings, tmp_path / "again")) == whole
    together(inputs, settings, tmp_path / "killed", dies_after=dies_after)
    assert contents(together(inputs, settings, tmp_path / "killed")) == whole

    together(inputs, PLAIN, tmp_path / "fewer", dies_after=dies_after)
    assert_same(alone(inputs, PLAIN, tmp_path / "fewer"), alone(inputs, PLAIN, tmp_path / "one"))


@pytest.mark.slow
def test_killed_on_one_it_goes_on_with_two(inputs: Inputs, tmp_path: Path) -> None:
    together(inputs, PLAIN, tmp_path / "more", size=1, dies_after="step_00000004")
    assert [path.name for path in (tmp_path / "more" / "state").glob("step_*")] == ["step_00000003"]
    assert_same(together(inputs, PLAIN, tmp_path / "more"), alone(inputs, PLAIN, tmp_path / "one"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_of_them(inputs: Inputs, tmp_path: Path) -> None:
    together(inputs, PLAIN.model_copy(update={"learning_rate": 1e38, "warmup": 0.0}), tmp_path / "out")
    said = {(tmp_path / f"out-report-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    assert said.pop().startswith("TrainingError: the loss of step 2 is not finite; its pairs are pair-")
    stored = json.loads((tmp_path / "out" / "bad_batch.json").read_text())
    assert stored["step"] == 2
    assert len(stored["pairs"]) >= 2
    assert not list((tmp_path / "out").glob("epoch_*"))


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
def test_a_process_that_dies_in_a_step_ends_all_with_one_message(
    inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str], shard: bool
) -> None:
    out = tmp_path / "out"
    given = (inputs, PLAIN, out, shard)
    with (
        open_team(2) as addresses,
        pytest.raises(InwardError, match=r"^training: its process died \(killed by the system.*is kept"),
    ):
        in_processes(train_and_lose_one, [(address, *given) for address in addresses], advance=print, label="training")
    assert "Traceback" not in capfd.readouterr().err
    assert [path.name for path in (out / "state").glob("step_*")] == ["step_00000003"]
    assert_same(together(inputs, PLAIN, out, shard=shard), alone(inputs, PLAIN, tmp_path / "one"))


def test_only_errors_of_the_exchange_are_taken_for_a_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "GRACE_S", 0.0)
    closed = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    for lost in (RuntimeError(closed), torch.distributed.DistBackendError("NCCL error")):
        with pytest.raises(TrainingError, match=r"lost each other.*run the same command again"), team.peers():
            raise lost
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), torch.OutOfMemoryError("out of memory")):
        with pytest.raises(type(other), match=str(other)), team.peers():
            raise other
