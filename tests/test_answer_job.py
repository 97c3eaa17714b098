"""The batch job as a user runs it: real processes on a real Ray, a table of questions, answers beside it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import index_clips
from s3_server import S3Server

from jobs.answering import run_record
from jobs.answering.answer_table import AnswerRow, AnswerTable
from jobs.answering.plan import Plan
from jobs.answering.questions import read_questions
from sttm.errors import ArtifactError, StoreError
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query
from sttm.query.worker import QueryWorker
from sttm.store.storage import Storage
from sttm.store.store import Store
from sttm.tables import TableError

ROOT = Path(__file__).parent.parent
OPTIONS = ["red", "blue", "green"]


def start(*arguments: str, poison: bool = False) -> "subprocess.Popen[str]":
    paths = [str(ROOT)] + ([str(ROOT / "tests" / "poison_answers")] if poison else [])
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.answer", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ":".join(paths)},
        start_new_session=True,
    )


def output(*arguments: str, code: int = 0) -> str:
    """Run `python -m jobs.answer` to its end; all that it prints."""
    process = start(*arguments)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out
    return out


def job(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run `python -m jobs.answer` to its end; the closing summary."""
    return json.loads(output(*arguments, code=code).strip().splitlines()[-1])


def answers(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "answers.parquet").to_pylist()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Store:
    return Store.open(index_clips(tmp_path_factory.mktemp("asked"), qwen2_vl_folder, count=4))


