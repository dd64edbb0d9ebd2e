"""The server over loopback: the same answer in any company, room freed by who hangs up, reasons for what is refused."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import pytest
from speaking import WORDS, asked, greedy, make_speaker, served_in_a_thread, until

from wizard_jax.generate.scheduler import Scheduler, lengths
from wizard_jax.generate.speaker import Speaker
from wizard_jax.serve.app import Limits
from wizard_jax.serve.server import Serving


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return make_speaker(tmp_path_factory.mktemp("speaker"))


async def until_idle(server: Serving) -> None:
    await until(lambda: not server.service.scheduler.unfinished and not server.service.answering)


def said(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_64_clients_at_once_each_get_what_they_get_alone(speaker: Speaker) -> None:
    drawn = random.Random(0)
    bodies = [
        greedy(
            " ".join(drawn.choices(WORDS, k=drawn.randint(1, 25))), max_tokens=drawn.randint(1, 30), stream=n % 4 == 0
        )
        for n in range(64)
    ]

    async def run() -> None:
        async with asked(speaker) as (server, client):

            async def text(body: dict[str, Any]) -> tuple[str, str]:
                answer = await client.post("/v1/chat/completions", json=body)
                if body["stream"]:
                    parts = [event["choices"][0] for event in events(answer.text)]
                    return "".join(one["delta"].get("content", "") for one in parts), parts[-1]["finish_reason"]
                choice = said(answer)
                return choice["message"]["content"], choice["finish_reason"]

            together = await asyncio.gather(*map(text, bodies))
            assert [await text(body) for body in bodies] == together
            assert len({answer for answer, _ in together}) > 50
            await until_idle(server)

    asyncio.run(run())


def test_a_client_that_hangs_up_frees_its_row(speaker: Speaker) -> None:
    async def run() -> None:
        async with asked(speaker, Limits(rows=1, length=128, queue=4)) as (server, client):
            long = greedy("one", max_tokens=60, logit_bias={})
            await client.post("/v1/chat/completions", json={**long, "max_tokens": 1})  # compiled
            for body in (long, {**long, "stream": True}, {**long, "n": 4}):
                for _ in range(20):  # an answer may be whole before anybody looks
                    request = asyncio.create_task(client.post("/v1/chat/completions", json=body))
                    await until(lambda asked=request: server.service.scheduler.unfinished > 0 or asked.done())
                    if request.cancel():
                        break
                with pytest.raises(asyncio.CancelledError):
                    await request
                await until_idle(server)
            async with client.stream("POST", "/v1/chat/completions", json={**long, "stream": True}) as answer:
                async for line in answer.aiter_lines():
                    assert line.startswith("data: ")
                    break
            await until_idle(server)
            said(await client.post("/v1/chat/completions", json=long))

    asyncio.run(run())


def test_who_finds_the_queue_full_is_told_to_come_again(speaker: Speaker) -> None:
    async def run() -> None:
        async with asked(speaker, Limits(rows=1, length=128, queue=1)) as (_, client):
            answers = await asyncio.gather(
                *(client.post("/v1/chat/completions", json=greedy("one two", max_tokens=40)) for _ in range(8))
            )
            full = [answer for answer in answers if answer.status_code == 429]
            assert full
            assert {answer.headers["retry-after"] for answer in full} == {"1"}
            assert full[0].json()["error"]["code"] == "rate_limit_exceeded"
            assert {answer.status_code for answer in answers} == {200, 429}
            too_many = await client.post("/v1/chat/completions", json=greedy("one", n=3))
            assert too_many.status_code == 400
            scored = {"model": "tiny", "prompt": ["one", "two"], "echo": True, "logprobs": 1, "max_tokens": 1}
            assert (await client.post("/v1/completions", json=scored)).status_code == 400

    asyncio.run(run())


def mutated(drawn: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A request that no server should answer: path, body and headers."""
    path, good = drawn.choice(
        [
            ("/v1/chat/completions", greedy("one two", max_tokens=3, seed=1, stop=["x"], stream=False, n=1)),
            ("/v1/completions", {"model": "tiny", "prompt": "one two", "max_tokens": 3, "logprobs": 1, "echo": True}),
        ]
    )
    headers = {"Content-Type": "application/json"}
    body = json.dumps(good).encode()
    wrong_types: list[Any] = [{}, {"a": 1}, [[]], [{}], -1.5, [None], "\udcff", float("nan"), 10**400]
    match drawn.randrange(7):
        case 0:  # a field of another type
            name = drawn.choice([name for name in good if name not in ("stop",)])
            bad = drawn.choice([value for value in wrong_types if type(value) is not type(good[name])] or [{}])
            body = json.dumps({**good, name: bad}).encode()
        case 1:  # out of range
            wrong = {
                "temperature": -1,
                "top_p": 0,
                "n": 0,
                "max_tokens": 10_000,
                "top_k": -7,
                "stop": [""],
                "seed": 2**64,
            }
            name = drawn.choice(list(wrong))
            body = json.dumps({**good, name: wrong[name]}).encode()
        case 2:  # a field that would change the answer
            fields = {"tools": [{}], "response_format": {"type": "json_object"}, "logit_bias": {"5": 1}, "min_p": 0.1}
            fields |= {"presence_penalty": 0.5, "best_of": 2, "suffix": "x", "".join(drawn.choices("abc", k=5)): 1}
            name = drawn.choice(list(fields))
            body = json.dumps({**good, name: fields[name]}).encode()
        case 3:  # a field is missing
            name = drawn.choice(["model", "messages" if "messages" in good else "prompt"])
            body = json.dumps({key: value for key, value in good.items() if key != name}).encode()
        case 4:  # cut, or a byte that is none
            at = drawn.randrange(1, len(body) - 1)
            body = drawn.choice([body[:at], b"\xff" + body, body + b"}", b"", b"[" * 9000, b"null", b'"x"'])
        case 5:
            headers = drawn.choice([{}, {"Content-Type": "text/plain"}, headers | {"Content-Encoding": "gzip"}])
        case 6:
            path = drawn.choice(["/v1/completion", "/", "/v1/chat/completions/", "/v1/models", "/v1/completions/%ff"])
    return path, body, headers


