"""Runs `inward` commands in forked processes that can be killed at any instant.

    python -m tests.integration.forks

Reads one JSON object a line: {"argv": [...], "log": path, "after": glob or null, "delay": seconds or null}. The command runs
in a fork (everything heavy is imported once, here). With `delay` it is sent SIGKILL that long after a file matching `after`
exists (or after its start). `INWARD_TEST_PUBLISH_S` is how often a run in a store is published. Answers one JSON object a
line: {"code": exit status} or {"signal": number}.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import signal
import sys
import time


def import_everything() -> None:
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    import inward.cli.main
    import inward.engines.transformers.engine
    import inward.execution.choose
    import inward.judging.stage
    import inward.loop
    import inward.prompts
    import inward.training.train
    from inward.runs import mirror

    if importlib.util.find_spec("s3fs"):
        import s3fs  # noqa: F401

    assert transformers.AutoModelForCausalLM
    assert transformers.AutoTokenizer
    assert inward.training.train
    mirror.INTERVAL_S = float(os.environ.get("INWARD_TEST_PUBLISH_S", mirror.INTERVAL_S))


def run_forked(argv: list[str], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["inward", *argv]
    from inward.cli.main import main

    try:
        main()
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    os._exit(0)


def wait(pid: int, after: str | None, delay: float | None) -> dict[str, int]:
    seen = None if after else time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"code": os.WEXITSTATUS(status)}
        if seen is None and after and glob.glob(after, include_hidden=True):
            seen = time.monotonic()
        if delay is not None and seen is not None and time.monotonic() - seen >= delay:
            os.kill(pid, signal.SIGKILL)
            delay = None
        time.sleep(0.002)


if __name__ == "__main__":
    import_everything()
    for line in sys.stdin:
        order = json.loads(line)
        process = run_forked(order["argv"], order["log"])
        print(json.dumps(wait(process, order["after"], order["delay"])), flush=True)
