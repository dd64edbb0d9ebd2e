"""distilabel's EvolInstruct on an instruction file: what `evolve_rivals.py` runs with the Python that has distilabel.

Prints one line of JSON: seconds of the pipeline, rows that came out, and how many of them hold all rounds.
"""

from __future__ import annotations

import argparse
import json
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("instructions", help="a JSON list of strings")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    arguments = parser.parse_args()

    from distilabel.models.llms import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import EvolInstruct

    with open(arguments.instructions, encoding="utf-8") as file:
        rows = [{"instruction": instruction} for instruction in json.load(file)]
    with Pipeline(name="rival") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=arguments.batch)
        llm = OpenAILLM(
            model=arguments.model,
            base_url=arguments.base_url,
            api_key="unused",
            max_retries=6,
            timeout=120,
            generation_kwargs={"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 2048},
        )
        evolve = EvolInstruct(
            llm=llm,
            num_evolutions=arguments.rounds,
            store_evolutions=True,  # False with answers ends in an IndexError
            generate_answers=True,
            input_batch_size=arguments.batch,
        )
        load >> evolve
    began = time.perf_counter()
    distiset = pipeline.run(use_cache=False)
    seconds = time.perf_counter() - began
    out = distiset["default"]["train"]
    whole = sum(
        isinstance(row["answers"], list) and len(row["answers"]) == arguments.rounds and all(row["answers"])
        for row in out
    )
    print(json.dumps({"seconds": seconds, "rows": len(out), "whole": whole}))


if __name__ == "__main__":
    main()
