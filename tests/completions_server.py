"""A real HTTP server in front of a tiny model: the part of vLLM's interface that the engine needs, and ways to break it.

Rows of all requests are decoded together, without a cache: for models of a few thousand weights that is the fastest. As a
program (`python -m tests.completions_server FOLDER PORT`) it is a process that can be killed.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

Answer = tuple[int, bytes] | None
"""Status and body; None drops the connection."""
Act = Callable[[str, dict[str, Any]], Answer]
NOT_FOUND = (404, b'{"detail": "Not Found"}')
WRONG_METHOD = (405, b'{"detail": "Method Not Allowed"}')


LOADING = threading.Lock()


@cache
def _load(folder: Path, _: int) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


def loaded(folder: Path, version: int) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a folder. `transformers` cannot load two models at once in threads."""
    with LOADING:
        return _load(folder, version)


@dataclass
class _Row:
    """One choice that is being drawn. `scores` are those of the prompt's tokens after the first, where they are asked for."""

    body: dict[str, Any]
    tokens: list[int]
    prompt: int
    random: np.random.Generator
    logps: list[float] = field(default_factory=list)
    scores: list[float] | None = None
    done: Future[None] = field(default_factory=Future)


class CompletionsServer:
    """`act` may answer in the model's place, once `calm` is False. `bodies` are all requests for completions that came in.

    `reload`: whether there are addresses for new weights, which `taken` lists. `raw`: whether log-probabilities are raw.
    """

    def __init__(
        self, folder: Path, *, name: str = "tiny", reload: bool = True, raw: bool = True, key: str | None = None
    ) -> None:
        self.name, self.reload, self.raw, self.key = name, reload, raw, key
        self.act: Act | None = None
        self.keeps_weights = False
        self.taken: list[Path] = []
        self.bodies: list[dict[str, Any]] = []
        self.delay_s = 0.0
        self.port = 0
        self.tokenizer: Any = None
        self._waiting: queue.Queue[_Row] = queue.Queue()
        self._server: ThreadingHTTPServer | None = None
        self.take(folder)
        threading.Thread(target=self._decode, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def take(self, folder: Path) -> None:
        self.model, tokenizer = loaded(folder, (folder / "model.safetensors").stat().st_mtime_ns)
        self.tokenizer = tokenizer or self.tokenizer  # new weights come without one

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def answer(self, method: str, path: str, body: dict[str, Any], key: str) -> Answer:
        if self._server is None:
            return None
        if self.key is not None and path.startswith("/v1") and key != f"Bearer {self.key}":
            return 401, json.dumps({"error": "Unauthorized"}).encode()
        if self.act is not None and (method, path) == ("POST", "/v1/completions"):
            answer = self.act(path, body)
            if answer is None or answer[0]:
                return answer
        if path == "/v1/models":
            context = self.model.config.max_position_embeddings
            return _json({"data": [{"id": self.name, "max_model_len": context, "parent": None}]})
        if path in ("/collective_rpc", "/reset_prefix_cache") and self.reload:
            return WRONG_METHOD if method == "GET" else self._renew(path, body)
        if path == "/v1/completions":
            return WRONG_METHOD if method == "GET" else self._complete(body)
        return NOT_FOUND

    def _renew(self, path: str, body: dict[str, Any]) -> Answer:
        if path == "/reset_prefix_cache":
            return _json({"success": True})
        folder = Path(body["kwargs"]["weights_path"])
        if not (folder / "model.safetensors").is_file():
            return 500, b"Internal Server Error"
        if not self.keeps_weights:
            self.take(folder)
        self.taken.append(folder)
        return _json({"results": [None]})

    def _complete(self, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        if body["model"] != self.name:
            return 404, json.dumps({"error": {"message": f"The model `{body['model']}` does not exist."}}).encode()
        prompt = body["prompt"]
        tokens = self.tokenizer(prompt, add_special_tokens=False).input_ids if isinstance(prompt, str) else list(prompt)
        time.sleep(self.delay_s)
        row = _Row(body=body, tokens=list(tokens), prompt=len(tokens), random=np.random.default_rng(body["seed"]))
        self._waiting.put(row)
        row.done.result()
        drawn = row.tokens[row.prompt :]
        stopped = drawn[-1] in body.get("stop_token_ids", [])
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.tokenizer.decode(drawn),
            "finish_reason": "stop" if stopped else "length",
            "token_ids": drawn,
            "prompt_token_ids": tokens,
        }
        if "logprobs" in body:
            values = [None, *(row.scores or []), *row.logps] if body.get("echo") else row.logps
            choice["logprobs"] = {"token_logprobs": values}
        return _json({"model": self.name, "choices": [choice], "system_fingerprint": "fp"})

    def _decode(self) -> None:
        rows: list[_Row] = []
        while True:
            if not rows:
                rows.append(self._waiting.get())
            while not self._waiting.empty():
                rows.append(self._waiting.get())
            try:
                self._step(rows)
            except Exception as error:  # noqa: BLE001 (it is raised where the row is waited for)
                for row in rows:
                    row.done.set_exception(error)
                rows = []
            rows = [row for row in rows if not row.done.done()]

    def _step(self, rows: list[_Row]) -> None:
        import torch

        longest = max(len(row.tokens) for row in rows)
        padded = torch.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in rows])
        with torch.inference_mode():
            logps = torch.log_softmax(self.model(padded, use_cache=False).logits.double(), dim=-1).numpy()
        for number, row in enumerate(rows):
            last = len(row.tokens) - 1
            if row.body.get("echo") and row.scores is None:
                row.scores = [float(logps[number, at, token]) for at, token in enumerate(row.tokens[1:])]
            token, filtered = draw(logps[number, last], row.body, row.random)
            row.tokens.append(token)
            row.logps.append(float(logps[number, last, token]) if self.raw else filtered)
            if token in row.body.get("stop_token_ids", []) or len(row.tokens) - row.prompt >= row.body["max_tokens"]:
                row.done.set_result(None)


def draw(logps: Any, body: dict[str, Any], random: np.random.Generator) -> tuple[int, float]:
    """Draw a token by temperature, top-k and top-p; return it with its tempered and filtered log-probability."""
    order = np.argsort(-logps, kind="stable")[: body.get("top_k") or len(logps)]
    weights = np.exp((logps[order] - logps[order[0]]) / body["temperature"])
    weights /= weights.sum()
    kept = np.searchsorted(np.cumsum(weights), body.get("top_p", 1.0) - 1e-12) + 1
    weights = weights[:kept] / weights[:kept].sum()
    choice = min(int(np.searchsorted(np.cumsum(weights), random.random())), len(weights) - 1)
    return int(order[choice]), float(np.log(weights[choice]))


def _json(content: Any) -> Answer:
    return 200, json.dumps(content).encode()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256


def _handler(server: CompletionsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._reply(server.answer("GET", self.path, {}, self.headers.get("Authorization", "")))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(content or b"{}")
            self._reply(server.answer("POST", self.path, body, self.headers.get("Authorization", "")))

        def _reply(self, answer: Answer) -> None:
            self.close_connection = answer is None
            if answer is None:
                return
            status, data = answer
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    return Handler


@contextmanager
def completions_server(folder: Path, **settings: Any) -> Iterator[CompletionsServer]:
    server = CompletionsServer(folder, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def main(folder: str, port: str) -> None:
    server = CompletionsServer(Path(folder))
    server.port = int(port)
    server.start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
