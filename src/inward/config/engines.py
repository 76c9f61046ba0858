"""Settings of the engines, one table each. What all engines share stands in `SamplingSettings`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from inward.config.base import Settings
from inward.config.endpoint import check_server, check_variable


class VllmSettings(Settings):
    """How vLLM runs a model: over how many GPUs it is cut, and the part of their memory that vLLM takes for itself.

    With `eager` nothing is compiled or captured in graphs at the start, which is then much faster, and decoding slower. Unless
    set it is on for processors and off for GPUs.
    """

    tensor_parallel: int = Field(default=1, gt=0)
    memory: float = Field(default=0.9, gt=0.0, le=1.0)
    eager: bool | None = None


class EndpointEngineSettings(Settings):
    """The servers that draw outputs: base URLs that end in `/v1`, and the name under which all of them serve the model.

    They have to take prompts as tokens and to return tokens, as those of vLLM do. Without `model` it is the only one that they
    serve. `key_env` names the environment variable that holds their key. Each server has at most `in_flight` requests at a
    time. A request that fails is sent again, up to `retries` times, to whichever server is well; `timeout_s` is for the whole
    of a try. A server that fails gets no more requests until it is well again; where none is left, the run waits `patience_s`
    for one to come back. `check_weights` compares the probabilities of the servers with those of a forward pass of the model
    folder on this machine whenever a model is loaded; False is for models that this machine cannot load.
    """

    servers: tuple[str, ...] = Field(min_length=1)
    model: str | None = None
    key_env: str | None = None
    in_flight: int = Field(default=64, gt=0)
    timeout_s: float = Field(default=600.0, gt=0.0)
    retries: int = Field(default=6, ge=0)
    patience_s: float = Field(default=600.0, ge=0.0)
    check_weights: bool = True

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        for server in self.servers:
            check_server(server, "sampling.endpoint.servers", "sampling.endpoint.key_env")
        if len({server.rstrip("/") for server in self.servers}) < len(self.servers):
            raise ValueError("sampling.endpoint.servers names the same server twice; it would be counted as two")
        check_variable(self.key_env, "sampling.endpoint.key_env")
        return self


EngineOptions = VllmSettings | EndpointEngineSettings
"""The table of an engine's own settings."""
