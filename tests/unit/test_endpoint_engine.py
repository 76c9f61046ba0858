"""The engine behind servers: real HTTP servers before a tiny model, which are killed, broken, replaced and set up wrongly."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from inward.config import EndpointEngineSettings, parse_recipe
from inward.engines.endpoint.client import Backoff
from inward.engines.endpoint.completions import Nonsense, Stretch, read_drawn, read_models, read_scores
from inward.engines.endpoint.engine import EndpointEngine, check_servers, load_engine, require_new_weights
from inward.engines.endpoint.pool import Out, Pool, Server
from inward.engines.engine import Completion, Decoding, Request, Scaffold
from inward.engines.transformers.engine import load_engine as load_here
from inward.errors import EngineError, UsageError
from tests.completions_server import Answer, CompletionsServer
from tests.tiny import tiny_model

QUICK = Backoff(first=0.02, most=0.1)
SHORT = Decoding(max_new_tokens=16, temperature=1.0)
Serve = Callable[..., CompletionsServer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(model: Path = folder, **settings: Any) -> CompletionsServer:
            server = CompletionsServer(model, **settings)
            server.start()
            stack.callback(server.stop)
            return server

        yield start


MADE: list[EndpointEngine] = []


@pytest.fixture(autouse=True)
def _closing() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def engine_of(folder: Path, *servers: CompletionsServer | str, **settings: Any) -> EndpointEngine:
    addresses = tuple(server if isinstance(server, str) else server.url for server in servers)
    options = EndpointEngineSettings(servers=addresses, **{"patience_s": 0.5, "retries": 3, **settings})
    MADE.append(load_engine(folder, dtype="float32", options=options, backoff=QUICK))
    return MADE[-1]


def ask(engine: EndpointEngine, count: int = 4, k: int = 3) -> list[Request]:
    texts = [f"Question {number}" for number in range(count)]
    return [Request(id=text, tokens=engine.encode([{"role": "user", "content": text}]), k=k) for text in texts]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


# --- drawing ---


def test_both_servers_draw_and_the_result_is_that_of_one(serve: Serve, folder: Path) -> None:
    first, second = serve(), serve()
    alone = engine_of(folder, serve())
    both = engine_of(folder, first, second, in_flight=2)
    before = len(first.bodies), len(second.bodies)
    assert both.generate(ask(both, 8), SHORT, seed=1) == alone.generate(ask(alone, 8), SHORT, seed=1)
    assert len(first.bodies) - before[0] > 4
    assert len(second.bodies) - before[1] > 4


def test_at_most_so_many_requests_are_in_flight(serve: Serve, folder: Path) -> None:
    server = serve()
    engine = engine_of(folder, server, in_flight=3)
    lock, running, most = threading.Lock(), 0, 0

    def count(_: str, __: dict[str, Any]) -> Answer:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1
        return 0, b""

    server.act = count
    engine.generate(ask(engine, 5), SHORT, seed=1)
    assert most == 3


def test_log_probabilities_are_those_of_a_forward_pass_here_also_of_what_is_written(serve: Serve, folder: Path) -> None:
    from inward.engines.agreement import forward_logps

    engine = engine_of(folder, serve())
    scaffold = Scaffold(opening="Think:\n", closing="\n\n<R>\n", marker="<R>", budget=5)
    requests = ask(engine, 2, k=2)
    decoding = replace(SHORT, logps=True, max_new_tokens=40, temperature=0.7, top_k=20)
    for completion in engine.generate(requests, decoding, seed=3, scaffold=scaffold):
        (request,) = (request for request in requests if request.id == completion.request_id)
        tokens = (*request.tokens, *completion.tokens)
        expected = forward_logps(folder, None, tokens, dtype="float32", trust_remote_code=False)[len(request.tokens) - 1 :]
        assert completion.logps == pytest.approx(expected, abs=1e-4)


def test_every_setting_of_the_draw_is_sent(serve: Serve, folder: Path) -> None:
    """A server fills in its model's own repetition penalty and the like for what is left out."""
    server = serve()
    engine = engine_of(folder, server)
    server.bodies.clear()
    engine.generate(ask(engine, 1, k=1), SHORT, seed=1)
    body = server.bodies[-1]
    assert (body["repetition_penalty"], body["min_p"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0, 0)
    assert (body["top_k"], body["top_p"], body["temperature"], body["n"]) == (SHORT.top_k, SHORT.top_p, SHORT.temperature, 1)
    assert body["ignore_eos"] is True
    assert body["stop_token_ids"] == [258]


# --- servers that go and come back ---


@contextmanager
def process(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.completions_server", str(folder), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"ready\n"
            yield started
        finally:
            started.kill()


def wait_for(server: Server) -> None:
    deadline = time.monotonic() + 60
    while server.out is not None:
        assert time.monotonic() < deadline, server.out
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_server_costs_the_requests_in_flight_and_comes_back(serve: Serve, folder: Path, other: Path) -> None:
    """The one that comes back was started on other weights: it gets the right ones before any request."""
    alone = engine_of(folder, serve())
    expected = alone.generate(ask(alone, 12), replace(SHORT, max_new_tokens=40), seed=1)
    port = free_port()
    finished = 0

    def kill_soon(done: int, _: int) -> None:
        nonlocal finished
        finished += done
        if finished >= 6 and victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            victim.wait()

    with process(folder, port) as victim:
        engine = engine_of(folder, serve(), f"http://127.0.0.1:{port}/v1", in_flight=4, patience_s=60.0)
        (away,) = (server for server in engine.fleet.servers if str(port) in server.address)
        drawn = engine.generate(ask(engine, 12), replace(SHORT, max_new_tokens=40), seed=1, progress=kill_soon)
        assert victim.poll() is not None
    assert drawn == expected
    assert away.out is not None
    with process(other, port):
        wait_for(away)
        assert engine.generate(ask(engine, 12), replace(SHORT, max_new_tokens=40), seed=1) == expected


def test_a_server_that_drops_some_requests_loses_none(serve: Serve, folder: Path) -> None:
    good, bad = serve(), serve()
    engine = engine_of(folder, good, bad, in_flight=4, patience_s=30.0)
    expected = engine.generate(ask(engine, 6), SHORT, seed=1)
    answers: list[Answer] = [None, (503, b"{}"), (500, b"no"), (200, b"<html>"), None]
    bad.act = lambda *_: answers.pop() if answers else (0, b"")
    assert engine.generate(ask(engine, 6), SHORT, seed=1) == expected
    assert not answers or any(server.out for server in engine.fleet.servers)


def test_where_all_servers_are_gone_the_error_says_why_after_the_patience(serve: Serve, folder: Path) -> None:
    server = serve()
    engine = engine_of(folder, server)
    server.stop()
    with pytest.raises(EngineError, match=r"patience_s = 0\.5 s\. .*cannot be reached.*run the same command again"):
        engine.generate(ask(engine), SHORT, seed=1)
    server.start()
    wait_for(engine.fleet.servers[0])
    assert len(engine.generate(ask(engine), SHORT, seed=1)) == 12


def test_a_server_that_stalls_is_given_up_after_its_time(serve: Serve, folder: Path) -> None:
    server = serve()
    engine = engine_of(folder, server, timeout_s=0.4, retries=1, patience_s=30.0)
    blocked = threading.Event()

    def stall(_: str, body: dict[str, Any]) -> Answer:
        if not body.get("echo") and body["max_tokens"] == SHORT.max_new_tokens:
            blocked.wait(5)
        return 0, b""

    server.act = stall
    try:
        with pytest.raises(EngineError, match=r"2 tries \(sampling\.endpoint\.retries\).*timeout_s = 0\.4 s"):
            engine.generate(ask(engine, 1, k=1), SHORT, seed=1)
    finally:
        blocked.set()


def test_a_server_that_is_busy_is_asked_again(serve: Serve, folder: Path) -> None:
    server = serve()
    engine = engine_of(folder, server, patience_s=30.0)
    answers: list[Answer] = [(429, b"{}")]
    server.act = lambda _, body: answers.pop() if answers and not body.get("echo") else (0, b"")
    assert len(engine.generate(ask(engine), SHORT, seed=1)) == 12


# --- what is wrong from the beginning ---


def test_a_wrong_key_is_said_before_anything_runs(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(key="right-key-123")
    with pytest.raises(UsageError, match=r"refuses the key: .*sampling\.endpoint\.key_env"):
        engine_of(folder, server)
    monkeypatch.setenv("SOME_KEY", "wrong-key-123")
    with pytest.raises(UsageError, match="refuses the key") as caught:
        engine_of(folder, server, key_env="SOME_KEY")
    assert "wrong-key" not in str(caught.value)
    monkeypatch.setenv("SOME_KEY", "right-key-123")
    assert engine_of(folder, server, key_env="SOME_KEY").abilities.reload
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UsageError, match="set the environment variable SOME_KEY"):
        engine_of(folder, server, key_env="SOME_KEY")


def test_a_wrong_name_is_said_with_what_is_served(serve: Serve, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"does not serve the model 'large' but 'tiny': mend sampling\.endpoint\.model"):
        engine_of(folder, serve(), model="large")


def test_a_server_that_is_not_there_is_said_unless_another_one_is(serve: Serve, folder: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(UsageError, match=r"no server of sampling\.endpoint\.servers answers: .*cannot be reached"):
        engine_of(folder, nobody)
    engine = engine_of(folder, nobody, serve())
    assert len(engine.generate(ask(engine), SHORT, seed=1)) == 12


def change(choice: dict[str, Any]) -> Callable[[CompletionsServer], Callable[[str, dict[str, Any]], Answer]]:
    """Return what makes a server answer as it would, with parts of its choice changed (None takes a part away)."""

    def of(server: CompletionsServer) -> Callable[[str, dict[str, Any]], Answer]:
        def act(_: str, body: dict[str, Any]) -> Answer:
            if body.get("echo"):
                return 0, b""
            answer = server._complete(body)
            assert answer is not None
            content = json.loads(answer[1])
            entry = {**content["choices"][0], **choice}
            content["choices"] = [{key: value for key, value in entry.items() if value is not None}]
            return answer[0], json.dumps(content).encode()

        return act

    return of


@pytest.mark.parametrize(
    "answer", [(404, b'{"detail": "Not Found"}'), (400, b'{"error": {"message": "prompt must be a string"}}')]
)
def test_a_server_that_takes_no_tokens_can_only_judge(serve: Serve, folder: Path, answer: Answer) -> None:
    server = serve()
    server.act = lambda *_: answer
    with pytest.raises(UsageError, match=r"takes no prompts as tokens.*needs a server that takes.*vllm serve.*only judge"):
        engine_of(folder, server)


def test_a_server_that_returns_no_tokens_can_only_judge(serve: Serve, folder: Path) -> None:
    server = serve()
    server.act = change({"token_ids": None})(server)
    with pytest.raises(UsageError, match=r"returns no tokens: .*token_ids.*only judge"):
        engine_of(folder, server)


def test_a_server_with_another_tokenizer_is_another_model(serve: Serve, folder: Path) -> None:
    server = serve()

    def one_more(_: str, body: dict[str, Any]) -> Answer:
        if isinstance(body["prompt"], str):
            return server._complete(body | {"prompt": body["prompt"] + "!"})
        return 0, b""

    server.act = one_more
    with pytest.raises(UsageError, match="cuts text into other tokens"):
        engine_of(folder, server)


def test_other_weights_are_found_by_their_probabilities(serve: Serve, folder: Path, other: Path) -> None:
    fixed = serve(other, reload=False)
    with pytest.raises(UsageError, match=r"differ by \d\.\d+ nats .*VLLM_SERVER_DEV_MODE=1, or on "):
        engine_of(folder, fixed)
    assert engine_of(folder, fixed, check_weights=False).context == 1024
    keeps = serve(other)
    keeps.keeps_weights = True
    with pytest.raises(UsageError, match="does not run the weights that it should"):
        engine_of(folder, keeps)


def test_a_run_needs_servers_that_take_new_weights(serve: Serve, folder: Path) -> None:
    engine = engine_of(folder, serve(reload=False))
    assert not engine.abilities.reload
    with pytest.raises(UsageError, match=r"first model only: start vLLM with VLLM_SERVER_DEV_MODE=1"):
        require_new_weights(engine)
    require_new_weights(engine_of(folder, serve()))
    with pytest.raises(UsageError, match="takes no new weights"):
        engine.load(folder)


def test_a_check_finds_what_a_run_would_and_gives_the_server_nothing(serve: Serve, folder: Path, other: Path) -> None:
    def look(*servers: str) -> None:
        settings = EndpointEngineSettings(servers=servers)
        check_servers(settings, folder, trust_remote_code=False, today=date(2026, 1, 1))

    server = serve(other)
    held = server.model
    look(server.url)
    assert server.model is held
    with pytest.raises(UsageError, match="VLLM_SERVER_DEV_MODE=1"):
        look(server.url, serve(reload=False).url)
    with pytest.raises(UsageError, match="cannot be reached"):
        look(f"http://127.0.0.1:{free_port()}/v1")


def test_tempered_probabilities_are_not_taken_for_raw_ones(serve: Serve, folder: Path) -> None:
    engine = engine_of(folder, serve(raw=False))
    assert not engine.abilities.logps
    with pytest.raises(UsageError, match=r"no probabilities that are raw: .*--logprobs-mode raw_logprobs"):
        engine.generate(ask(engine), replace(SHORT, logps=True), seed=1)


# --- new weights ---


def test_a_reload_that_keeps_the_old_weights_is_found_even_if_the_new_ones_are_close(
    serve: Serve, folder: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.002)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    server = serve()
    engine = engine_of(folder, server)
    server.keeps_weights = True
    with pytest.raises(EngineError, match=r"exactly the log-probabilities .* still has the earlier weights"):
        engine.load(tmp_path)
    server.keeps_weights = False
    engine.load(tmp_path)
    assert len(engine.generate(ask(engine), SHORT, seed=1)) == 12


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_is_drawn_from_as_the_engine_here_draws_from_it(serve: Serve, folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings).save_pretrained(tmp_path)
    engine = engine_of(folder, serve())
    before = engine.generate(ask(engine), SHORT, seed=1)
    engine.load(tmp_path, folder)
    adapted = engine.generate(ask(engine), SHORT, seed=1)
    merged = load_here(tmp_path, base=folder, dtype="float32")
    merged.model.save_pretrained(tmp_path / "whole")
    load_here(folder).tokenizer.save_pretrained(tmp_path / "whole")
    whole = engine_of(tmp_path / "whole", serve(tmp_path / "whole"))
    assert adapted == whole.generate(ask(whole), SHORT, seed=1)
    assert adapted != before
    assert len(list(tmp_path.glob(".merged-*"))) == 1
    engine.load(folder)
    assert not list(tmp_path.glob(".merged-*"))
    assert engine.generate(ask(engine), SHORT, seed=1) == before


def test_weights_that_a_server_does_not_see_are_said(serve: Serve, folder: Path, tmp_path: Path) -> None:
    server = serve()
    engine = engine_of(folder, server)
    hidden = tiny_model(tmp_path / "new", seed=2)
    server.act = None
    server._renew = lambda path, _: (500, b"no such folder") if path == "/collective_rpc" else (200, b"{}")  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"under the same path|come back"):
        engine.load(hidden)


# --- a model that changes under way ---


def test_weights_that_are_changed_under_way_are_put_right_or_the_run_stops(serve: Serve, folder: Path, other: Path) -> None:
    server = serve()
    engine = engine_of(folder, server, patience_s=30.0)
    expected = engine.generate(ask(engine), SHORT, seed=1)
    server.take(other)
    assert engine.generate(ask(engine), SHORT, seed=1) == expected
    fixed = serve(reload=False)
    engine = engine_of(folder, fixed)
    fixed.take(other)
    with pytest.raises(EngineError, match="has changed its model under way"):
        engine.generate(ask(engine), SHORT, seed=1)


def test_a_server_that_answers_under_another_name_has_changed(serve: Serve, folder: Path) -> None:
    server = serve(reload=False)
    engine = engine_of(folder, server)

    def renamed(_: str, body: dict[str, Any]) -> Answer:
        answer = server._complete(body)
        assert answer is not None
        return answer[0], json.dumps(json.loads(answer[1]) | {"model": "someone else"}).encode()

    server.act = renamed
    with pytest.raises(EngineError, match=r"answers as 'someone else' instead of 'tiny'"):
        engine.generate(ask(engine), SHORT, seed=1)


# --- nonsense ---

NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"token_ids": []}, "drew 0 tokens"),
    "too many": ({"token_ids": [1] * 99}, "drew 99 tokens"),
    "outside": ({"token_ids": [5000] * 16}, "token 5000, which a vocabulary of 259 does not have"),
    "negative": ({"token_ids": [-1] * 16}, "token -1"),
    "texts": ({"token_ids": ["a"] * 16}, "no token ids"),
    "truths": ({"token_ids": [True] * 16}, "no token ids"),
    "beyond the end": ({"token_ids": [258] * 16}, "after an end token"),
    "too short": ({"token_ids": [1, 2], "finish_reason": "length"}, "--generation-config vllm"),
    "aborted": ({"token_ids": [1] * 16, "finish_reason": "abort"}, "finish_reason 'abort'"),
    "another prompt": ({"prompt_token_ids": [1]}, "other prompt tokens"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_named(serve: Serve, folder: Path, name: str) -> None:
    server = serve()
    engine = engine_of(folder, server, retries=1, patience_s=30.0)
    changed, message = NONSENSE[name]
    of_draws = change(changed)(server)
    server.act = lambda path, body: of_draws(path, body) if body["max_tokens"] == SHORT.max_new_tokens else (0, b"")
    with pytest.raises(EngineError, match=r"2 tries .*answers nonsense: its? .*" + message):
        engine.generate(ask(engine, 1, k=1), SHORT, seed=1)


STRETCH = Stretch(tokens=(1, 2), limit=2, stops=frozenset({9}), seed=0)


@pytest.mark.parametrize(
    "content",
    [{}, {"choices": None}, {"choices": []}, {"choices": [{}, {}]}, {"choices": ["a"]}, {"choices": [{"token_ids": None}]}],
)
def test_an_answer_without_one_choice_of_tokens_is_nonsense(content: dict[str, Any]) -> None:
    with pytest.raises(Nonsense):
        read_drawn(content, STRETCH, vocabulary=10, logps=False)
    with pytest.raises(Nonsense):
        read_scores(content, (1, 2))


@pytest.mark.parametrize(
    "values", [None, [], [-1.0], [None, -1.0], ["a", -1.0], [float("nan"), -1.0], [0.5, -1.0], [True, -1.0]]
)
def test_log_probabilities_that_are_none_are_nonsense(values: Any) -> None:
    choice = {"token_ids": [3, 4], "finish_reason": "length", "logprobs": {"token_logprobs": values}}
    with pytest.raises(Nonsense):
        read_drawn({"choices": [choice]}, STRETCH, vocabulary=10, logps=True)


@pytest.mark.parametrize("content", [{}, {"data": "a"}, {"data": [1]}, {"data": [{"name": "a"}]}])
def test_a_list_of_models_that_is_none_is_nonsense(content: dict[str, Any]) -> None:
    with pytest.raises(Nonsense):
        read_models(content)


# --- settings ---


def recipe(**endpoint: Any) -> dict[str, Any]:
    sampling = {"engine": "endpoint", **({"endpoint": endpoint} if endpoint else {})}
    judge = {"kind": "verifiable"}
    return {"model": {"path": "smollm2"}, "prompts": {"train": 8}, "judge": judge, "sampling": sampling}


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ({}, r"needs sampling\.endpoint\.servers"),
        ({"servers": ["localhost:8000"]}, r"sampling\.endpoint\.servers must begin with http"),
        ({"servers": ["http://key@host/v1"]}, r"a key belongs into sampling\.endpoint\.key_env"),
        ({"servers": ["http://a/v1", "http://a/v1/"]}, "the same server twice"),
        ({"servers": ["http://a/v1"], "key_env": "sk-123"}, "never the key itself"),
    ],
)
def test_settings_of_servers_are_checked(endpoint: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_recipe(recipe(**endpoint))


# --- the pool ---


def test_a_prompt_stays_at_its_server_unless_another_has_much_less_to_do() -> None:
    import asyncio

    async def play() -> list[str]:
        servers = [Server(address="a"), Server(address="b")]
        pool = Pool(servers, in_flight=20, patience_s=1.0, failed=lambda _: None)
        taken = [(await pool.take(servers[0])).address for _ in range(12)]
        pool.fail(servers[0], Out(reason="is ill"))
        return [*taken, (await pool.take(servers[0])).address]

    assert asyncio.run(play()) == ["a"] * 9 + ["b", "a", "b", "b"]


def test_completions_are_ordinary_records(serve: Serve, folder: Path) -> None:
    """What comes back holds the tokens as they were drawn, and their text as the model's own tokenizer reads it."""
    engine, here = engine_of(folder, serve()), load_here(folder, dtype="float32")
    drawn = engine.generate(ask(engine), SHORT, seed=1)
    assert all(isinstance(one, Completion) and one.text == here._text(one.tokens) for one in drawn)
    assert httpx.get(engine.fleet.servers[0].address + "/models").status_code == 200
