"""Readers of the public benchmarks' own files and of question tables, on small files in the true formats."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sttm.errors import ConfigError
from sttm.evaluation.benchmarks import read_benchmark
from sttm.evaluation.question_table import INSTRUCTION, read_question_table
from sttm.evaluation.questions import Benchmark, Question
from sttm.tables import TableError
from sttm.video.decode import VideoConfig

CONFIG = VideoConfig()
HEAD = "Select the best answer to the following multiple-choice question based on the video and the subtitles. "


def read(name: str, path: Path, videos: Path) -> Benchmark:
    return read_benchmark(name, path, str(videos), CONFIG)


def only(benchmark: Benchmark) -> Question:
    ((question,),) = [video.questions for video in benchmark.videos]
    return question


def put(path: Path, content: Any = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_video_mme(tmp_path: Path) -> None:
    row = {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
        "videoID": "fFjv93ACGo8",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many candles?",
        "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."],
        "answer": "C",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test.parquet")
    video = put(tmp_path / "data" / "fFjv93ACGo8.mp4")
    benchmark = read("video-mme", tmp_path / "test.parquet", tmp_path)
    question = only(benchmark)
    assert benchmark.videos[0].name == str(video)
    assert question.prompt == (
        HEAD + "Respond with only the letter (A, B, C, or D) of the correct option.\nHow many candles?\n"
        "A. Apples.\nB. Candles.\nC. Berries.\nD. The three kinds are of the same number.\nThe best answer is:"
    )
    assert (question.right, question.answer, question.task, question.scoring) == (2, "Berries.", "short", "letter")


def test_longvideobench_in_both_of_its_forms(tmp_path: Path) -> None:
    shared = {"id": "x_0", "video_id": "x", "video_path": "x.mp4", "question": "What is on the table?"}
    shared |= {"correct_choice": 1, "duration_group": 60, "question_category": "S2E", "subtitle_path": "x_en.json"}
    listed = put(tmp_path / "lvb_val.json", [{**shared, "candidates": ["a cup", "a hat", "a book"]}])
    columns = {"option0": "a cup", "option1": "a hat", "option2": "a book", "option3": "N/A", "option4": "N/A"}
    pq.write_table(pa.Table.from_pylist([{**shared, **columns}]), tmp_path / "validation.parquet")
    question = only(read("longvideobench", listed, tmp_path))
    assert (question.options, question.answer, question.task) == (("a cup", "a hat", "a book"), "a hat", "60")
    assert "Respond with only the letter (A, B, or C) of" in question.prompt
    assert only(read("longvideobench", tmp_path / "validation.parquet", tmp_path)) == question


def test_mlvu_takes_the_video_of_its_own_task_where_file_names_collide(tmp_path: Path) -> None:
    """And repeated candidates, of which the first counts, are no error: the published files have them."""
    row = {"video": "1.mp4", "duration": 480.0, "question": "What color is the dress?", "question_type": "plotQA"}
    row |= {"candidates": ["Blue", "Red", "White", "Blue"], "answer": "Blue"}
    annotations = put(tmp_path / "json" / "1_plotQA.json", [row])
    put(tmp_path / "video" / "2_needle" / "1.mp4")
    mine = put(tmp_path / "video" / "1_plotQA" / "1.mp4")
    benchmark = read("mlvu", annotations, tmp_path)
    assert benchmark.videos[0].name == str(mine)
    assert (only(benchmark).right, only(benchmark).task) == (0, "plotQA")


def test_mlvu_reads_the_folder_of_all_its_tasks(tmp_path: Path) -> None:
    for task in ("2_needle", "1_plotQA"):
        row = {"video": "1.mp4", "question": "Q?", "candidates": ["a", "b"], "answer": "b", "question_type": task[2:]}
        put(tmp_path / "json" / f"{task}.json", [row, {"video": "2.mp4"}])
        put(tmp_path / "video" / task / "1.mp4")
    benchmark = read("mlvu", tmp_path / "json", tmp_path)
    assert [v.name for v in benchmark.videos] == [
        str(tmp_path / "video" / t / "1.mp4") for t in ("1_plotQA", "2_needle")
    ]
    assert [e.cause for e in benchmark.errors] == ["1_plotQA.json: no answer", "2_needle.json: no answer"]


def test_mlvu_generation_tasks_become_error_rows(tmp_path: Path) -> None:
    choice = {"video": "1.mp4", "question": "Q?", "candidates": ["a", "b"], "answer": "b", "question_type": "order"}
    free = {"video": "2.mp4", "question": "Describe it.", "answer": "A long text.", "question_type": "summary"}
    benchmark = read("mlvu", put(tmp_path / "9_summary.json", [free, choice]), tmp_path)
    assert only(benchmark).row == 2
    assert [(e.row, e.video) for e in benchmark.errors] == [(1, "2.mp4")]


def test_next_qa_csv(tmp_path: Path) -> None:
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
    body = "4010069381,369,640,480,how do the two man play,0,6,CH,roll,tap,strum,hit,pat"
    annotations = put(tmp_path / "test.csv", f"{head}\n{body}\n".encode())
    video = put(tmp_path / "NExTVideo" / "4010069381.mp4")
    benchmark = read("next-qa", annotations, tmp_path)
    question = only(benchmark)
    assert benchmark.videos[0].name == str(video)
    assert (question.answer, question.task, len(question.options)) == ("roll", "CH", 5)
    assert "\nhow do the two man play\nA. roll\nB. tap\n" in question.prompt
    assert "(A, B, C, D, or E)" in question.prompt


def test_egoschema_official_files_ask_what_has_a_public_answer(tmp_path: Path) -> None:
    options = {f"option {i}": f"c does {i}." for i in range(5)}
    rows = [{"q_uid": uid, "google_drive_id": "g", "question": "Why?", **options} for uid in ("u1", "u2")]
    put(tmp_path / "subset_answers.json", {"u2": 3})
    benchmark = read("egoschema", put(tmp_path / "questions.json", rows), tmp_path)
    assert only(benchmark).answer == "c does 3."
    assert [e.row for e in benchmark.errors] == [1]
    assert "no public answer" in benchmark.errors[0].cause


def test_egoschema_parquet(tmp_path: Path) -> None:
    row = {"question_idx": "1", "question": "Why?", "video_idx": "u2", "answer": "4"}
    row |= {"option": [f"{letter}. does {letter}" for letter in "ABCDE"]}  # type: ignore[dict-item]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "subset.parquet")
    question = only(read("egoschema", tmp_path / "subset.parquet", tmp_path))
    assert (question.answer, question.options[0]) == ("does E", "does A")
    assert "\nA. does A\n" in question.prompt


def vnbench_rows(video: str = "VNBench_new/v_ret_insert1.mp4") -> list[dict[str, Any]]:
    names = ["Roshanara Bagh", "ETH Zurich", "Castello di Melfi", "Botanicactus"]
    rows = []
    for n in range(4):
        options = names[n:] + names[:n]
        row = {"video": video, "question": "Which landmark?", "options": options, "gt": "ETH Zurich", "try": n}
        row |= {"gt_option": "ABCD"[options.index("ETH Zurich")], "type": "ret_insert1", "length": 12.0}
        rows.append(row | {"needle_time": [1]})
    return rows


def test_vnbench_joins_the_four_tries_of_a_question(tmp_path: Path) -> None:
    annotations = put(tmp_path / "VNBench-main-4try.json", vnbench_rows())
    video = put(tmp_path / "VNBench_new" / "v_ret_insert1.mp4")
    benchmark = read("vnbench", annotations, tmp_path)
    (asked,) = benchmark.videos
    assert asked.name == str(video)
    assert {q.group for q in asked.questions} == {"v_ret_insert1.mp4"}
    assert [q.right for q in asked.questions] == [1, 0, 3, 2]
    assert "A. Roshanara Bagh.\n" in asked.questions[0].prompt


def test_vnbench_does_not_judge_a_question_that_lost_a_try(tmp_path: Path) -> None:
    rows = vnbench_rows("a.mp4") + vnbench_rows("b.mp4")
    del rows[2]["gt_option"]
    benchmark = read("vnbench", put(tmp_path / "v.json", rows), tmp_path)
    assert [len(video.questions) for video in benchmark.videos] == [4]
    assert [e.row for e in benchmark.errors] == [1, 2, 3, 4]
    assert "3 usable tries" in benchmark.errors[0].cause


@pytest.mark.parametrize("name", ["video-mme", "longvideobench", "mlvu", "next-qa", "egoschema", "vnbench"])
def test_a_file_of_another_format_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(TableError, match=f"no question of {name}; first error: row 1"):
        read(name, put(tmp_path / "x.json", [{"caption": "a dog"}]), tmp_path)
    with pytest.raises(TableError, match="cannot be parsed"):
        read(name, put(tmp_path / "y.json", b'{"a": '), tmp_path)
    with pytest.raises(TableError, match="cannot read"):
        read(name, tmp_path / "missing.json", tmp_path)


GOOD = {"video": "a.mp4", "question": "What colour?", "answer": "red"}
BAD_ROWS: list[tuple[bytes, str]] = [
    (b"not json", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[1, 2]", "not|object"),
    (b'{"video": "a.mp4", "question": "Q"}', "no answer"),
    (b'{"video": null, "question": "Q", "answer": "x"}', "no video"),
    (b'{"video": "a.mp4", "question": "  ", "answer": "x"}', "empty"),
    (b'{"video": "a.mp4", "question": ["Q"], "answer": "x"}', "not text"),
    (b'{"video": "a.mp4", "question": "Q", "answer": "z", "options": ["x", "y"]}', "beyond the 2 options"),
    (b'{"video": "a.mp4", "question": "Q", "answer": "no", "options": ["x", "y"]}', "not a letter"),
    (b'{"video": "a.mp4", "question": "Q", "answer": "x", "options": "x or y"}', "not a list"),
    (b'{"video": "a.mp4", "question": "Q", "answer": "x", "options": ["x"]}', "at least two"),
    (b'{"video": "a.mp4", "question": "Q", "answer": "x", "options": [{"x": 1}, "x"]}', "list of texts"),
    (b"[" * 100_000, "not JSON"),
]


def test_bad_rows_of_a_table_are_named_and_cost_no_other(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    lines = [line for bad, _ in BAD_ROWS for line in (good, bad)]
    benchmark = read_question_table(put(tmp_path / "q.jsonl", b"\n".join(lines) + b"\n"), None, CONFIG)
    assert [q.row for q in benchmark.videos[0].questions] == [2 * i + 1 for i in range(len(BAD_ROWS))]
    assert [e.row for e in benchmark.errors] == [2 * i + 2 for i in range(len(BAD_ROWS))]
    for error, (_, cause) in zip(benchmark.errors, BAD_ROWS, strict=True):
        assert any(part in error.cause for part in cause.split("|")), error


def test_a_table_in_every_format_asks_the_same(tmp_path: Path) -> None:
    row = {**GOOD, "options": ["blue", "red"], "task": "colour"}
    as_text = {**row, "options": json.dumps(row["options"])}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "q.parquet")
    put(tmp_path / "q.jsonl", row)
    put(tmp_path / "q.json", [row])
    cells = ",".join('"' + str(v).replace('"', '""') + '"' for v in as_text.values())
    put(tmp_path / "q.csv", f"{','.join(row)}\n{cells}\n".encode())
    asked = [
        only(read_question_table(tmp_path / f"q.{kind}", None, CONFIG)) for kind in ("parquet", "jsonl", "json", "csv")
    ]
    assert asked[0].prompt == f"What colour?\nA. blue\nB. red\n{INSTRUCTION}"
    assert asked == [asked[0]] * 4
    by_letter = put(tmp_path / "letter.jsonl", {**row, "answer": "B"})
    assert only(read_question_table(by_letter, None, CONFIG)) == asked[0]


def test_scoring_of_a_table_decides_what_is_asked(tmp_path: Path) -> None:
    path = put(tmp_path / "q.jsonl", {**GOOD, "options": ["blue", "red"]})
    exact, likelihood = (only(read_question_table(path, None, CONFIG, scoring)) for scoring in ("exact", "likelihood"))
    assert exact.prompt == likelihood.prompt == "What colour?"
    assert (exact.scoring, likelihood.scoring) == ("exact", "likelihood")
    with pytest.raises(ConfigError, match="unknown scoring"):
        read_question_table(path, None, CONFIG, "guess")


def test_videos_of_a_table_count_from_its_folder_or_the_one_given(tmp_path: Path) -> None:
    path = put(tmp_path / "q.jsonl", GOOD)
    assert read_question_table(path, None, CONFIG).videos[0].name == str(tmp_path / "a.mp4")
    assert read_question_table(path, "s3://bucket/x", CONFIG).videos[0].name == "s3://bucket/x/a.mp4"
    absolute = put(tmp_path / "r.jsonl", {**GOOD, "video": "s3://other/b.mp4"})
    assert read_question_table(absolute, None, CONFIG).videos[0].name == "s3://other/b.mp4"


def test_a_table_without_a_usable_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no usable question"):
        read_question_table(put(tmp_path / "q.jsonl", b"{}\n"), None, CONFIG)
    with pytest.raises(TableError, match="unknown format"):
        read_question_table(put(tmp_path / "q.xlsx", b"x"), None, CONFIG)
    with pytest.raises(TableError, match="cannot"):
        read_question_table(put(tmp_path / "q.parquet", b"PAR1 but not really"), None, CONFIG)
