"""A training step against transformers + PyTorch: the same LLaMA, batch, sequence, threads, float32 and AdamW.

    python benchmarks/train_step.py --rounds 5 --size 25M        # or 110M

Every side is a process of its own, and they take turns: one round is some steps of each, so that a machine that
slows down slows all of them. Ratios are taken within a round; the tables have their median.

The second table is what part of that is the libraries' matrix products: those of one step, forward and backward,
each of its shape, alone and as often as the step has it, by `torch.einsum` and by `jax.numpy.einsum` under `jax.jit`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from wizard_jax.progress import show_table

RATE = 1e-4
SIDES = ("PyTorch eager", "PyTorch compiled", "ours, unrolled", "ours, scanned")
"""The first is what the others are compared with."""
PRODUCTS = ("PyTorch eager", "ours, unrolled")
"""The sides whose libraries multiply bare matrices."""


class Size(NamedTuple):
    """A LLaMA without grouped queries; shape legend as in model/decoder.py."""

    vocab: int
    width: int
    layers: int
    heads: int
    feed_forward: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def of_transformers(self, **settings: Any) -> Any:
        """A `LlamaConfig` of these sizes."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=self.head_dim,
            rms_norm_eps=1e-5,
            **settings,
        )


SIZES = {"25M": Size(8_000, 512, 6, 8, 1_280), "110M": Size(16_000, 768, 12, 12, 2_048)}

