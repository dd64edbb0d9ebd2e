"""A model of this project as lm-evaluation-harness asks for one, over the scheduler of the sampler and the scorer.

Imports lm_eval, and so is imported where the extra [eval] is known to be there.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-untyped]

from data_gen.records import Turn
from wizard_jax.chat import encode_conversation, end_id, segments
from wizard_jax.evaluate.items import TaskError
from wizard_jax.generate.engine import Ask, Chances, Said, Tokens
from wizard_jax.generate.sampling import Sampling
from wizard_jax.generate.scheduler import Failed, Job, Scheduler
from wizard_jax.generate.speaker import Speaker
from wizard_jax.generate.text import TextStream

_NEW_TOKENS = 256  # of an answer, where a task does not say: as in lm_eval's own models
_AT_ONCE = 1024  # requests that wait: the scheduler looks at all of them between two steps
_TAKEN = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"})

Deliver = Callable[[Said | Chances | Failed], None]


@dataclass
class Shortened:
    """What did not fit within the model's length."""

    prompts: int = 0
    """That lost their beginning, as lm_eval's own models cut them."""
    answers: int = 0
    """That had less room than the task gives them."""


@dataclass
class _Prompt:
    """A conversation that was written as text, and is to be read again as the ids that it stands for."""

    turns: tuple[Turn, ...]
    ids: list[int] = field(default_factory=list)


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval ships no types
    """Use it while the scheduler is entered, from one thread."""

    def __init__(
        self, speaker: Speaker, scheduler: Scheduler, *, length: int, seed: int, tell: Callable[[int, int], None]
    ) -> None:
        """`length` is the most tokens of a prompt with its answer; `tell` hears how much is done, of how much."""
        super().__init__()
        self._speaker, self._scheduler, self._length, self._seed, self._tell = speaker, scheduler, length, seed, tell
        self._prompts: dict[str, _Prompt] = {}
        self._done = self._asked = 0
        self.shortened = Shortened()

    @property
    def eot_token_id(self) -> int:
        return self._speaker.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context comes after."""
        bos = self._speaker.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self._speaker.tokenizer.sha256

    def chat_template(self, chat_template: bool | str = False) -> str:
        del chat_template
        return self._speaker.check_format().name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, which `tok_encode` knows again. Raises TaskError: the answer is begun already."""
        if not add_generation_prompt:
            raise TaskError(
                "the task begins the answer itself, which no chat format here can: set task.prompts='plain'"
            )
        turns = tuple(Turn(one["role"], one["content"]) for one in chat_history)  # type: ignore[arg-type]
        text = "".join(segments(turns, chat_format=self._speaker.check_format()))
        known = self._prompts.setdefault(text, _Prompt(turns, self._speaker.prompt_of_turns(turns).tolist()))
        if known.turns != turns:
            raise TaskError(f"two conversations of the task read the same in this chat format: {text[:80]!r}")
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """With BOS in front, where the tokenizer has one, unless `add_special_tokens` is False."""
        if (prompt := self._prompts.get(string)) is not None:
            return prompt.ids
        if add_special_tokens is False:
            return self._speaker.tokenizer.encode(string)
        ids: list[int] = self._speaker.prompt_of_text(string).tolist()
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """After a conversation, a continuation is an answer without its end, cut into ids as training cuts it."""
        prompt = self._prompts.get(context)
        if prompt is None:
            ids: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return ids
        chat_format, tokenizer = self._speaker.check_format(), self._speaker.tokenizer
        turns = (*prompt.turns, Turn("assistant", continuation.strip()))
        whole = encode_conversation(turns, chat_format=chat_format, tokenizer=tokenizer).tokens.tolist()
        said = whole[len(prompt.ids) :]
        return prompt.ids, said[: said.index(end_id(chat_format, tokenizer))]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The log probability of each continuation, and whether it is what greedy sampling would say."""
        texts = []
        for _names, context, continuation in requests:
            if len(continuation) >= self._length:
                raise TaskError(
                    f"a continuation has {len(continuation)} tokens, and the model's length is {self._length}: raise "
                    "the model's length, or leave the task out"
                )
            self.shortened.prompts += len(context) + len(continuation) > self._length
            texts.append(np.array([*context, *continuation][-self._length :], np.int32))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(texts)

        def settle(index: int, chances: Chances) -> None:
            count = len(requests[index][2])
            scored = slice(len(texts[index]) - count, None)
            total = float(chances.chosen[scored].sum(dtype=np.float64))
            found[index] = total, bool((chances.likeliest[scored, 0] == texts[index][scored]).all())

        self._run([(text, _chances(settle, index)) for index, text in enumerate(texts)])
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Of whole texts, each token once, after as many of those before it as there is room for."""
        del disable_tqdm
        windows, owners = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            cut = get_rolling_token_windows(ids, self.prefix_token_id, self._length - 1, 1)
            for context, continuation in map(make_disjoint_window, cut):
                windows.append((None, context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += total
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model says to each context, up to the first stop string. Raises TaskError: unknown settings."""
        del disable_tqdm
        answers = [""] * len(requests)

        def settle(index: int, text: str) -> None:
            answers[index] = text

        jobs = []
        for index, request in enumerate(requests):
            context, settings = request.args
            ask, stop = self._ask(context, settings, place=index)
            jobs.append((ask, _Answer(index, TextStream(self._speaker.tokenizer, stop=stop), settle)))
        self._run(jobs)
        return answers

    def _ask(self, context: str, settings: Mapping[str, Any], *, place: int) -> tuple[Ask, list[str]]:
        if odd := settings.keys() - _TAKEN:
            raise TaskError(
                f"the task asks for {', '.join(sorted(odd))} in its generation_kwargs, which has no effect here: it "
                f"takes {', '.join(sorted(_TAKEN))}"
            )
        asked = int(settings.get("max_gen_toks", _NEW_TOKENS))
        ids = np.array(self.tok_encode(context) or [self.prefix_token_id], np.int32)
        room = min(asked, max(self._length - len(ids), self._length // 2))
        self.shortened.answers += room < asked
        self.shortened.prompts += len(ids) > self._length - room
        is_greedy = not settings.get("do_sample", float(settings.get("temperature", 0.0)) > 0)
        sampling = Sampling(
            max_new_tokens=room,
            temperature=0.0 if is_greedy else float(settings.get("temperature", 1.0)),
            top_p=float(settings.get("top_p", 1.0)),
            top_k=int(settings.get("top_k", 0)),
            seed=self._seed,
        )
        until = settings.get("until") or []
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        ask = Ask(prompt=ids[-(self._length - room) :], sampling=sampling, place=place, ends=self._speaker.ends)
        return ask, stop

    def _run(self, jobs: Sequence[tuple[Ask | Tokens, Callable[[Any], bool]]]) -> None:
        """Has all of them done; each hears what comes of it, and says whether that was all."""
        self._asked += len(jobs)
        for start in range(0, len(jobs), _AT_ONCE):
            self._run_some(jobs[start : start + _AT_ONCE])

    def _run_some(self, jobs: Sequence[tuple[Ask | Tokens, Callable[[Any], bool]]]) -> None:
        heard: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

        def deliver(index: int) -> Deliver:
            return lambda what: heard.put((index, what))

        given = [Job(what=what, deliver=deliver(index)) for index, (what, _) in enumerate(jobs)]
        self._scheduler.submit(given)
        left = set(range(len(given)))
        try:
            while left:
                index, what = heard.get()
                if isinstance(what, Failed):
                    raise what.error
                if index in left and jobs[index][1](what):
                    left.remove(index)
                    self._scheduler.cancel([given[index]])
                    self._done += 1
                    self._tell(self._done, self._asked)
        finally:
            self._scheduler.cancel(given)


def _chances(settle: Callable[[int, Chances], None], index: int) -> Callable[[Any], bool]:
    def hear(chances: Chances) -> bool:
        settle(index, chances)
        return True

    return hear


@dataclass
class _Answer:
    """The text of one answer while its tokens come."""

    index: int
    stream: TextStream
    settle: Callable[[int, str], None]
    text: str = ""

    def __call__(self, said: Said) -> bool:
        self.text += self.stream.push(said.tokens.tolist())
        if not (said.ended or self.stream.stopped):
            return False
        self.settle(self.index, self.text + self.stream.finish())
        return True


def sample_lines(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What lm_eval keeps of each example, as JSON lines."""
    for sample in samples:
        yield json.dumps(sample, ensure_ascii=False, default=str) + "\n"
