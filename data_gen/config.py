"""What `wizard evolve` is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from configs.loader import setting


@dataclass(frozen=True, kw_only=True)
class SeedFile:
    """Instructions in files of any public schema; which one a row is of is recognised by its keys."""

    path: str = setting(doc="a file, a folder, a glob such as 'tasks/*.json', or tfds:NAME")
    limit: int = setting(0, doc="take the first N seeds; 0 takes all")
    language: str = setting("", doc="only rows that say they are in this language, such as en; '' takes all")
    bad_rows: Literal["refuse", "skip"] = setting("refuse", doc="what to do with rows that can not be used")


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
    invalid_input: float = setting(0.0, doc="a rewrite whose added input data does not parse")
    filtered: float = setting(0.0, doc="a reply that the provider withholds")
    misjudged: float = setting(0.0, doc="a verdict on answers or instructions, or a grade, opposite to its own")
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
    judges: Literal["well", "first", "longer"] = setting(
        "well", doc="of wizard eval: what is right, or as bad judges do what is shown first, or what is longer"
    )


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a model costs, where genai-prices does not know it; 0 and 0 for a server of one's own."""

    input: float = setting(doc="USD per million input tokens")
    output: float = setting(doc="USD per million output tokens")

    def __post_init__(self) -> None:
        for name, usd in vars(self).items():
            if not 0 <= usd < math.inf:
                raise ValueError(f"{name} = {usd}: USD per million tokens, at least 0")


@dataclass(frozen=True, kw_only=True)
class OpenAIBatch:
    """Requests go out as jobs of OpenAI's Batch API, at half price, within a day."""

    max_requests: int = setting(50_000, doc="of one job")
    max_bytes: int = setting(200_000_000, doc="of one job's file")
    max_wait_seconds: float = setting(600.0, doc="a job goes out at the latest so long after its first request")
    poll_seconds: float = setting(30.0)


@dataclass(frozen=True, kw_only=True)
class VertexBatch:
    """Requests go out as batch prediction jobs of Vertex AI, at half price, within a day."""

    bucket: str = setting(doc="where requests and replies lie while a job runs: gs://BUCKET/FOLDER")
    storage_base_url: str = setting("", doc="another address of Cloud Storage, such as a simulated server's")
    max_requests: int = setting(200_000, doc="of one job")
    max_bytes: int = setting(1_000_000_000, doc="of one job's file")
    max_wait_seconds: float = setting(600.0, doc="a job goes out at the latest so long after its first request")
    poll_seconds: float = setting(60.0)


@dataclass(frozen=True, kw_only=True)
class OpenAICompatible:
    """Any server that speaks the OpenAI chat-completions protocol (OpenAI, vLLM, Vertex AI, `wizard simulate-llm`)."""

    model: str = setting(doc="the model's name on that server")
    base_url: str = setting("https://api.openai.com/v1", operational=True)
    credentials: Literal["key", "google"] = setting(
        "key", operational=True, doc="'google': application-default credentials, for Vertex AI's endpoint"
    )
    api_key_env: str = setting("OPENAI_API_KEY", operational=True, doc="the variable that holds the key")
    timeout_seconds: float = setting(120.0, operational=True)
    token_limit: Literal["max_tokens", "max_completion_tokens"] = setting(
        "max_tokens", operational=True, doc="what the server calls the limit of a reply's tokens"
    )
    price: Price | None = setting(None, operational=True, doc="None: what genai-prices says")
    batch: OpenAIBatch | None = setting(None, operational=True, doc="None: one request at a time, at full price")


@dataclass(frozen=True, kw_only=True)
class Gemini:
    """Gemini on Vertex AI (application-default credentials) or AI Studio (a key)."""

    model: str = setting(doc="such as gemini-2.5-flash")
    platform: Literal["vertex", "ai_studio"] = setting("vertex", operational=True)
    project: str = setting("", operational=True, doc="of Google Cloud; '' is the one of the credentials")
    location: str = setting("global", operational=True)
    api_key_env: str = setting("GEMINI_API_KEY", operational=True, doc="the variable that holds AI Studio's key")
    base_url: str = setting("", operational=True, doc="another address, such as a simulated server's")
    thinking_budget: int | None = setting(
        None, doc="tokens of thought a reply may take, which are billed; None: its own"
    )
    timeout_seconds: float = setting(120.0, operational=True)
    price: Price | None = setting(None, operational=True, doc="None: what genai-prices says")
    batch: VertexBatch | None = setting(None, operational=True, doc="None: one request at a time, at full price")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several models of the server that rewrites; each round of a lineage draws one of them.

    Raises:
      ValueError: no models, one named twice, not a weight above 0 for each.
    """

    models: tuple[str, ...] = setting()
    weights: tuple[float, ...] = setting()

    def __post_init__(self) -> None:
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError("models: name at least one, and none twice")
        if len(self.weights) != len(self.models) or not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError("weights: one above 0 for each of the models")


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """The lineages that a bandit or a stop of the run learns from: they evolve first, by uniform choice."""

    lineages: int = setting(200, doc="the first so many seeds")
    floor: float = setting(0.05, doc="the least probability of an operation after the pilot")
    margin: float = setting(
        0.0, doc="the least mean gain in difficulty, in points of 10, for which a round is worth it"
    )


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured of the finished records, and what becomes of duplicates and test items among them."""

    difficulty_lineages: int = setting(0, doc="lineages whose versions the judge scores and ranks; 0: not measured")
    diversity_sample: int = setting(1000, doc="instructions of each round that are compared; 0: not measured")
    duplicates: Literal["off", "flag", "drop"] = setting("flag")
    duplicate_threshold: float = setting(0.8, doc="Jaccard similarity of word 5-grams")
    contamination_files: tuple[str, ...] = setting((), doc="test sets that no record may repeat")
    contamination: Literal["flag", "drop"] = setting("flag")
    contamination_ngram: int = setting(13, doc="words in a row that give a record away")
    contamination_similarity: float = setting(0.2, doc="TF-IDF similarity from which a record is suspected")
    contamination_verdict: Literal["retrieval", "model"] = setting(
        "retrieval", doc="'model': the judge decides on what retrieval suspects"
    )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of the seeds that this run evolves: those whose lineage hashes to `index` of `count`.

    Raises:
      ValueError: an index that is not below the count.
    """

    index: int = setting(0)
    count: int = setting(1)

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"index = {self.index}, count = {self.count}: the index runs from 0 to count - 1")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may spend in all, over every restart; None sets no limit. A run that would go beyond stops."""

    usd: float | None = setting(None)
    tokens: int | None = setting(None, doc="input and output together")
    calls: int | None = setting(None, doc="requests that were answered, or may have been")

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not 0 < limit < math.inf:
                raise ValueError(f"{name} = {limit}: a limit is above 0; None sets none")


