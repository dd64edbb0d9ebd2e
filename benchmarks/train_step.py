"""A training step against transformers + PyTorch: the same LLaMA, batch, sequence, threads, float32 and AdamW.

    python benchmarks/train_step.py --rounds 5

Every side is a process of its own, and they take turns: one round is some steps of each, so that a machine that
slows down slows all of them. Ratios are taken within a round; the table has their median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from wizard_jax.progress import show_table

VOCAB, WIDTH, LAYERS, HEADS, HEAD_DIM, FEED_FORWARD = 8000, 512, 6, 8, 64, 1280
RATE = 1e-4
SIDES = ("PyTorch eager", "ours, unrolled", "ours, scanned")
"""The first is what the others are compared with."""

Step = Callable[[], float]
"""Takes one step and returns its loss, so that nothing is left undone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
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
    for number in range(arguments.rounds):
        for side in SIDES[number % len(SIDES) :] + SIDES[: number % len(SIDES)]:
            print("go", file=workers[side].stdin, flush=True)
            seconds[side].append(float(answer(workers[side])))
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


def answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a worker ended; its message stands above")
    return line


def work(arguments: argparse.Namespace) -> None:
    """One side: says its parameters and first loss, then does a round whenever it is told to."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    tokens = np.random.default_rng(0).integers(3, VOCAB, (arguments.batch, arguments.length + 1))
    if arguments.side == SIDES[0]:
        parameters, step = pytorch(tokens, threads=arguments.threads)
    else:
        parameters, step = ours(tokens, unroll=LAYERS if arguments.side == SIDES[1] else 1)
    first = step()
    step()
    print(parameters, f"{first:.3f}", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(arguments.steps):
            step()
        print((time.perf_counter() - began) / arguments.steps, flush=True)


def pytorch(tokens: np.ndarray, *, threads: int) -> tuple[int, Step]:
    import torch
    from torch.autograd import backward
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=tokens.shape[1],
        rms_norm_eps=1e-5,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    inputs, targets = torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:])

    def step() -> float:
        logits = model(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return sum(parameter.numel() for parameter in model.parameters()), step


def ours(tokens: np.ndarray, *, unroll: int) -> tuple[int, Step]:
    import jax

    from wizard_jax.model.config import ModelConfig
    from wizard_jax.model.decoder import count_params
    from wizard_jax.model.sharding import MeshConfig, batch_sharding, make_mesh
    from wizard_jax.train.optimizer import AdamW
    from wizard_jax.train.step import make_steps

    config = ModelConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        d_ff=FEED_FORWARD,
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
        "halt": np.zeros(rows, np.int32),
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
