"""A model of this project as a `ChatModel`, so that it is asked, journalled and judged as a hosted one is.

What it says to a request depends on that request alone, whatever it shares a batch with.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from configs.errors import UserError
from configs.folder import read_identity
from data_gen.llm.chat import ChatReply, ChatRequest, Permanent
from data_gen.records import Turn
from wizard_jax.chat import ChatError, check_tokenizer, get_format
from wizard_jax.convert.imported import weights_sha256
from wizard_jax.evaluate.config import Local
from wizard_jax.generate.engine import Ask, Chances, Said
from wizard_jax.generate.sampling import Sampling
from wizard_jax.generate.scheduler import Failed, Job, Scheduler
from wizard_jax.generate.speaker import Speaker
from wizard_jax.generate.weights import prepared
from wizard_jax.runs import OpenedModel, find_model, open_model
from wizard_jax.train.checkpoint import CheckpointStore
from wizard_jax.train.source import CHECKPOINTS

_LENGTH = 2048  # most tokens of a prompt with its answer, where the config does not say
_QUEUE = 1 << 30


def check_local(model: Local, *, setting: str) -> None:
    """Before any weights are read. Raises UserError: no model there, no chat format, or settings that do not fit it."""
    found = find_model(Path(model.path), step=model.step)
    if not found.chat_format:
        raise UserError(f"{found.path} names no chat format: import it with wizard import --chat-format NAME")
    check_tokenizer(get_format(found.chat_format), found.tokenizer)
    if model.rows < 1:
        raise UserError(f"{setting}.rows is {model.rows}: must be at least 1")
    if model.length is not None and not 1 < model.length <= found.config.max_positions:
        raise UserError(
            f"{setting}.length is {model.length}: must be above 1, and at most {found.config.max_positions}, the "
            "model's max_positions"
        )


def fingerprint(model: Local) -> str:
    """What tells the model's weights from others: its folder, what made it, and its step.

    Of a Hugging Face folder the sizes and times of its files, so that one that was copied counts as another.
    """
    path = Path(model.path)
    found = find_model(path, step=model.step)
    if found.run is not None:
        with CheckpointStore(path / CHECKPOINTS) as store:
            step, _, _ = store.restore({}, step=model.step)
        told = f"{read_identity(path).identity} {step}"
    elif found.stage == "import":
        told = weights_sha256(path)
    else:
        files = sorted(file for file in path.iterdir() if file.is_file())
        told = " ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return f"{path.resolve().name} {hashlib.sha256(told.encode()).hexdigest()[:16]}"


class LocalChat:
    """Answers requests in batches; use it inside `speaking`."""

    def __init__(self, speaker: Speaker, scheduler: Scheduler, *, length: int) -> None:
        self._speaker, self._scheduler, self._length = speaker, scheduler, length

    async def complete(self, request: ChatRequest) -> ChatReply:
        """An answer ends early where prompt and answer fill the model's length.

        Raises Permanent: turns that the chat format can not write, or a prompt that leaves no room for an answer.
        """
        prompt = self._prompt(request)
        room = self._length - len(prompt)
        if room < 1:
            raise Permanent(f"the prompt has {len(prompt)} tokens of {self._length}", scope="request")
        sampling = Sampling(
            max_new_tokens=min(request.max_tokens, room),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
        )
        tokens, ended = await self._answer(Ask(prompt=prompt, sampling=sampling, ends=self._speaker.ends))
        return ChatReply(
            text=self._speaker.tokenizer.decode(tokens),
            finish_reason="stop" if ended == "stop" else "length",
            model=self._speaker.name,
            input_tokens=len(prompt),
            output_tokens=len(tokens),
        )

    def _prompt(self, request: ChatRequest) -> np.ndarray:
        turns = [Turn(message.role, message.content) for message in request.messages]
        try:
            return self._speaker.prompt_of_turns(turns)
        except ChatError as error:
            raise Permanent(str(error), scope="request") from error

    async def _answer(self, ask: Ask) -> tuple[list[int], str]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[list[int], str]] = loop.create_future()
        said: list[int] = []

        def settle(error: BaseException | None, ended: str) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result((said, ended))

        def deliver(what: Said | Chances | Failed) -> None:
            if isinstance(what, Failed):
                loop.call_soon_threadsafe(settle, what.error, "")
                return
            assert isinstance(what, Said)
            said.extend(what.tokens.tolist())
            if what.ended:
                loop.call_soon_threadsafe(settle, None, what.ended)

        job = Job(what=ask, deliver=deliver)
        self._scheduler.submit([job])
        try:
            return await answer
        finally:
            self._scheduler.cancel([job])


@contextlib.asynccontextmanager
async def speaking(model: Local, *, name: str) -> AsyncIterator[tuple[LocalChat, OpenedModel]]:
    """Opens the model, and has it answer until the context is left. Raises UserError as `open_model` does."""
    opened = open_model(Path(model.path), step=model.step)
    speaker = Speaker(
        name=name,
        params=prepared(opened.params, config=opened.config, source="freed"),
        config=opened.config,
        tokenizer=opened.tokenizer,
        chat_format=get_format(opened.chat_format),
    )
    length = model.length or min(opened.config.max_positions, _LENGTH)
    with Scheduler(speaker, rows=model.rows, length=length, queue=_QUEUE) as scheduler:
        yield LocalChat(speaker, scheduler, length=length), dataclasses.replace(opened, params={})
