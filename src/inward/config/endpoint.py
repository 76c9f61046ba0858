"""A model behind an OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from inward.config.base import Harmless, Settings

SENT_ALREADY = {
    "model": "endpoint.model",
    "messages": "the judge's own conversation",
    "stream": "the judge's own reading of whole answers",
    "n": "the judge's own reading of one answer",
    "max_tokens": "judge.max_tokens and endpoint.limit_name",
    "max_completion_tokens": "judge.max_tokens and endpoint.limit_name",
    "temperature": "endpoint.temperature",
    "logprobs": "judge.verdict",
    "top_logprobs": "judge.verdict",
}
"""Keys of a request that `extra_body` may not set, and what sets them."""


def check_server(address: str, setting: str, key_setting: str) -> None:
    """Raise `ValueError` where a server's address is none, or holds more than scheme, host and path."""
    try:
        url = urlsplit(address)
        _ = url.port  # checked when it is read
    except ValueError as error:
        raise ValueError(f"{setting} is no address: {error}") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{setting} must begin with http:// or https:// and a host")
    if "@" in url.netloc or url.query or url.fragment:
        raise ValueError(f"{setting} holds more than scheme, host and path: a key belongs into {key_setting}")


def check_variable(name: str | None, setting: str) -> None:
    """Raise `ValueError` where a setting that names the environment variable of a key holds anything else."""
    if name is not None and not name.isidentifier():
        raise ValueError(f"{setting} must be the name of an environment variable, never the key itself")


class EndpointSettings(Settings):
    """A model behind an OpenAI-compatible server: `base_url` is what its `/chat/completions` is appended to (`.../v1`).

    `key_env` names the environment variable that holds the key; the key itself stands nowhere. `retries` are those of one
    request, after the first try; `timeout_s` is for the whole of a try. Prices are per million tokens, read and written.
    Some servers take other requests than most: `limit_name` is the name by which they take the limit on an answer's tokens,
    `temperature` "unset" leaves the temperature to them, and the table `extra_body` is added to each request (for example
    `{ reasoning_effort = "low" }`). `tokenizer` is the judge model's own, as a folder or a Hub name: its special tokens are set
    apart where they stand in a question or an answer, beside those that are known of common models.
    """

    base_url: str
    model: str
    key_env: Annotated[str | None, Harmless()] = None
    concurrency: Annotated[int, Harmless()] = Field(default=16, gt=0)
    timeout_s: Annotated[float, Harmless()] = Field(default=300.0, gt=0.0)
    retries: Annotated[int, Harmless()] = Field(default=6, ge=0)
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Literal["unset"] = 0.0
    extra_body: dict[str, Any] = Field(default={})
    tokenizer: str | None = None
    price_in: Annotated[float, Harmless()] = Field(default=0.0, ge=0.0)
    price_out: Annotated[float, Harmless()] = Field(default=0.0, ge=0.0)

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        check_server(self.base_url, "endpoint.base_url", "endpoint.key_env")
        check_variable(self.key_env, "endpoint.key_env")
        return self

    @model_validator(mode="after")
    def _extra_body_adds_only(self) -> Self:
        for key in self.extra_body:
            if key in SENT_ALREADY:
                raise ValueError(f"endpoint.extra_body.{key} is set by {SENT_ALREADY[key]}: take it out of endpoint.extra_body")
            if key.lower().replace("-", "_") in ("api_key", "authorization"):
                raise ValueError(
                    f"endpoint.extra_body.{key} would store a key: name its environment variable in endpoint.key_env"
                )
        try:
            json.dumps(self.extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"endpoint.extra_body cannot be written as JSON: {error}") from None
        return self
