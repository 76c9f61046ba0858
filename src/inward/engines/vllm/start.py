"""vLLM in this process: looking for the package, starting it on a model, giving it other weights, ending it.

The core of vLLM is kept in this process (VLLM_ENABLE_V1_MULTIPROCESSING = 0). One in a process of its own outlives a parent
that is killed and goes on holding its memory, and why it does not start stands only in its log. Workers of a model that is cut
over several GPUs are processes, but they watch a pipe to this one and end with it. What the environment says is left as it is.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import multiprocessing
import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from inward.config import VllmSettings
from inward.errors import InwardError, MissingExtraError, UsageError
from inward.hardware import device, give_back_memory, total_memory
from inward.models.size import cache_bytes, count_parameters

log = logging.getLogger(__name__)
ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
"""What vLLM is told where the environment says nothing: it sends no figures home, keeps our output free of its own,
and on processors takes the threads that the process has, wherever they run."""
PROCESSOR_BLOCK = 32
"""Tokens of a block of keys on processors, what their kernels take at least. vLLM's own 128 there share nothing of a short
prompt, because only whole blocks are shared."""
PROCESSOR_CACHE = 4 * 2**30
"""Bytes of keys on processors at most, since vLLM fills them all at once; VLLM_CPU_KVCACHE_SPACE (GiB) says otherwise."""
NEEDED: Final = {
    "LLM": ("collective_rpc", "reset_prefix_cache", "sleep", "wake_up"),
    "LLMEngine": ("abort_request", "add_request", "step"),
    "EngineArgs": ("enable_prefix_caching", "enable_sleep_mode", "kv_cache_memory_bytes", "logprobs_mode", "max_num_seqs"),
    "SamplingParams": ("detokenize", "ignore_eos", "logprobs", "output_kind", "prompt_logprobs", "seed", "stop_token_ids"),
}
"""What of vLLM is used and has not always been there."""
_alive: weakref.WeakSet[Any] = weakref.WeakSet()
"""The vLLM of this process that has not ended, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What vLLM is started with, beside a model's folder: the longest text, the completions side by side, the number format."""

    context: int
    rows: int
    dtype: torch.dtype
    trust_remote_code: bool
    settings: VllmSettings


def require_vllm() -> Any:
    """Import vLLM. Raises MissingExtraError without the package, and UsageError where it is broken or lacks a call."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with _without_warnings():
            package = importlib.import_module("vllm")
            importlib.import_module("vllm.exceptions").VLLMError  # noqa: B018 (whether it is there)
            lacking = [f"{owner}.{name}" for owner, names in NEEDED.items() for name in _absent(getattr(package, owner), names)]
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise MissingExtraError("vllm", "vllm") from error
        raise UsageError(f"vLLM cannot be imported: {error}. Install what it needs: pip install 'inward[vllm]'") from error
    except (ImportError, AttributeError, OSError) as error:  # a build for another torch, or a version of other names
        raise UsageError(f"vLLM cannot be used: {error}. Install a version that fits: pip install 'inward[vllm]'") from error
    if lacking:
        raise UsageError(
            f"vLLM {package.__version__} lacks {', '.join(lacking)}, which 0.32 has. Install a version that has them: "
            "pip install 'inward[vllm]'"
        )
    return package


def start(path: Path | str, config: Any, how: Start) -> Any:
    """Return a `vllm.LLM` that holds the model of a folder or Hub name.

    Raises UsageError where its weights do not fit, or vLLM refuses it, and what `require_vllm` raises.
    """
    package, settings = require_vllm(), how.settings
    from vllm.exceptions import VLLMError

    on_gpu = device().type == "cuda"
    _check_memory(path, how)
    if _alive:  # they would share process groups, and the end of one would take them from the other
        raise UsageError("this process holds a vLLM engine already: close it first, or make the other one in another process")
    arguments: dict[str, Any] = {
        "model": str(path),
        "skip_tokenizer_init": True,  # tokens go in and come out
        "generation_config": "vllm",  # nothing is drawn in another way because a model's file says so
        "dtype": str(how.dtype).removeprefix("torch."),
        "max_model_len": how.context,
        "max_num_seqs": how.rows,
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.memory,
        "trust_remote_code": how.trust_remote_code,
        "enforce_eager": not on_gpu if settings.eager is None else settings.eager,
        "enable_prefix_caching": True,
        "enable_sleep_mode": on_gpu,
        "logprobs_mode": "raw_logprobs",
        "use_tqdm_on_load": False,
    }
    if not on_gpu:
        arguments |= {"block_size": PROCESSOR_BLOCK, "kv_cache_memory_bytes": _processor_cache(config, how)}
    if settings.tensor_parallel > 1:
        _allow_children()
    set_num_threads = torch.set_num_threads
    try:
        with _without_warnings():
            llm = package.LLM(**arguments)
    except ImportError as error:
        raise UsageError(
            f"vLLM lacks a package that this model takes: {error}. Install it, or pip install 'inward[vllm]'"
        ) from error
    except (VLLMError, ValueError, RuntimeError, OSError, MemoryError) as error:
        clean_up()
        raise UsageError(
            f"vLLM {package.__version__} does not take the model {path}: {error}. Where memory is short, raise "
            "sampling.vllm.memory or sampling.vllm.tensor_parallel, or lower sampling.rows; a model that vLLM does not know is "
            "sampled with sampling.engine = 'transformers'"
        ) from error
    finally:
        torch.set_num_threads = set_num_threads  # on processors vLLM makes it do nothing, for everybody in this process
    _alive.add(llm)
    return llm


def why_not_reload(config: Any) -> str | None:
    """Return why vLLM cannot take other weights of a configuration where it is, or None.

    On processors it packs every weight once more for their kernels. The head's is packed when a head is read, and one that is
    tied to the embeddings is never read: it would go on giving the logits of the earlier model (vLLM 0.32).
    """
    if device().type == "cpu" and getattr(config.get_text_config(), "tie_word_embeddings", False):
        return "on processors it would keep the earlier head of a model whose head is tied to its embeddings"
    return None


def reload(llm: Any, path: Path | str, *, asleep: bool) -> None:
    """Give vLLM the weights of another folder of the same architecture, and have it forget the keys of the earlier ones.

    After sleep of level 2, which drops weights and keys, the memory of the weights has to be there before they are read, and
    that of the keys comes after. Raises UsageError where the version cannot do it, and InwardError where vLLM keeps earlier
    keys.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if "weights_path" not in inspect.signature(GPUModelRunner.reload_weights).parameters:
        raise UsageError("this version of vLLM cannot reload weights from a folder (reload_weights without weights_path)")
    if asleep:
        llm.wake_up(tags=["weights"])
    with _without_warnings():
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
    if asleep:
        llm.wake_up(tags=["kv_cache"])
    if not llm.reset_prefix_cache():
        raise InwardError("vLLM did not forget the keys of the earlier weights (reset_prefix_cache): start the run again")


