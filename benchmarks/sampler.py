"""Greedy decoding against `transformers` generate: the same LLaMA, weights, prompts, threads and float32.

    python benchmarks/sampler.py --rounds 5 --size 25M --batch 1        # or tiny, 110M; 16

Every side is a process of its own, and they take turns: one round is one batch of answers of each, so that a machine
that slows down slows both. Ratios are taken within a round; the table has their median. Nothing ends an answer before
`--tokens` tokens. What both sides say is compared, and the table says how far it agrees: weights are random, so
that the likeliest two tokens may be as close as two roundings of one number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from train_step import SIZES, Size, answer, ask

from wizard_jax.progress import show_table

SIZES = {"tiny": Size(2_000, 128, 4, 4, 352), **SIZES}
SIDES = ("transformers", "ours")
PROMPT = 32  # tokens

Say = Callable[[], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="25M")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Starts a worker for each side, lets them take turns, and prints the table."""
    told = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--side"]
    workers = {}
    for side in SIDES:  # one after the other: the first writes the weights that the second reads
        workers[side] = subprocess.Popen([*told, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer(workers[side])
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    said: dict[str, list[list[int]]] = {}
    for number in range(arguments.rounds):
        for side in SIDES[number % 2 :] + SIDES[: number % 2]:
            told_back = json.loads(ask(workers[side], "say"))
            seconds[side].append(told_back["seconds"])
            said[side] = told_back["said"]
    for worker in workers.values():
        worker.communicate()
    theirs, ours = (np.array(said[side]) for side in SIDES)
    rows = []
    for side in SIDES:
        ratios = [first / own for first, own in zip(seconds[SIDES[0]], seconds[side], strict=True)]
        rate = arguments.batch * arguments.tokens / statistics.median(seconds[side])
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((side, f"{rate:,.1f}", spread))
    shape = f"{arguments.size}, batch {arguments.batch}, {PROMPT} + {arguments.tokens} tokens"
    how = f"{arguments.threads} threads, float32, {arguments.rounds} rounds"
    print(f"{shape}, {how}; {np.mean(theirs == ours):.1%} of the tokens agree")
    show_table(("side", "tokens/s", "speed, transformers = 1"), rows)


def work(arguments: argparse.Namespace) -> None:
    """A worker: builds its side, then answers when it is told to, with its time."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    size = SIZES[arguments.size]
    prompts = np.random.default_rng(0).integers(3, size.vocab, (arguments.batch, PROMPT)).astype(np.int32)
    made = transformers_side if arguments.side == SIDES[0] else our_side
    say = made(prompts, size=size, arguments=arguments)
    say()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        said = say()
        print(json.dumps({"seconds": time.perf_counter() - began, "said": said}), flush=True)


def transformers_side(prompts: np.ndarray, *, size: Size, arguments: argparse.Namespace) -> Say:
    warnings.simplefilter("ignore")
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(size.of_transformers(max_position_embeddings=2048)).eval()
    model.save_pretrained(arguments.folder)
    model.generation_config.eos_token_id = None
    inputs = torch.tensor(prompts, dtype=torch.long)
    told = {"max_new_tokens": arguments.tokens, "do_sample": False, "pad_token_id": 0}

    def say() -> list[list[int]]:
        with torch.inference_mode():
            said = model.generate(inputs, attention_mask=torch.ones_like(inputs), **told)
        return said[:, PROMPT:].tolist()

    return say


def our_side(prompts: np.ndarray, *, size: Size, arguments: argparse.Namespace) -> Say:
    from wizard_jax.convert.importing import load_hf_params, read_model_config
    from wizard_jax.generate.engine import Ask, Engine, bucket
    from wizard_jax.generate.sampler import continued
    from wizard_jax.generate.sampling import Sampling

    del size
    config = read_model_config(arguments.folder)
    params = load_hf_params(arguments.folder, config)
    length = bucket(PROMPT + arguments.tokens, most=config.max_positions)
    engine = Engine(params, config=config, rows=arguments.batch, length=length)
    asks = [Ask(prompt=prompt, sampling=Sampling(max_new_tokens=arguments.tokens), ends=()) for prompt in prompts]

    def say() -> list[list[int]]:
        said = {number: tokens.tolist() for ended in continued(engine, iter(asks)) for number, tokens, _ in ended}
        return [said[number] for number in range(len(asks))]

    return say


if __name__ == "__main__":
    main()