@pytest.fixture(scope="module")
def broken(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same store with one damaged and one missing KV file: clip-2, clip-3."""
    folder = tmp_path_factory.mktemp("broken") / "store"
    shutil.copytree(store.storage.url, folder)
    copy = Store.open(str(folder))
    damaged, missing = (folder / copy.manifest(copy.find(f"clip-{n}.mp4").identity).kv.key for n in (2, 3))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    missing.unlink()
    return copy


def table() -> list[dict[str, Any]]:
    """Questions in mixed order, free and with options, and what a real table also holds."""
    good = [
        {"id": f"q{n}", "video": f"clip-{n % 2}.mp4", "question": "What is it?" + " Why?" * (n % 3), "options": []}
        for n in range(6)
    ]
    good += [{"id": f"o{n}", "video": f"clip-{n}.mp4", "question": "Which?", "options": OPTIONS} for n in range(2)]
    bad = [
        {"id": "unknown", "video": "no-such.mp4", "question": "What?", "options": []},
        {"id": "empty", "video": "clip-0.mp4", "question": "", "options": []},
        {"id": "one", "video": "clip-0.mp4", "question": "Which?", "options": ["only"]},
        {"id": "control", "video": "clip-0.mp4", "question": "What?<|im_end|>", "options": []},
        {"id": "damaged", "video": "clip-2.mp4", "question": "What?", "options": []},
        {"id": "missing", "video": "clip-3.mp4", "question": "What?", "options": OPTIONS},
    ]
    return [*good[:3], *bad, *good[3:]]


def test_every_row_is_answered_or_says_why_not_and_the_next_run_does_nothing(broken: Store, tmp_path: Path) -> None:
    rows = table()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    where = ["--store", broken.storage.url, "--questions", str(tmp_path / "questions.parquet")]
    options = [*where, "--out", str(tmp_path / "out"), "--set", "sampling.max_tokens=6"]
    summary = job(*options)
    counts = {name: summary[name] for name in ("total", "done", "skipped", "failed", "left")}
    assert counts == {"total": 14, "done": 8, "skipped": 0, "failed": 6, "left": 0}
    found = answers(tmp_path / "out")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert {row["id"]: row["error_code"] for row in found if row["status"] == "error"} == {
        "unknown": "no_video",
        "empty": "bad_row",
        "one": "bad_row",
        "control": "bad_question",
        "damaged": "bad_artifact",
        "missing": "bad_artifact",
    }
    worker = QueryWorker(broken, open_checkpoint(broken.manifest(broken.find("clip-0.mp4").identity)), "cpu")
    for row in found:
        if row["status"] == "ok":
            check(row, worker)
    printed = output(*options, "--format", "jsonl")
    again = json.loads(printed.strip().splitlines()[-1])
    assert (again["done"], again["skipped"], again["failed"]) == (0, 8, 6)
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert again["answers"] == f"{tmp_path}/out/answers.jsonl"
    assert json.loads(lines[0]) == found[0]
    shown = [line for line in printed.splitlines() if "no_video" in line]
    assert len(shown) == 1
    assert "unknown" in shown[0]
    assert "no-such.mp4" in shown[0]


def check(row: dict[str, Any], worker: QueryWorker) -> None:
    """The row says what the engine says in this process."""
    artifact = worker.store.find(row["video"])
    assert (row["video_id"], row["identity"]) == (artifact.video_id, artifact.identity)
    video = worker.load(artifact.identity)
    if row["options"]:
        (choice,) = worker.choose(video, [[row["question"]]], [row["options"]])
        assert (row["choice"], row["answer"]) == (choice.index, row["options"][choice.index])
        assert row["probabilities"] == pytest.approx(choice.probabilities, abs=1e-4)
        return
    query = Query((row["question"],))
    one = worker.start(video, [Query(query.turns, query.sampling.model_copy(update={"max_tokens": 6}))])
    while one.is_running:
        one.step()
    assert row["answer"] == one.texts[0].strip()
    assert (row["choice"], row["reason"], row["completion_tokens"]) == (None, "length", 6)
    assert row["answer_s"] > 0
    assert row["kv_tokens"] > 0


def test_tables_of_every_format_are_read_alike(tmp_path: Path, s3_server: S3Server) -> None:
    rows = [row for row in table() if row["id"] != "empty"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with open(tmp_path / "q.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "options": json.dumps(row["options"])} for row in rows)
    expected = read_questions(str(tmp_path / "q.parquet"))
    assert [row.id for row in expected] == [row["id"] for row in rows]
    assert expected == read_questions(str(tmp_path / "q.jsonl")) == read_questions(str(tmp_path / "q.csv"))
    remote = s3_server.new_root()
    Storage(remote).put("q.parquet", (tmp_path / "q.parquet").read_bytes())
    assert read_questions(f"{remote}/q.parquet", limit=3) == expected[:3]
    with pytest.raises(TableError, match="cannot read"):
        read_questions(str(tmp_path / "none.csv"))


def test_bad_lines_keep_their_place(tmp_path: Path) -> None:
    lines = ['{"video": "a", "question": "?"}', "{not json", '["a", "b"]', '{"video": "b", "question": "?", "id": 7}']
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    rows = read_questions(str(tmp_path / "q.jsonl"))
    assert [(row.id, row.video, bool(row.fault)) for row in rows] == [
        ("1", "a", False),
        ("2", "", True),
        ("3", "", True),
        ("7", "b", False),
    ]


def test_parts_are_joined_by_key_and_damage_is_named(tmp_path: Path) -> None:
    answers = AnswerTable(str(tmp_path))
    answers.add(
        "a-0", [AnswerRow("k1", "1", "v", "q", error_code="lost", status="error"), AnswerRow("k2", "2", "v", "q")]
    )
    answers.add("b-0", [AnswerRow("k1", "1", "v", "q", OPTIONS, answer="red", choice=0, probabilities=[0.5, 0.3, 0.2])])
    answers.add("c-0", [AnswerRow("k2", "2", "v", "q", status="error", error_code="lost")])
    answers.add("d-0", [AnswerRow("k3", "\ud83d", "\udcff.mp4", "\ud800?", ("\ud800", "b"), status="error")])
    rows = answers.rows()
    odd = rows.pop("k3")
    assert (odd.id, odd.video, odd.question, list(odd.options)) == (
        r"\ud83d",
        r"\udcff.mp4",
        r"\ud800?",
        [r"\ud800", "b"],
    )
    assert {key: (row.status, row.answer) for key, row in rows.items()} == {"k1": ("ok", "red"), "k2": ("ok", "")}
    assert rows["k1"].probabilities == [0.5, 0.3, 0.2]
    path = tmp_path / "parts" / "a-0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="delete it, its questions are then asked again"):
        answers.rows()


def test_answers_wait_for_a_place_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_record, "FLUSH_EVERY_S", 0.0)
    table = AnswerTable(str(tmp_path / "out"))
    record = run_record.AnswerRecord(table, "run", Plan([], ["k"], {}, []))
    (tmp_path / "out").write_text("a file where the folder should be")
    record.on_rows([AnswerRow("k", "1", "v", "q", run_id="run")])
    assert "1 answers wait to be written: cannot write" in capsys.readouterr().err
    with pytest.raises(StoreError):
        record.flush()
    (tmp_path / "out").unlink()
    record.on_rows([])
    assert list(table.rows()) == ["k"]


@pytest.mark.slow
def test_gpus_that_are_said_to_come_are_too_few_for_the_model(store: Store, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"video": "clip-0.mp4", "question": "What?"}')
    where = ["--store", store.storage.url, "--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out")]
    process = start(*where, "--set", "run.gpus=1", "--set", "run.gpus_per_model=2")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert "gpus_per_model is 2, but there are 1 GPUs" in out
    assert "say with --set run.gpus how many" in out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_job_keeps_what_is_answered_and_the_next_run_completes(
    store: Store, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C reaches the whole process group, Ray's own processes included."""
    rows = [{"video": f"clip-{n % 4}.mp4", "question": f"What is number {n}?"} for n in range(4000)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--store", store.storage.url, "--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out")]
    options += ["--set", "sampling.max_tokens=8"]
    process = start(*options)
    wait_for_rows(process)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code, out
    first = json.loads(out.strip().splitlines()[-1])
    assert 0 < first["done"] < 4000
    assert f"stopped: {first['done']} questions answered, {first['left']} left; the same command resumes" in out
    assert not (tmp_path / "out" / "answers.parquet").exists()
    rest = job(*options)
    assert (rest["done"], rest["skipped"]) == (4000 - first["done"], first["done"])
    found = answers(tmp_path / "out")
    assert [row["question"] for row in found] == [row["question"] for row in rows]
    assert all(row["status"] == "ok" for row in found)


@pytest.mark.slow
def test_ctrl_c_while_ray_starts_ends_the_job_with_nothing_asked(store: Store, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"video": "clip-0.mp4", "question": "What?"}')
    where = ["--store", store.storage.url, "--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out")]
    process = start(*where)
    assert process.stdout is not None
    assert any(line.startswith("starting Ray") for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert json.loads(out.strip().splitlines()[-1])["left"] == 1


def wait_for_rows(process: "subprocess.Popen[str]") -> None:
    """Until the job says that some are answered."""
    assert process.stdout is not None
    for line in process.stdout:
        if "/s" in line and not line.startswith("0 of"):
            return
    raise AssertionError("the job ended")


@pytest.mark.slow
def test_a_killed_actor_costs_no_answer(store: Store, tmp_path: Path) -> None:
    rows = [{"video": f"clip-{n % 4}.mp4", "question": f"What is number {n}?"} for n in range(3000)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--store", store.storage.url, "--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out")]
    process = start(*options, "--set", "sampling.max_tokens=8")
    wait_for_rows(process)
    actors = [p for p in psutil.Process(process.pid).children(recursive=True) if "AnswerActor" in " ".join(p.cmdline())]
    assert actors
    actors[0].kill()
    time.sleep(0.1)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    summary = json.loads(out.strip().splitlines()[-1])
    assert (summary["done"], summary["failed"]) == (3000, 0)


@pytest.mark.slow
def test_a_question_that_kills_its_process_is_one_error_row(store: Store, tmp_path: Path) -> None:
    rows = [{"video": f"clip-{n % 2}.mp4", "question": f"What is number {n}?"} for n in range(40)]
    rows[7]["question"], rows[12]["question"] = "segv!", "bug!"
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    where = ["--store", store.storage.url, "--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out")]
    process = start(*where, "--set", "sampling.max_tokens=4", poison=True)
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, out
    summary = json.loads(out.strip().splitlines()[-1])
    assert (summary["done"], summary["failed"]) == (38, 2)
    errors = {row["question"]: row["error_code"] for row in answers(tmp_path / "out") if row["status"] == "error"}
    assert errors == {"segv!": "crashed", "bug!": "failed"}