def end(llm: Any) -> None:
    """End vLLM. Its memory is back once the caller has dropped `llm` and calls `clean_up`."""
    llm.llm_engine.engine_core.shutdown()
    _alive.discard(llm)


def clean_up() -> None:
    """Give back what a vLLM that has ended, or did not start, leaves behind in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    notes = sys.modules.get("vllm.model_executor.model_loader.reload.layerwise")
    if notes is not None:  # vLLM's table of how to reload each layer holds on to all weights once they have been reloaded
        getattr(notes, "LAYERWISE_INFO", {}).clear()
    with _without_warnings():
        cleanup_dist_env_and_memory()
    give_back_memory()


def _absent(owner: Any, names: tuple[str, ...]) -> list[str]:
    there = {*dir(owner), *getattr(owner, "__dataclass_fields__", ()), *getattr(owner, "__struct_fields__", ())}
    return [name for name in names if name not in there]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide what vLLM warns of inside the block: its own use of other packages, nothing a user could act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _allow_children() -> None:
    """Let this process start others, as it does for a model cut over several GPUs, also where it is a worker of a pool.

    Workers are daemons, which Python lets have no children, as these would outlive them. Those of vLLM do not.
    """
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def _check_memory(path: Path | str, how: Start) -> None:
    """Raise UsageError for weights that take more than vLLM may have. Nothing is known of those that are not here yet."""
    parameters = count_parameters(Path(path), trust_remote_code=how.trust_remote_code) if Path(path).is_dir() else None
    weights = (parameters or 0) * how.dtype.itemsize
    room = how.settings.tensor_parallel * how.settings.memory * total_memory(device())
    if weights > room:
        raise UsageError(
            f"{path} has {weights / 1e9:.1f} GB of weights in {how.dtype}, and vLLM may use {room / 1e9:.1f} GB: raise "
            "sampling.vllm.tensor_parallel (GPUs that the model is cut over) or sampling.vllm.memory, or choose a smaller model"
        )


def _processor_cache(config: Any, how: Start) -> int:
    """Return the bytes of keys and values that all rows need at full length on a processor, or as many as they get at most."""
    token = cache_bytes(config, how.dtype.itemsize)
    if token is None:  # heads of several widths
        return PROCESSOR_CACHE
    return min(token * (how.context + PROCESSOR_BLOCK) * (how.rows + 1), PROCESSOR_CACHE)
