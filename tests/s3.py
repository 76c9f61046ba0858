"""An S3 server on this machine (moto's), with one bucket, which can be made to refuse what it is asked."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(slots=True)
class Server:
    """A running server; `bucket` is the URL of its bucket.

    `refuse` answers the requests of these methods (PUT, ...) by this status and code, from the `after`th such one on.
    """

    endpoint: str
    bucket: str
    refuse: tuple[set[str], int, str] | None = None
    after: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, application: Any, environ: dict[str, Any], start: Any) -> Any:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if self.refuse and environ["REQUEST_METHOD"] in self.refuse[0]:
            self.after -= 1
            if self.after < 0:
                _, status, code = self.refuse
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(f"{status} {code}", [("Content-Type", "application/xml"), ("Connection", "close")])
                return [f"<Error><Code>{code}</Code><Message>{code} by the test</Message></Error>".encode()]
        return application(environ, start)


@contextmanager
def serve() -> Iterator[Server]:
    """Serve S3, and set the environment so that this process and those it starts use it."""
    boto3 = pytest.importorskip("boto3", reason="s3fs and moto[server] are not installed: pip install 'inward[dev]'")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed: pip install 'inward[dev]'")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'inward[s3]'")
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None: ...

    application = moto.DomainDispatcherApplication(moto.create_backend_app)
    state = Server("", "")
    server = make_server(
        "127.0.0.1", 0, lambda environ, start: state.answer(application, environ, start), threaded=True, request_handler=Quiet
    )
    import threading

    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    before = dict(os.environ)
    os.environ.update(KEYS | {"AWS_ENDPOINT_URL": state.endpoint})
    try:
        name = f"bucket-{uuid.uuid4().hex[:8]}"
        boto3.client("s3").create_bucket(Bucket=name)
        state.bucket = f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
        yield state
    finally:
        os.environ.clear()
        os.environ.update(before)
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
        thread.join()
