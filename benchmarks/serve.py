"""`wizard serve` beside our own engine on the same prompts: until ready, until the first token, tokens per second.

    python benchmarks/serve.py                                   # 25M parameters; 1, 8 and 64 clients
    python benchmarks/serve.py --size tiny --rounds 1

The server is a process of its own, started as a user starts it, over random weights in a temporary folder; so is the
engine, and the two take turns. A client asks greedily for `--tokens` tokens, and again as soon as it is answered. The
engine has as many rows as the server, and as many of the same prompts at once as there are clients. The ratio is the
server's tokens per second over the engine's, within a round; the table has the median.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from sampler import SIZES
from train_step import Size, answer, ask

from wizard_jax.progress import say, show_table

CLIENTS = (1, 8, 64)
PROMPT, LENGTH, ROWS = 32, 256, 8
"""Tokens of a prompt, of a prompt and its answer at most, and answers at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="25M")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        work(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, make_model(Path(folder), size=SIZES[arguments.size]))


def make_model(folder: Path, *, size: Size) -> Path:
    """A Hugging Face folder of random weights; ids beyond the small tokenizer have no text."""
    import jax

    from wizard_jax.convert.export import export_hf
    from wizard_jax.model import decoder
    from wizard_jax.model.config import ModelConfig
    from wizard_jax.tokenizer import train_tokenizer

    train_tokenizer(["sort the list of words"] * 9, folder / "tokenizer.model", vocab_size=280)
    config = ModelConfig(
        vocab_size=size.vocab,
        d_model=size.width,
        n_layers=size.layers,
        n_heads=size.heads,
        n_kv_heads=size.heads,
        head_dim=size.head_dim,
        d_ff=size.feed_forward,
        max_positions=LENGTH,
    )
    params = jax.jit(lambda key: decoder.init_params(config, key=key))(jax.random.key(0))
    return export_hf(params, config, folder / "tokenizer.model", folder / "hf", chat_format="vicuna", card="")


def prompts(arguments: argparse.Namespace, *, clients: int) -> np.ndarray:
    """Ids [n, PROMPT] of a round's requests: two for each client, and eight at least."""
    drawn = np.random.default_rng(0).integers(3, SIZES[arguments.size].vocab, (max(8, 2 * clients), PROMPT))
    return drawn.astype(np.int32)


def compare(arguments: argparse.Namespace, model: Path) -> None:
    """Starts both, lets them take turns, and prints the tables."""
    told = [sys.executable, __file__, *sys.argv[1:], "--engine", str(model)]
    engine = subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    answer(engine)
    command = [sys.executable, "-m", "wizard_jax", "serve", str(model), "--port", "0", "--name", "m"]
    command += ["--rows", str(ROWS), "--length", str(LENGTH), "--dtype", "float32"]
    began = time.perf_counter()
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if " listens on " in line)
        ready = time.perf_counter() - began
        url = line.split(" listens on ")[1].split()[0]
        firsts, rows = asyncio.run(measured(url, engine, arguments))
    finally:
        server.terminate()
        server.wait(60)
        engine.communicate()
    shape = f"{arguments.size}, {PROMPT} + {arguments.tokens} tokens, {ROWS} rows of {LENGTH}, float32"
    say(f"{shape}, {len(os.sched_getaffinity(0))} threads, {arguments.rounds} rounds")
    say(
        f"ready {ready:.1f} s after its start; a token {firsts[0]:.3f} s after the first request, "
        f"and {firsts[1]:.3f} s after the second"
    )
    show_table(("clients", "server, tokens/s", "engine, tokens/s", "server, engine = 1"), rows)


async def measured(
    url: str, engine: subprocess.Popen[str], arguments: argparse.Namespace
) -> tuple[list[float], list[tuple[str, ...]]]:
    """Seconds to the first token of two requests, and the table."""
    limits = httpx.Limits(max_connections=max(CLIENTS))
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits) as client:
        firsts = [await first_token(client, prompt) for prompt in prompts(arguments, clients=1)[:2].tolist()]
        return firsts, [await side_by_side(clients, client, engine, arguments) for clients in CLIENTS]


async def side_by_side(
    clients: int, client: httpx.AsyncClient, engine: subprocess.Popen[str], arguments: argparse.Namespace
) -> tuple[str, ...]:
    served, direct = [], []
    for _ in range(arguments.rounds):
        served.append(await rate(client, arguments, clients=clients))
        direct.append(float(ask(engine, str(clients))))
    ratios = [one / other for one, other in zip(served, direct, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return str(clients), f"{statistics.median(served):,.0f}", f"{statistics.median(direct):,.0f}", spread


async def rate(client: httpx.AsyncClient, arguments: argparse.Namespace, *, clients: int) -> float:
    """Tokens per second of all answers together."""
    waiting = prompts(arguments, clients=clients).tolist()
    said = 0

    async def work() -> None:
        nonlocal said
        while waiting:
            body = {"model": "m", "prompt": waiting.pop(), "max_tokens": arguments.tokens, "temperature": 0}
            answered = await client.post("/completions", json=body)
            answered.raise_for_status()
            said += answered.json()["usage"]["completion_tokens"]

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return said / (time.perf_counter() - began)


async def first_token(client: httpx.AsyncClient, prompt: list[int]) -> float:
    """Seconds to the first part of a streamed answer that shows a token, with text or without."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 1, "temperature": 0, "stream": True}
    began = time.perf_counter()
    async with client.stream("POST", "/completions", json=body) as answered:
        answered.raise_for_status()
        async for line in answered.aiter_lines():
            if line.startswith("data: {"):
                return time.perf_counter() - began
    raise RuntimeError("the server said nothing")


def work(arguments: argparse.Namespace) -> None:
    """The engine's process: for each number of clients that it is told, its tokens per second."""
    from wizard_jax.convert.importing import load_hf_params, read_model_config
    from wizard_jax.generate.engine import Ask, Engine
    from wizard_jax.generate.sampler import continued
    from wizard_jax.generate.sampling import Sampling

    config = read_model_config(arguments.engine)
    engine = Engine(load_hf_params(arguments.engine, config), config=config, rows=ROWS, length=LENGTH)
    for _ in engine.compiling():
        pass
    sampling = Sampling(max_new_tokens=arguments.tokens)
    print("ready", flush=True)
    for line in sys.stdin:
        given = prompts(arguments, clients=int(line))
        asks = [Ask(prompt=prompt, sampling=sampling, ends=()) for prompt in given]
        began = time.perf_counter()
        batches = [asks] if int(line) >= ROWS else [[one] for one in asks]
        said = sum(
            len(tokens) for batch in batches for ended in continued(engine, iter(batch)) for _, tokens, _ in ended
        )
        print(said / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
