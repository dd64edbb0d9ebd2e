"""What `wizard eval` is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from configs.errors import UserError
from configs.loader import setting
from data_gen.config import Budget, Gemini, OpenAICompatible, Simulated


@dataclass(frozen=True, kw_only=True)
class Local:
    """A model of this project: a run, an imported model, or an exported Hugging Face folder."""

    path: str = setting(doc="the folder")
    label: str = setting("", operational=True, doc="what reports call it; '': its name here")
    step: int | None = setting(None, doc="which checkpoint of a run; None: the newest")
    rows: int = setting(64, operational=True, doc="prompts answered side by side")
    length: int | None = setting(
        None, doc="most tokens of a prompt with its answer; None: the model's max_positions, at most 2,048"
    )


Participant = Local | Simulated | OpenAICompatible | Gemini
"""Whoever answers or judges."""


@dataclass(frozen=True, kw_only=True)
class SimulatedWorld:
    """Held-out tasks of the simulated world, scored by exact match of the result."""

    per_band: int = setting(200, doc="tasks of each number of steps: 1, 2, 3, and 4 or 5")
    seed: int = setting(1, doc="of the tasks")
    held_out_from: tuple[str, ...] = setting(
        doc="data sets that no task may share an instruction, or a chain of steps with its input, with"
    )

    def __post_init__(self) -> None:
        if self.per_band < 1:
            raise UserError(f"per_band is {self.per_band}: ask for at least 1 task of each number of steps")
        if not self.held_out_from:
            raise UserError("held_out_from is empty: name the data sets that were trained on, as in ('evolved',)")


@dataclass(frozen=True, kw_only=True)
class WizardLMTestSet:
    """The 218 instructions of WizardLM: 29 skills, difficulty 1 to 10 (arXiv 2304.12244, section 4.3)."""

    path: str = setting(doc="WizardLM_testset.jsonl, or hf://owner/name/FILE")
    sha256: str = setting("", doc="of another version of the file, to take it all the same; '': the published one")


@dataclass(frozen=True, kw_only=True)
class VicunaBench:
    """80 questions in 9 categories (FastChat)."""

    path: str = setting(doc="vicuna_bench/question.jsonl, or hf://owner/name/FILE")
    sha256: str = setting("", doc="of another version of the file, to take it all the same; '': the published one")


@dataclass(frozen=True, kw_only=True)
class MTBench:
    """80 questions of two turns in 8 categories (arXiv 2306.05685)."""

    path: str = setting(doc="mt_bench/question.jsonl, or hf://owner/name/FILE")
    references: str = setting("", doc="mt_bench/reference_answer/gpt-4.jsonl, for judges; '': none")
    sha256: str = setting("", doc="of another version of the questions, to take it all the same; '': the published one")
    references_sha256: str = setting("", doc="of another version of the references, likewise")


@dataclass(frozen=True, kw_only=True)
class IFEval:
    """541 prompts with 834 constraints that a program checks (arXiv 2311.07911), by lm_eval's checkers."""

    path: str = setting(doc="input_data.jsonl, or hf://owner/name/FILE")
    sha256: str = setting("", doc="of another version of the file, to take it all the same; '': the published one")


