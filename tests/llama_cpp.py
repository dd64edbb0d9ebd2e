"""llama.cpp itself (the package xllamacpp), in a process of its own: it ends its process where it can not go on."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

CHILD = """
import json, sys, urllib.error, urllib.request
import xllamacpp

path, context = sys.argv[1:]
settings = xllamacpp.CommonParams()
settings.model.path = path
settings.n_ctx, settings.n_parallel = int(context), 1
settings.warmup = settings.fit_params = settings.cache_prompt = False
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.verbosity = 0
server = xllamacpp.Server(settings)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    place, body = json.loads(line)
    request = urllib.request.Request(
        server.listening_address + place, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            print(answer.read().decode(), flush=True)
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode())
"""


GREEDY = {"temperature": 0.0, "cache_prompt": False, "return_tokens": True, "ignore_eos": True}


class LlamaCpp:
    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def tokenize(self, text: str, *, special: Literal["as text", "as tokens"] = "as text") -> list[int]:
        """The ids of a text; of a whole prompt, in which special tokens stand, with the BOS that comes before it."""
        is_prompt = special == "as tokens"
        body = {"content": text, "add_special": is_prompt, "parse_special": is_prompt}
        return [int(token) for token in self._ask("/tokenize", body)["tokens"]]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._ask("/detokenize", {"tokens": list(tokens)})["content"])

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """What the file's chat template makes of a conversation."""
        return str(self._ask("/apply-template", {"messages": list(messages)})["prompt"])

    def continued(self, tokens: Sequence[int], *, steps: int) -> list[int]:
        """The likeliest tokens that end no text, one after another."""
        answer = self._ask("/completion", {"prompt": list(tokens), "n_predict": steps, **GREEDY})
        return [int(token) for token in answer["tokens"]]

    def logprobs(self, tokens: Sequence[int], *, vocab_size: int) -> np.ndarray:
        """The log probability of every next token, before the bias: float64 [V].

        What is said is a whole character, because of other bytes the server does not tell.
        """
        said = {"logit_bias": [[self.tokenize("x")[-1], 1000.0]], "n_predict": 1, "n_probs": vocab_size}
        answer = self._ask("/completion", {"prompt": list(tokens), **GREEDY, **said})
        (step,) = answer["completion_probabilities"]
        found = np.full(vocab_size, np.nan)
        for one in step["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found

    def _ask(self, place: str, body: dict[str, Any]) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([place, body]) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, "llama.cpp ended"
        return json.loads(line)


@contextlib.contextmanager
def loaded(path: pathlib.Path, *, context: int) -> Iterator[LlamaCpp]:
    """The file, opened by llama.cpp with a cache of `context` positions."""
    command = [sys.executable, "-c", CHILD, str(path), str(context)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == '"ready"\n', f"llama.cpp does not open {path}"
        try:
            yield LlamaCpp(child)
        finally:
            child.kill()