Step = Callable[[], float]
"""Takes one step and returns its loss, so that nothing is left undone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    parser.add_argument("--size", choices=SIZES, default="25M")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Starts a worker for each side, lets them take turns, and prints the table."""
    told = [sys.executable, __file__, *sys.argv[1:], "--side"]
    workers = {
        side: subprocess.Popen([*told, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side in SIDES
    }
    ready = {side: answer(worker).split() for side, worker in workers.items()}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    bare: dict[str, list[dict[str, float]]] = {side: [] for side in PRODUCTS}
    for number in range(arguments.rounds):
        for side in SIDES[number % len(SIDES) :] + SIDES[: number % len(SIDES)]:
            seconds[side].append(float(ask(workers[side], "step")))
        for side in PRODUCTS:
            bare[side].append(json.loads(ask(workers[side], "products")))
    for worker in workers.values():
        worker.communicate()
    rows = []
    for side in SIDES:
        median = statistics.median(seconds[side])
        ratios = [first / own for first, own in zip(seconds[SIDES[0]], seconds[side], strict=True)]
        parameters, loss = ready[side]
        rows.append(
            (
                side,
                f"{int(parameters):,}",
                loss,
                f"{median:.3f}",
                f"{arguments.batch * arguments.length / median:,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            )
        )
    print(
        f"batch {arguments.batch} x {arguments.length}, {arguments.threads} threads, float32, {arguments.rounds} rounds"
    )
    show_table(("side", "parameters", "first loss", "s/step", "tokens/s", "speed, PyTorch = 1"), rows)
    show_products(bare, seconds=seconds)


def show_products(bare: dict[str, list[dict[str, float]]], *, seconds: dict[str, list[float]]) -> None:
    """Seconds of a step's bare matrix products by both libraries, product by product, and what the steps take."""
    torch_rounds, jax_rounds = (bare[side] for side in PRODUCTS)
    rows = []
    for name in [*torch_rounds[0], "all products"]:
        ours, theirs = (
            [sum(one.values()) if name not in one else one[name] for one in rounds]
            for rounds in (jax_rounds, torch_rounds)
        )
        rows.append((name, ours, theirs))
    rows.append(("the whole step", seconds[PRODUCTS[1]], seconds[PRODUCTS[0]]))
    show_table(
        ("bare products of a step", "PyTorch, s", "XLA, s", "XLA's speed, PyTorch = 1"),
        [
            (
                name,
                f"{statistics.median(theirs):.3f}",
                f"{statistics.median(ours):.3f}",
                f"{statistics.median(t / o for t, o in zip(theirs, ours, strict=True)):.2f}",
            )
            for name, ours, theirs in rows
        ],
    )


def ask(worker: subprocess.Popen[str], what: str) -> str:
    print(what, file=worker.stdin, flush=True)
    return answer(worker)


def answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a worker ended; its message stands above")
    return line


def work(arguments: argparse.Namespace) -> None:
    """A worker: builds its side, says parameters and first loss, then times what it is told to."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    size = SIZES[arguments.size]
    tokens = np.random.default_rng(0).integers(3, size.vocab, (arguments.batch, arguments.length + 1))
    if arguments.side.startswith("PyTorch"):
        compiled = arguments.side == SIDES[1]
        parameters, step = pytorch(tokens, size=size, threads=arguments.threads, compiled=compiled)
    else:
        parameters, step = ours(tokens, size=size, unroll=size.layers if arguments.side == SIDES[2] else 1)
    first = step()
    step()
    multiply = products(arguments.side, size=size, batch=arguments.batch, length=arguments.length)
    print(parameters, f"{first:.3f}", flush=True)
    for line in sys.stdin:
        if line.strip() == "products":
            print(json.dumps({name: run() for name, run in multiply.items()}), flush=True)
            continue
        began = time.perf_counter()
        for _ in range(arguments.steps):
            step()
        print((time.perf_counter() - began) / arguments.steps, flush=True)


def einsums(size: Size, *, batch: int, length: int) -> Iterator[tuple[str, str, tuple[int, ...], tuple[int, ...], int]]:
    """(what, einsum, shape, shape, times) of every matrix product of a step, forward and backward."""
    rows = batch * length
    d, f, n = size.width, size.feed_forward, size.layers
    for what, into, out, times in (
        ("attention projections", d, d, 4 * n),
        ("feed-forward", d, f, 2 * n),
        ("feed-forward", f, d, n),
        ("unembedding", d, size.vocab, 1),
    ):
        yield what, "td,df->tf", (rows, into), (into, out), times
        yield what, "tf,df->td", (rows, out), (into, out), times
        yield what, "td,tf->df", (rows, into), (rows, out), times
    heads, scores = (batch, length, size.heads, size.head_dim), (batch, size.heads, length, length)
    for subscripts, left, right in (
        ("blhd,bshd->bhls", heads, heads),
        ("bhls,bshd->blhd", scores, heads),
        ("bhls,blhd->bshd", scores, heads),
    ):
        yield "scores", subscripts, left, right, 2 * n


def products(side: str, *, size: Size, batch: int, length: int) -> dict[str, Callable[[], float]]:
    """What -> seconds that a step's products of that kind take alone."""
    if side not in PRODUCTS:
        return {}
    random = np.random.default_rng(0)
    made: dict[str, list[tuple[Callable[[], object], int]]] = {}
    for what, subscripts, left, right, times in einsums(size, batch=batch, length=length):
        arrays = [random.standard_normal(shape, np.float32) for shape in (left, right)]
        made.setdefault(what, []).append((product(side, subscripts, arrays), times))

    def timed(runs: list[tuple[Callable[[], object], int]]) -> float:
        total = 0.0
        for run, times in runs:
            run()
            began = time.perf_counter()
            for _ in range(3):
                run()
            total += (time.perf_counter() - began) / 3 * times
        return total

    return {what: functools.partial(timed, runs) for what, runs in made.items()}


def product(side: str, subscripts: str, arrays: list[np.ndarray]) -> Callable[[], object]:
    if side.startswith("PyTorch"):
        import torch

        left, right = (torch.from_numpy(array) for array in arrays)
        return lambda: torch.einsum(subscripts, left, right)
    import jax

    einsum = jax.jit(functools.partial(jax.numpy.einsum, subscripts))
    there = jax.device_put(arrays)
    return lambda: einsum(*there).block_until_ready()


def pytorch(tokens: np.ndarray, *, size: Size, threads: int, compiled: bool) -> tuple[int, Step]:
    import torch
    from torch.autograd import backward
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = size.of_transformers(max_position_embeddings=tokens.shape[1], use_cache=False)
    model: Any = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    inputs, targets = torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:])
    forward: Any = torch.compile(model) if compiled else model

    def step() -> float:
        logits = forward(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return sum(parameter.numel() for parameter in model.parameters()), step


def ours(tokens: np.ndarray, *, size: Size, unroll: int) -> tuple[int, Step]:
    import jax

    from wizard_jax.model.config import ModelConfig
    from wizard_jax.model.decoder import count_params
    from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh
    from wizard_jax.train.optimizer import AdamW
    from wizard_jax.train.step import HALT, make_steps

    config = ModelConfig(
        vocab_size=size.vocab,
        d_model=size.width,
        n_layers=size.layers,
        n_heads=size.heads,
        n_kv_heads=size.heads,
        head_dim=size.head_dim,
        d_ff=size.feed_forward,
        scan_unroll=unroll,
    )
    mesh = make_mesh(MeshConfig())
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    columns = {
        "tokens": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segment_ids": np.ones((rows, length), np.int32),
        "loss_weights": np.ones((rows, length), np.float32),
        HALT: np.zeros(rows, np.int32),
    }
    with jax.set_mesh(mesh):
        steps = make_steps(
            config,
            optimizer=AdamW(peak_lr=RATE, schedule="constant", weight_decay=0.1),
            total_steps=1000,
            gradient_accumulation=1,
            mesh=mesh,
        )
        state = steps.init(jax.random.key(0))
        batch = jax.device_put(columns, batch_sharding(mesh))

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = steps.train(state, batch)
        return float(metrics.loss)

    return count_params(config), step


if __name__ == "__main__":
    main()
