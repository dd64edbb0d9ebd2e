"""What `wizard evolve` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.loader import setting


@dataclass(frozen=True, kw_only=True)
class SeedFile:
    """Instructions in a JSON or JSONL file; the schema is recognised by its keys."""

    path: str = setting(doc="Alpaca, self-instruct, ShareGPT or plain JSONL")
    limit: int = setting(0, doc="take the first N rows; 0 takes all")


@dataclass(frozen=True, kw_only=True)
class SimulatedSeeds:
    """One-step tasks of the simulated world, drawn from a seed number."""

    count: int = setting(doc="number of seed instructions")
    seed: int = setting(0, doc="the seed number")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often the simulated model misbehaves, each as a share of requests, as hosted ones do.

    Raises:
      ValueError: a share below 0, or shares that are more than 1 in all.
    """

    unchanged: float = setting(0.0, doc="a rewrite that changes nothing")
    refusal: float = setting(0.0, doc="'Sorry, I can not ...' as an answer")
    copied_prompt: float = setting(0.0, doc="a rewrite that leaks words of the rewriting prompt")
    empty: float = setting(0.0, doc="a reply that is empty or only punctuation")
    truncated: float = setting(0.0, doc="a reply cut off in the middle")
    filtered: float = setting(0.0, doc="a reply that the provider withholds")
    malformed: float = setting(0.0, doc="a success status with a body that is no chat completion")
    rate_limited: float = setting(0.0, doc="429, half of them with Retry-After")
    server_error: float = setting(0.0, doc="500 or 503")
    dropped: float = setting(0.0, doc="the connection is closed after the request was read")
    slow: float = setting(0.0, doc="an answer that takes ten times as long")

    def __post_init__(self) -> None:
        shares = vars(self)
        if not (min(shares.values()) >= 0 and sum(shares.values()) <= 1):
            told = ", ".join(f"{name} = {share}" for name, share in shares.items() if share)
            raise ValueError(f"each is a share of requests, none below 0 and at most 1 in all: {told}")


WIRE_FAULTS = ("malformed", "rate_limited", "server_error", "dropped", "slow")
"""The faults that need a wire: the simulated model in this process has none."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """The simulated model, in this process: offline, free, and named as a simulation in all that it touches."""

    faults: Faults = setting(Faults())


@dataclass(frozen=True, kw_only=True)
class OpenAICompatible:
    """Any server that speaks the OpenAI chat-completions protocol (OpenAI, vLLM, `wizard simulate-llm`)."""

    model: str = setting(doc="the model's name on that server")
    base_url: str = setting("https://api.openai.com/v1", operational=True)
    api_key_env: str = setting("OPENAI_API_KEY", operational=True, doc="the variable that holds the key")
    timeout_seconds: float = setting(120.0, operational=True)
    token_limit: Literal["max_tokens", "max_completion_tokens"] = setting(
        "max_tokens", operational=True, doc="what the server calls the limit of a reply's tokens"
    )


@dataclass(frozen=True, kw_only=True)
class EvolveConfig:
    """Evol-Instruct as published (arXiv 2304.12244, sections 3 and 4), each setting open to change."""

    seeds: SeedFile | SimulatedSeeds = setting()
    llm: Simulated | OpenAICompatible = setting()
    seed: int = setting(0, doc="of every random choice")
    rounds: int = setting(4, doc="M of the paper")
    operations: tuple[str, ...] = setting(
        (
            "add_constraints",
            "deepening",
            "concretizing",
            "increase_reasoning_steps",
            "complicate_input",
            "in_breadth",
        ),
        doc="chosen from with equal probability",
    )
    eliminate: tuple[Literal["no_gain", "refusal", "empty_answer", "copied_prompt"], ...] = setting(
        ("no_gain", "refusal", "empty_answer", "copied_prompt"), doc="the rules that are on"
    )
    answer_seeds: Literal["model", "keep"] = setting(
        "model", doc="'keep' leaves seeds their own answers where they bring one"
    )
    temperature: float = setting(1.0)
    top_p: float = setting(0.9)
    max_tokens: int = setting(2048)
    name: str = setting("evolved", doc="of the TFDS data set: lower case, digits and _")
    records_per_shard: int = setting(10_000)
    concurrency: int = setting(32, operational=True, doc="requests in flight at most")
    max_attempts: int = setting(8, operational=True, doc="of one request before its candidate is dropped")
