"""A team under Ray Train: the processes of one piece of work, on whatever nodes have room, started again where one dies.

Ray Train places the processes, joins them to one process group, and starts all of them again when one dies, up to
`MOST_DEATHS` times; where the work goes on from is its own matter, and training has its saved states. What the processes say
(how far they are, and the errors that a person can act on) goes through an actor on the node of the run's process.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from inward.errors import InwardError
from inward.execution.pool import MOST_DEATHS
from inward.execution.ray import Share, Site, build, check_build, require_room

LISTENING_S = 0.2
"""How often the run's process looks for what the others have said."""


def in_ray_train(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    size: int,
    share: Share,
    site: Site,
    advance: Callable[..., None],
    restart: Callable[[], None],
    timeout_s: float,
    label: str,
) -> None:
    """Call `function(*arguments, rank, size, advance)` in `size` processes of a cluster that are joined to a process group.

    `restart` is called when they have started again. Raises what a call raised if that is an InwardError, else InwardError
    that names the work whose processes died too often.
    """
    require_room(share)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()
    with tempfile.TemporaryDirectory(prefix="inward-ray-") as folder:  # Ray Train's own notes; ours are in the run directory
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths are relative to where they are here
        trainer = TorchTrainer(
            _call,
            train_loop_config={
                "mailbox": mailbox,
                "site": site,
                "build": build(),
                "function": function,
                "arguments": arguments,
            },
            torch_config=TorchConfig(backend="nccl" if share.gpus else "gloo", timeout_s=int(timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=size,
                use_gpu=bool(share.gpus),
                resources_per_worker={"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {}),
            ),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=MOST_DEATHS - 1)),
        )
        failures: list[TrainingFailedError] = []
        thread = threading.Thread(target=_fit, args=(trainer, failures), daemon=True)  # so that Ctrl-C is heard here
        thread.start()
        _listen(thread, mailbox, advance, restart)
    ray.kill(mailbox)
    if failures:
        raise InwardError(
            f"{label}: {MOST_DEATHS} times in a row its processes died or failed ({_last_line(failures[0])}); what was "
            "finished is kept: run the same command again"
        ) from failures[0]


def _last_line(error: TrainingFailedError) -> str:
    return str(error).strip().rpartition("\n")[2]


def _fit(trainer: TorchTrainer, failures: list[TrainingFailedError]) -> None:
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures.append(error)


def _listen(thread: threading.Thread, mailbox: Any, advance: Callable[..., None], restart: Callable[[], None]) -> None:
    """Pass on what the processes say until their work has ended. Raises the first error among it, once all have ended."""
    starts, errors, alive = 0, [], True
    while alive:
        thread.join(LISTENING_S)
        alive = thread.is_alive()  # before the last look, so that nothing said before the end is missed
        for kind, content in ray.get(mailbox.take.remote()):
            if kind == "advance":
                advance(*content)
            elif kind == "error":
                errors.append(content)
            elif content == 0 and not errors:
                starts += 1
                if starts > 1:
                    restart()
    if errors:
        raise errors[0]


class _Mailbox:
    """What the processes have said and nobody has heard yet, and whether they are to stop."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []
        self._stopped = False

    def put(self, kind: str, content: Any) -> bool:
        """Take a message. An error stops the work: return whether it is stopped."""
        self._messages.append((kind, content))
        self._stopped |= kind == "error"
        return self._stopped

    def take(self) -> list[tuple[str, Any]]:
        messages, self._messages = self._messages, []
        return messages


def _call(config: dict[str, Any]) -> None:
    """Make the call in a process of Ray Train.

    An error of ours is told, and raised: Ray Train then ends the other processes and starts all again, which return at once.
    """
    mailbox, rank, size = config["mailbox"], get_context().get_world_rank(), get_context().get_world_size()

    def say(kind: str, content: Any) -> bool:
        return bool(ray.get(mailbox.put.remote(kind, content)))

    def advance(*numbers: Any) -> None:
        say("advance", numbers)

    if say("start", rank):
        return
    try:
        config["site"].enter()
        check_build(build(), config["build"])
        config["function"](*config["arguments"], rank, size, advance)
    except InwardError as error:
        say("error", error)
        raise
