"""Two replicas on a real Ray Serve: each video is asked about at one of them, and a killed replica is replaced."""

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from indexed import index_clips
from service import Service, serving

from sttm.engine.sampling import SamplingConfig
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query
from sttm.query.worker import QueryWorker
from sttm.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KEY, MODEL, VIDEOS = "test-key-1", "qwen2_vl", 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Store:
    return Store.open(index_clips(tmp_path_factory.mktemp("replicated"), qwen2_vl_folder, count=VIDEOS))


@pytest.fixture(scope="module")
def service(store: Store) -> Iterator[Service]:
    settings = ("serve.replicas=2", "serve.max_rows=1", "serve.max_tokens=4000", "serve.drain_s=30")
    with serving(store.storage.url, *(word for one in settings for word in ("--set", one)), key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def expected(store: Store) -> list[str]:
    """The engine's answer about each video, computed in this process."""
    worker = QueryWorker(store, open_checkpoint(store.manifest(store.find("clip-0.mp4").identity)), "cpu")
    texts = []
    for number in range(VIDEOS):
        video = worker.load(store.find(f"clip-{number}.mp4").identity)
        answers = worker.start(video, [Query(("What is it?",), SamplingConfig(max_tokens=8))])
        while answers.is_running:
            answers.step()
        texts.append(answers.texts[0])
    return texts


def messages(video: int, text: str = "What is it?") -> Any:
    url = {"type": "video_url", "video_url": {"url": f"clip-{video}.mp4"}}
    return [{"role": "user", "content": [url, {"type": "text", "text": text}]}]


def body(video: int, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": messages(video), **more}


def replicas(service: Service) -> list[psutil.Process]:
    """Processes of the replicas."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    return [child for child in children if re.search(r"ServeReplica.*replica", " ".join(child.cmdline()))]


def loads(service: Service) -> dict[str, float]:
    """Videos loaded from the store so far, by replica."""
    lines = service.get("/metrics").text.splitlines()
    found = (re.fullmatch(r'sttm_cache_gets_total\{replica="(\w+)",tier="load"\} (\S+)', line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


def test_each_video_is_loaded_by_one_replica_and_every_answer_is_the_engines(
    service: Service, client: openai.OpenAI, expected: list[str]
) -> None:
    def ask(number: int) -> None:
        video = number % VIDEOS
        if number % 2:
            stream = client.chat.completions.create(model=MODEL, messages=messages(video), max_tokens=8, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        else:
            answer = client.chat.completions.create(model=MODEL, messages=messages(video), max_tokens=8)
            text = answer.choices[0].message.content or ""
        assert text == expected[video]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8 * VIDEOS + 1)))
    found = loads(service)
    assert len(found) == 2
    assert sum(found.values()) == VIDEOS
    assert min(found.values()) > 0


def test_limits_keys_and_errors_are_those_of_one_process(service: Service) -> None:
    url = f"{service.url}/v1/chat/completions"
    assert httpx.post(url, json=body(0), headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert service.post(body(0, max_tokens=10**9)).status_code == 400
    refused = service.post({**body(0), "messages": messages(0, "?<|im_end|>")})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_question")
    assert service.post({**body(0), "messages": messages(99)}).status_code == 404
    chosen = service.post(body(1, options=["red", "blue"])).json()
    assert chosen["choices"][0]["message"]["content"] in ("red", "blue")


def test_a_client_that_leaves_frees_its_place_at_the_replica(service: Service) -> None:
    """Each replica answers one question at a time. If cancelled answers went on, the last would wait for a minute."""
    for _ in range(6):
        with httpx.stream(
            "POST",
            f"{service.url}/v1/chat/completions",
            json=body(0, max_tokens=3800, stream=True),
            headers=service.headers,
            timeout=60,
        ) as response:
            next(response.iter_lines())
    assert service.metric('sttm_answers_total{outcome="cancelled"}') >= 5
    started = time.monotonic()
    assert service.post(body(0, max_tokens=2)).status_code == 200
    assert time.monotonic() - started < 10
    assert service.metric('sttm_questions{state="running"}') == 0


def test_a_killed_replica_loses_no_request_of_which_nothing_was_heard(service: Service, expected: list[str]) -> None:
    """Half of the questions are asked while a replica hangs. Then it is killed, and the others are asked."""
    before = {process.pid for process in replicas(service)}
    assert len(before) == 2
    victim = psutil.Process(min(before))

    def ask(number: int) -> None:
        answer = service.post(body(number % VIDEOS, max_tokens=8))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == expected[number % VIDEOS]

    victim.suspend()
    with ThreadPoolExecutor(VIDEOS) as pool:
        answers = pool.map(ask, range(2 * VIDEOS))
        time.sleep(2)
        victim.send_signal(signal.SIGKILL)
        list(answers)
    wait_for_two(service, before)
    assert service.get("/healthz").status_code == 200


def test_a_death_ends_the_answer_under_way_and_the_waiting_question_is_asked_again(
    service: Service, expected: list[str]
) -> None:
    before = {process.pid for process in replicas(service)}
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream(
            "POST",
            f"{service.url}/v1/chat/completions",
            json=body(0, max_tokens=3800, stream=True),
            headers=service.headers,
            timeout=120,
        ) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        waiting = pool.submit(service.post, body(0, max_tokens=8))
        used = {process: sum(process.cpu_times()[:2]) for process in replicas(service)}
        time.sleep(2)
        max(used, key=lambda process: sum(process.cpu_times()[:2]) - used[process]).kill()
        rest = [line for line in lines if line]
        answer = waiting.result()
    assert '"replica_lost"' in rest[-1]
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, expected[0])
    wait_for_two(service, before)


def wait_for_two(service: Service, before: set[int]) -> None:
    """Wait until Ray Serve has replaced the replica that died."""
    deadline = time.monotonic() + 120
    while len({p.pid for p in replicas(service)} - before) == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(replicas(service)) == 2


def test_the_end_finishes_what_is_under_way_and_leaves_no_process(service: Service) -> None:
    processes = psutil.Process(service.process.pid).children(recursive=True)
    with httpx.stream(
        "POST",
        f"{service.url}/v1/chat/completions",
        json=body(0, max_tokens=100, stream=True),
        headers=service.headers,
        timeout=60,
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        service.process.terminate()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    out, _ = service.process.communicate(timeout=60)
    assert service.process.returncode in (-15, 143)
    assert "Traceback" not in out
    assert KEY not in out
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
