"""Real instructions, as users bring them: evolved over HTTP by a server that misbehaves, then trained on."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import served
from page_reader import PageReader

from configs.folder import read_complete
from data_gen import operations, sources
from data_gen.config import Faults, SeedFile
from data_gen.shards import read_dataset
from wizard_jax.chat import get_format, segments
from wizard_jax.cli import main
from wizard_jax.tokenizer import Tokenizer

REAL = Path(__file__).parents[2] / "shared" / "data"
SEED_TASKS = REAL / "self_instruct_seed_tasks.jsonl"
ROWS = {
    "self_instruct_seed_tasks.jsonl": 175,
    "ifeval_input_data.jsonl": 541,
    "gsm8k_test.jsonl": 1319,
    "sharegpt_dummy_conversation.json": 500,
}
"""Public files of instructions, and how many they hold."""
TEST_SETS: dict[str, Callable[[dict[str, Any]], str]] = {
    "WizardLM_testset.jsonl": lambda row: row["Instruction"],
    "mt_bench_question.jsonl": lambda row: row["turns"][0],
    "vicuna_bench_question.jsonl": lambda row: row["turns"][0],
    "gsm8k_test_rephrased.jsonl": lambda row: row["text"],
}
"""Files that only tests are made of, in schemas that no seeds come in, and the instruction in a row."""
FEW = 10

FAULTS = ("malformed=0.02", "rate_limited=0.02", "server_error=0.02", "dropped=0.02", "slow=0.02")
FAULTS += ("unchanged=0.05", "refusal=0.03", "copied_prompt=0.03", "empty=0.03", "truncated=0.02", "filtered=0.01")

WIRE = Faults(malformed=0.02, server_error=0.04, dropped=0.06, slow=0.02, unchanged=0.05, empty=0.03, truncated=0.02)

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


def evolve_and_train(seeds: Path, out: Path, *, rows: int) -> int:
    """Returns how many conversations are so long that a row of 1,024 tokens holds none of their answer."""
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
    assert {record.operation for record in records} == {"", *operations.PUBLISHED}
    assert {record.steps for record in records} == {0}, "no real instruction is taken for a task of the simulated world"
    page = PageReader(out / "evolved" / "report.html")
    assert "is a simulation" in page.text
    assert page.dangers == []

    tokenizer = str(out / "tokenizer.model")
    words = [str(out / "evolved"), "--chat-format", "vicuna", "--vocab-size", "600", "--out", tokenizer]
    assert main(["tokenizer", *words]) == 0
    settings = ["data.chat_format=vicuna", "data.seq_len=1024", "model.max_positions=1024", "model.vocab_size=600"]
    settings += [f"data.dataset={out / 'evolved'}", f"tokenizer={tokenizer}", "data.truncation=truncate"]
    settings += ["batch=@RowsPerStep", "batch.rows=8", "steps=3", "optimizer.warmup_steps=1", "model.d_model=32"]
    settings += ["model.n_layers=1", "model.scan_unroll=1", "model.head_dim=8", "model.d_ff=64"]
    assert main(["train", "configs/train/quickstart.gin", "--out", str(out / "run"), *settings]) == 0
    run = read_complete(out / "run", stage="train")
    pieces, chat_format = Tokenizer(tokenizer), get_format("vicuna")
    given = (segments(one.turns, chat_format=chat_format)[-1].removesuffix(one.answer) for one in records)
    untrained = sum(len(pieces.encode(text)) >= 1023 for text in given)  # and one token that begins the row
    assert run["packing"]["conversations"] == len(records) - untrained
    assert run["packing"]["untrained"] == untrained
    assert run["trained_tokens"] > 0
    assert run["last_loss"] < run["first_loss"]
    return untrained


def test_rows_of_self_instruct_are_evolved_over_http_with_faults_and_trained_on(seeds: Path, tmp_path: Path) -> None:
    assert evolve_and_train(seeds, tmp_path, rows=len(TASKS)) == 0
    records = {record.id: record for record in read_dataset(tmp_path / "evolved")}
    texts = [record.instruction for record in records.values() if record.round == 0]
    assert f"{TASKS[4][1]}\n{TASKS[4][2]}" in texts, "the input stands below the instruction"
    assert TASKS[0][1] in texts, "an empty input leaves no trace"


@pytest.mark.slow
@pytest.mark.skipif(not SEED_TASKS.exists(), reason="the seed tasks of self-instruct are not here")
def test_all_seed_tasks_of_self_instruct_go_the_same_way(tmp_path: Path) -> None:
    assert 1 <= evolve_and_train(SEED_TASKS, tmp_path, rows=175) <= 5  # a task of 3,571 tokens, and what it became


def real(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not here")
    return REAL / name


@pytest.mark.parametrize("name", ROWS)
def test_a_public_file_is_read_whole_and_its_first_10_evolve_for_2_rounds_over_a_wire_with_faults(
    name: str, tmp_path: Path
) -> None:
    found = sources.check_seeds(SeedFile(path=str(real(name)), bad_rows="skip"))
    assert found.count == ROWS[name]
    evolve_few(real(name), tmp_path / "out")


@pytest.mark.parametrize("name", TEST_SETS)
def test_a_test_set_is_refused_by_its_keys_and_its_texts_evolve_once_they_are_plain_rows(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evolve", "configs/evolve/simulated_server.gin", "--out", str(tmp_path / "refused")]
    assert main([*command, f"seeds.path={real(name)}"]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "Known schemas" in said
    assert not (tmp_path / "refused").exists()
    rows = [json.loads(line) for line in real(name).read_text(encoding="utf-8").splitlines()]
    texts = ({"instruction": TEST_SETS[name](row)} for row in rows)
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    evolve_few(tmp_path / "plain.jsonl", tmp_path / "out")


def evolve_few(file: Path, out: Path) -> None:
    """Evolves the first rows for 2 rounds over a wire that loses some replies."""
    with served.serving(WIRE, latency_seconds=0.001) as server:
        settings = [f"seeds.path={file}", f"llm.base_url={server.server.base_url}", f"seeds.limit={FEW}"]
        settings += ["rounds=2", "measure.diversity_sample=0", "seeds.bad_rows=skip", "file_format=array_record"]
        assert main(["evolve", "configs/evolve/simulated_server.gin", "--out", str(out), *settings]) == 0
        assert server.asked.came.total() > server.asked.answered.total(), "something was lost on the wire"
    summary = read_complete(out, stage="evolve")
    assert summary["seeds"] == FEW
    assert summary["records"] + summary["rejected"] == FEW * 3
    records = list(read_dataset(out))
    assert {record.round for record in records} == {0, 1, 2}
    seeds = {seed.lineage: seed for seed in sources.iter_seeds(SeedFile(path=str(file), bad_rows="skip"))}
    for record in records:
        assert record.source
        assert record.answer.strip()
        if record.round == 0:
            assert record.instruction == seeds[record.lineage].instruction
