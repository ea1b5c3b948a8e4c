"""What a user says of a judge, and what the benchmark's versions differ in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from moecap.engines.server.settings import Price
from moecap.schema import FilePath, Name, Strict

Version = Literal["v0.1", "v2.0"]


class Judge(Strict):
    """A model behind an OpenAI-compatible address that says which of two answers is better."""

    model: str = Field(min_length=1, description="what the address calls the judge")
    url: str = Field(pattern=r"^https?://", description="up to and without `/chat/completions`")
    key_variable: str | None = Field(
        default=None, pattern=r"^[A-Za-z_]\w*$", description="environment variable that holds the key; never the key"
    )
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=4096, ge=1, le=1_000_000, description="of one judgment")
    body: dict[str, Any] = Field(default={}, description="more keys of the request's JSON, for what a server needs")
    prompts: FilePath | None = Field(
        default=None,
        description="the benchmark's own prompts (YAML with `system_prompt` and `prompt_template`, as in its "
        "repository); null: ours, whose scores are not comparable with its leaderboard",
    )
    baselines: dict[Name, FilePath] = Field(
        default={}, description="dataset -> JSONL of the baseline's answers, as the benchmark publishes them"
    )
    price: Price | None = Field(default=None, description="what the judge asks for tokens; null: cost is not known")
    budget_usd: float | None = Field(default=None, ge=0, description="refused where judging may cost more")
    concurrency: int = Field(default=8, ge=1, le=1000, description="requests at a time")
    timeout_s: float = Field(default=600, gt=0, le=86_400, description="of one request")
    retries: int = Field(default=8, ge=0, le=1000, description="of one request, after rate limits and errors")

    def decides(self) -> dict[str, Any]:
        """What a judgment depends on."""
        return self.model_dump(mode="json", include={"model", "url", "temperature", "max_tokens", "body"})


class Judging(Strict):
    """How a dataset of kind `judged` is judged."""

    version: Version = Field(description="whose rules of scoring: arena-hard v0.1 or v2.0")
    baseline: str = Field(min_length=1, description="the model that answers are compared with")
    category: str | None = Field(default=None, description="questions of this category alone (v2.0); null: all")
    strong: int = Field(default=3, ge=1, le=100, description="battles that a verdict of >> counts for")


@dataclass(frozen=True)
class Rules:
    """What the benchmark's versions differ in (their `show_result.py`).

    ``percentiles`` of the interval; ``whole``: a question counts only where both of its games have a verdict.
    """

    percentiles: tuple[float, float]
    whole: bool


RULES: dict[str, Rules] = {"v0.1": Rules((2.5, 97.5), whole=False), "v2.0": Rules((5.0, 95.0), whole=True)}
