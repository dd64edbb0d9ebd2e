"""The data card is read by Hugging Face, and says what the run says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from configs.loader import dump, identity
from data_gen.card import FIELDS, Exported, data_card
from data_gen.config import AnswerConfig, EvolveConfig, Mixture, OpenAICompatible, SeedFile, Simulated, SimulatedSeeds
from data_gen.records import Record

CONFIG = EvolveConfig(
    seeds=SeedFile(path="alpaca_data.json", limit=500, language="en"),
    llm=OpenAICompatible(model="gpt-4o-mini"),
    judge=OpenAICompatible(model="gpt-4o"),
    mixture=Mixture(models=("gpt-4o-mini", "o3"), weights=(0.5, 0.5)),
    temperature=0.7,
)
SUMMARY: dict[str, Any] = {
    "seeds": 500,
    "records": 2_250,
    "rejected": 250,
    "by_round": {"0": 490, "1": 460},
    "by_operation": {"deepening": {"accepted": 90, "rejected": 10}},
    "by_rule": {"no_gain": 200, "refusal": 50},
    "models": ["gpt-4o-mini-2024-07-18"],
    "evolvers": ["o3-2025-04-16"],
    "dataset_sha256": "ab" * 32,
    "calls": 6_000,
    "input_tokens": 1_000_000,
    "output_tokens": 400_000,
    "usd": 0.39,
    "prices": "genai-prices 0.2.3",
    "possibly_paid_twice": 3,
}
MEASURES = {
    "difficulty": {
        "rounds": [{"round": 0, "score": [3.0, 2.9, 3.1, 50]}, {"round": 1, "score": [5.5, 5.2, 5.8, 50]}],
        "lineages": 50,
    },
    "duplicates": {"pairs": 12, "flagged": 9},
    "contamination": {"files": [{"file": "gsm8k_test.jsonl", "items": 1319, "touched": 2}]},
}


def front_matter(card: str) -> dict[str, Any]:
    empty, text, _ = card.split("---\n", 2)
    assert empty == ""
    told: dict[str, Any] = yaml.safe_load(text)
    return told


def test_the_front_matter_is_what_hugging_face_reads() -> None:
    exported = Exported(file="train.parquet", file_format="parquet", layout="messages")
    assert front_matter(data_card(summary=SUMMARY, config=CONFIG, exported=exported)) == {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train.parquet"}]}],
        "language": ["en"],
        "size_categories": ["1K<n<10K"],
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "instruction-tuning", "evol-instruct"],
    }


def test_language_and_license_are_never_made_up() -> None:
    config = dataclasses.replace(CONFIG, seeds=SeedFile(path="seeds.jsonl"))
    card = data_card(summary=SUMMARY, config=config)
    assert not {"language", "license", "configs"} & set(front_matter(card))
    assert "# license: not known" in card
    assert "it depends on the license of the seeds and on the terms" in card


@pytest.mark.parametrize(
    ("records", "label"),
    [(1, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (260_000, "100K<n<1M"), (10**7, "n>10M")],
)
def test_the_size_is_in_its_category(records: int, label: str) -> None:
    card = data_card(summary={**SUMMARY, "records": records}, config=CONFIG)
    assert front_matter(card)["size_categories"] == [label]


def test_it_says_what_was_asked_who_answered_and_what_it_cost() -> None:
    card = data_card(summary=SUMMARY, config=CONFIG, measures=MEASURES)
    for line in (
        "2,250 conversations, answered by `gpt-4o-mini-2024-07-18`.",
        "- Seeds: 500 instructions of `alpaca_data.json`, the first 500 rows",
        "- Rewritten by: `gpt-4o-mini`, `o3`",
        "- Judged by: `gpt-4o`",
        "- Answered by: `gpt-4o-mini`",
        "- Versions that the servers reported: `gpt-4o-mini-2024-07-18`, `o3-2025-04-16`",
        "- Sampling: temperature 0.7, top-p 0.9, at most 2,048 tokens",
        f"- Hash of the settings: `{identity(CONFIG)}`",
        "| 1 | 460 |",
        "| `deepening` | 90 | 10 | 10.0% |",
        "| `no_gain` | 200 | 8.00% |",
        "250 of 2,500 candidates (10.0%)",
        "$0.39 at the prices of genai-prices 0.2.3, for 6,000 replies: 1,000,000 tokens in and 400,000 out.",
        "Up to 3 more replies may have been billed",
        "| score | 3 [2.9, 3.1] | 5.5 [5.2, 5.8] |",
        "- flagged: 9",
        "| gsm8k\\_test.jsonl | 1,319 | 2 |",
    ):
        assert line in card, line
    assert dump(CONFIG).rstrip() in card
    assert "simulation" not in card


def test_a_simulated_model_is_called_one() -> None:
    config = EvolveConfig(seeds=SimulatedSeeds(count=3, seed=8), llm=Simulated())
    card = data_card(summary={"seeds": 3, "records": 9, "models": ["simulated-llm"]}, config=config)
    assert "**`simulated-llm` is a simulation.**" in card
    assert "3 tasks of the simulated world, drawn from seed 8" in card
    assert "It is no evidence about natural instructions" in card


def test_an_unfinished_run_and_an_answered_set_say_so() -> None:
    assert "12 seeds are left" in data_card(summary={**SUMMARY, "unfinished": 12}, config=CONFIG)
    answered = AnswerConfig(dataset="evolved", llm=OpenAICompatible(model="gpt-4o"), style="brief")
    card = data_card(summary=SUMMARY, config=answered)
    assert "- Instructions of: `evolved`" in card
    assert "- Answered by: `gpt-4o`, in the style brief" in card


def test_every_field_of_a_record_is_explained() -> None:
    assert set(FIELDS) == {field.name for field in dataclasses.fields(Record)} - {"turns"}


@pytest.mark.parametrize("layout", ["messages", "sharegpt", "alpaca"])
def test_it_says_how_trainers_load_the_layout(layout: Any) -> None:
    card = data_card(
        summary=SUMMARY, config=CONFIG, exported=Exported(file="t.jsonl", file_format="jsonl", layout=layout)
    )
    text = card.split("```yaml\n")[1].split("```")[0]
    (told,) = yaml.safe_load(text)["datasets"]
    assert (told["path"], told["ds_type"]) == ("FOLDER/t.jsonl", "json")
    assert told["type"] == ("alpaca" if layout == "alpaca" else "chat_template")
    if layout == "sharegpt":
        assert told["field_messages"] == "conversations"
        assert told["message_property_mappings"] == {"role": "from", "content": "value"}


def test_names_from_outside_stay_names() -> None:
    hostile = "a`b\n---\nlicense: mit\n## More <script>|"
    config = dataclasses.replace(CONFIG, seeds=SeedFile(path=hostile, language=hostile))
    told = {**SUMMARY, "models": [hostile], "by_rule": {hostile: 1}}
    card = data_card(summary=told, config=config, measures={hostile: {hostile: hostile, "files": [{hostile: hostile}]}})
    assert front_matter(card)["language"] == [hostile]
    body = card.split("## Settings")[0].split("---\n", 2)[2]
    assert not [line for line in body.splitlines() if line.startswith(("## More", "license", "---"))]
    fenced = card.split("## Settings\n\n")[1]
    fence = fenced.splitlines()[0]
    assert set(fence) == {"`"}
    assert fenced.count(fence) == 2
