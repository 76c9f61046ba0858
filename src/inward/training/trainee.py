"""What is trained: a model with its fp32 masters and optimiser, in full or through a LoRA adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inward.config import Batching, Dtype, LoraSettings, TrainingSettings
from inward.errors import UsageError
from inward.storage import read_json, whole_folder, write_json
from inward.training.flops import Work, work_of
from inward.training.optimiser import Weights, make_optimiser, make_weights
from inward.training.sharding import Root, gather_tensors, shard
from inward.training.support import choose_batching
from inward.training.team import ALONE, Team
from inward.training.weights import load_model, stored_dtype, working_dtype, write_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WRAPPED = "base_model.model."
"""What peft puts before the names of a model that it wraps."""


@dataclass(frozen=True, slots=True)
class Trainee:
    """`model` is the bare model; with LoRA it holds the adapter's layers, and `adapted` is peft's wrapper around it.

    All passes go through `root`; it computes in `dtype`. `sharded` says whether weights are cut over the processes of a team.
    `batching` is how its micro-batches are laid out, `work` what its passes cost, where that is known.
    """

    model: PreTrainedModel
    adapted: PeftModel | None
    root: Root
    dtype: torch.dtype
    sharded: bool
    weights: Weights
    optimiser: torch.optim.Optimizer
    batching: Batching
    work: Work | None


def make_trainee(
    model_path: Path,
    settings: TrainingSettings,
    *,
    seed: int,
    dtype: Dtype,
    trust_remote_code: bool = False,
    team: Team = ALONE,
    sharded: bool = False,
    restored: bool = False,
) -> Trainee:
    """Load a model folder for training. Without dropout, except LoRA's own; a LoRA base is frozen, its adapter has masters.

    With `restored` the masters are to come from a state, and are not loaded in more digits than the model computes with.
    """
    working = working_dtype(dtype)
    as_stored = restored or working in (torch.float32, stored_dtype(model_path))
    # A model that is to be cut stays on the processor, as it is stored: then its file is mapped instead of read, all processes
    # share its pages, and no memory holds it whole for each of them. `shard` casts and moves it layer by layer.
    model = load_model(
        model_path,
        stored_dtype(model_path) if sharded else working,
        quantise=settings.quantise,
        trust_remote_code=trust_remote_code,
        onto=torch.device("cpu") if sharded else None,
    )
    batching = choose_batching(model, settings.batching)
    adapted = _adapt(model, settings.lora, seed) if settings.lora else None
    if settings.gradient_checkpointing:
        _recompute_layers(model)
    root, work = Root(model), work_of(model)
    if sharded and adapted is None and not all(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"execution.shard cannot store {type(model).__name__}, which has weights that do not learn: leave it out"
        )
    if sharded:
        shard(root, working, team)
        originals = {}
    elif adapted is not None:
        originals = _round_adapter(model, working)
    elif as_stored:
        originals = dict(model.named_parameters())
    else:
        stored = load_model(model_path, torch.float32, trust_remote_code=trust_remote_code, onto=torch.device("cpu"))
        originals = dict(stored.named_parameters())
    weights = make_weights(model, originals)
    return Trainee(model, adapted, root, working, sharded, weights, make_optimiser(weights, settings), batching, work)


def write_checkpoint(trainee: Trainee, model_path: Path, path: Path, team: Team = ALONE) -> None:
    """Write a complete model folder, or the adapter's folder with LoRA; whole or not at all. All of a team call it."""
    masters = gather_tensors(trainee.weights.masters(), team, stored_dtype(model_path) if trainee.adapted is None else None)
    if not team.main:
        return
    with whole_folder(path) as folder:
        if trainee.adapted is None:
            write_model(trainee.model, masters, model_path, folder)
        else:
            _write_adapter(trainee.adapted, masters, folder)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch off what only training does (LoRA's dropout) inside the block."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Draw torch's random numbers as a function of `key` alone inside the block; outside nothing changes."""
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6])
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(number)
        yield


def _recompute_layers(model: PreTrainedModel) -> None:
    """Have each layer's activations computed again in the backward pass instead of kept. The gradients are the same.

    transformers does so only in layers that are in training mode, so those get its flag, and their own dropout is set to 0.
    """
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UsageError(f"training.gradient_checkpointing does not work with this model: {error}") from error
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def _adapt(model: PreTrainedModel, lora: LoraSettings, seed: int) -> PeftModel:
    """Inject a fresh adapter into `model`, in place. Its B matrices are zero, so it starts as the model itself."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets is None else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        with seeded(seed, "adapter"):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"training.lora does not fit {type(model).__name__}: {error}") from error
    if lora.dropout and isinstance(model.get_output_embeddings(), BaseTunerLayer):
        # Its log-probabilities are computed a second time in the backward pass, which would draw other masks.
        raise UsageError(
            "training.lora.dropout does not work where training.lora.targets names the head: leave one of them out"
        )
    adapted.eval()
    for name, module in adapted.named_modules():
        if name.endswith("lora_dropout"):
            module.train()
    return adapted


def _round_adapter(model: PreTrainedModel, working: torch.dtype) -> dict[str, torch.Tensor]:
    """Have the adapter compute in the number format of its base, and return its fp32 originals by name.

    An fp32 adapter on a bf16 base would turn the input of every layer into fp32, and keep it.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    originals = {name: parameter.detach().clone() for name, parameter in trained.items()}
    for parameter in trained.values():
        parameter.data = parameter.data.to(working)
    return originals


def _write_adapter(adapted: PeftModel, masters: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the fp32 masters in peft's own form, with the sets in its config sorted: their order differs by process."""
    state = {f"{WRAPPED}{name}": tensor for name, tensor in masters.items()}
    adapted.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = read_json(path)
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
    write_json(path, settings)
