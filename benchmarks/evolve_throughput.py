"""How much of a provider's permitted rate `wizard evolve` uses, and how many 429s that costs.

    python benchmarks/evolve_throughput.py

Takes about 7 minutes. The simulated server runs in its own process, permits 20 and 200 requests per second (a token
bucket that holds one second's worth) and answers after a log-normal time, median 300 ms, sigma 0.5. The client is the
whole of `wizard evolve`: journal, pacing, elimination, concurrency at most 512.

"used" is what was answered, from the first request on, of what was permitted in that time with a full bucket at its
begin: until nine tenths of all requests were answered, and until the last one was, for the last few lineages have not
enough requests left to fill the rate. The run begins carefully, which weighs the more the shorter it is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from evolving import LATENCY, Watched, provider, serving, watched

from data_gen.config import EvolveConfig, Measure, SimulatedSeeds
from wizard_jax.progress import show_table

REQUESTS_PER_SEED = 13  # the seed's answer, then rewrite, verdict and answer in each of four rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 200.0])
    parser.add_argument("--seconds", type=float, default=180.0, help="about so long each")
    arguments = parser.parse_args()
    rows = [measured(rate, seconds=arguments.seconds) for rate in arguments.rates]
    titles = (
        "permitted/s",
        "requests",
        "answered",
        "429s",
        "429 per success",
        "seconds",
        "used to 9/10",
        "used in all",
    )
    show_table(titles, rows)


def measured(rate: float, *, seconds: float) -> tuple[str, ...]:
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("--requests-per-second", f"{rate:g}", *LATENCY) as base_url,
    ):
        config = EvolveConfig(
            seeds=SimulatedSeeds(count=max(20, round(rate * seconds / REQUESTS_PER_SEED))),
            llm=provider(base_url),
            concurrency=512,
            measure=Measure(diversity_sample=0, duplicates="off"),
        )
        run = watched(config, Path(folder) / "evolved")
    last = run.moments[-1]
    return (
        f"{rate:g}",
        f"{last.asked:,}",
        f"{last.answered:,}",
        f"{last.refused:,}",
        f"{last.refused / last.answered:.4f}",
        f"{run.seconds:.1f}",
        f"{used(run, rate, share=0.9):.3f}",
        f"{used(run, rate, share=1.0):.3f}",
    )


def used(run: Watched, rate: float, *, share: float) -> float:
    """Until such a share of all requests was answered."""
    end = next(moment for moment in run.moments if moment.answered >= share * run.moments[-1].answered)
    return end.answered / (rate * (1.0 + end.at - run.begin))


if __name__ == "__main__":
    main()
