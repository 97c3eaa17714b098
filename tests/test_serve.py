"""The service as its users see it: a real process, the official client, and requests nobody should send."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Response
from indexed import index_clips
from service import Service, serving

from jobs.serve import serve, url_of
from jobs.serving.app import Service as Handlers
from jobs.serving.app import create_app
from jobs.serving.connection import Connection
from jobs.serving.guard import Guard
from jobs.serving.settings import ServeConfig
from sttm.engine.ready_video import ReadyVideo
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ConfigError
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query
from sttm.query.scheduler import Scheduler
from sttm.query.worker import QueryWorker
from sttm.store.store import Store

KEY = "test-key-1"
MODEL = "qwen2_vl"
LONG = 1000  # tokens; some seconds


def content(text: str, video: str = "clip-0.mp4") -> list[dict[str, Any]]:
    return [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": text}]


def body(text: str = "What?", video: str = "clip-0.mp4", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content(text, video)}], **more}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Store:
    return Store.open(index_clips(tmp_path_factory.mktemp("served"), qwen2_vl_folder, count=3))


@pytest.fixture(scope="module")
def service(store: Store) -> Iterator[Service]:
    with serving(store.storage.url, key=f"{KEY}, other-key") as running, connected(running.url) as silent:
        running.key = KEY
        yield running
        assert silent.recv(1) == b""  # closed, because it sent nothing
        code, out = running.stop()
        assert code in (-15, 143)
        assert KEY not in out
        assert "wrong-key" not in out


def connected(url: str) -> socket.socket:
    return socket.create_connection((httpx.URL(url).host, httpx.URL(url).port), timeout=20)


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def worker(store: Store) -> QueryWorker:
    return QueryWorker(store, open_checkpoint(store.manifest(store.find("clip-0.mp4").identity)), "cpu")


def said(worker: QueryWorker, video: str, turns: tuple[str, ...], max_tokens: int, stop: tuple[str, ...] = ()) -> str:
    """What the engine answers in this process."""
    query = Query(turns, SamplingConfig(max_tokens=max_tokens, stop=stop))
    answers = worker.start(worker.load(worker.store.find(video).identity), [query])
    while answers.is_running:
        answers.step()
    return answers.texts[0]


def test_official_client_gets_the_engines_answer(client: openai.OpenAI, worker: QueryWorker, store: Store) -> None:
    messages: Any = [{"role": "user", "content": content("What is it?")}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12)
    text = answer.choices[0].message.content
    assert text == said(worker, "clip-0.mp4", ("What is it?",), 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    about = answer.model_extra["sttm"]  # type: ignore[index]
    assert about["identity"] == store.find("clip-0.mp4").identity
    assert 0 < about["load_s"] <= about["ttft_s"] <= about["total_s"]
    # A follow-up is sent back as the client holds it, or with every field that the client knows.
    held = answer.choices[0].message
    for back in (held, {**held.model_dump(), "annotations": []}):
        more: Any = [*messages, back, {"role": "user", "content": "And why?"}]
        follow_up = client.chat.completions.create(model=MODEL, messages=more, max_tokens=8)
        assert follow_up.choices[0].message.content == said(worker, "clip-0.mp4", ("What is it?", text, "And why?"), 8)


def test_null_is_as_good_as_left_out(client: openai.OpenAI, worker: QueryWorker) -> None:
    messages: Any = [{"role": "user", "content": content("What is it?")}]
    nulls: Any = dict.fromkeys(("tools", "tool_choice", "logit_bias", "top_logprobs", "stream_options", "stop", "seed"))
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, stream=False, **nulls)
    assert answer.choices[0].message.content == said(worker, "clip-0.mp4", ("What is it?",), 8)
    messages += [{"role": "assistant", "content": None}, {"role": "user", "content": "And why?"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    assert answer.choices[0].message.content == said(worker, "clip-0.mp4", ("What is it?", "", "And why?"), 8)


def test_official_client_streams_the_same_text(client: openai.OpenAI, worker: QueryWorker) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": content("the colour?", "clip-1.mp4")}],  # type: ignore[typeddict-item, list-item]
            max_completion_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert len([p for p in pieces if p]) > 3
    assert "".join(pieces) == said(worker, "clip-1.mp4", ("the colour?",), 16)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert all("usage" in c.model_fields_set and c.usage is None for c in chunks[:-1])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16


def test_stop_text_and_system_text(service: Service, worker: QueryWorker) -> None:
    free = said(worker, "clip-0.mp4", ("Be brief.\n\nWhat?",), 20)
    stop = free[8:10]
    asked = body("What?", stop=[stop], max_tokens=20)
    asked["messages"].insert(0, {"role": "system", "content": "Be brief."})
    choice = service.post(asked).json()["choices"][0]
    assert choice["message"]["content"] == free[: free.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_options_are_chosen_by_likelihood(client: openai.OpenAI, worker: QueryWorker) -> None:
    options = ["red", "blue", "green"]
    messages: Any = [{"role": "user", "content": content("Which?")}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, extra_body={"options": options})
    video = worker.load(worker.store.find("clip-0.mp4").identity)
    (choice,) = worker.choose(video, [["Which?"]], [options])
    assert answer.choices[0].message.content == options[choice.index]
    probabilities = answer.model_extra["sttm"]["probabilities"]  # type: ignore[index]
    assert probabilities == pytest.approx(choice.probabilities, abs=1e-4)


def test_models_and_catalog(client: openai.OpenAI, service: Service, store: Store) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.models.retrieve("gpt-4")
    found = service.get("/videos").json()
    assert found["total"] == 3
    assert {v["name"] for v in found["data"]} == {"clip-0.mp4", "clip-1.mp4", "clip-2.mp4"}
    (one,) = service.get("/videos", params={"q": "CLIP-1"}).json()["data"]
    row = store.find("clip-1.mp4")
    assert (one["id"], one["identity"], one["tokens_after"]) == (row.video_id, row.identity, row.tokens_after)
    assert (one["frames"], one["frames_asked"], one["thinned"]) == (row.frames, row.frames_asked, False)
    assert one["seconds_per_frame"] == pytest.approx(row.duration_s / row.frames, abs=1e-3)
    assert len(service.get("/videos", params={"limit": 2, "offset": 2}).json()["data"]) == 1
    about = service.get(f"/videos/{row.video_id}").json()
    tokens = store.load_tokens(row.identity)
    assert about["boxes"] == [[*b, p] for b, p in zip(tokens.boxes.tolist(), tokens.patches.tolist(), strict=True)]
    assert tuple(about["grid"]) == tokens.grid


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "no model 'gpt-4'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "no video"}]}, 400, "name 0 videos"),
        ({"messages": [{"role": "assistant", "content": content("?")}]}, 400, "must follow a question"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content.0: Input tag 'image_url'"),
        ({"n": 2}, 400, "n:"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 10**9}, 400, "over this service's"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"tools": []}, 400, "tools"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "content is missing"),
        ({"messages": [{"role": "user", "content": content("?"), "name": "Ann"}]}, 400, "messages.0.name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, 400, "messages.0.tool_calls"),
        ({"messages": [{"role": "assistant", "audio": {"id": "1"}}]}, 400, "messages.0.audio"),
        ({"stream_options": {"include_usage": True}}, 400, "only with stream"),
        ({"options": ["one"]}, 400, "options"),
        ({"options": ["one", "x" * 501]}, 400, "options.1: String should have at most 500 characters"),
        ({"options": ["x" * 500] * 64}, 400, "messages and options: 32005 characters, over 32000"),
        ({"options": ["a", "b"], "seed": 1, "stop": ["a"]}, 400, "seed, stop: not with options"),
        ({"options": ["a", "b"], "temperature": 0, "max_tokens": 5}, 400, "max_tokens, temperature: not with options"),
        ({"options": ["red<|im_end|>", "blue"]}, 400, "control token '<|im_end|>'"),
        ({"messages": [{"role": "user", "content": content("?<|im_end|>")}]}, 400, "control token '<|im_end|>'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(service: Service, change: dict[str, Any], status: int, words: str) -> None:
    answer = service.post({**body(), **change})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "video",
    ["../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "a" * 4000, "\0", "..%2f"],
)
def test_a_name_is_only_ever_looked_up_in_the_catalog(service: Service, video: str) -> None:
    answer = service.post(body(video=video))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")
    assert service.get("/videos/" + video.replace("\0", "%00")).status_code == 404


def test_a_bad_page_is_an_error_like_others(service: Service) -> None:
    for page in ({"limit": "abc"}, {"offset": -1}):
        answer = service.get("/videos", params=page)
        assert answer.status_code == 400
        assert next(iter(page)) in answer.json()["error"]["message"]


def test_two_videos_in_one_question_are_refused(service: Service) -> None:
    asked = body()
    asked["messages"][0]["content"].insert(0, {"type": "video", "video": "clip-1.mp4"})
    message = service.post(asked).json()["error"]["message"]
    assert "name 2 videos" in message
    assert '"approximate": true' in message


def test_two_videos_are_answered_together_when_approximate_is_asked_for(
    service: Service, client: openai.OpenAI, worker: QueryWorker
) -> None:
    messages: Any = [{"role": "user", "content": content("What?", "clip-1.mp4")}]
    messages[0]["content"].insert(0, {"type": "video_url", "video_url": {"url": "clip-0.mp4"}})
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=8, extra_body={"approximate": True}
    )
    rows = [worker.store.find(name) for name in ("clip-0.mp4", "clip-1.mp4")]
    together = worker.load(*(row.identity for row in rows))
    both = worker.start(together, [Query(("What?",), SamplingConfig(max_tokens=8))])
    while both.is_running:
        both.step()
    assert answer.choices[0].message.content == both.texts[0]
    about = answer.model_extra["sttm"]  # type: ignore[index]
    assert about["videos"] == [row.video_id for row in rows]
    assert about["approximate"] is True
    assert about["kv_tokens"] > worker.load(rows[0].identity).keys[-1].shape[1]
    again = service.post(body(video="clip-0.mp4", approximate=True)).json()
    assert "approximate" not in again["sttm"]  # one video is answered exactly


def test_a_question_beyond_the_models_positions_is_refused_with_numbers(service: Service) -> None:
    answer = service.post(body("why? " * 3900, max_tokens=500))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_question")
    assert "the model has 4096 positions" in answer.json()["error"]["message"]


def test_keys_size_and_type_are_checked_first(service: Service) -> None:
    url = f"{service.url}/v1/chat/completions"
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": f"Basic {KEY}"}):
        assert httpx.get(f"{service.url}/videos", headers=headers).status_code == 401
        assert httpx.get(f"{service.url}/metrics", headers=headers).status_code == 401
        assert httpx.post(url, json=body(), headers=headers).status_code == 401
    assert httpx.get(f"{service.url}/videos", headers={"Authorization": "Bearer other-key"}).status_code == 200
    large = httpx.post(
        url, content=b'{"a": "' + b"x" * (1 << 20), headers={**service.headers, "content-type": "application/json"}
    )
    assert large.status_code == 413
    chunked = httpx.post(
        url, content=(b"x" * 65536 for _ in range(64)), headers={**service.headers, "content-type": "application/json"}
    )
    assert chunked.status_code == 413
    assert httpx.post(url, content=b"{}", headers={**service.headers, "content-type": "text/plain"}).status_code == 415
    deep = httpx.post(url, content=b"[" * 100_000, headers={**service.headers, "content-type": "application/json"})
    assert deep.status_code == 400


def test_answers_stay_inside_their_limits_under_32_clients(service: Service, worker: QueryWorker) -> None:
    load(service, seconds=3.0, worker=worker)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_minutes_of_32_clients(service: Service, worker: QueryWorker) -> None:
    load(service, seconds=120.0, worker=worker)


def load(service: Service, seconds: float, worker: QueryWorker) -> None:
    """32 clients of all three videos: every answer right, memory bounded."""
    names = [f"clip-{n}.mp4" for n in range(3)]
    expected = {name: said(worker, name, ("What is it?",), 8) for name in names}
    process = psutil.Process(service.process.pid)

    def ask(number: int, end: float) -> int:
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0, timeout=60)
        count = 0
        while count == 0 or time.monotonic() < end:
            name = names[(number + count) % 3]
            messages: Any = [{"role": "user", "content": content("What is it?", name)}]
            if number % 2:
                stream = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, stream=True)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            else:
                answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
                text = answer.choices[0].message.content or ""
            assert text == expected[name]
            count += 1
        return count

    ask(0, 0.0)
    before, end = process.memory_info().rss, time.monotonic() + seconds
    with ThreadPoolExecutor(32) as pool:
        counts = list(pool.map(ask, range(32), [end] * 32))
    grown = process.memory_info().rss - before
    print(f"{sum(counts)} answers to 32 clients in {seconds:.0f} s, memory +{grown / 1e6:.0f} MB")
    assert grown < 200e6


def test_a_client_that_leaves_frees_its_place(service: Service) -> None:
    before = service.metric('sttm_answers_total{outcome="cancelled"}')
    with httpx.stream(
        "POST", f"{service.url}/v1/chat/completions", json=body(max_tokens=LONG, stream=True), headers=service.headers
    ) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    url = f"{service.url}/v1/chat/completions"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body(max_tokens=LONG), headers=service.headers, timeout=0.5)
    deadline = time.monotonic() + 20
    while service.metric('sttm_answers_total{outcome="cancelled"}') < before + 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert service.metric('sttm_answers_total{outcome="cancelled"}') == before + 2
    assert service.metric('sttm_questions{state="running"}') == 0


def test_metrics_tell_what_happened(service: Service) -> None:
    service.post(body(max_tokens=3))
    assert service.metric('sttm_requests_total{route="/v1/chat/completions",status="200"}') > 0
    assert service.metric('sttm_answers_total{outcome="length"}') > 0
    assert service.metric("sttm_ttft_seconds_count") > 0
    assert service.metric('sttm_cache_bytes{tier="device"}') > 0
    assert (
        service.metric('sttm_cache_gets_total{tier="load"}') <= 4
    )  # three videos and one pair, however many questions


def test_limits_a_damaged_video_and_a_graceful_end(store: Store, tmp_path: Path, qwen2_vl_folder: Path) -> None:
    url = index_clips(tmp_path, qwen2_vl_folder, count=2)
    opened = Store.open(url)
    damaged = opened.manifest(opened.find("clip-1.mp4").identity).kv.key
    data = bytearray(opened.storage.read(damaged))
    data[len(data) // 2] ^= 1
    opened.storage.put(damaged, data)
    limits = ("serve.requests_per_minute=60", "serve.timeout_s=3", "serve.max_tokens=100000")
    with serving(url, *(word for limit in limits for word in ("--set", limit))) as service:
        for _ in range(2):
            answer = service.post(body(video="clip-1.mp4"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "bad_artifact")
            assert str(tmp_path) not in answer.text  # nobody needs to know where the store is
        assert str(tmp_path) not in service.post(body(video="no-such.mp4")).text
        assert httpx.get(f"{service.url}/videos", headers={"host": "evil.example"}).status_code == 400
        with httpx.Client(timeout=60) as client:
            codes = [client.get(f"{service.url}/v1/models").status_code for _ in range(150)]
        assert set(codes[:50]) == {200}
        assert 429 in codes
        assert service.get("/healthz").status_code == 200
        time.sleep(2.1)  # two more requests are allowed
        answer = service.post(body(max_tokens=3800))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        with httpx.stream(
            "POST", f"{service.url}/v1/chat/completions", json=body(max_tokens=20, stream=True)
        ) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            service.process.terminate()
            rest = [line for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"  # what was under way is finished
        out, _ = service.process.communicate(timeout=30)
        assert service.process.returncode in (-15, 143)
        assert "Traceback" not in out


def test_a_service_shows_and_asks_the_videos_of_one_recipe(tmp_path: Path, qwen2_vl_folder: Path) -> None:
    url = index_clips(tmp_path, qwen2_vl_folder, count=2)
    old = Store.open(url).catalog.rows()
    index_clips(tmp_path, qwen2_vl_folder, count=2, scheme="exact")
    new = [row for row in Store.open(url).catalog.rows() if row.recipe_digest != old[0].recipe_digest]
    notice = "2 recipes in this store: taking the newest"
    for options, rows, has_notice in (((), new, True), (("--recipe", old[0].recipe_digest[:8]), old, False)):
        with serving(url, *options) as service:
            shown = {video["identity"] for video in service.get("/videos").json()["data"]}
            assert shown == {row.identity for row in rows}
            asked = service.post(body(max_tokens=2)).json()["sttm"]["identity"]
            assert asked == next(row.identity for row in rows if row.name == "clip-0.mp4")
            assert (notice in service.stop()[1]) == has_notice


def test_ctrl_c_finishes_and_ends_with_130(store: Store) -> None:
    with serving(store.storage.url) as service:
        assert service.post(body(max_tokens=2)).status_code == 200
        service.process.send_signal(signal.SIGINT)
        out, _ = service.process.communicate(timeout=30)
        assert service.process.returncode == 130
        assert "Traceback" not in out


def test_an_address_that_cannot_be_used_is_refused_before_a_model_is_loaded(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STTM_API_KEYS", KEY)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ConfigError, match=r"cannot listen on http://127.0.0.1:\d+: Address already in use; choose"),
    ):
        serve(store.storage.url, port=other.getsockname()[1])
    with pytest.raises(ConfigError, match=r"cannot listen on http://no-such-host.invalid:8000: Name or service"):
        serve(store.storage.url, host="no-such-host.invalid")
    assert "loading" not in capsys.readouterr().out


def test_refuses_to_be_public_without_keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STTM_API_KEYS", raising=False)
    with pytest.raises(ConfigError, match="STTM_API_KEYS"):
        serve(store.storage.url, host="0.0.0.0")


def test_a_slow_body_does_not_hold_a_place_for_ever() -> None:
    """The guard alone, with a client that never sends the rest."""
    sent: list[dict[str, Any]] = []
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> dict[str, Any]:
        return next(parts, None) or await asyncio.sleep(60)  # type: ignore[func-returns-value]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "path": "/", "method": "POST", "headers": headers, "client": ("127.0.0.1", 1)}
    guard = Guard(None, (), lambda _: False, lambda *_: None, body_timeout_s=0.1)
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80"), ("localhost", "http://localhost:80")],
)
def test_a_client_can_use_the_address_that_is_printed(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_a_connection_without_a_request_is_closed_and_one_with_an_answer_under_way_is_not() -> None:
    app = FastAPI()

    @app.get("/{seconds}")
    async def wait(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    config = uvicorn.Config(app, port=0, http=Connection, timeout_keep_alive=1, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with connected(url) as silent, connected(url) as slow, connected(url) as idle, httpx.Client(timeout=20) as client:
        slow.sendall(b"GET /0 HTTP/1.1\r\nX:")
        idle.sendall(b"GET /0 HTTP/1.1\r\nHost: x\r\n\r\nGET /0")  # an answered request, and half of another
        assert client.get(f"{url}/2").json() == 2
        for quiet in (silent, slow, idle):
            quiet.settimeout(0.5)  # they were closed while the answer was under way
        assert (silent.recv(99), slow.recv(99)) == (b"", b"")
        assert b"".join(iter(lambda: idle.recv(999), b"")).startswith(b"HTTP/1.1 200")
        assert client.get(f"{url}/0").json() == 0
    server.should_exit = True
    thread.join()


def test_nothing_is_left_to_encode_in_the_event_loop(store: Store, worker: QueryWorker) -> None:
    """FastAPI encodes a dict item by item in the loop: for a long video a second in which every stream stands still."""

    async def answers() -> list[object]:
        return [await handlers.models(), await handlers.videos(), await handlers.video("clip-0.mp4")]

    scheduler = Scheduler(worker)
    handlers = Handlers(store, MODEL, scheduler, ServeConfig())
    assert all(isinstance(answer, Response) for answer in asyncio.run(answers()))
    scheduler.close()


class LostGPU(QueryWorker):
    """A worker as it is after an error that CUDA does not recover from."""

    def load(self, *identities: str) -> ReadyVideo:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, when it is imported
def test_health_tells_when_nothing_is_answered_any_more(store: Store, worker: QueryWorker) -> None:
    """To whoever restarts a service, and to Ray Serve, which replaces the replica."""
    from jobs.serving.replica import Replica

    checkpoint = open_checkpoint(store.manifest(store.find("clip-0.mp4").identity))
    for one, status in ((worker, 200), (LostGPU(store, checkpoint, "cpu"), 500)):
        scheduler = Scheduler(one)
        app = create_app(store, MODEL, scheduler, ServeConfig())
        replica = object.__new__(Replica)  # whose constructor needs Ray Serve
        replica._scheduler = scheduler
        assert asyncio.run(asked(app, "GET", "/healthz")).status_code == 200
        replica.check_health()
        assert asyncio.run(asked(app, "POST", "/v1/chat/completions", json=body(max_tokens=2))).status_code == status
        if status == 200:
            scheduler.close()
        assert asyncio.run(asked(app, "GET", "/healthz")).status_code == 503
        with pytest.raises(RuntimeError, match="ended"):
            replica.check_health()
        scheduler.close()


async def asked(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    """A request without a server."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, **more)
