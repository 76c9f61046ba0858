"""The endpoint against a real server on this machine that answers, waits, refuses, breaks and hangs."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from inward.config import EndpointSettings
from inward.engines.endpoint.client import Backoff
from inward.engines.endpoint.http_answer import MOST_WAIT_S, Refusal, Trouble, Useless, retry_after
from inward.errors import JudgeError, UsageError
from inward.judging.pairwise.comparer import Reply, Stopped
from inward.judging.pairwise.endpoint import EndpointChat, check
from inward.judging.pairwise.endpoint_answer import Answer as Answered
from inward.judging.pairwise.endpoint_answer import read_answer

KEY = "sk-most-secret-0123456789"
QUICK = Backoff(first=0.01, most=0.05)

Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None drops the connection."""


@dataclass
class Server:
    """What the server does with the text of a request on its n-th try (from 0), and what it has seen."""

    act: Callable[[str, int], Answer]
    url: str = ""
    tries: dict[str, int] = field(default_factory=dict)
    keys: list[str | None] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    running: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def ok(text: str, **usage: Any) -> Answer:
    content = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage or None}
    return 200, {}, json.dumps(content).encode()


def said(status: int, message: str, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps({"error": message}).encode()


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # an answer goes out at once, not its headers first

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            with server.lock:
                server.running += 1
                server.most = max(server.most, server.running)
                n = server.tries[text] = server.tries.get(text, -1) + 1
                server.keys.append(self.headers["Authorization"])
                server.bodies.append(body)
                server.times.append(time.monotonic())
            assert self.path == "/v1/chat/completions"
            answer = server.act(text, n)
            with server.lock:
                server.running -= 1
            if answer is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is what some tests are about."""


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, int], Answer]], Server]]:
    started = []

    def start(act: Callable[[str, int], Answer]) -> Server:
        server = Server(act)
        http = QuietServer(("127.0.0.1", 0), handler(server))
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        started.append((http, thread))
        return server

    yield start
    for http, thread in started:
        http.shutdown()
        thread.join()
        http.server_close()


def chat(url: str, *, failures_to_open: int = 100, **settings: Any) -> EndpointChat:
    settings = {"model": "m", "retries": 2, "timeout_s": 5.0, "key_env": "JUDGE_KEY"} | settings
    return EndpointChat(EndpointSettings(base_url=url, **settings), backoff=QUICK, failures_to_open=failures_to_open)


def ask(endpoint: EndpointChat, *texts: str) -> list[Reply]:
    return endpoint.complete([[{"role": "user", "content": text}] for text in texts], max_tokens=7)


def test_replies_keep_their_order_and_no_more_than_the_cap_are_under_way(serve) -> None:
    def act(text: str, _: int) -> Answer:
        time.sleep(0.05 if int(text) % 3 == 0 else 0.005)  # later ones finish first
        return ok(f"re {text}")

    server = serve(act)
    texts = [str(n) for n in range(30)]
    replies = ask(chat(server.url, concurrency=5), *texts)
    assert [reply.text for reply in replies] == [f"re {text}" for text in texts]
    assert server.most == 5
    assert server.bodies[0]["max_tokens"] == 7
    assert (server.bodies[0]["model"], server.bodies[0]["temperature"]) == ("m", 0)


def test_nothing_to_ask_asks_nothing(serve) -> None:
    server = serve(lambda *_: ok("x"))
    assert ask(chat(server.url)) == []
    assert server.tries == {}


@pytest.mark.parametrize(
    "trouble",
    [
        said(429, "slow down"),
        said(500, "oops"),
        said(503, "loading"),
        said(408, "late"),
        None,
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, b"\xff\xfe not json"),
        (200, {}, b"[" * 100_000),
        (200, {}, b'"a string"'),
        (200, {}, b'{"error": {"message": "the model behind is down"}}'),
        (200, {"Content-Length": "500"}, b"{}"),
        (200, {"Content-Encoding": "gzip"}, b"not gzip"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_may_pass_is_tried_again(serve, trouble: Answer) -> None:
    def act(_: str, n: int) -> Answer:
        return trouble if n < 2 else ok("at last")

    endpoint = chat(serve(act).url, timeout_s=0.3)
    assert ask(endpoint, "q") == [Reply(text="at last")]
    assert (endpoint.costs().retries, endpoint.costs().failures, endpoint.costs().answers) == (2, 0, 1)


def test_what_does_not_pass_is_an_error_of_that_request_alone(serve) -> None:
    server = serve(lambda text, _: said(500, "the server is on fire") if text == "bad" else ok(text))
    endpoint = chat(server.url)
    replies = ask(endpoint, "a", "bad", "b")
    assert [reply.text for reply in replies] == ["a", None, "b"]
    assert replies[1].error == "HTTP 500: the server is on fire (tried 3 times)"
    assert server.tries["bad"] == 2
    assert endpoint.costs().failures == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "context too long", "code": 1}}', "context too long"),
        (b'{"object": "error", "message": "context too long"}', "context too long"),
        (b'{"detail": "context too long"}', "context too long"),
        (b"context too long", "context too long"),
        (b"", "no reason given"),
    ],
)
def test_a_refusal_is_not_tried_again_and_says_what_the_server_said(serve, body: bytes, message: str) -> None:
    server = serve(lambda text, _: (400, {}, body) if text == "bad" else ok(text))
    replies = ask(chat(server.url), "bad", "good")
    assert replies == [Reply(text=None, error=f"HTTP 400: {message}"), Reply(text="good")]
    assert server.tries["bad"] == 0


def test_a_hanging_server_is_left_after_the_time_out(serve) -> None:
    def act(text: str, n: int) -> Answer:
        time.sleep(0.5 if text == "slow" else 0)
        return ok(text)

    start = time.monotonic()
    replies = ask(chat(serve(act).url, timeout_s=0.1, retries=1), "slow", "fast")
    assert replies[0].error == "no answer within 0.1 s (tried 2 times)"
    assert replies[1].text == "fast"
    assert time.monotonic() - start < 0.45


def test_a_trickling_server_is_left_after_the_time_out_too() -> None:
    """A byte now and then defeats a limit on silence."""
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n":
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.02)

    thread = threading.Thread(target=trickle)
    thread.start()
    replies = ask(chat(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout_s=0.15, retries=0), "q")
    thread.join()
    listener.close()
    assert replies[0].error == "no answer within 0.15 s (tried 1 times)"


def test_retry_after_holds_back_every_request(serve) -> None:
    def act(_: str, __: int) -> Answer:
        return said(429, "wait", Retry_After="0.3") if len(server.times) == 1 else ok("ok")

    server = serve(act)
    assert [reply.text for reply in ask(chat(server.url, concurrency=1), "a", "b", "c")] == ["ok"] * 3
    assert server.times[1] - server.times[0] >= 0.3

    server = serve(act)
    ask(chat(server.url, concurrency=2), "a", *"bcdefgh")
    late = [moment - server.times[0] for moment in server.times[2:]]  # the second was under way already
    assert len([wait for wait in late if wait < 0.29]) <= 1


def test_a_wait_that_is_too_long_fails_at_once(serve) -> None:
    server = serve(lambda *_: said(429, "quota used up", Retry_After="86400"))
    assert ask(chat(server.url), "q")[0].error == "HTTP 429: quota used up; it asks to wait 86400 s (tried 1 times)"


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert retry_after("2") == 2
    assert retry_after("0.5") == 0.5
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert 98 <= (retry_after(format_datetime(soon, usegmt=True)) or 0) <= 100
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for odd in (None, "", "soon", "nan", "inf", "-1", "Wed, 99 Oct 2015 07:28:00 GMT", "9" * 400):
        assert retry_after(odd) is None


DATES = (
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Mon, 01 Jan 0001 00:00:00 +2359",
    "Mon, 01 Jan 1 00:00:00",
    "Fri, 31 Dec 99999 23:59:59 GMT",
    "Wed, 21 Oct 2999 07:28:00 +999999999",
    "Wed, -21 Oct 2015 -07:28:00 GMT",
    "1e308",
    "1e18",
    "9" * 300,
    "9" * 5000,
)
headers = (
    st.sampled_from(DATES)
    | st.text(max_size=40)
    | st.builds(
        "{}, {} {} {} {}:{}:{} {}".format,
        st.sampled_from(["Mon", "", "X"]),
        st.integers(-5, 40),
        st.sampled_from(["Jan", "Oct", "Dec", "Xyz"]),
        st.integers(-10, 10**6),
        st.integers(-1, 30),
        st.integers(-1, 70),
        st.integers(-1, 10**4),
        st.sampled_from(["GMT", "-2359", "+2359", "+9999", "-0000", "EST", "+99999999999", ""]),
    )
    | st.floats().map(repr)
    | st.integers().map(str)
)


@given(headers)
def test_whatever_a_header_asks_for_the_wait_is_none_or_bounded(header: str) -> None:
    wait = retry_after(header)
    assert wait is None or 0.0 <= wait <= MOST_WAIT_S


@given(st.integers(100, 599), headers, st.text(max_size=60), st.text(max_size=60))
def test_whatever_a_server_sends_is_an_answer_a_refusal_a_trouble_or_the_end(
    status: int, header: str, location: str, body: str
) -> None:
    result = read_answer(status, {"Retry-After": header, "Location": location}, body, KEY)
    assert isinstance(result, Answered | Refusal | Trouble | Useless)
    assert isinstance(result, Answered) or result.reason


@pytest.mark.parametrize("date", DATES[:2])
def test_a_date_far_ahead_fails_at_once_and_says_the_longest_wait(serve, date: str) -> None:
    server = serve(lambda *_: said(503, "later", Retry_After=date))
    assert ask(chat(server.url), "q")[0].error == "HTTP 503: later; it asks to wait 31622400 s (tried 1 times)"


def test_the_circuit_opens_when_the_endpoint_is_gone(serve) -> None:
    server = serve(lambda *_: said(503, "no backend"))
    endpoint = chat(server.url, failures_to_open=4, concurrency=2, retries=1)
    with pytest.raises(JudgeError) as caught:
        ask(endpoint, *map(str, range(40)))
    for part in (server.url, "4 requests in a row", "no backend", "is stored", "run the same command again", "JUDGE_KEY"):
        assert part in str(caught.value)
    assert len(server.tries) <= 6, "it went on asking"
    server.act = lambda text, _: ok(text)
    assert ask(endpoint, "back")[0].text == "back"


def test_a_port_that_nobody_listens_on_opens_the_circuit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    endpoint = chat(f"http://127.0.0.1:{port}/v1", failures_to_open=100, concurrency=1)
    with pytest.raises(JudgeError, match=r"cannot be reached: ConnectError.*tried 3 times"):
        ask(endpoint, *"abcdef")
    assert endpoint.costs().failures == 1, "where there is no server, no second request has to find out"


def test_what_was_answered_before_the_circuit_opened_is_handed_over(serve) -> None:
    server = serve(lambda text, _: ok(f"re {text}") if text in "ab" else said(503, "gone"))
    with pytest.raises(Stopped) as caught:
        ask(chat(server.url, failures_to_open=2, concurrency=1, retries=0), *"abcdef")
    assert {at: reply.text for at, reply in caught.value.answered.items()} == {0: "re a", 1: "re b", 2: None}
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (JudgeError, str(caught.value)), "another process is told no more than a person"


def test_failures_between_answers_do_not_open_the_circuit(serve) -> None:
    server = serve(lambda text, _: said(500, "bad") if int(text) % 2 else ok(text))
    replies = ask(chat(server.url, failures_to_open=2, concurrency=1, retries=0), *map(str, range(12)))
    assert [reply.text is None for reply in replies] == [False, True] * 6


@pytest.mark.parametrize(
    ("status", "said_of_it"),
    [
        (401, r"refuses the key: mend the key in the environment variable that endpoint\.key_env names"),
        (402, "wants to be paid"),
        (404, r"no such model or address: mend endpoint\.model or endpoint\.base_url"),
        (405, r"mend endpoint\.base_url"),
    ],
)
def test_what_would_refuse_every_request_stops_at_once(serve, status: int, said_of_it: str) -> None:
    server = serve(lambda *_: said(status, "no way"))
    with pytest.raises(JudgeError, match=said_of_it) as caught:
        ask(chat(server.url, concurrency=1), *"abc")
    assert "no way" in str(caught.value)
    assert list(server.tries) == ["a"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_names_where_to_go(serve, status: int) -> None:
    elsewhere = "https://elsewhere.example/v1/chat/completions"
    server = serve(lambda *_: said(status, "moved", Location=elsewhere))
    with pytest.raises(JudgeError, match=r"redirects to https://elsewhere\.example/v1 .*set endpoint\.base_url to that"):
        ask(chat(server.url, concurrency=1), *"abc")
    assert list(server.tries) == ["a"]
    server = serve(lambda *_: said(status, "moved"))
    with pytest.raises(JudgeError, match=r"redirects elsewhere without an address.*endpoint\.base_url"):
        ask(chat(server.url, concurrency=1), *"abc")


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_server_that_refuses_everything_is_stopped_after_a_few_requests_with_its_own_words(serve, concurrency: int) -> None:
    server = serve(lambda *_: said(400, "Unsupported parameter: 'max_tokens'"))
    endpoint = chat(server.url, concurrency=concurrency, failures_to_open=5)
    with pytest.raises(Stopped) as caught:
        ask(endpoint, *map(str, range(640)))
    for part in ("refuses every request, even the shortest", "Unsupported parameter: 'max_tokens'", "endpoint.limit_name"):
        assert part in str(caught.value)
    most = 5 - 1 + concurrency + 1
    assert len(server.bodies) <= most, "five refusals, what was under way by then, and the short request"
    with pytest.raises(Stopped):
        ask(endpoint, *"abc")
    assert len(server.bodies) <= most + 2 * 3


def test_the_short_request_has_the_form_of_the_others(serve) -> None:
    server = serve(lambda *_: said(400, "no system turn"))
    turns = [{"role": "system", "content": "task " * 100}, {"role": "user", "content": "question"}]
    with pytest.raises(Stopped, match=r"judge\.turn = 'user'"):
        chat(server.url, failures_to_open=2, concurrency=1).complete([turns] * 10, max_tokens=7)
    short = server.bodies[-1]
    assert short | {"messages": turns} == server.bodies[0]
    assert [(turn["role"], len(turn["content"]) < 10) for turn in short["messages"]] == [("system", True), ("user", True)]


@pytest.mark.parametrize("status", [400, 413, 422, 403])
def test_bad_requests_among_good_ones_fail_alone_however_many_come_in_a_row(serve, status: int) -> None:
    """All battles of a prompt that is too long for the judge stand together, and the first prompt may be such a one."""
    server = serve(lambda text, _: said(status, "too long") if text.startswith("long") else ok(text))
    texts = [f"long {n}" for n in range(56)] + [f"short {n}" for n in range(8)] + ["long again"]
    for concurrency in (1, 16):
        endpoint = chat(server.url, failures_to_open=5, concurrency=concurrency)
        replies = ask(endpoint, *texts)
        assert [reply.text for reply in replies] == [None if text.startswith("long") else text for text in texts]
        assert {reply.error for reply in replies if reply.text is None} == {f"HTTP {status}: too long"}
        probes = sum(body["messages"][0]["content"] not in texts for body in server.bodies)
        assert 0 < probes <= 12, "fewer and fewer short requests"
        assert endpoint.costs().answers == 8 + probes, "they are booked"
        server.bodies.clear()


def test_a_server_that_forbids_everything_is_stopped_at_once(serve) -> None:
    server = serve(lambda *_: said(403, "not in your country"))
    with pytest.raises(JudgeError, match=r"not in your country.*whether the key, the account or the region may use"):
        ask(chat(server.url, concurrency=1), *"abcdef")
    assert len(server.bodies) == 2, "the request, and a short one"


def test_refusals_between_failures_do_not_close_the_circuit(serve) -> None:
    server = serve(lambda text, _: said(400, "no") if int(text) % 2 else said(500, "broken"))
    with pytest.raises(JudgeError, match="failed 3 requests in a row"):
        ask(chat(server.url, failures_to_open=3, concurrency=1, retries=0), *map(str, range(100)))
    assert len(server.bodies) <= 8


@pytest.mark.parametrize(
    ("settings", "sent", "absent", "named"),
    [
        ({}, {"max_tokens": 7, "temperature": 0.0}, {"max_completion_tokens"}, ""),
        (
            {"limit_name": "max_completion_tokens"},
            {"max_completion_tokens": 7},
            {"max_tokens"},
            " (limit=max_completion_tokens)",
        ),
        ({"temperature": "unset"}, {"max_tokens": 7}, {"temperature"}, " (temperature=unset)"),
        ({"temperature": 1.0}, {"temperature": 1.0}, set(), " (temperature=1.0)"),
        (
            {"extra_body": {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}},
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 7},
            set(),
            ' ({"chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "low"})',
        ),
    ],
)
def test_what_is_sent_can_be_set_and_stands_in_the_name(
    serve, settings: dict[str, Any], sent: dict[str, Any], absent: set[str], named: str
) -> None:
    server = serve(lambda text, _: ok(text))
    endpoint = chat(server.url, **settings)
    ask(endpoint, "q")
    endpoint.first_tokens([[{"role": "user", "content": "q"}]], count=3)
    words, token = server.bodies
    assert words.items() >= sent.items()
    assert not absent & words.keys()
    limit = settings.get("limit_name", "max_tokens")
    assert (token[limit], token["logprobs"], token["top_logprobs"]) == (1, True, 3)
    assert endpoint.name == f"m at {server.url}{named}"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"model": "other"}, r"endpoint\.extra_body\.model is set by endpoint\.model"),
        ({"messages": []}, r"endpoint\.extra_body\.messages is set by"),
        ({"stream": True}, r"endpoint\.extra_body\.stream is set by"),
        ({"n": 2}, r"endpoint\.extra_body\.n is set by"),
        ({"max_tokens": 1}, r"endpoint\.extra_body\.max_tokens is set by judge\.max_tokens"),
        ({"temperature": 1}, r"is set by endpoint\.temperature"),
        ({"logprobs": True}, r"is set by judge\.verdict"),
        ({"api_key": KEY}, r"would store a key"),
        ({"x": float("nan")}, r"endpoint\.extra_body cannot be written as JSON"),
        ({"x": object()}, r"endpoint\.extra_body cannot be written as JSON"),
    ],
)
def test_an_extra_body_only_adds(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        EndpointSettings(base_url="http://host/v1", model="m", extra_body=extra)
    assert KEY not in str(caught.value.errors()[0]["ctx"]["error"])


def test_the_key_is_sent_and_stands_nowhere_else(serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def act(text: str, _: int) -> Answer:
        padded = "x" * 480 + f" your key {KEY} is odd"  # where the message is cut short
        return {"ok": ok(f"I saw {KEY}"), "401": said(401, f"bad key {KEY}"), "500": said(500, KEY)}.get(
            text, said(400, padded)
        )

    server = serve(act)
    endpoint = chat(server.url)
    replies = ask(endpoint, "ok", "400", "500")
    with pytest.raises(JudgeError) as caught:
        ask(endpoint, "401")
    assert set(server.keys) == {f"Bearer {KEY}"}
    shown = [repr(replies), "".join(traceback.format_exception(caught.value)), repr(endpoint), endpoint.name]
    shown += [repr(vars(endpoint)), str(endpoint.costs()), caplog.text]
    for text in shown:
        assert "secret" not in text
        assert "sk-most" not in text
    assert replies[0].text == "I saw [key]"
    assert "bad key [key]" in str(caught.value)


def test_a_server_without_keys_gets_none(serve) -> None:
    server = serve(lambda *_: ok("hi"))
    assert ask(chat(server.url, key_env=None), "q")[0].text == "hi"
    assert server.keys == [None]


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "line\nbreak", "schlüssel-geheim"])
def test_a_key_that_is_none_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(UsageError, match="JUDGE_KEY") as caught:
        chat("http://127.0.0.1:9/v1")
    assert not value or not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "127.0.0.1/v1"},
        {"base_url": "http://host:99999999/v1"},
        {"base_url": "ftp://host/v1"},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"base_url": "https://host/v1", "key_env": KEY},
    ],
)
def test_settings_hold_an_address_and_no_key(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        EndpointSettings(model="m", **settings)
    said = str(caught.value.errors()[0]["ctx"]["error"])  # what a recipe's reader is told
    assert "endpoint.base_url" in said or "endpoint.key_env" in said
    assert KEY not in said


def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(UsageError, match=r"endpoint\.base_url"):
        check(EndpointSettings(base_url="http://ho\x01st/v1", model="m"))


def test_tokens_and_money_are_counted(serve) -> None:
    def act(text: str, _: int) -> Answer:
        return ok(text) if text == "silent" else ok(text, prompt_tokens=1000, completion_tokens=20)

    endpoint = chat(serve(act).url, price_in=2.0, price_out=10.0)
    replies = ask(endpoint, "a", "silent")
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (1000, 20)
    ask(endpoint, "b")
    costs = endpoint.costs()
    assert (costs.prompt_tokens, costs.completion_tokens, costs.answers, costs.uncounted) == (2000, 40, 3, 1)
    assert costs.money == pytest.approx(2000 * 2e-6 + 40 * 10e-6)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": 10**400}, {"odd": True}]
)
def test_a_count_that_is_none_is_not_counted(serve, usage: dict[str, Any]) -> None:
    endpoint = chat(serve(lambda *_: ok("x", **usage)).url, price_in=1.0, price_out=1.0)
    assert ask(endpoint, "q") == [Reply(text="x")]
    assert (endpoint.costs().uncounted, endpoint.costs().money) == (1, 0.0)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": ["part"]}}]},
    ],
)
def test_an_answer_without_a_text_is_an_error(serve, content: dict[str, Any]) -> None:
    reply = ask(chat(serve(lambda *_: (200, {}, json.dumps(content).encode())).url), "q")[0]
    assert reply.text is None
    assert "the answer holds no text" in (reply.error or "")


def test_any_text_goes_there_and_back(serve) -> None:
    server = serve(lambda text, _: ok(text))
    texts = ["", "ü 漢 \U0001f600", "\x00\x1b[2J", '"}]}', "lone \ud800 surrogate", "a\r\nb\u2028c"]
    replies = ask(chat(server.url), *texts)
    assert [reply.text for reply in replies] == [text.replace("\ud800", "?") for text in texts]
