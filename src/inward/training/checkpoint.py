"""The state that training goes on from after a kill: `state/step_00000050/`, whole or not at all.

    masters.safetensors, moments.safetensors         what one process holds of the whole
    masters-00000-of-00002.safetensors, ...          the same where weights are cut: each process writes its own rows

It holds the fp32 masters, the optimiser's moments and the step. That is all there is: the schedule, the place in the epoch, the
order of the pairs and the random numbers of dropout are functions of the seed and the step. No process puts a cut tensor
together, to write it or to read it: each reads the rows that are its own, whoever wrote them, so that a training goes on over
any number of processes, with cut weights or not.

`torch.distributed.checkpoint` does the same in files that are pickles, and tells a full disk by "unexpected pos 704 vs 598".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from inward.storage import move, remove, storage_errors, whole_folder
from inward.training.optimiser import Weights, round_to_working
from inward.training.sharding import local_rows, own_rows
from inward.training.team import ALONE, Team


def save_state(
    folder: Path,
    step: int,
    weights: Weights,
    optimiser: torch.optim.Optimizer,
    team: Team = ALONE,
    *,
    keep: Collection[int] = (),
) -> None:
    """Store the state after `step` steps, then remove the earlier ones but those of the steps `keep`.

    All of a team call it. Raises StorageError. The folder gets its name once every process has written its part.
    """
    path = state_path(folder, step)
    if not team.agree(path.exists):
        moments = {
            f"{key}.{name}": torch.as_tensor(value)
            for name, master in zip(weights.names, weights.master, strict=True)
            for key, value in optimiser.state.get(master, {}).items()  # none where there was no gradient yet
        }
        with whole_folder(path) if team.main else nullcontext() as temporary:
            target = team.agree(lambda: temporary)
            assert target is not None
            with storage_errors(path):
                _write_part(target, "masters", weights.masters(), team)
                _write_part(target, "moments", moments, team)
            team.wait()
    if team.main:
        for other in folder.glob("step_*"):
            if other != path and _step(other) not in keep:
                remove(other)


def saved_step(folder: Path) -> int:
    """Return the step of the latest stored state, or 0."""
    return max(map(_step, folder.glob("step_*")), default=0)


def load_state(path: Path, weights: Weights, optimiser: torch.optim.Optimizer) -> None:
    """Set weights and moments to those of a stored state."""
    by_name = dict(zip(weights.names, weights.master, strict=True))
    with torch.no_grad():
        with _stored(path, "masters") as masters:
            for name, master in by_name.items():
                local_rows(master).copy_(masters.part_of(name, master))
        with _stored(path, "moments") as moments:
            for key in moments.names:
                kind, _, name = key.partition(".")
                optimiser.state[by_name[name]][kind] = _moment(moments, key, by_name[name])
    round_to_working(weights)


def stored_epochs(out: Path) -> list[Path]:
    """Return the checkpoints under `out`, one an epoch, in order."""
    return sorted(out.glob("epoch_*"), key=_epoch)


def keep_states(out: Path, per_epoch: int) -> None:
    """Put the state at the end of each stored epoch beside the epochs, in `out/optimiser`, under the epoch's name.

    A kill in between leaves the rest to the next call.
    """
    for epoch in stored_epochs(out):
        state = state_path(out / "state", _epoch(epoch) * per_epoch)
        if state.exists():
            move(state, out / "optimiser" / epoch.name)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Tensors in one file or in parts: of a tensor that is cut, each file holds some rows, in the order of the files."""

    files: tuple[Any, ...]

    @property
    def names(self) -> list[str]:
        return list(self.files[0].keys())  # the first process holds some of everything

    def shape(self, name: str) -> tuple[int, ...]:
        shapes = [tuple(part.get_shape()) for part in self._parts(name)]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def single(self, name: str) -> Tensor:
        """Return a tensor that is in one file."""
        (part,) = (file for file in self.files if name in file.keys())  # noqa: SIM118 (not a mapping)
        tensor: Tensor = part.get_tensor(name)
        return tensor

    def part_of(self, name: str, target: Tensor) -> Tensor:
        """Return what this process holds of a tensor that is cut as `target` is, or not cut."""
        cut = isinstance(target, DTensor) or len(self._parts(name)) > 1
        return self._rows(name, *own_rows(target)) if cut else self.single(name)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        pieces: list[Tensor] = []
        before = 0
        for part in self._parts(name):
            count = part.get_shape()[0]
            first, last = max(start - before, 0), min(stop - before, count)
            if first < last or (start == stop and not pieces):
                pieces.append(part[first : max(first, last)])
            before += count
        return torch.cat(pieces)

    def _parts(self, name: str) -> list[Any]:
        return [file.get_slice(name) for file in self.files if name in file.keys()]  # noqa: SIM118 (not a mapping)


@contextmanager
def _stored(path: Path, kind: str) -> Iterator[_Stored]:
    """Open the files of a kind; only what is asked for is read."""
    with ExitStack() as stack:
        files = sorted(path.glob(f"{kind}*.safetensors"))
        yield _Stored(tuple(stack.enter_context(safe_open(file, framework="pt")) for file in files))


def _write_part(folder: Path, kind: str, tensors: Mapping[str, Tensor], team: Team) -> None:
    """Write this process's rows of what is cut; the main process also writes what all hold alike."""
    cut = {name: local_rows(tensor) for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    alike = {name: tensor for name, tensor in tensors.items() if name not in cut} if team.main else {}
    if cut:
        save_file(_own_memory(cut | alike), folder / f"{kind}-{team.rank:05d}-of-{team.size:05d}.safetensors")
    elif team.main:
        save_file(_own_memory(alike), folder / f"{kind}.safetensors")


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two share memory, which a file may not; bitsandbytes' moments share their code books."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return own


def _moment(stored: _Stored, key: str, master: Tensor) -> Any:
    """Return a stored moment as an optimiser keeps it."""
    if stored.shape(key) != tuple(master.shape):
        value = stored.single(key)
        return value.item() if value.dtype == torch.int64 else value.to(master.device)  # an int64 is bitsandbytes' step
    own = stored.part_of(key, master)
    moment = torch.zeros_like(master, dtype=own.dtype)
    local_rows(moment).copy_(own)
    return moment


def _epoch(path: Path) -> int:
    return int(path.name.removeprefix("epoch_"))


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def state_path(folder: Path, step: int) -> Path:
    """Return where the state after `step` steps is."""
    return folder / f"step_{step:08d}"
