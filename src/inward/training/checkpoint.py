"""The state that training goes on from after a kill: `state/step_00000050/`, whole or not at all.

It holds the fp32 masters, the optimiser's moments and the step. That is all there is: the schedule, the place in the epoch, the
order of the pairs and the random numbers of dropout are functions of the seed and the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from inward.storage import remove, whole_folder
from inward.training.optimiser import Weights, round_to_working


def save_state(folder: Path, step: int, weights: Weights, optimiser: torch.optim.Optimizer) -> None:
    """Store the state after `step` steps, then remove the earlier ones. Raises StorageError."""
    path = _path(folder, step)
    if not path.exists():
        moments = {
            f"{key}.{name}": torch.as_tensor(value).clone()  # bitsandbytes shares its code books, which a file may not
            for name, master in zip(weights.names, weights.master, strict=True)
            for key, value in optimiser.state.get(master, {}).items()  # none where there was no gradient yet
        }
        masters = {name: tensor.contiguous() for name, tensor in weights.masters().items()}
        with whole_folder(path) as temporary:
            save_file(masters, temporary / "masters.safetensors")
            save_file(moments, temporary / "moments.safetensors")
    for other in folder.glob("step_*"):
        if other != path:
            remove(other)


def saved_step(folder: Path) -> int:
    """Return the step of the latest stored state, or 0."""
    return max((int(path.name.removeprefix("step_")) for path in folder.glob("step_*")), default=0)


def load_state(folder: Path, step: int, weights: Weights, optimiser: torch.optim.Optimizer) -> None:
    """Set weights and moments to those stored after `step` steps."""
    path = _path(folder, step)
    device = str(weights.master[0].device)
    masters = load_file(path / "masters.safetensors", device=device)
    moments = load_file(path / "moments.safetensors", device=device)
    by_name: dict[str, dict[str, Any]] = {}
    for whole, value in moments.items():
        key, _, name = whole.partition(".")
        by_name.setdefault(name, {})[key] = value.item() if value.dtype == torch.int64 else value  # bitsandbytes' step
    with torch.no_grad():
        for name, master in zip(weights.names, weights.master, strict=True):
            master.copy_(masters[name])
            if name in by_name:
                optimiser.state[master] = by_name[name]
    round_to_working(weights)


def stored_epochs(out: Path) -> list[Path]:
    """Return the checkpoints under `out`, one an epoch, in order."""
    return sorted(out.glob("epoch_*"), key=lambda path: int(path.name.removeprefix("epoch_")))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"
