"""A judge behind a real HTTP server that can be stopped in the middle of its work and started again on the same port."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

READ, WRITTEN = 10, 5
"""Tokens that the server counts for each answer."""


class JudgeServer:
    """Answers each conversation with a verdict that depends on its text alone, after reasons in which the key is quoted.

    `answered` holds the conversations that were answered, in order, and `asked` all. With `stop_after`, the server closes its
    port once it has given that many answers, and drops whoever is still connected.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.stop_after: int | None = None
        self._lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def answer(self, text: str, key: str) -> bytes | None:
        with self._lock:
            self.asked.append(text)
            if self._server is None or len(self.answered) == self.stop_after:
                return None
            self.answered.append(text)
            if len(self.answered) == self.stop_after:
                threading.Thread(target=self.stop).start()
        verdict = "[[A]]" if hashlib.sha256(text.encode()).digest()[0] % 2 else "[[B]]"
        message = {"role": "assistant", "content": f"Both have merit ({key}). {verdict}"}
        usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN}
        return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = server.answer(json.loads(body)["messages"][-1]["content"], self.headers.get("Authorization", ""))
            if data is None:
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    return Handler
