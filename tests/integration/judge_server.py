"""A judge behind a real HTTP server that can be stopped in the middle of its work and started again on the same port."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

READ, WRITTEN = 10, 5
"""Tokens that the server counts for each answer."""


class JudgeServer:
    """Answers each conversation with a verdict that depends on its text alone, after reasons in which the key is quoted.

    `answered` holds the conversations that were answered, in order, and `asked` all. With `stop_after`, the server closes its
    port once it has given that many answers, and drops whoever is still connected. `most_at_once` is how many requests were
    under way at the same time, each for `delay_s` seconds. Where the request asks for probabilities, it gets those of A and B.
    """

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.stop_after: int | None = None
        self.delay_s = delay_s
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def answer(self, text: str, key: str, *, by_probability: bool = False) -> bytes | None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay_s)
        with self._lock:
            self.at_once -= 1
            self.asked.append(text)
            if self._server is None or len(self.answered) == self.stop_after:
                return None
            self.answered.append(text)
            if len(self.answered) == self.stop_after:
                threading.Thread(target=self.stop).start()
        byte = hashlib.sha256(text.encode("utf-8", "replace")).digest()[0]
        verdict = "A" if byte % 2 else "B"
        message = {"role": "assistant", "content": verdict if by_probability else f"Both have merit ({key}). [[{verdict}]]"}
        choice: dict[str, Any] = {"message": message, "finish_reason": "length" if by_probability else "stop"}
        if by_probability:
            p = (byte + 0.5) / 256
            top = [{"token": "A", "logprob": math.log(p)}, {"token": "B", "logprob": math.log(1 - p)}]
            choice["logprobs"] = {"content": [{"token": verdict, "top_logprobs": top}]}
        usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN}
        return json.dumps({"choices": [choice], "usage": usage}).encode()


@contextmanager
def judge_server(*, delay_s: float = 0.0) -> Iterator[JudgeServer]:
    server = JudgeServer(delay_s=delay_s)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # callers that come at once are let in at once


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text, key = body["messages"][-1]["content"], self.headers.get("Authorization", "")
            data = server.answer(text, key, by_probability="logprobs" in body)
            if data is None:
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    return Handler