def test_1000_malformed_requests_are_each_refused_with_a_reason(speaker: Speaker) -> None:
    drawn = random.Random(7)

    async def run() -> None:
        async with asked(speaker) as (server, client):
            before = said(await client.post("/v1/chat/completions", json=greedy("one two", max_tokens=5)))
            seen: dict[int, int] = {}
            for _ in range(1000):
                path, body, headers = mutated(drawn)
                answer = await client.post(path, content=body, headers=headers)
                assert 400 <= answer.status_code < 500, (path, body, headers, answer.text)
                error = answer.json()["error"]
                assert error["message"], (path, body)
                assert error["type"] == "invalid_request_error"
                seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert {400, 404, 405, 415} <= seen.keys()
            assert not server.service.scheduler.unfinished
            assert said(await client.post("/v1/chat/completions", json=greedy("one two", max_tokens=5))) == before

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"model": "gpt-4"}, "model", "this server has 'tiny'"),
        ({"max_tokens": 200}, "messages", "tokens and the answer may have 200"),
        ({"top_logprobs": 2}, "top_logprobs", "goes with logprobs"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, None, "assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, None, "messages.0"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "give one"),
    ],
    ids=str,
)
def test_refusals_name_the_field(speaker: Speaker, change: dict[str, Any], param: str | None, message: str) -> None:
    async def run() -> None:
        async with asked(speaker) as (_, client):
            answer = await client.post("/v1/chat/completions", json={**greedy("one"), **change})
            assert answer.status_code == (404 if "model" in change else 400)
            error = answer.json()["error"]
            assert message in error["message"]
            if param:
                assert error["param"] == param

    asyncio.run(run())


def test_what_is_neutral_is_let_pass(speaker: Speaker) -> None:
    neutral = {"frequency_penalty": 0.0, "logit_bias": {}, "tools": None, "response_format": {"type": "text"}}

    async def run() -> None:
        async with asked(speaker) as (_, client):
            said(
                await client.post("/v1/chat/completions", json={**greedy("one", max_tokens=1), **neutral, "user": "me"})
            )

    asyncio.run(run())