@dataclass(frozen=True, kw_only=True)
class GSM8K:
    """1,319 problems of school mathematics (arXiv 2110.14168), scored by the last number of the answer."""

    path: str = setting(doc="test.jsonl, or hf://owner/name/FILE")
    sha256: str = setting("", doc="of another version of the file, to take it all the same; '': the published one")


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Loss of the answers in a data set that was held out, by source and round; for models of this project."""

    dataset: str = setting("", doc="a data set of this project; '': what each run held out of its own")
    records: int = setting(0, doc="at most so many, in a seeded order; 0: all")


@dataclass(frozen=True, kw_only=True)
class Harness:
    """Tasks of lm-evaluation-harness by name, run in this process (extra [eval]); for models of this project."""

    tasks: tuple[str, ...] = setting(doc="such as ('arc_easy',)")
    include: str = setting("", doc="a folder of task files of one's own")
    prompts: Literal["plain", "chat"] = setting("plain", doc="'chat': in the model's chat format, examples as turns")
    num_fewshot: int | None = setting(None, doc="None: as the task says")
    examples: int | None = setting(None, doc="the first so many of each task; None: all")


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard the instructions of a data set are without a judge: loss and IFD of their answers; for models of this
    project."""

    dataset: str = setting(doc="the folder of a wizard evolve, answer or merge")
    records: int = setting(0, doc="at most so many, whole lineages in a seeded order; 0: all")
    alone_after: Literal["answer prefix", "bos"] = setting(
        "answer prefix", doc="what stands before an answer alone: the chat format's words before any answer, or BOS"
    )
    judged: str = setting(
        "", doc="the wizard evolve whose judge's scores IFD is compared with; '': dataset, where it measured difficulty"
    )


@dataclass(frozen=True, kw_only=True)
class Validity:
    """Whether a data set's instructions can be answered, and several answers to one agree, by round."""

    dataset: str = setting(doc="the folder of a wizard evolve, answer or merge")
    lineages: int = setting(100, doc="at most so many, each with all its rounds, in a seeded order; 0: all")
    seed: int = setting(0, doc="of the order")
    judged: str = setting("", doc="the wizard evolve whose judge says what is harder; '': dataset, where it did")


Task = (
    SimulatedWorld
    | WizardLMTestSet
    | VicunaBench
    | MTBench
    | IFEval
    | GSM8K
    | HeldOutLoss
    | Harness
    | Difficulty
    | Validity
)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model that compares two answers, or grades one."""

    llm: Participant = setting()
    asks: Literal["pairwise", "graded", "both"] = setting("pairwise")
    max_tokens: int = setting(2048, doc="of a verdict with its reasons; thinking counts")
    counts: Literal["if it passes", "always"] = setting(
        "if it passes", doc="whether its verdicts count when it fails a gate"
    )


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What a judge must reach on pairs of known truth before its verdicts count (see docs)."""

    pairs: int = setting(100, doc="of a right and a wrong answer, and of an easier and a harder task; 0: no gates")
    accuracy: float = setting(0.75, doc="share of pairs judged right, in both orders together")
    order_consistency: float = setting(0.7, doc="share of pairs with the same verdict in both orders")
    rank_correlation: float = setting(0.5, doc="Spearman, of judged with known difficulty")
    seed: int = setting(0, doc="of the pairs")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One task, asked of any number of models, judged by any number of judges."""

    task: Task = setting(doc="what is asked and how it is scored")
    models: Mapping[str, Participant] = setting(default_factory=dict, doc="who is evaluated")
    judges: Mapping[str, Judge] = setting(default_factory=dict, doc="who compares their answers; none: no judging")
    baseline: str = setting("", doc="the one of models that judges compare each other with; '': every pair")
    gates: Gates = setting(Gates())
    self_judging: bool = setting(False, doc="whether a judge may be a model that is judged, or its teacher")
    samples: int = setting(1, doc="answers of each model to each item, each by a seed of its own")
    temperature: float = setting(0.0, doc="of answers")
    top_p: float = setting(1.0)
    max_tokens: int = setting(1024, doc="of an answer")
    seed: int = setting(0, doc="of every random choice")
    limit: int = setting(0, doc="the first so many items; 0: all")
    budget: Budget = setting(Budget(), operational=True)
    concurrency: int = setting(256, operational=True, doc="requests in flight at most; how many really are adapts")
    requests_per_minute: float | None = setting(None, operational=True, doc="None: as many as are taken")
    tokens_per_minute: float | None = setting(None, operational=True, doc="None: as many as are taken")
    max_attempts: int = setting(8, operational=True, doc="of one request before its item is given up")
    lost_jobs: Literal["stop", "ask_again"] = setting(
        "stop", operational=True, doc="what if a batch job is gone, or of other settings: 'ask_again' may pay twice"
    )
