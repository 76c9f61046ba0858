"""Settings of the engines, one table each. What all engines share stands in `SamplingSettings`."""

from __future__ import annotations

from pydantic import Field

from inward.config.base import Settings


class VllmSettings(Settings):
    """How vLLM runs a model: over how many GPUs it is cut, and the part of their memory that vLLM takes for itself.

    With `eager` nothing is compiled or captured in graphs at the start, which is then much faster, and decoding slower. Unless
    set it is on for processors and off for GPUs.
    """

    tensor_parallel: int = Field(default=1, gt=0)
    memory: float = Field(default=0.9, gt=0.0, le=1.0)
    eager: bool | None = None


class EndpointEngineSettings(Settings):
    """The servers that draw outputs: base URLs that end in `/v1`, and the name under which they serve the model."""

    servers: tuple[str, ...] = Field(min_length=1)
    model: str | None = None


EngineOptions = VllmSettings | EndpointEngineSettings
"""The table of an engine's own settings."""
