"""Wall time of four rounds on real seeds: `wizard evolve`, distilabel's EvolInstruct, and one request after another.

    uv venv DISTILABEL --python 3.11
    uv pip install --python DISTILABEL/bin/python 'distilabel[openai]==1.5.3' requests setuptools
    python benchmarks/evolve_rivals.py seed_tasks.jsonl --distilabel DISTILABEL/bin/python

Takes about 12 minutes for 175 seeds at 20 and 200 requests per second; without --distilabel, that row is left out.
All ask a simulated server in its own process, each a fresh one of the same kind: a permitted rate (a token bucket that
holds one second's worth), log-normal latency, median 300 ms, sigma 0.5. By default its 429s say nothing about when to
come again, which is the better case for distilabel: where they say it in fractions of a second, the six retries of
all requests of a batch are over within a second, one row fails, and with it the batch.

- wizard evolve: as published, with the verdict on every rewrite; and without it, which is what the others do.
- distilabel 1.5.3: EvolInstruct with answers and all evolutions stored, batches of 50, the client's 6 retries.
- one after another: written after what is known of the released scripts. Each row waits for the one before; a failed
  call is tried again after five seconds, 16 times in all. It is measured on the first --serial-seeds seeds, and its
  time is scaled to all of them: it depends on nothing but their number.

Seconds count from the first request to the last answer for `wizard evolve` and the loop, and for distilabel the run of
its pipeline, less what it takes to start one (measured with a single seed and no round's worth of work).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evolving import LATENCY, MODEL, provider, serving, watched

from data_gen.config import EvolveConfig, Measure, SeedFile
from data_gen.operations import OPERATIONS
from data_gen.sources import load_seeds
from wizard_jax.progress import show_table

ROUNDS = 4
PUBLISHED = ("add_constraints", "deepening", "concretizing", "increase_reasoning_steps", "in_breadth")
SECONDS_AFTER_A_FAILURE, ATTEMPTS = 5.0, 16


@dataclass(frozen=True)
class Result:
    who: str
    seconds: float
    requests: int
    whole: int
    """Seeds of which every round came out, rewritten and answered."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=Path)
    parser.add_argument("--distilabel", type=Path, help="a Python that has it")
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 200.0])
    parser.add_argument("--limit", type=int, default=0, help="the first N seeds; 0 takes all")
    parser.add_argument("--serial-seeds", type=int, default=10)
    parser.add_argument("--retry-after", default="none", help="how a 429 says when to come again: see simulate-llm")
    parser.add_argument("--batch", type=int, default=50, help="of distilabel")
    arguments = parser.parse_args()
    for rate in arguments.rates:
        results = compared(arguments, rate)
        best = results[1]  # with as many requests as the others
        rows = [
            (
                result.who,
                f"{result.seconds:.1f}",
                f"{result.requests:,}",
                f"{result.requests / (rate * (result.seconds + 1.0)):.2f}",
                f"{result.whole:,}",
                f"{result.seconds / best.seconds:.1f}" if result.whole else "nothing came out",
            )
            for result in results
        ]
        titles = (f"{rate:g} requests/s permitted", "seconds", "answered", "used", "whole seeds", "times as long")
        show_table(titles, rows)


def compared(arguments: argparse.Namespace, rate: float) -> list[Result]:
    seeds = SeedFile(path=str(arguments.seeds), limit=arguments.limit)
    instructions = [seed.instruction for seed in load_seeds(seeds)]
    flags = ("--requests-per-second", f"{rate:g}", "--retry-after", arguments.retry_after, *LATENCY)
    results = []
    for judged in (True, False):
        with serving(*flags) as base_url:
            results.append(ours(base_url, seeds, judged=judged))
    if arguments.distilabel:
        with serving(*flags) as base_url:
            results.append(distilabel(arguments.distilabel, base_url, instructions, batch=arguments.batch))
    with serving(*flags) as base_url:
        few = instructions[: arguments.serial_seeds]
        results.append(one_after_another(base_url, few, scaled_to=len(instructions)))
    return results


def ours(base_url: str, seeds: SeedFile, *, judged: bool) -> Result:
    config = EvolveConfig(
        seeds=seeds,
        llm=provider(base_url),
        rounds=ROUNDS,
        eliminate=("no_gain", "refusal", "empty_answer", "copied_prompt")
        if judged
        else ("refusal", "empty_answer", "copied_prompt"),
        answer_seeds="keep",
        concurrency=512,
        measure=Measure(diversity_sample=0, duplicates="off"),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = watched(config, Path(folder) / "evolved")
    last, by_round = run.moments[-1], run.summary["by_round"]
    whole = min(by_round.get(str(round_), by_round.get(round_, 0)) for round_ in range(1, ROUNDS + 1))
    return Result(f"wizard evolve{', no verdicts' * (not judged)}", run.seconds, last.answered, whole)


# --- distilabel


def distilabel(python: Path, base_url: str, instructions: Sequence[str], *, batch: int) -> Result:
    start = distilabel_run(python, base_url, instructions[:1], batch=batch)
    run = distilabel_run(python, base_url, instructions, batch=batch)
    # One seed takes its requests one after another; the rest of its time is what a pipeline needs to come and go.
    requests = run["whole"] * ROUNDS * 2
    seconds = run["seconds"] - max(0.0, start["seconds"] - 2 * ROUNDS * 0.34)
    return Result(f"distilabel 1.5.3, batch {batch}", seconds, int(requests), int(run["whole"]))


def distilabel_run(python: Path, base_url: str, instructions: Sequence[str], *, batch: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instructions.json"
        file.write_text(json.dumps(list(instructions)), encoding="utf-8")
        script = Path(__file__).with_name("distilabel_evolve.py")
        flags = ["--base-url", base_url, "--model", MODEL, "--rounds", str(ROUNDS), "--batch", str(batch)]
        command = [str(python), "-W", "ignore", str(script), str(file), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"distilabel did not come through:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(lines[-1])
    return result


# --- the released scripts' way


def one_after_another(base_url: str, instructions: Sequence[str], *, scaled_to: int) -> Result:
    import openai

    client = openai.OpenAI(api_key="unused", base_url=base_url, max_retries=0)
    chance = random.Random(0)
    asked = 0

    def told(prompt: str) -> str:
        nonlocal asked
        for _ in range(ATTEMPTS):
            try:
                reply = client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=1.0,
                    top_p=0.95,
                    max_tokens=2048,
                )
            except openai.APIError:
                time.sleep(SECONDS_AFTER_A_FAILURE)
            else:
                asked += 1
                return reply.choices[0].message.content or ""
        return ""

    began, whole = time.perf_counter(), 0
    with client:
        for first in instructions:
            instruction, answers = first, []
            for _ in range(ROUNDS):
                operation = OPERATIONS[chance.choice(PUBLISHED)]
                instruction = operation.parse(told(operation.prompt(instruction)))
                answers.append(told(instruction))
            whole += all(answers)
    factor = scaled_to / len(instructions)
    seconds = time.perf_counter() - began
    who = f"one after another ({len(instructions)} seeds, scaled)"
    return Result(who, factor * seconds, round(factor * asked), round(factor * whole))


if __name__ == "__main__":
    main()
