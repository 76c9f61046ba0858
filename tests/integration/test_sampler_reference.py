"""Whole runs whose reference is what the sampler noted: they are those with a computed one, and a wrong one trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inward.config import load_recipe
from inward.engines.transformers import decode
from inward.errors import TrainingError
from inward.loop import run_loop
from inward.records import Output
from inward.runs.directory import RunDir
from inward.runs.progress import Silent
from inward.runs.shards import read_stage
from inward.stages.run import Run
from inward.storage import read_json
from inward.training.examples import ReferenceLogps
from inward.training.metrics import read_metrics
from tests.integration.test_kill import Forks, contents, forks, write_recipe
from tests.tiny import tiny_model

__all__ = ["forks"]
pytestmark = pytest.mark.slow
SAMPLER = "training.reference=sampler"
LEARNING = ("training.thought_weight=0.5", "training.learn_written=true", "training.objective=irpo", "sampling.temperature=1.2")


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def done(recipe: Path, out: Path, *overrides: str) -> tuple[RunDir, list[str]]:
    told = Told()
    run_loop(Run(load_recipe(recipe, list(overrides)), RunDir(out), told))
    return RunDir(out), told.lines


def test_the_run_is_that_with_a_computed_reference(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    usual, before = done(recipe, tmp_path / "previous", *LEARNING)
    other, after = done(recipe, tmp_path / "sampler", *LEARNING, SAMPLER)
    assert [line for line in after if "sampler" not in line] == before
    for arm in ("thinking", "direct"):
        folders = [run.iteration(arm, 1) for run in (usual, other)]
        for parts in ("pairs", "scores", "verdicts", "prompts"):
            shards = [{path.name: path.read_bytes() for path in (folder / parts).glob("*")} for folder in folders]
            assert shards[0] == shards[1], parts
        outputs = read_stage(folders[1] / "outputs", Output)
        assert all(output.logps is not None and len(output.logps) == len(output.tokens) for output in outputs)
        for validated in folders[1].glob("validation/*/outputs"):
            assert all(output.logps is None for output in read_stage(validated, Output)), "nothing needs them there"
        references = [sorted(read_stage(folder / "reference", ReferenceLogps), key=lambda r: r.pair_id) for folder in folders]
        for computed, noted in zip(*references, strict=True):
            assert computed.pair_id == noted.pair_id
            assert (noted.chosen, noted.rejected) == pytest.approx((computed.chosen, computed.rejected), abs=1e-4)
        steps = [read_metrics(folder / "checkpoints" / "metrics.jsonl") for folder in folders]
        for ours, theirs in zip(*steps, strict=True):
            for name in ("loss", "grad_norm", "chosen_logp", "rejected_logp", "margin"):
                assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4, abs=1e-4), (ours.step, name)
        models = [load_file(folder / "model" / "model.safetensors") for folder in folders]
        for name, weights in models[0].items():
            torch.testing.assert_close(models[1][name], weights, rtol=1e-3, atol=1e-4)
        (row,) = (row for row in read_json(other.summary)["arms"][arm] if row["iteration"] == 1)
        found = row["sampler_discrepancy"]
        assert found == read_json(folders[1] / "reference.json")["sampler_discrepancy"]
        assert 0 < found["mean"] <= found["largest"] < 1e-3
        assert found["pairs"] == min(8, len(references[1]))
        assert any(line.startswith(f"{arm} iteration 1: log-probabilities of the sampler differ") for line in after)
        assert not (folders[0] / "reference.json").exists()


def test_probabilities_that_are_not_raw_train_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = decode.token_logps
    monkeypatch.setattr(decode, "token_logps", lambda logits, tokens: raw(logits / 0.8, tokens))
    peaked = tiny_model(tmp_path / "peaked", spread=0.3)  # with flat distributions a temperature changes next to nothing
    overrides = [SAMPLER, "arms=['direct']", f"model.path={peaked}"]
    with pytest.raises(TrainingError, match=r"direct iteration 1: .* nats a sequence .*tempered or filtered"):
        done(write_recipe(tmp_path), tmp_path / "run", *overrides)
    assert not (tmp_path / "run" / "direct" / "iter_001" / "checkpoints").exists()


def test_processes_do_not_matter_and_the_setting_cannot_change(tmp_path: Path, forks: Forks) -> None:
    recipe = str(write_recipe(tmp_path))

    def run(out: str, *overrides: str) -> dict[str, int]:
        forks.log.write_text("")
        return forks.run("run", recipe, "arms=['thinking']", *overrides, "--out", str(tmp_path / out))

    assert run("here", SAMPLER) == {"code": 0}, forks.log.read_text()
    assert "at most" in forks.log.read_text()
    assert run("apart", SAMPLER, "execution.isolate=true") == {"code": 0}, forks.log.read_text()
    here, apart = (contents(tmp_path / name) for name in ("here", "apart"))
    assert "thinking/iter_001/reference.json" in here
    assert {name for name in here if here[name] != apart.get(name)} == {"config.json"}
    assert run("here") == {"code": 2}
    assert "training.reference: 'sampler' there, 'previous' now" in " ".join(forks.log.read_text().split())
