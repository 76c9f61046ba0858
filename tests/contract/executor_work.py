"""Work for executors, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from inward.errors import JudgeError, UsageError
from inward.execution.task import Advance, Needs, Resource, Shard, Task
from inward.records import Score
from inward.runs.place import Place

PLACE = Place(arm="thinking", iteration=1, stage="scores")


@dataclass
class Tool:
    """A resource that writes down, in a file for all processes, what becomes of it."""

    diary: Path
    name: str
    spent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, event: str) -> None:
        with self.diary.open("a") as file:
            file.write(f"{os.getpid()} {event} {self.name}\n")


def make(diary: Path, name: str) -> Tool:
    if name == "broken":
        raise UsageError("this tool cannot be made")
    tool = Tool(diary, name)
    tool.note("made")
    return tool


def renew(name: str, tool: Tool) -> bool:
    if name == "stubborn":
        return False
    tool.name = name
    tool.note("renewed")
    return True


def close(tool: Tool) -> None:
    tool.note("closed")


def tool(diary: Path, name: str, *, kind: str = "tool", renewable: bool = True) -> Resource[Tool]:
    again = partial(renew, name) if renewable else None
    return Resource(kind=kind, key=(name,), make=partial(make, diary, name), renew=again, close=close)


def task(resource: Resource[Any], work: Any, items: Sequence[str], *, at_once: int = 1, size: int = 2) -> Task[Any, str, Score]:
    shards = [tuple(items[start : start + size]) for start in range(0, len(items), size)]
    return Task(
        place=PLACE,
        shards=tuple(Shard(name=f"part-{number}", items=shard) for number, shard in enumerate(shards)),
        work=work,
        resource=resource,
        needs=Needs(model=True, at_once=at_once),
        tokens=count_tokens,
        calls=count_tokens,
        spent=spent,
    )


def count_tokens(_: Score) -> int:
    return 3


def spent(tool: Tool) -> dict[str, Any]:
    return {"judge_answers": tool.spent}


def record(tool: Tool, item: str) -> Score:
    with tool.lock:
        tool.spent += 1
    return Score(output_id=item, prompt_id=tool.name, value=float(len(item)), unscored=None)


def score(tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    scores = [record(tool, item) for item in items]
    advance(len(items), 3 * len(items))
    return scores


def score_slowly(tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    time.sleep(0.3)
    return score(tool, items, advance)


def meet(folder: Path, count: int, tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    """Return only once `count` shards are in work at the same time."""
    (folder / items[0]).touch()
    deadline = time.monotonic() + 30
    while len(list(folder.iterdir())) < count:
        assert time.monotonic() < deadline, "the others never came"
        time.sleep(0.01)
    return score(tool, items, advance)


def see_devices(folder: Path, count: int, tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    """Return which devices this process was given, once `count` shards are in work at the same time."""
    folder.mkdir(exist_ok=True)
    meet(folder, count, tool, items, advance)
    return [record(tool, os.environ["CUDA_VISIBLE_DEVICES"])]


def refuse(tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    if "c" in items:
        tool.spent += 1
        raise JudgeError("item c cannot be judged")
    return score(tool, items, advance)


def crash(tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    if "c" in items:
        raise ValueError("a mistake of ours")
    return score(tool, items, advance)


def die(folder: Path, times: int, tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    """Have the system kill the process that works on item c, so many times."""
    marks = len(list(folder.glob("death-*")))
    if "c" in items and marks < times:
        (folder / f"death-{marks}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return score(tool, items, advance)


def die_halfway(folder: Path, tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    """Say that the items are done, and be killed the first time."""
    advance(len(items), 3 * len(items))
    if "c" in items and not (folder / "death").exists():
        (folder / "death").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [record(tool, item) for item in items]


def refuse_late(tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    """Finish item a at once and item b later; fail at item c in between."""
    time.sleep({"a": 0.0, "b": 0.6, "c": 0.3}[items[0]])
    if "c" in items:
        raise JudgeError("item c cannot be judged")
    return score(tool, items, advance)


def hold(diary: Path, name: str) -> Tool:
    """Make a tool whose end is written down."""
    tool = make(diary, name)
    weakref.finalize(tool, _note_end, diary)
    return tool


def _note_end(diary: Path) -> None:
    with diary.open("a") as file:
        file.write(f"{os.getpid()} freed tool\n")


def send_half(connection: Connection) -> None:
    """Send a whole message, then the beginning of another one, and be killed."""
    connection.send("whole")
    os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def spend_and_wait(folder: Path, tool: Tool, items: Sequence[str], advance: Advance) -> list[Score]:
    """Spend, and wait for a file before going on: somebody looks meanwhile at what is booked."""
    tool.spent += 5
    deadline = time.monotonic() + 60
    while not (folder / "go on").exists():
        assert time.monotonic() < deadline, "nobody looked"
        time.sleep(0.05)
    return score(tool, items, advance)
