"""The pairwise judge on real models: SmolLM2 in this process, and a model behind a real OpenAI-compatible server.

The server is `transformers serve`, started by the test on a model folder, without a network.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from inward.config import EndpointEngineSettings, EndpointSettings, PairwiseJudge
from inward.engines.load import load_engine as load_any
from inward.engines.transformers.engine import load_engine
from inward.errors import JudgeError, UsageError
from inward.judging.make import make_judge
from inward.judging.pairwise.by_probability import ProbabilityComparer
from inward.judging.pairwise.by_text import LLMComparer, conversation
from inward.judging.pairwise.comparer import Battle
from inward.judging.pairwise.endpoint import EndpointChat
from inward.judging.pairwise.endpoint_labels import EndpointLabelScorer
from inward.judging.pairwise.engine_chat import EngineChat
from inward.judging.stage import judge_outputs, score_outputs
from inward.models.names import local_folder
from tests.build import output, prompt
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow
QUESTION = prompt("Name the capital of France, in one sentence.", id="p")
ANSWERS = ("The capital of France is Paris.", "Paris", "I like trains. Trains are long, and some of them are red.")
BATTLES = [Battle(prompt=QUESTION, first=a, second=b) for a in ANSWERS for b in ANSWERS if a != b]
PATIENCE = 120.0


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Start `transformers serve` on a free port and yield its address once it says that it is well."""
    pytest.importorskip("fastapi", reason="the packages of transformers[serving] are not installed")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not well(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def well(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), context=8192)


@pytest.fixture(scope="module")
def address(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tiny, tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield url


@pytest.fixture
def chat(address: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> EndpointChat:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    settings = EndpointSettings(base_url=address, model=str(tiny), concurrency=3, price_in=2.0, price_out=6.0)
    return EndpointChat(settings)


def test_a_served_model_answers_as_the_same_model_here_does_and_counts_the_same_tokens(chat: EndpointChat, tiny: Path) -> None:
    engine = load_engine(tiny, dtype="float32", rows=4)
    talks = [conversation(battle, "ab") for battle in BATTLES]
    there = chat.complete(talks, max_tokens=12)
    here = EngineChat(engine=engine, name="here").complete(talks, max_tokens=13)  # one more, so as not to be cut off in vain
    assert [reply.prompt_tokens for reply in there] == [reply.prompt_tokens for reply in here]
    assert all(0 < reply.completion_tokens <= 13 for reply in there)
    for one, other in zip(there, here, strict=True):
        assert one.text is not None
        assert one.text[:8] in (other.text or str(other.error))
    costs = chat.costs()
    assert (costs.answers, costs.failures, costs.uncounted) == (len(talks), 0, 0)
    assert costs.prompt_tokens == sum(reply.prompt_tokens for reply in there)
    assert costs.money == pytest.approx((2 * costs.prompt_tokens + 6 * costs.completion_tokens) / 1e6)


def test_a_served_judge_without_a_verdict_leaves_every_response_unscored(address: str, tiny: Path, chat: EndpointChat) -> None:
    endpoint = EndpointSettings(base_url=address, model=str(tiny))
    judge = make_judge(PairwiseJudge(kind="pairwise", endpoint=endpoint, max_tokens=8, scheme="full"))
    outputs = [output(str(at), "p", text) for at, text in enumerate(ANSWERS)]
    verdicts = judge_outputs([QUESTION], outputs, judge)
    assert len(verdicts) == 6
    assert all(v.value is None and v.unscored for v in verdicts), "random weights say nothing of use in eight tokens"
    scores = score_outputs(outputs, verdicts)
    assert all(s.value is None and "none of its 4 battles was decided" in str(s.unscored) for s in scores)


def test_a_server_that_leaves_the_probabilities_out_is_no_judge_by_probability(chat: EndpointChat) -> None:
    with pytest.raises(JudgeError, match="logprobs"):
        ProbabilityComparer(label_scorer=EndpointLabelScorer(chat=chat)).compare(BATTLES)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return load_engine(local_folder("smollm2"), rows=8)


def test_smollm2_judges_in_words_each_battle_decided_or_an_error_with_its_text(smollm2: Any) -> None:
    outcomes = LLMComparer(chat=EngineChat(engine=smollm2, name="smollm2"), max_tokens=96).compare(BATTLES)
    assert all((outcome.value in (1.0, -1.0)) != bool(outcome.error) for outcome in outcomes)
    assert any(len(outcome.raw.split()) > 2 or "cut off" in str(outcome.error) for outcome in outcomes), "it wrote something"


def test_smollm2_judges_by_the_probabilities_of_a_plain_forward_pass(smollm2: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    settings = PairwiseJudge(kind="pairwise", path="smollm2", verdict="probability", scheme="full")
    judge = make_judge(settings)
    outputs = [output(str(at), "p", text) for at, text in enumerate(ANSWERS)]
    verdicts = judge_outputs([QUESTION], outputs, judge)
    plain = AutoModelForCausalLM.from_pretrained(local_folder("smollm2"), dtype=torch.float32)
    a, b = (smollm2.tokens(label)[0] for label in "AB")
    for verdict in verdicts:
        first, second = (ANSWERS[int(str(id_))] for id_ in (verdict.first, verdict.second))
        talk = conversation(Battle(prompt=QUESTION, first=first, second=second), "ab", wording="at once")
        with torch.inference_mode():
            logits = plain(torch.tensor([smollm2.encode(talk) + smollm2.tokens("[[")])).logits[0, -1]
        expected = float(torch.sigmoid(logits[a] - logits[b]))
        assert json.loads(verdict.detail)["p"] == pytest.approx(expected, abs=0.03)  # bf16 there, float32 here
        assert verdict.value == (1.0 if json.loads(verdict.detail)["p"] > 0.5 else -1.0)


def test_a_server_of_texts_is_refused_for_sampling_before_anything_is_drawn(address: str, tiny: Path) -> None:
    options = EndpointEngineSettings(servers=(address,), model=str(tiny))
    with pytest.raises(UsageError, match=r"no prompts as tokens|returns no tokens") as caught:
        load_any(tiny, "endpoint", options=options)
    assert "as `vllm serve` does" in str(caught.value)
    assert "can only judge" in str(caught.value)