Provider = Simulated | OpenAICompatible | Gemini
"""Whoever answers."""


RewriteRule = Literal[
    "no_gain", "refusal", "empty_answer", "copied_prompt", "invalid_input", "changed_meaning", "word_count"
]
"""The rules that can be switched; the first four are the published ones."""


@dataclass(frozen=True, kw_only=True)
class EvolveConfig:
    """Evol-Instruct as published (arXiv 2304.12244, sections 3 and 4), each setting open to change."""

    seeds: SeedFile | SimulatedSeeds = setting()
    llm: Provider = setting(doc="rewrites; judges and answers too unless told otherwise")
    answerer: Provider | None = setting(None, doc="None: llm answers")
    judge: Provider | None = setting(None, doc="None: llm judges")
    mixture: Mixture | None = setting(None, doc="None: llm.model rewrites")
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
        doc="what instructions are rewritten by; there are downward and paraphrase too",
    )
    choice: Literal["uniform", "bandit"] = setting("uniform", doc="'bandit' learns from the pilot what pays where")
    stop: Literal["never", "lineage", "run"] = setting(
        "never", doc="when measured gain falls below pilot.margin: end that lineage, or every one after that round"
    )
    pilot: Pilot = setting(Pilot())
    eliminate: tuple[RewriteRule, ...] = setting(
        ("no_gain", "refusal", "empty_answer", "copied_prompt", "invalid_input", "changed_meaning"),
        doc="the rules that are on; there is word_count too, for rewrites that do not add 10 to 20 words",
    )
    answer_seeds: Literal["model", "keep"] = setting(
        "model", doc="'keep' leaves seeds their own answers where they bring one"
    )
    temperature: float = setting(1.0)
    top_p: float = setting(0.9)
    max_tokens: int = setting(2048)
    measure: Measure = setting(Measure())
    shard: Shard = setting(Shard())
    name: str = setting("evolved", doc="of the TFDS data set: lower case, digits and _")
    records_per_shard: int = setting(10_000)
    file_format: Literal["tfrecord", "array_record"] = setting("tfrecord")
    budget: Budget = setting(Budget(), operational=True)
    concurrency: int = setting(256, operational=True, doc="requests in flight at most; how many really are adapts")
    requests_per_minute: float | None = setting(None, operational=True, doc="None: as many as are taken")
    tokens_per_minute: float | None = setting(None, operational=True, doc="None: as many as are taken")
    max_attempts: int = setting(8, operational=True, doc="of one request before its candidate is dropped")
    lost_jobs: Literal["stop", "ask_again"] = setting(
        "stop", operational=True, doc="what if a batch job is gone, or of other settings: 'ask_again' may pay twice"
    )
    open_lineages: int = setting(
        0, operational=True, doc="seeds under way at once; 0: as many as keep the model busy, with batch jobs all"
    )


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """Answers a data set again: with another model or in another style, every instruction as it is."""

    dataset: str = setting(doc="the folder of a wizard evolve, answer or merge")
    rounds: tuple[int, ...] = setting((), doc="only the records of these rounds; () takes all")
    llm: Provider = setting(doc="who answers")
    style: Literal["plain", "brief", "detailed", "length"] = setting(
        "plain", doc="'plain' asks for nothing but the answer; 'length' for about so many words"
    )
    words: int = setting(0, doc="of an answer in the style 'length'")
    seed: int = setting(0, doc="of every random choice")
    eliminate: tuple[Literal["refusal", "empty_answer"], ...] = setting(("refusal", "empty_answer"))
    temperature: float = setting(1.0)
    top_p: float = setting(0.9)
    max_tokens: int = setting(2048)
    measure: Measure = setting(Measure())
    name: str = setting("answered", doc="of the TFDS data set: lower case, digits and _")
    records_per_shard: int = setting(10_000)
    file_format: Literal["tfrecord", "array_record"] = setting("tfrecord")
    budget: Budget = setting(Budget(), operational=True)
    concurrency: int = setting(256, operational=True, doc="requests in flight at most; how many really are adapts")
    requests_per_minute: float | None = setting(None, operational=True, doc="None: as many as are taken")
    tokens_per_minute: float | None = setting(None, operational=True, doc="None: as many as are taken")
    max_attempts: int = setting(8, operational=True, doc="of one request before its record is dropped")
    lost_jobs: Literal["stop", "ask_again"] = setting(
        "stop", operational=True, doc="what if a batch job is gone, or of other settings: 'ask_again' may pay twice"
    )
