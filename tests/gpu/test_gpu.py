"""What only a GPU can tell. Whoever has one runs this folder, and with it tests that take a GPU where there is one:

    python -m pytest tests/gpu tests/contract/test_engines.py tests/integration/test_memory_turns.py

Nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inward.config import TrainingSettings
from inward.engines.engine import Decoding, Request
from inward.engines.transformers.engine import load_engine
from inward.training.attention import TRIAL, blocked, gathered
from inward.training.batches import collate
from inward.training.logps import sequence_logps
from inward.training.support import choose_batching
from inward.training.train import train
from inward.training.varlen import Heads, varlen, why_not
from inward.training.weights import load_model
from tests.integration.test_golden_run import made
from tests.pairs import made_examples, stored_reference
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
GOLDEN = Path(__file__).parent.parent / "golden" / "training_tiny.json"


@pytest.fixture(autouse=True)
def _all_bits() -> Iterator[None]:
    """Multiply float32 in float32, where GPUs would take TF32: the comparisons are with processors."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_noted_log_probabilities_are_those_of_a_plain_pass_on_the_processor(tmp_path: Path) -> None:
    engine = load_engine(tiny_model(tmp_path), rows=6, dtype="float32")
    torch.set_float32_matmul_precision("highest")  # loading has allowed TF32
    assert engine.model.device.type == "cuda"
    requests = [
        Request(id=text, tokens=engine.encode([{"role": "user", "content": text}]), k=3) for text in ("Hi", "Name a river.")
    ]
    drawn = engine.generate(requests, Decoding(max_new_tokens=24, logps=True), seed=0)
    plain = load_model(tmp_path, torch.float32, onto=torch.device("cpu"))
    prompts = {request.id: request.tokens for request in requests}
    for completion in drawn:
        prompt = prompts[completion.request_id]
        with torch.no_grad():
            logps_TV = plain(torch.tensor([prompt + completion.tokens])).logits[0].log_softmax(-1)
        expected = [float(logps_TV[len(prompt) - 1 + at, token]) for at, token in enumerate(completion.tokens)]
        assert completion.logps == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("batching", ["shared", "packed", "padded"])
def test_log_probabilities_of_training_are_those_of_the_processor(tmp_path: Path, batching: str) -> None:
    path, examples = tiny_model(tmp_path, spread=0.1), made_examples(7, longest=40)
    found = []
    for target in (torch.device("cpu"), torch.device("cuda")):
        model = load_model(path, torch.float32, onto=target)
        assert choose_batching(model, batching) == batching  # type: ignore[arg-type]
        with torch.no_grad():
            found.append(sequence_logps(model, collate(examples, target, batching)).cpu())  # type: ignore[arg-type]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-3)


def test_training_in_float32_follows_the_processors_trajectory(tmp_path: Path) -> None:
    """The settings are those of tests/integration/test_training.py, whose golden losses a processor has made."""
    settings = TrainingSettings(epochs=10, batch_pairs=4, learning_rate=2e-3, warmup=0.1, objective="irpo")
    model, examples, steps = tiny_model(tmp_path / "model", hidden=16, spread=0.1), made_examples(8), []
    reference = stored_reference(model, examples, settings, dtype="float32")
    train(model, examples, reference, settings, tmp_path / "out", seed=7, dtype="float32", on_step=steps.append)
    golden = json.loads(GOLDEN.read_text())
    assert len(steps) == len(golden)
    for step, expected in zip(steps, golden, strict=True):
        assert {name: getattr(step, name) for name in expected} == pytest.approx(expected, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize(("query", "key", "width"), [(9, 3, 64), (32, 8, 128), (16, 16, 80), (8, 1, 256)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_variable_length_kernels_are_right(query: int, key: int, width: int, dtype: torch.dtype) -> None:
    heads = Heads(
        device=torch.device("cuda"), dtype=dtype, query=query, key=key, width=width, value_width=width, scaling=width**-0.5
    )
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("PyTorch's variable-length kernels need a GPU of compute capability 8.0")
    assert why_not(varlen, gathered, blocked, TRIAL, heads) is None
    assert why_not(varlen, gathered, blocked, TRIAL, replace(heads, dtype=torch.float32)) is not None, (
        "they have no such kernel"
    )


@pytest.mark.slow
def test_a_whole_run_is_made_by_processes_on_the_gpu(tmp_path: Path) -> None:
    """The small recipe of the golden run. What is drawn may differ from a processor's; that all is stored may not."""
    golden = json.loads((GOLDEN.parent / "run_tiny.json").read_text())
    stages = {name.rpartition("/")[0] for name in golden if name.endswith(".json")}
    assert stages <= {name.rpartition("/")[0] for name in made(tmp_path)}
