"""The engine behind servers against real `vllm serve` processes (its build for processors), two of them.

Run in the environment of `make test-vllm`, where `vllm` can be imported.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from inward.config import EndpointEngineSettings
from inward.engines.agreement import forward_logps
from inward.engines.endpoint.client import Backoff
from inward.engines.endpoint.engine import EndpointEngine, load_engine
from inward.engines.engine import Completion, Decoding, Request, Scaffold
from inward.errors import EngineError, UsageError
from tests.tiny import tiny_model

pytest.importorskip("vllm", reason="vLLM is not installed here")
pytestmark = pytest.mark.slow
PATIENCE = 300.0
KEY = "a-key-of-the-tests"
LONG = Decoding(max_new_tokens=48, temperature=1.0, logps=True)
SCAFFOLD = Scaffold(opening="Think:\n", closing="\n\n<R>\n", marker="<R>", budget=12)
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "HF_HUB_OFFLINE": "1",
}


class Vllm:
    """One server: a group of processes, since the one that answers leaves the model to another one."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            self.port = int(held.getsockname()[1])
        self._model, self._log, self._options = model, log, options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model)]
        command += ["--served-model-name", "tiny", "--port", str(self.port), "--host", "127.0.0.1", "--enforce-eager"]
        command += ["--dtype", "float32", "--block-size", "32", "--max-model-len", "1024", "--api-key", KEY, *self._options]
        env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | ENVIRONMENT
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)

    def wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while not self._is_well():
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.5)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _is_well(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


def vllm_model(path: Path, seed: int, *, tied: bool) -> Path:
    """Save a tiny model of a size of heads that vLLM takes, with an output head of its own unless `tied`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_model(path, seed=seed, hidden=128, heads=4, kv_heads=2, spread=0.2)
    if not tied:
        config = AutoConfig.from_pretrained(path)
        config.tie_word_embeddings = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "first": vllm_model(folder / "first", 0, tied=False),
        "second": vllm_model(folder / "second", 1, tied=False),
        "tied": vllm_model(folder / "tied", 0, tied=True),
        "other tied": vllm_model(folder / "other", 1, tied=True),
    }


@pytest.fixture(scope="module")
def servers(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Vllm]]:
    logs = tmp_path_factory.mktemp("logs")
    pair = [Vllm(folders["first"], logs / f"{number}.txt") for number in range(2)]
    try:
        for server in pair:
            server.start()
        for server in pair:
            server.wait()
        yield pair
    finally:
        for server in pair:
            server.kill()


@contextmanager
def engine_of(folder: Path, *servers: Vllm, **settings: Any) -> Iterator[EndpointEngine]:
    addresses = tuple(server.url for server in servers)
    options = EndpointEngineSettings(
        servers=addresses, **{"key_env": "TEST_KEY", "patience_s": 5.0, "in_flight": 8, **settings}
    )
    engine = load_engine(folder, dtype="float32", options=options, backoff=Backoff(first=0.2, most=1.0))
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def ask(engine: EndpointEngine, count: int = 3, k: int = 4) -> list[Request]:
    texts = [f"Question {number}: why?" for number in range(count)]
    return [Request(id=text, tokens=engine.encode([{"role": "user", "content": text}]), k=k) for text in texts]


def tokens_of(drawn: list[Completion]) -> list[tuple[int, ...]]:
    return [one.tokens for one in drawn]


def agree(folder: Path, requests: list[Request], drawn: list[Completion]) -> None:
    prompts = {request.id: request.tokens for request in requests}
    for one in drawn[::5]:
        prompt = prompts[one.request_id]
        here = forward_logps(folder, None, (*prompt, *one.tokens), dtype="float32", trust_remote_code=False)
        assert one.logps == pytest.approx(here[len(prompt) - 1 :], abs=1e-3)


def test_tokens_and_log_probabilities_are_those_of_the_model_also_after_a_reload(
    servers: list[Vllm], folders: dict[str, Path]
) -> None:
    with engine_of(folders["first"], *servers) as engine:
        assert engine.abilities.logps
        requests = ask(engine)
        first = engine.generate(requests, LONG, seed=1)
        agree(folders["first"], requests, first)
        agree(folders["first"], requests, engine.generate(requests, LONG, seed=2, scaffold=SCAFFOLD))
        engine.load(folders["second"])
        second = engine.generate(requests, LONG, seed=1)
        agree(folders["second"], requests, second)
        assert tokens_of(second) != tokens_of(first)
        engine.load(folders["first"])
        assert tokens_of(engine.generate(requests, LONG, seed=1)) == tokens_of(first)


def test_seeds_belong_to_indices_and_scaffolds_hold(servers: list[Vllm], folders: dict[str, Path]) -> None:
    with engine_of(folders["first"], *servers) as engine:
        (request,) = ask(engine, count=1)
        decoding = replace(LONG, logps=False)
        together = engine.generate([request], decoding, seed=5)
        assert len({one.tokens for one in together}) > 1
        apart = engine.generate([replace(request, k=2, indices=(1, 3))], decoding, seed=5)
        assert apart == [together[1], together[3]]
        for one in engine.generate([request], decoding, seed=6, scaffold=SCAFFOLD):
            assert one.text.startswith("Think:\n")
            assert "<R>" in one.text
            assert len(one.tokens) <= decoding.max_new_tokens


def test_a_killed_server_costs_the_requests_in_flight_and_comes_back(servers: list[Vllm], folders: dict[str, Path]) -> None:
    decoding = replace(LONG, logps=False, max_new_tokens=96)
    with engine_of(folders["second"], *servers, patience_s=PATIENCE, in_flight=4) as engine:
        requests = ask(engine, count=6)
        expected = engine.generate(requests, decoding, seed=9)
        finished = 0

        def kill_soon(done: int, _: int) -> None:
            nonlocal finished
            finished += done
            if finished == 4:
                servers[1].kill()

        assert engine.generate(requests, decoding, seed=9, progress=kill_soon) == expected
        (gone,) = (server for server in engine.fleet.servers if server.address == servers[1].url)
        assert gone.out is not None
        servers[1].start()  # on the first model: it is given the second one before any request
        deadline = time.monotonic() + PATIENCE
        while gone.out is not None:
            assert time.monotonic() < deadline, gone.out
            time.sleep(0.2)
        assert engine.generate(requests, decoding, seed=9) == expected


def test_a_wrong_key_and_a_wrong_name_are_said(
    servers: list[Vllm], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"does not serve the model 'large' but 'tiny'"):
        ExitStack().enter_context(engine_of(folders["first"], servers[0], model="large"))
    monkeypatch.setenv("TEST_KEY", "another-key-1")
    with pytest.raises(UsageError, match=r"refuses the key: .*sampling\.endpoint\.key_env"):
        ExitStack().enter_context(engine_of(folders["first"], servers[0]))


def test_a_reload_that_keeps_old_weights_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    """vLLM 0.32 keeps a packed copy of a tied output head on processors: it goes on with the earlier one, and says success.

    Its log-probabilities are told by processed ones here, too.
    """
    server = Vllm(folders["tied"], tmp_path / "log.txt", "--logprobs-mode", "processed_logprobs")
    try:
        server.start()
        server.wait()
        with engine_of(folders["tied"], server) as engine:
            assert not engine.abilities.logps
            with pytest.raises(EngineError, match="does not run the weights that it should"):
                engine.load(folders["other tied"])
    finally:
        server.kill()
