"""Real instructions, as users bring them: evolved over HTTP by a server that misbehaves, then trained on."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.folder import read_complete
from data_gen import operations
from data_gen.shards import read_dataset
from wizard_jax.cli import main

SEED_TASKS = Path(__file__).parents[2] / "shared" / "data" / "self_instruct_seed_tasks.jsonl"

FAULTS = ("malformed=0.02", "rate_limited=0.02", "server_error=0.02", "dropped=0.02", "slow=0.02")
FAULTS += ("unchanged=0.05", "refusal=0.03", "copied_prompt=0.03", "empty=0.03", "truncated=0.02", "filtered=0.01")

TASKS = (
    ("pack_list", "What should a family of four pack for two days in the mountains?", "", "Warm layers."),
    ("tone", "Say which feeling this review of a film shows.", "I left before the end, and so did my dog.", "Boredom."),
    ("rhyme", "Give three words that rhyme with the one given.", "stone", "bone, phone, alone"),
    ("sql", "Write a query for the question below.", "Which of the `orders` are {older} than 30 days?", "SELECT ..."),
    ("recipe", "Scale this recipe to six people.", "Serves 2:\n- 120 g rice\n- 3 dl water\n- salt", "360 g rice"),
    ("letter", "Write two polite lines that turn down an invitation to a wedding.", "", "Thank you. We can not come."),
    ("unicode", "Translate into English.", "Das Mädchen trägt einen größeren Hut – 大きい 🎩", "A bigger hat."),
    ("html", "What does this page show?", "<p>3 &lt; 5</p><script>alert(1)</script>", "3 < 5"),
    ("why", "Why is the sky of Mars pink at noon and blue at sunset?", "", "Dust scatters red light forward less."),
    ("code", "Find the mistake.", "def mean(xs):\n    return sum(xs) / len(x)", "It says x for xs."),
    ("order", "Put these in the order in which they were invented.", "radio, wheel, telescope", "wheel first"),
    ("count", "How many vowels are there in the sentence?", "Every other owl is up.", "8"),
)  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with the keys of self-instruct's seed tasks."""
    file = tmp_path_factory.mktemp("seeds") / "tasks.jsonl"
    rows = [
        {
            "id": f"seed_task_{number}",
            "name": name,
            "instruction": instruction,
            "instances": [{"input": given, "output": output}],
            "is_classification": name == "tone",
        }
        for number, (name, instruction, given, output) in enumerate(TASKS)
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """`wizard simulate-llm` in a process of its own; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "wizard_jax", "simulate-llm", "--port", str(port), *FAULTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and server.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            assert server.poll() is None, server.communicate()[0]
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.communicate()


def evolve_and_train(seeds: Path, out: Path, *, rows: int, untrained: int) -> None:
    """`untrained` conversations, and no others, are so long that a row of 1,024 tokens holds none of their answer."""
    with serving() as url:
        settings = [f"seeds.path={seeds}", f"llm.base_url={url}", "records_per_shard=40"]
        assert main(["evolve", "configs/evolve/simulated_server.gin", "--out", str(out / "evolved"), *settings]) == 0
    summary = read_complete(out / "evolved", stage="evolve")
    records = list(read_dataset(out / "evolved"))
    assert summary["seeds"] == rows
    assert summary["records"] + summary["rejected"] == rows * 5, (
        "each seed and each of four rounds comes to one of both"
    )
    assert len(records) > rows * 5 * 0.6
    assert {"no_gain", "refusal"} & set(summary["by_rule"])
    assert summary["models"] == ["simulated-llm"]
    assert {record.round for record in records} == {0, 1, 2, 3, 4}
    assert {record.operation for record in records} == {"", *operations.OPERATIONS}
    assert {record.steps for record in records} == {0}, "no real instruction is taken for a task of the simulated world"
    page = (out / "evolved" / "report.html").read_text(encoding="utf-8")
    assert "is a simulation" in page
    assert "<script" not in page

    tokenizer = str(out / "tokenizer.model")
    words = [str(out / "evolved"), "--chat-format", "vicuna", "--vocab-size", "600", "--out", tokenizer]
    assert main(["tokenizer", *words]) == 0
    settings = ["data.chat_format=vicuna", "data.seq_len=1024", "model.max_positions=1024", "model.vocab_size=600"]
    settings += [f"data.dataset={out / 'evolved'}", f"tokenizer={tokenizer}", "data.truncation=truncate"]
    settings += ["batch=@RowsPerStep", "batch.rows=8", "steps=3", "optimizer.warmup_steps=1", "model.d_model=32"]
    settings += ["model.n_layers=1", "model.scan_unroll=1", "model.head_dim=8", "model.d_ff=64"]
    assert main(["train", "configs/train/quickstart.gin", "--out", str(out / "run"), *settings]) == 0
    run = read_complete(out / "run", stage="train")
    assert run["packing"]["conversations"] == len(records) - untrained
    assert run["packing"]["untrained"] == untrained
    assert run["trained_tokens"] > 0
    assert run["last_loss"] < run["first_loss"]


def test_rows_of_self_instruct_are_evolved_over_http_with_faults_and_trained_on(seeds: Path, tmp_path: Path) -> None:
    evolve_and_train(seeds, tmp_path, rows=len(TASKS), untrained=0)
    records = {record.id: record for record in read_dataset(tmp_path / "evolved")}
    texts = [record.instruction for record in records.values() if record.round == 0]
    assert f"{TASKS[4][1]}\n{TASKS[4][2]}" in texts, "the input stands below the instruction"
    assert TASKS[0][1] in texts, "an empty input leaves no trace"


@pytest.mark.slow
@pytest.mark.skipif(not SEED_TASKS.exists(), reason="the seed tasks of self-instruct are not here")
def test_all_seed_tasks_of_self_instruct_go_the_same_way(tmp_path: Path) -> None:
    evolve_and_train(SEED_TASKS, tmp_path, rows=175, untrained=1)  # a task of 3,571 tokens
