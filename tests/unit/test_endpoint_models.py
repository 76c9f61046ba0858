"""The models that a server lists: the right one, a wrong one, a wrong key, and whatever else a server may say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inward.config import EndpointSettings
from inward.errors import UsageError
from inward.judging.pairwise import endpoint_models
from inward.judging.pairwise.endpoint_models import check_served

KEY = "sk-a-long-secret"


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that answers every GET alike; it notes the path and the key of each."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1", asked
    finally:
        http.shutdown()
        http.server_close()


def listing(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


def test_a_model_that_is_listed_is_all_right_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with server(200, listing("other", "judge-70b")) as (url, asked):
        assert check_served(EndpointSettings(base_url=url + "/", model="judge-70b", key_env="JUDGE_KEY")) is None
    assert asked == [("/v1/models", f"Bearer {KEY}")]


def test_a_model_that_is_not_listed_is_named_beside_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with (
        server(200, listing("judge-70b", f"x {KEY}", *(f"m{n}" for n in range(20)))) as (url, _),
        pytest.raises(UsageError) as caught,
    ):
        check_served(EndpointSettings(base_url=url, model="judge-70B", key_env="JUDGE_KEY"))
    message = str(caught.value)
    assert "has no model 'judge-70B'; did you mean 'judge-70b'? It has: 'judge-70b', 'x [key]', 'm0'" in message
    assert "m19" not in message
    assert KEY not in message


@pytest.mark.parametrize(("status", "said"), [(401, "refuses the key"), (403, "refuses the key"), (500, "HTTP 500")])
def test_a_server_that_refuses_is_a_problem(status: int, said: str) -> None:
    with server(status, b"no") as (url, _), pytest.raises(UsageError, match=said):
        check_served(EndpointSettings(base_url=url, model="m"))


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b""), (501, b"<html>"), (200, b"not JSON"), (200, b"[1]"), (200, b'{"data": 3}'), (200, b"[" * 100_000)],
)
def test_a_server_that_lists_nothing_is_only_worth_a_note(status: int, body: bytes) -> None:
    with server(status, body) as (url, _):
        note = check_served(EndpointSettings(base_url=url, model="m"))
    assert note is not None
    assert "does not list its models" in note


def test_a_list_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_models, "MOST_BYTES", 1000)
    with server(200, listing(*(f"model {n}" for n in range(100)))) as (url, _):
        assert check_served(EndpointSettings(base_url=url, model="model 1")) is not None


def test_a_server_that_is_not_there_is_a_problem() -> None:
    with server(200, b"") as (url, _):
        pass
    with pytest.raises(UsageError, match=r"cannot be reached.*start its server, or mend endpoint\.base_url"):
        check_served(EndpointSettings(base_url=url, model="m"))


def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with server(200, listing("m")) as (url, asked), pytest.raises(UsageError, match="JUDGE_KEY"):
        check_served(EndpointSettings(base_url=url, model="m", key_env="JUDGE_KEY"))
    assert asked == []
