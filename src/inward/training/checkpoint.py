"""The state that training goes on from after a kill: `state/step_00000050/`, whole or not at all.

It holds the fp32 masters, the optimiser's moments and the step. That is all there is: the schedule, the place in the epoch, the
order of the pairs and the random numbers of dropout are functions of the seed and the step. Tensors are whole in it, however
the processes hold them.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inward.storage import remove, whole_folder
from inward.training.optimiser import Weights, round_to_working
from inward.training.sharding import fill, gathered
from inward.training.team import ALONE, Team


def save_state(folder: Path, step: int, weights: Weights, optimiser: torch.optim.Optimizer, team: Team = ALONE) -> None:
    """Store the state after `step` steps, then remove the earlier ones. All of a team call it. Raises StorageError."""
    path = _path(folder, step)
    if not team.agree(path.exists):
        moments = {
            f"{key}.{name}": torch.as_tensor(value)
            for name, master in zip(weights.names, weights.master, strict=True)
            for key, value in optimiser.state.get(master, {}).items()  # none where there was no gradient yet
        }
        with whole_folder(path) if team.main else nullcontext() as temporary:
            for name, tensors in (("masters", weights.masters()), ("moments", moments)):
                found = gathered(tensors, team)
                if name == "moments":  # bitsandbytes shares its code books, which a file may not
                    found = {key: found.pop(key).clone() for key in list(found)}
                if temporary is not None:
                    save_file(found, temporary / f"{name}.safetensors")
                del found  # the masters go before the moments come
    if team.main:
        for other in folder.glob("step_*"):
            if other != path:
                remove(other)


def saved_step(folder: Path) -> int:
    """Return the step of the latest stored state, or 0."""
    return max((int(path.name.removeprefix("step_")) for path in folder.glob("step_*")), default=0)


def load_state(folder: Path, step: int, weights: Weights, optimiser: torch.optim.Optimizer) -> None:
    """Set weights and moments to those stored after `step` steps."""
    path = _path(folder, step)
    by_name = dict(zip(weights.names, weights.master, strict=True))
    with torch.no_grad():
        with safe_open(path / "masters.safetensors", framework="pt") as masters:
            for name, master in by_name.items():
                fill(master, masters.get_tensor(name))
        with safe_open(path / "moments.safetensors", framework="pt") as moments:
            for key in moments.keys():  # noqa: SIM118 (not a mapping)
                kind, _, name = key.partition(".")
                optimiser.state[by_name[name]][kind] = _moment(moments.get_tensor(key), by_name[name])
    round_to_working(weights)


def _moment(value: Tensor, master: Tensor) -> Any:
    """Return a stored moment as an optimiser keeps it."""
    if value.dtype == torch.int64:
        return value.item()  # bitsandbytes' step
    if value.shape != master.shape:
        return value.to(master.device)
    return fill(torch.zeros_like(master, dtype=value.dtype), value)


def stored_epochs(out: Path) -> list[Path]:
    """Return the checkpoints under `out`, one an epoch, in order."""
    return sorted(out.glob("epoch_*"), key=lambda path: int(path.name.removeprefix("epoch_")))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"
