"""Fully sharded training: weights, gradients and moments are cut over the processes of a team, by FSDP2 (`fully_shard`).

Each process keeps its rows of every parameter, in fp32 where it is trained, and of its gradient and moments. A layer is put
together in the model's number format just before it computes and let go of right after, in the forward and in the backward
pass; then its gradients are added up over the processes in fp32, and each keeps the sum of its own rows. So the masters are
the fp32 rows, a layer put together is the working weights, and nothing is left to round.

What follows from it elsewhere:
- A layer is put together by all processes at once, so all take as many forward and backward passes (`idle_passes`), and one
  that runs out of memory cannot try again by itself: all start again from the last state, with fewer tokens at a time.
- States hold each process's rows (`checkpoint`), and a training goes on from them sharded or not, over any number of
  processes. In a model's own folder tensors are whole again (`gather_tensors`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from inward.errors import ShortOfMemory, UsageError
from inward.hardware import device
from inward.storage import read_json, write_json
from inward.training.batches import MicroBatches
from inward.training.examples import Example
from inward.training.team import Team, peers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

R = TypeVar("R")


class Root(nn.Module):
    """Calls functions of a model as forward passes of a module, which is where FSDP2 puts together what is in no layer.

    Log-probabilities come from the decoder and the head, never from the model's own forward.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., R], *arguments: object) -> R:
        return function(self.model, *arguments)


def shard(root: Root, working: torch.dtype, team: Team) -> None:
    """Cut the parameters of a model over the team, in place; what is trained becomes fp32, all else `working`, as it computes.

    A model on the processor moves to this process's device layer by layer: no device ever holds more than one of them whole.
    """
    layers = _layers(root.model)
    if not layers:  # the whole model would be put together for every pass
        raise UsageError(f"execution.shard does not know the layers of {type(root.model).__name__}: leave it out")
    mesh = init_device_mesh(device().type, (team.size,))
    policy = MixedPrecisionPolicy(param_dtype=working, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in (*layers, root):
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else working)
        # FSDP2 would keep what is in no layer (embeddings, head) whole between passes, also after one without gradients, until
        # the next backward pass. A step's gradients are a sum, where its default is a mean over the processes.
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        if hasattr(sharded, "set_reduce_scatter_unused_params"):  # newer than the oldest PyTorch that serves
            sharded.set_reduce_scatter_unused_params(True)  # experts that only some processes' tokens reach


def put_together(tensor: Tensor) -> Tensor:
    """Return a tensor put together from all processes, if it is cut; all of them must ask for it."""
    if not isinstance(tensor, DTensor):
        return tensor
    with peers():
        full: Tensor = tensor.full_tensor()
    return full


def gather_tensors(tensors: Mapping[str, Tensor], team: Team, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return tensors as they go into a file, in the main process; nothing in the others, which must call it too.

    Those that are cut are put together one by one, in the processor's memory and at once in `dtype`, their own unless given,
    so that a model that is stored in bf16 never stands whole in fp32.
    """
    together = {}
    for name, tensor in tensors.items():
        full = put_together(tensor)
        if team.main:
            together[name] = full.to("cpu", dtype or full.dtype) if isinstance(tensor, DTensor) else tensor.contiguous()
    return together


def local_rows(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: its rows where it is cut, else all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """Return which rows of a tensor this process holds, from the first up to but without the last.

    FSDP2 cuts as `torch.chunk` does: into parts of one size but the last, fewer than processes where there are few rows.
    """
    count = tensor.shape[0]
    if not isinstance(tensor, DTensor):
        return 0, count
    size = -(-count // tensor.device_mesh.size())
    start = min(count, tensor.device_mesh.get_local_rank() * size)
    return start, min(count, start + size)


def idle_passes(own: int, pairs: Sequence[Example], team: Team) -> MicroBatches:
    """Return what a process with `own` micro-batches computes for nothing, so that all take as many passes as the busiest.

    Each is the shortest pair of the step: if its loss is not finite, the process that it was dealt to says so.
    """
    return [(shortest(pairs),)] * (max(team.gather(own)) - own)


def shortest(pairs: Sequence[Example]) -> Example:
    return min(pairs, key=lambda pair: (pair.row_tokens, pair.pair_id))


def start_again(state: Path, tokens: int, team: Team) -> None:
    """Store how many tokens are to be computed at a time from here on, and raise ShortOfMemory, which must end the others.

    They wait for this process in the middle of a pass, where nothing can be told to them.
    """
    write_json(state / f"tokens_{team.rank}.json", tokens)
    raise ShortOfMemory(
        f"a process of this training ran out of memory, and the others share its weights: all start again from the last state, "
        f"with {tokens} tokens at a time. Set training.batch_tokens = {tokens} to begin with it"
    )


def allowed_tokens(state: Path, budget: int) -> int:
    """Return how many tokens are computed at a time: `budget`, or what memory turned out to hold."""
    return min([budget, *(int(read_json(path)) for path in state.glob("tokens_*.json"))])


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that an architecture names as its layers, inner ones first."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names][::-1]
