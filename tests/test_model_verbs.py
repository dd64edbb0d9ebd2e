"""wizard generate, serve and chat, as a user types them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from speaking import make_speaker

from configs.interrupt import Interrupted
from wizard_jax.cli import main
from wizard_jax.generate import prompt_file
from wizard_jax.generate.conversation import harmless
from wizard_jax.generate.sampling import Sampling
from wizard_jax.generate.speaker import Speaker

if TYPE_CHECKING:
    from tiny_flow import Flow

ROOT = Path(__file__).parents[1]
SETTINGS = ("max_new_tokens=6",)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return make_speaker(tmp_path_factory.mktemp("speaker"))


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def answered(
    speaker: Speaker,
    prompts: Path,
    out: Path,
    *,
    sampling: Sampling,
    made_by: str = "a",
    batch: int = 4,
    told: Any = None,
) -> prompt_file.Counts:
    def progress(done: int, total: int, facts: object) -> None:
        del total, facts
        if told is not None:
            told(done)

    return prompt_file.answer_file(
        speaker, prompts, out, sampling=sampling, rows=batch, made_by={"model": made_by}, progress=progress
    )


def test_generate_answers_each_row_in_order_and_says_why_not(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        {"prompt": "Sort the list.", "id": 7},
        {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "x"}]},
        {"prompt": "word " * 400},
        {"messages": [{"role": "user", "content": "Reverse the words."}], "score": float("nan")},
    ]
    prompts, out = write(tmp_path / "prompts.jsonl", given), tmp_path / "deep" / "answers.jsonl"
    command = ["generate", str(flow.run), "--prompts", str(prompts), "--out", str(out), *SETTINGS]
    assert main(command) == 0
    found = rows(out)
    kept = [{name: row[name] for name in row if name not in prompt_file.OURS} for row in found]
    assert json.dumps(kept) == json.dumps(given)
    assert "nothing to answer" in found[1]["not_answered"]
    assert "max_new_tokens = 6" in found[2]["not_answered"]
    assert found[0]["ended"] in ("stop", "length")
    said = capsys.readouterr().out
    assert "2 answers in" in said
    assert "2 not answered" in said
    before = out.read_bytes()
    assert main(command) == 0
    assert out.read_bytes() == before
    assert main([*command, "temperature=1.0"]) == 2
    assert "sampling" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_generate_goes_on_where_it_was_cut_off(speaker: Speaker, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": f"one two {n}"} for n in range(12)])
    warm = Sampling(max_new_tokens=20, temperature=1.0, seed=3)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    answered(speaker, prompts, whole, sampling=warm)

    def stop(done: int) -> None:
        if done >= 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        answered(speaker, prompts, out, sampling=warm, told=stop)
    assert 3 <= len(rows(out)) < 12
    with out.open("ab") as file:
        file.write(b'{"prompt": "one tw')  # as a kill leaves it
    counts = answered(speaker, prompts, out, sampling=warm)
    assert out.read_bytes() == whole.read_bytes()
    assert counts.answered == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model", "made otherwise.*model: a -> b"),
        ("mark", "does not say what made it"),
        ("row", "line 1 is not the answer"),
    ],
)
def test_answers_of_something_else_are_left_alone(speaker: Speaker, tmp_path: Path, change: str, message: str) -> None:
    prompts, out = write(tmp_path / "p.jsonl", [{"prompt": "one"}]), tmp_path / "out.jsonl"
    sampling = Sampling(max_new_tokens=2)
    answered(speaker, prompts, out, sampling=sampling)
    if change == "mark":
        (tmp_path / "out.jsonl.made_by.json").unlink()
    if change == "row":
        out.write_text('{"prompt": "two", "answer": "x", "ended": "stop"}\n')
    before = out.read_bytes()
    with pytest.raises(prompt_file.PromptError, match="(?s)" + message):
        answered(speaker, prompts, out, sampling=sampling, made_by="b" if change == "model" else "a")
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", 'either "prompt" or "messages"'),
        ('{"prompt": "a", "messages": []}', 'either "prompt" or "messages"'),
        ('{"prompt": 5}', '"prompt" is no text'),
        ('{"messages": [{"role": "tool", "content": "a"}]}', '"messages" is no list'),
        ('{"prompt": "a", "answer": "b"}', "rename it"),
        ('{"prompt": "\\ud800"}', "surrogate"),
    ],
)
def test_rows_that_are_no_prompts_are_named_before_anything_is_asked(
    speaker: Speaker, tmp_path: Path, line: str, message: str
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(prompt_file.PromptError, match=message):
        answered(speaker, prompts, tmp_path / "out.jsonl", sampling=Sampling())
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "RUN", "--prompts", "absent.jsonl", "--out", "OUT"], "absent.jsonl: No such file"),
        (["generate", "RUN", "--prompts", "absent.jsonl", "--out", "OUT", "top_q=1"], "top_q"),
        (["generate", "RUN", "--prompts", "p", "--out", "OUT", "--rows", "0"], "--rows 0"),
        (["generate", "RUN", "--prompts", "p", "--out", "OUT", "--tensor", "99"], "--tensor 99"),
        (["serve", "RUN", "--host", "0.0.0.0"], "set WIZARD_SERVE_TOKEN"),
        (["serve", "RUN", "--length", "9999", "--port", "0"], "max_positions, 256"),
        (["serve", "absent", "--port", "70000"], "choose another --port"),
        (["serve", "absent", "--port", "0"], "absent does not exist"),
        (["chat", "RUN", "--chat-format", "vicunia"], "did you mean vicuna"),
        (["chat", "RUN", "RUN", "RUN"], "one model or two, not 3"),
        (["chat", "RUN", "--set", "temperature=-1"], "temperature"),
    ],
    ids=lambda value: " ".join(value[:1] + value[2:]) if isinstance(value, list) else None,
)
def test_what_can_not_be_done_is_said_in_one_message(
    flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"RUN": str(flow.run), "OUT": str(tmp_path / "out.jsonl")}
    assert main([places.get(word, word) for word in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_chat_answers_lines_keeps_the_history_and_obeys_commands(
    flow: Flow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(*lines: str, models: tuple[Path, ...] = (flow.run,)) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["chat", *map(str, models), "--set", "max_new_tokens=5", "--length", "200"]) == 0
        return capsys.readouterr().out.split("\n")[:-1]

    once = talk("Sort the list.", "Sort the list.", "/reset", "Sort the list.", "/quit", "not asked")
    assert len(once) == 4
    assert once[0] == once[3]
    assert once[2] == "begun anew"
    told = talk("/set temperature=0.5 seed=4", "/settings", "/set nonsense=1", "/nothing", "/system Be short.", "Hello")
    assert told[0] == told[1]
    assert "temperature=0.5" in told[0]
    assert "max_new_tokens=5" in told[0]
    assert told[2].startswith("wizard:")
    assert "nonsense" in told[2]
    assert any("no place for a system turn" in line for line in told)  # of its chat format
    both = talk("Sort the list.", models=(flow.run, flow.run))
    assert [line.partition(": ")[2] for line in both] == [once[0], once[0]]
    full = talk("word " * 300)
    assert "/reset begins anew" in full[0]


def test_what_a_model_says_can_not_command_the_terminal() -> None:
    assert harmless("a\x1b[2J\tb\n\x9b1mé") == "a\ufffd[2J\tb\n\ufffd1mé"


def test_serve_says_where_answers_and_ends_when_it_is_told(flow: Flow) -> None:
    command = [sys.executable, "-m", "wizard_jax", "serve", str(flow.run), "--port", "0", "--name", "mine"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if not line.startswith("compile "))
            assert line.startswith("mine listens on http://127.0.0.1:"), line
            body = {"model": "mine", "messages": [{"role": "user", "content": "Add."}], "max_tokens": 3}
            answer = httpx.post(f"{line.split()[3]}/chat/completions", json=body, timeout=60, trust_env=False)
            assert answer.status_code == 200, answer.text
            server.send_signal(signal.SIGTERM)
            told, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "what had been asked is answered" in told
    assert "Traceback" not in errors