def test_limits_of_bodies_methods_and_hosts(speaker: Speaker) -> None:
    async def run() -> None:
        async with asked(speaker) as (_, client):
            large = await client.post("/v1/chat/completions", json=greedy("x" * 30_000))
            assert large.status_code == 413
            assert "20,000 bytes" in large.json()["error"]["message"]
            get = await client.get("/v1/chat/completions")
            assert get.status_code == 405
            assert get.headers["allow"] == "POST"
            strange = await client.get("/v1/models", headers={"Host": "evil.example:80"})
            assert strange.status_code == 403
            assert (await client.get("/v1/models", headers={"Host": "LocalHost:80"})).status_code == 200
            assert (await client.get("/health")).json() == {"status": "ok", "unfinished": 0}
            models = (await client.get("/v1/models")).json()
            assert [one["id"] for one in models["data"]] == ["tiny"]
            assert (await client.get("/v1/models/tiny")).json() == models["data"][0]
            assert (await client.get("/v1/models/other")).status_code == 404

    asyncio.run(run())


def test_a_token_is_asked_for_where_there_is_one(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIZARD_SERVE_TOKEN", "s3cret")

    async def run() -> None:
        async with asked(speaker) as (_, client):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {b"Authorization": b"Bearer \xff\xfe"}):
                answer = await client.get("/v1/models", headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "s3cret" not in answer.text
            right = {"Authorization": "Bearer s3cret", "Host": "a.name.of.mine"}
            assert (await client.get("/v1/models", headers=right)).status_code == 200
            assert (await client.get("/health")).status_code == 200

    asyncio.run(run())


def test_stop_strings_cut_the_answer_and_no_part_of_one_is_streamed(speaker: Speaker) -> None:
    async def run() -> None:
        async with asked(speaker) as (server, client):
            body = greedy("sort the list", max_tokens=40)
            whole = said(await client.post("/v1/chat/completions", json=body))["message"]["content"]
            stop = whole[9:14]
            assert len(stop) == 5
            expected = whole[: whole.find(stop)]
            cut = said(await client.post("/v1/chat/completions", json={**body, "stop": stop}))
            assert cut["message"]["content"] == expected
            assert cut["finish_reason"] == "stop"
            answer = await client.post("/v1/chat/completions", json={**body, "stop": [stop, "zzz"], "stream": True})
            shown = ""
            for event in events(answer.text):
                shown += event["choices"][0]["delta"].get("content", "")
                assert expected.startswith(shown)
            assert shown == expected
            await until_idle(server)

    asyncio.run(run())


def test_completions_with_log_probabilities_echo_and_several_prompts(speaker: Speaker) -> None:
    ids = [1, *speaker.tokenizer.encode("the owl and the fox")]

    async def run() -> None:
        async with asked(speaker) as (_, client):

            async def ask(**fields: Any) -> dict[str, Any]:
                answer = await client.post("/v1/completions", json={"model": "tiny", "temperature": 0, **fields})
                assert answer.status_code == 200, answer.text
                body: dict[str, Any] = answer.json()
                return body

            plain = await ask(prompt=ids, max_tokens=6, logprobs=2)
            echoed = await ask(prompt=[ids, "one two"], max_tokens=6, logprobs=2, echo=True)
            by_text = await ask(prompt="the owl and the fox", max_tokens=6, logprobs=2)
            assert by_text["choices"] == plain["choices"]
            first, second = echoed["choices"]
            assert (first["index"], second["index"]) == (0, 1)
            assert first["text"] == "the owl and the fox" + plain["choices"][0]["text"]
            chances = first["logprobs"]
            assert len(chances["tokens"]) == len(ids) + len(plain["choices"][0]["logprobs"]["tokens"])
            assert chances["token_logprobs"][0] is None
            assert chances["top_logprobs"][0] is None
            assert chances["token_logprobs"][len(ids) :] == plain["choices"][0]["logprobs"]["token_logprobs"]
            for chosen, best in zip(
                chances["token_logprobs"][len(ids) :], chances["top_logprobs"][len(ids) :], strict=True
            ):
                assert chosen == max(best.values())
            assert chances["text_offset"] == sorted(chances["text_offset"])
            assert second["text"].startswith("one two")
            nothing = await ask(prompt=ids, max_tokens=0, logprobs=1, echo=True)
            assert nothing["choices"][0]["text"] == "the owl and the fox"
            assert nothing["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
            # The prompt's, by the forward pass of one token more.
            twice = await ask(prompt=ids, max_tokens=0, logprobs=1, echo=True, n=2)
            assert twice["usage"]["prompt_tokens"] == len(ids)
            longer = await ask(prompt=ids[:-1], max_tokens=1, logprobs=20)
            best = longer["choices"][0]["logprobs"]["top_logprobs"][0]
            last = nothing["choices"][0]["logprobs"]
            assert max(last["top_logprobs"][-1].values()) == pytest.approx(max(best.values()), abs=1e-5)
            drawn = await ask(prompt=ids, max_tokens=6, temperature=1.5, n=4, seed=3)
            assert len({choice["text"] for choice in drawn["choices"]}) > 1
            assert drawn["choices"] == (await ask(prompt=ids, max_tokens=6, temperature=1.5, n=4, seed=3))["choices"]
            assert drawn["usage"]["prompt_tokens"] == len(ids)

    asyncio.run(run())


def test_told_to_stop_it_answers_what_runs_and_refuses_what_is_new(speaker: Speaker) -> None:
    from wizard_jax.serve.server import until_stopped

    async def run() -> None:
        async with asked(speaker) as (server, client):
            stop = asyncio.Event()
            waiting = asyncio.create_task(until_stopped(server.service, stop))
            running = asyncio.create_task(client.post("/v1/chat/completions", json=greedy("two", max_tokens=100, n=8)))
            await until(lambda: server.service.answering > 0)
            stop.set()
            await until(lambda: server.service.stopping)
            refused = await client.post("/v1/chat/completions", json=greedy("one"))
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert (await client.get("/health")).status_code == 503
            said(await running)
            await waiting

    asyncio.run(run())


def test_a_failure_ends_the_server_and_is_told_to_who_waits(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    from wizard_jax.serve.server import until_stopped

    def broken(scheduler: Scheduler) -> None:
        del scheduler
        raise ZeroDivisionError("a device is gone")

    monkeypatch.setattr(Scheduler, "_advance", broken)

    async def run() -> None:
        async with asked(speaker) as (server, client):
            waiting = asyncio.create_task(until_stopped(server.service, asyncio.Event()))
            answer = await client.post("/v1/chat/completions", json=greedy("one"))
            assert answer.status_code == 500
            with pytest.raises(ZeroDivisionError):
                await waiting

    asyncio.run(run())


def test_engines_are_of_few_lengths() -> None:
    assert lengths(2048) == [256, 1024, 2048]
    assert lengths(256) == [256]
    assert lengths(100) == [100]


def test_the_openai_client_chats_streams_completes_and_lists(speaker: Speaker) -> None:
    import openai

    with served_in_a_thread(speaker) as server:
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", http_client=http, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "say one"}], "temperature": 0}
            whole: Any = client.chat.completions.create(**asked, max_tokens=12, logprobs=True, top_logprobs=2)
            choice = whole.choices[0]
            assert whole.usage.completion_tokens == len(choice.logprobs.content)
            shown = b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode(errors="replace")
            assert shown.strip() == choice.message.content.strip()
            assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
            stream: Any = client.chat.completions.create(
                **asked, max_tokens=12, stream=True, stream_options={"include_usage": True}
            )
            parts = list(stream)
            assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == choice.message.content
            assert parts[-1].usage == whole.usage
            text = client.completions.create(model="tiny", prompt="the owl", max_tokens=5, temperature=0)
            assert text.choices[0].text
            with pytest.raises(openai.BadRequestError, match="tools is not supported"):
                client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])
            with pytest.raises(openai.NotFoundError, match="tiny"):
                client.chat.completions.create(**{**asked, "model": "other"})
