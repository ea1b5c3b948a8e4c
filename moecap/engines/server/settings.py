"""What a catalogue entry says of an engine behind HTTP: how it is started, when it is ready, how it is asked.

Only data: the same client and the same process manager serve every such engine, so that a new one is an entry.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from moecap.schema import Strict

#: What a command may name in braces, and what is put there.
PLACEHOLDERS = {
    "python": "the interpreter of the engine's environment",
    "bin": "the folder of that interpreter, for the commands beside it",
    "package": "the folder of this library, for what it runs in other environments",
    "checkpoint": "the checkpoint's folder",
    "gguf": "the checkpoint's GGUF file",
    "host": "the address that the server listens on (loopback)",
    "port": "a free port",
    "model": "the name that requests call the model by",
    "context_tokens": "the longest prompt and output, in tokens",
    "max_num_seqs": "requests that are served at a time",
    "all_context_tokens": "context_tokens × max_num_seqs, for servers that divide one KV cache into slots",
    "threads": "CPU threads",
    "tensor_parallel": "as in the deployment table; so are the next three",
    "pipeline_parallel": "",
    "expert_parallel": "",
    "data_parallel": "",
    "devices": "tensor_parallel × pipeline_parallel",
    "seed": "the campaign's seed",
    "scratch": "an empty folder that is removed afterwards",
}
#: What the body of a request may name beside fixed values.
REQUEST_PLACEHOLDERS = ("model", "prompt_token_ids", "output_tokens", "seed")


class Api(Strict):
    """How a completion is asked for and where its answer has the token ids.

    ``body`` is sent as JSON; a string that is one placeholder in braces is replaced by its value, with its type.
    """

    path: str = "/v1/completions"
    body: dict[str, Any] = Field(description="JSON of a streamed request for greedy decoding of a fixed length")
    token_ids: str | None = Field(
        default="choices.0.token_ids", description="where a chunk has its new token ids; null: the server gives none"
    )
    finish_reason: str | None = "choices.0.finish_reason"
    counted: str | None = Field(
        default=None,
        description="where a chunk says how many tokens there are so far, for servers that leave ids out of a stream",
    )
    whole: dict[str, Any] | None = Field(
        default=None,
        description="keys of the body that ask for the answer in one piece, after the timed run, to fill in such ids",
    )
    logprobs: Literal["openai", "llamacpp"] | None = Field(
        default=None, description="how log-probabilities of next tokens are asked for; null: not to be had"
    )

    @field_validator("body")
    @classmethod
    def _known(cls, body: dict[str, Any]) -> dict[str, Any]:
        for value in body.values():
            name = placeholder(value)
            if name is not None and name not in REQUEST_PLACEHOLDERS:
                raise ValueError(f"{{{name}}} is none of {', '.join(REQUEST_PLACEHOLDERS)}")
        return body


class ServerOptions(Strict):
    """A server that the workflow starts itself: ``options`` of an entry of kind ``server``."""

    command: tuple[str, ...] = Field(min_length=1, description="arguments; names in braces are filled in")
    env: dict[str, str | int | float] = Field(default={})
    health: str = Field(default="/health", description="address that answers 200 once requests are served")
    reset: str | None = Field(default=None, description="address that is asked (POST) to forget cached prefixes")
    schedule: str | None = Field(
        default=None, description="address that is asked (POST) to write its scheduler's own notes; only vLLM has one"
    )
    stop_s: float = Field(default=30, gt=0, description="between SIGTERM and SIGKILL")
    api: Api

    @field_validator("command")
    @classmethod
    def _known(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        for name in re.findall(r"{(\w+)}", " ".join(command)):
            if name not in PLACEHOLDERS:
                raise ValueError(f"{{{name}}} is none of {', '.join(PLACEHOLDERS)}")
        return command


class Price(Strict):
    """What an endpoint asks for tokens."""

    usd_per_million_input_tokens: float = Field(ge=0)
    usd_per_million_output_tokens: float = Field(ge=0)
    source: str
    date: str


class RemoteOptions(Strict):
    """An endpoint that somebody else runs: ``options`` of an entry of kind ``remote``."""

    url: str = Field(pattern=r"^https?://", description="up to and without the API's path")
    key_variable: str | None = Field(
        default=None, pattern=r"^[A-Za-z_]\w*$", description="environment variable that holds the key; never the key"
    )
    model: str | None = Field(default=None, description="what the endpoint calls the model")
    timeout_s: float = Field(default=600, gt=0, description="without a single byte of an answer")
    price: Price | None = None
    api: Api


def placeholder(value: Any) -> str | None:
    """The name in ``"{name}"``, None for any other value."""
    found = re.fullmatch(r"{(\w+)}", value) if isinstance(value, str) else None
    return found.group(1) if found else None


def fill_command(command: tuple[str, ...], values: dict[str, Any]) -> list[str]:
    """The command with what its braces name.

    >>> fill_command(("serve", "--port={port}"), {"port": 8000})
    ['serve', '--port=8000']
    """
    return [re.sub(r"{(\w+)}", lambda found: str(values[found.group(1)]), part) for part in command]


def fill_body(body: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The request's body with what its braces name, each value with its own type.

    >>> fill_body({"prompt": "{prompt_token_ids}", "stream": True}, {"prompt_token_ids": [1, 2]})
    {'prompt': [1, 2], 'stream': True}
    """
    return {key: values[name] if (name := placeholder(value)) else value for key, value in body.items()}
