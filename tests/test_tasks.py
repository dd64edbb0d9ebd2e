"""Every task is asked of a model of this project and of a hosted one over HTTP by the same code, and scored alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_files
from served import Served, serving
from task_files import write_rows
from tiny_flow import Flow

from configs.folder import read_complete
from wizard_jax.cli import main
from wizard_jax.evaluate.config import IFEval
from wizard_jax.evaluate.items import Answer, Item, Score
from wizard_jax.evaluate.results import answer_rows, model_results
from wizard_jax.evaluate.statistics.shares import wilson
from wizard_jax.evaluate.tasks import gsm8k, ifeval

FILES = {
    "wizardlm_testset": (task_files.WIZARDLM, "task=@WizardLMTestSet"),
    "vicuna": (task_files.VICUNA, "task=@VicunaBench"),
    "mt_bench": (task_files.MT_BENCH, "task=@MTBench"),
    "gsm8k": (task_files.GSM8K, "task=@GSM8K"),
    "ifeval": (task_files.IFEVAL, "task=@IFEval"),
}
SCORED = {"gsm8k": ["exact match"], "ifeval": list(ifeval.SCORES)}


@pytest.fixture(autouse=True)
def with_checkers(request: pytest.FixtureRequest) -> None:
    if "ifeval" in request.node.name:
        pytest.importorskip("langdetect", reason="needs the extra [eval]")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving() as served:
        yield served


def saying(text: str, *, item: str = "1") -> Answer:
    return Answer(item=item, model="m", texts=(text,), finish_reasons=("stop",))


@pytest.mark.parametrize("name", FILES)
def test_a_task_is_asked_of_a_run_and_of_a_hosted_model(name: str, flow: Flow, server: Served, tmp_path: Path) -> None:
    rows, task = FILES[name]
    path, sha256 = write_rows(tmp_path / "task.jsonl", rows)
    config = tmp_path / "vicuna.gin" if name == "vicuna" else Path("configs/eval") / f"{name}.gin"
    if name == "vicuna":
        config.write_text("task = @VicunaBench\n")
    models = ["models.tiny=@Local", f"models.tiny.path={flow.run}", "models.tiny.rows=8"]
    models += ["models.http=@OpenAICompatible", "models.http.model=simulated-llm"]
    models += [f"models.http.base_url={server.server.base_url}"]
    models += ["models.http.price=@Price", "models.http.price.input=0.0", "models.http.price.output=0.0"]
    asked = [f"task.path={path}", f"task.sha256={sha256}", "max_tokens=4"]
    assert main(["eval", str(config), "--out", str(tmp_path / "eval"), *models, *asked]) == 0
    results = read_complete(tmp_path / "eval")
    assert (results["task"]["items"], results["task"]["sha256"]) == (len(rows), sha256)
    assert results["task"]["name"] == task.removeprefix("task=@")
    told = [json.loads(line) for line in (tmp_path / "eval" / "answers.jsonl").read_text().splitlines()]
    assert len(told) == 2 * len(rows)
    turns = len(rows[0].get("turns", [""]))
    assert all(len(row["answers"]) == turns for row in told if not row["problem"])
    for model in ("tiny", "http"):
        assert results["models"][model]["answered"] == len(rows)
        assert list(results["models"][model]["scores"]) == SCORED.get(name, [])
    questions = {row["turns"][-1] for row in told}
    assert questions <= set(server.asked.prompts.values())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So it is 18.", "18"),
        ("18 - 3 = 15, and 15 * $1,000 is $15,000.00.", "15000"),
        ("Of 1,2,3 the last", "3"),
        ("1,450,000", "1450000"),
        ("It fell by -$3.50", "-3.5"),
        ("It fell by $-3.50", "-3.5"),
        ("\u22127 degrees", "-7"),
        ("20-4", "4"),
        ("#### 18 dollars, since 3 * 6", "18"),
        ("#### first\n#### 7 eggs, 9 days", "7"),
        ("#### none, so 5", "5"),
        ("\\boxed{12{,}000.50}", "12000.5"),
        ("half, .5", "0.5"),
        ("it is so...18", "18"),
        ("x3 and v2", ""),
        ("-0.00", "0"),
        ("no number", ""),
        ("", ""),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_the_last_number_of_an_answer_is_found_however_it_is_written(text: str, number: str) -> None:
    assert gsm8k.last_number(text) == number


def test_gsm8k_compares_numbers_and_not_their_spelling() -> None:
    item = Item(id="1", turns=("?",), target="1495")
    assert gsm8k.score(item, saying("It is 1,495.00 dollars")) == Score(values={"exact match": 1.0}, extracted="1495")
    assert gsm8k.score(item, saying("1495, or 1496")).values == {"exact match": 0.0}


@pytest.fixture(scope="module")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Item, ...]:
    path, sha256 = write_rows(tmp_path_factory.mktemp("ifeval") / "task.jsonl", task_files.IFEVAL)
    return ifeval.read(IFEval(path=path, sha256=sha256)).items


def test_ifeval_scores_prompts_and_constraints_strictly_and_loosely(constraints: tuple[Item, ...]) -> None:
    one, three, _ = constraints
    assert ifeval.score(one, saying("None here.")).values == dict.fromkeys(ifeval.SCORES, 1.0)
    first_line = ifeval.score(one, saying("Sure, here it is:\nNone here."))
    assert list(first_line.values.values()) == [0.0, 0.0, 1.0, 1.0]
    assert first_line.extracted == "not followed: punctuation:no_comma"
    partly = ifeval.score(three, saying("<<A title>> and too few words"))
    assert [round(value, 3) for value in partly.values.values()] == [0.0, 0.667, 0.0, 0.667]
    assert ifeval.score(three, saying("")).values == dict.fromkeys(ifeval.SCORES, 0.0)


def test_an_answer_that_a_checker_can_not_read_does_not_follow_it() -> None:
    details = {"instruction_id_list": ["detectable_format:json_format", "punctuation:no_comma"], "kwargs": [{}, {}]}
    item = Item(id="1", turns=("?",), details=details, weights={ifeval.PROMPT_STRICT: 1})
    found = ifeval.score(item, saying("[" * 100_000))
    assert list(found.values.values()) == [0.0, 0.5, 0.0, 0.5]
    assert found.extracted == "not followed: detectable_format:json_format"


def test_ifeval_without_sentences_scores_all_other_prompts_and_says_which_it_does_not(
    constraints: tuple[Item, ...],
) -> None:
    if ifeval.load_checkers().has_sentences:
        pytest.skip("punkt_tab is installed here")
    said = {item.id: (saying("A short text. It has no comma.", item=item.id),) for item in constraints}
    rows = answer_rows(constraints, {"m": said}, score=ifeval.score)
    told = model_results(rows)
    assert (told["answered"], told["not_scored"]) == (3, 1)
    assert told["scores"][ifeval.PROMPT_STRICT] == wilson(1, 2)._asdict()
    assert rows[2]["extracted"].startswith("not scored")


def test_ifeval_never_fetches_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval's module downloads where it is imported by the process of local rank 0."""
    code = (
        "import nltk, socket\n"
        "def refuse(*_, **__): raise SystemExit('asked the network')\n"
        "nltk.download = socket.create_connection = socket.socket.connect = refuse\n"
        "from wizard_jax.evaluate.tasks import ifeval\n"
        "import os\n"
        "ifeval.load_checkers()\n"
        "assert os.environ.get('LOCAL_RANK') is None\n"
        "import sys\n"
        "assert 'torch' not in sys.modules\n"
    )
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_share_of_several_parts_counts_each_of_them_and_its_interval_is_over_items() -> None:
    rng = np.random.default_rng(0)
    items = [Item(id=str(n), turns=("?",), weights={"parts": n % 3 + 1}) for n in range(60)]
    right = {item.id: int(rng.integers(0, int(item.weights["parts"]) + 1)) for item in items}

    def score(item: Item, _: Answer) -> Score:
        return Score(values={"parts": right[item.id] / item.weights["parts"]})

    said = {item.id: (saying("", item=item.id),) for item in items}
    told: dict[str, Any] = model_results(answer_rows(items, {"m": said}, score=score))["scores"]["parts"]
    assert told["share"] == pytest.approx(sum(right.values()) / 120)
    assert (told["parts"], told["trials"], told["successes"]) == (120, 60, pytest.approx(sum(right.values())))
    assert told["low"] < told["share"] < told["high"]
    assert 0.1 < told["high"] - told["low"] < 0.3
    assert told["interval"].startswith("percentile bootstrap over 60 prompts")
