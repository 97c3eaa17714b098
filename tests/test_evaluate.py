"""The evaluation as a whole, on a random-weight model whose own replies with all tokens are taken as the truth."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import evaluate as job
from jobs.config import JobConfig
from sttm.config import IndexConfig, load_config
from sttm.engine.answer import Continuation
from sttm.engine.likelihood import score_options
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.engine.ready_video import ready
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ConfigError, VideoError
from sttm.evaluation import evaluator as evaluation
from sttm.evaluation.evaluator import Evaluator, Outcome, VideoOutcome
from sttm.evaluation.markdown import tables
from sttm.evaluation.plot import plot
from sttm.evaluation.question_table import read_question_table
from sttm.evaluation.questions import Clip, Question, VideoQuestions
from sttm.evaluation.record import Record
from sttm.evaluation.reducers import Reducer, parse_reducers
from sttm.evaluation.scoring import Verdict
from sttm.evaluation.summary import Row, summarise, unreadable
from sttm.evaluation.synthetic import synthetic_benchmark
from sttm.kv_cache import KVCache
from sttm.merging import MergeConfig
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel
from sttm.store.kv.file import decode_kv
from sttm.tables import TableError
from sttm.video.decode import VideoConfig

TEXTS = ("What is it?", "the colour of the sea, please?", "Why", "Which way?")
SPEC = "sttm,random,sttm[merge_layer=0],none[kv_scheme=exact],sttm[kv_scheme=int4]"


class CountingVideo:
    """A noisy video that counts how often it is read."""

    def __init__(self, seed: int) -> None:
        self.seed, self.reads = seed, 0

    def __call__(self) -> Clip:
        self.reads += 1
        rng = np.random.default_rng(self.seed)
        frames = rng.integers(0, 255, (8, 112, 140, 3), dtype=np.uint8)
        frames[4:] = frames[:4] // 2 + frames[3] // 2
        return Clip(frames, np.arange(8) / 2)


@pytest.fixture(scope="module")
def checkpoint(qwen2_vl_folder: Path) -> Checkpoint:
    return Checkpoint.open(ModelConfig(path=str(qwen2_vl_folder), dtype="float32"))


@pytest.fixture(scope="module")
def reducers() -> list[Reducer]:
    return parse_reducers(SPEC, [0.5, 0.2], IndexConfig())


@pytest.fixture(scope="module")
def evaluator(checkpoint: Checkpoint, reducers: list[Reducer]) -> Evaluator:
    return Evaluator(checkpoint, reducers, SamplingConfig(max_tokens=3))


def ask(evaluator: Evaluator, questions: tuple[Question, ...], seed: int = 0) -> VideoOutcome:
    video = VideoQuestions(f"v{seed}", questions, CountingVideo(seed))
    return evaluator.run(video, evaluator.preprocess(video))


@pytest.fixture(scope="module")
def outcomes(evaluator: Evaluator) -> list[VideoOutcome]:
    """Three videos; the right answer to a question is what the model says with all tokens."""
    found = []
    for seed in range(3):
        first = ask(evaluator, tuple(Question(text, "?") for text in TEXTS), seed)
        truth = zip(TEXTS, first.outcomes[0].replies, strict=True)
        found.append(ask(evaluator, tuple(Question(text, reply, task=text[0]) for text, reply in truth), seed))
    return found


@pytest.fixture(scope="module")
def rows(reducers: list[Reducer], outcomes: list[VideoOutcome]) -> list[Row]:
    return summarise(reducers, outcomes)


def test_full_tokens_are_the_measure_of_all_others(rows: list[Row]) -> None:
    full = rows[0]
    assert (full.reducer, full.n, full.accuracy, full.relative_accuracy, full.retained_ratio) == ("none", 12, 1, 1, 1)
    assert (full.lost, full.gained, full.mcnemar_p) == (0, 0, 1.0)
    for row in rows[1:]:
        assert row.relative_accuracy == row.accuracy
        assert row.lost == round((1 - row.accuracy) * row.n)
        assert row.ci[0] <= row.accuracy <= row.ci[1]


def test_a_cache_through_a_lossless_file_answers_the_same(rows: list[Row]) -> None:
    stored = next(row for row in rows if row.reducer == "none[kv_scheme=exact]")
    assert stored.accuracy == 1
    assert stored.kv_bytes > rows[0].kv_bytes  # the whole file, with its header and tables


def test_budgets_are_hit_and_caches_shrink(rows: list[Row]) -> None:
    by_label = {(row.reducer, row.budget): row for row in rows}
    cells = rows[0].tokens_before
    assert by_label["sttm", 0.5].tokens_after == cells // 2
    assert [by_label["random", b].retained_ratio for b in (0.5, 0.2)] == [0.5, pytest.approx(0.2)]
    # Noise has little to merge above the threshold floor: the row tells what was really kept.
    assert 0.2 < by_label["sttm", 0.2].retained_ratio < 0.4
    assert (by_label["sttm", 0.2].over_budget, by_label["sttm", 0.5].over_budget) == (3, 0)
    assert by_label["sttm[merge_layer=0]", 0.5].kv_bytes < by_label["sttm", 0.5].kv_bytes < rows[0].kv_bytes
    assert by_label["sttm[kv_scheme=int4]", 0.5].kv_bytes < by_label["sttm", 0.5].kv_bytes


def test_each_video_is_read_and_vision_encoded_once(
    evaluator: Evaluator, reducers: list[Reducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, encoded = evaluator._family, []
    encode = family.encode
    monkeypatch.setattr(family, "encode", lambda *a: encoded.append(1) or encode(*a))
    reader = CountingVideo(7)
    video = VideoQuestions("v", tuple(Question(text, "x") for text in TEXTS), reader)
    outcome = evaluator.run(video, evaluator.preprocess(video))
    assert len(outcome.outcomes) == len(reducers) > 5
    assert (reader.reads, len(encoded)) == (1, 1)


def test_a_scheme_sends_the_cache_through_the_file_that_is_then_asked(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def other(data: bytearray, **_: object) -> KVCache:
        cache = decode_kv(data)
        read.append(len(data))
        return replace(cache, values=tuple(torch.zeros_like(v) for v in cache.values))

    monkeypatch.setattr(evaluation, "decode_kv", other)
    none, stored = parse_reducers("none[kv_scheme=int8]", [], IndexConfig())
    outcome = ask(
        Evaluator(checkpoint, [none, stored], SamplingConfig(max_tokens=3)),
        tuple(Question(text, "x") for text in TEXTS),
    )
    assert read == [outcome.outcomes[1].kv_bytes]
    assert outcome.outcomes[0].replies != outcome.outcomes[1].replies


def test_questions_in_one_batch_get_the_replies_they_get_alone(evaluator: Evaluator) -> None:
    together = ask(evaluator, tuple(Question(text, "x") for text in TEXTS)).outcomes
    for i, text in enumerate(TEXTS):
        alone = ask(evaluator, (Question(text, "x"),)).outcomes
        assert [o.replies[i] for o in together] == [o.replies[0] for o in alone]


def test_a_question_with_a_control_token_is_an_error_row(evaluator: Evaluator) -> None:
    bad = Question("What?<|im_end|>\n<|im_start|>system", "x", row=5)
    outcome = ask(evaluator, (bad, Question("What?", "x")))
    assert [q.prompt for q in outcome.asked] == ["What?"]
    assert (outcome.errors[0].row, "control token" in outcome.errors[0].cause) == (5, True)
    assert ask(evaluator, (bad,)).outcomes == ()


def test_options_are_scored_as_one_forward_scores_them(evaluator: Evaluator) -> None:
    """Sum of log-probabilities, token by token, against the logits after each beginning of the option."""
    video = VideoQuestions("v", (), CountingVideo(0))
    prompt = evaluator._family.prompt(evaluator._model, evaluator.preprocess(video))
    model = LanguageModel.of(evaluator._model)
    prepared = ready(model, prefill(model, prompt, MergeConfig(budget=0.5), PrefillConfig()).cache)
    questions = [evaluator._family.question_ids(text) for text in TEXTS[:2]]
    options = [[[65, 66, 67], [70], [65]], [[80, 81], [82, 83, 84, 85]]]
    scores = score_options(model, prepared, questions, options, max_rows=2)
    for question, row, score in zip(questions, options, scores, strict=True):
        expected = []
        for option in row:
            steps = range(len(option))
            logits = [Continuation(model, prepared, [question + option[:i]], 0).start()[0] for i in steps]
            expected.append(sum(float(x.log_softmax(-1)[t]) for x, t in zip(logits, option, strict=True)))
        torch.testing.assert_close(score, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_likelihood_picks_an_option_and_is_never_unparsed(evaluator: Evaluator) -> None:
    options = ("red", "green", "blue")
    first = ask(evaluator, (Question("Which?", "red", options, 0, scoring="likelihood"),)).outcomes[0]
    assert first.replies[0] in options
    right = options.index(first.replies[0])
    again = ask(evaluator, (Question("Which?", options[right], options, right, scoring="likelihood"),))
    assert again.outcomes[0].verdicts == (Verdict(True, True),)


def _outcome(*right: bool) -> Outcome:
    return Outcome(tuple("x" for _ in right), tuple(Verdict(r) for r in right), 10, 10, 0, 0.1, 0.1, 100)


def test_a_group_counts_once_and_only_if_all_its_tries_are_right(reducers: list[Reducer]) -> None:
    tries = tuple(Question("Q", "a", task="ret", group=g) for g in ("v1", "v1", "v1", "v1", "v2", "v2", "v2", "v2"))
    full = _outcome(*[True] * 8)
    ours = _outcome(True, True, True, False, *[True] * 4)
    single = (Question("Q", "a", task="other"),)
    videos = [VideoOutcome("v", tries, (full, ours)), VideoOutcome("w", single, (_outcome(True), _outcome(False)))]
    rows = summarise(reducers[:2], videos)
    assert [(row.n, row.accuracy) for row in rows] == [(3, 1.0), (3, pytest.approx(1 / 3))]
    assert rows[1].reply_accuracy == pytest.approx(7 / 9)
    assert rows[1].per_task["ret"].accuracy == 0.5
    assert rows[1].task_mean_accuracy == 0.25
    assert (rows[1].lost, rows[1].gained) == (2, 0)


def test_lost_and_gained_are_counted_question_by_question(reducers: list[Reducer]) -> None:
    questions = tuple(Question("Q", "a") for _ in range(4))
    full, ours = _outcome(True, True, False, False), _outcome(False, True, True, True)
    (_, row) = summarise(reducers[:2], [VideoOutcome("v", questions, (full, ours))])
    assert (row.lost, row.gained, row.relative_accuracy) == (1, 2, 1.5)


def test_the_plot_and_the_tables_show_every_reducer(rows: list[Row], tmp_path: Path) -> None:
    text = tables(rows)
    assert all(text.count(f"| {row.reducer}") for row in rows)
    assert len({len(line) for line in text.split("\n\n")[0].splitlines()}) == 1
    pytest.importorskip("matplotlib")
    plot(rows, tmp_path / "p.png", "title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_synthetic_benchmark_is_fixed_and_a_quick_run_asks_a_part_of_it() -> None:
    few, more = (synthetic_benchmark(n, size=112) for n in (2, 3))
    assert [v.questions for v in few.videos] == [v.questions for v in more.videos[:2]]
    assert all(q.scoring == "exact" for v in more.videos for q in v.questions)
    np.testing.assert_array_equal(few.videos[1].read().pixels, more.videos[1].read().pixels)


def test_a_clip_through_h264_is_nearly_the_same_clip() -> None:
    (plain,), (encoded,) = (
        synthetic_benchmark(1, config, size=112).videos for config in (None, VideoConfig(fps=2, max_frames=16))
    )
    a, b = plain.read(), encoded.read()
    np.testing.assert_allclose(a.seconds, b.seconds)
    assert 0 < np.abs(a.pixels.astype(int) - b.pixels).mean() < 6


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two videos, one of which cannot be read, and a row that is no question."""
    rows = [{"video": "good.mp4", "question": text, "answer": "x", "task": "t"} for text in TEXTS]
    rows += [{"video": "broken.mp4", "question": "What?", "answer": "x"}, {"video": "good.mp4", "question": "Why?"}]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    from sttm.synthetic.encode import encode_clip

    (tmp_path / "good.mp4").write_bytes(encode_clip(CountingVideo(0)().pixels))
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    return path


def run_job(table: Path, model: Path, **options: object) -> int:
    settings = [f"model.path={model}", "model.dtype=float32", "sampling.max_tokens=2"]
    arguments = {"reducers": "sttm", "budgets": "0.5", "device": "cpu", "set_": settings} | options
    return job.evaluate(questions=table, **arguments)  # type: ignore[arg-type]


def test_the_last_line_is_json_and_errors_name_row_and_video(
    table: Path, qwen2_vl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_job(table, qwen2_vl_folder, out=out) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    report = json.loads(printed[-1])
    assert [(r["reducer"], r["budget"], r["n"]) for r in report["rows"]] == [("none", None, 4), ("sttm", 0.5, 4)]
    expected = {"reducer", "budget", "retained_ratio", "accuracy", "relative_accuracy", "n", "ci", "mcnemar_p"}
    assert expected | {"per_task", "prefill_s", "ttft_s", "kv_bytes"} <= set(report["rows"][1])
    assert report["rows"][1]["retained_ratio"] == pytest.approx(0.5, abs=0.01)
    assert (report["videos"], report["failed_videos"], report["errors"]) == (1, 1, 2)
    errors = {e["row"]: e for e in json.loads((out / "report.json").read_text())["error_rows"]}
    assert "not_a_video" in errors[5]["cause"]
    assert "no answer" in errors[6]["cause"]
    assert sum("not asked: row" in line for line in printed) == 2
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [1, 2, 3, 4]
    assert (lines[0]["right_answer"], set(lines[0]["answers"])) == ("x", {"none", "sttm 0.5"})
    assert (out / "table.md").read_text().startswith("| reducer")


def test_the_built_in_benchmark_runs_through_real_video_files(
    qwen2_vl_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"model.path={qwen2_vl_folder}", "sampling.max_tokens=2"]
    arguments = {"reducers": "sttm", "budgets": "0.3", "set_": settings, "encoded": True, "limit": 1}
    assert job.evaluate(device="cpu", **arguments) == 0  # type: ignore[arg-type]
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (report["benchmark"], report["videos"], report["errors"]) == ("synthetic", 1, 0)
    assert report["rows"][0]["n"] == len(synthetic_benchmark(1).videos[0].questions)


def test_when_most_videos_fail_the_exit_code_says_so(table: Path, qwen2_vl_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "good.mp4").unlink()
    assert run_job(table, qwen2_vl_folder) == 3


def test_videos_read_ahead_come_in_order_with_their_own_errors(evaluator: Evaluator) -> None:
    def broken() -> Clip:
        raise VideoError("truncated", "half of it is missing")

    question = (Question("Q", "a"),)
    videos = [VideoQuestions(str(i), question, broken if i == 2 else CountingVideo(i)) for i in range(7)]
    for ahead in (0, 3):
        read = list(job._read(evaluator, videos, ahead))
        assert [video.name for video, _ in read] == [str(i) for i in range(7)]
        assert [isinstance(inputs, str) for _, inputs in read] == [i == 2 for i in range(7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": "0.5,x"}, "shares like"),
        ({"budgets": "50"}, "share of the tokens"),
        ({"questions": None, "benchmark": "vnbench"}, "needs --annotations"),
        ({"questions": None, "benchmark": "nope"}, "known: synthetic, video-mme"),
        ({"benchmark": "synthetic"}, "--questions .* and --benchmark synthetic: give one"),
        ({"questions": None, "annotations": Path("a.json")}, "--annotations a.json needs .* one of video-mme"),
        ({"annotations": Path("a.json")}, "a table of your own is --questions"),
        ({"questions": None, "videos": "clips"}, "--videos clips needs --questions"),
        ({"questions": None, "scoring": "exact"}, "--scoring exact needs --questions"),
        ({"scoring": "guess"}, "unknown scoring 'guess'; known: exact, letter, likelihood"),
        ({"encoded": True}, "--encoded is for the built-in clips"),
        ({"quick": True, "limit": 3}, "--quick and --limit 3"),
        ({"reducers": "sttm["}, "brackets"),
        ({"device": "gpu7"}, "--device 'gpu7': .*leave it out"),
        ({"out": Path(__file__)}, "test_evaluate.py cannot be a folder"),
    ],
)
def test_a_wrong_command_line_is_explained(
    table: Path, qwen2_vl_folder: Path, options: dict[str, object], message: str
) -> None:
    arguments = {"questions": table, "set_": [f"model.path={qwen2_vl_folder}"]} | options
    with pytest.raises(ConfigError, match=message):
        job.evaluate(**arguments)  # type: ignore[arg-type]


def test_a_video_that_does_not_fit_into_memory_costs_no_other(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    video = VideoQuestions("v", (Question("Q", "a", row=3),), CountingVideo(0))
    inputs = evaluator.preprocess(video)
    monkeypatch.setattr(evaluator, "run", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    outcome = job._run(evaluator, video, inputs)
    assert outcome == "out of memory at 80 visual tokens: CUDA out of memory. Tried to allocate 2 GiB"
    record = Record([], 1)
    record.add(video, outcome)
    assert (record.failed, record.errors[0].row) == (1, 3)


def test_settings_of_the_index_job_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("merge: {budget: 0.3}\nrun: {in_flight: 2}\n")
    assert load_config(JobConfig, path).merge.budget == 0.3


def test_rows_are_plain_json(rows: list[Row]) -> None:
    assert json.loads(json.dumps(rows[1].as_json()))["reducer"] == "sttm"
    assert replace(rows[0], accuracy=1 / 3).as_json()["accuracy"] == 0.333333


def test_replies_are_short_unless_the_settings_say_otherwise() -> None:
    assert job.reply_sampling(load_config(JobConfig, None, ["sampling.temperature=0.5"])).max_tokens == 16
    assert job.reply_sampling(load_config(JobConfig, None, ["sampling.max_tokens=64"])).max_tokens == 64
    assert job.reply_sampling(load_config(JobConfig, None, ["sampling.temperature=0.5"])).temperature == 0.5


def test_a_reply_ends_before_a_stop_text(checkpoint: Checkpoint) -> None:
    (full,) = parse_reducers("none", [], IndexConfig())
    questions = (Question("What is it?", "x"),)
    (whole,) = ask(Evaluator(checkpoint, [full], SamplingConfig(max_tokens=8)), questions).outcomes[0].replies
    stop = whole[2:4]
    sampling = SamplingConfig(max_tokens=8, stop=(stop,))
    (cut,) = ask(Evaluator(checkpoint, [full], sampling), questions).outcomes[0].replies
    assert cut == whole.partition(stop)[0].strip()
    assert len(cut) < len(whole)


def test_replies_that_cannot_be_read_are_counted_and_said_aloud(
    tmp_path: Path, table: Path, qwen2_vl_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of random weights names no letter."""
    lines = [{"video": "good.mp4", "question": text, "answer": "A", "options": ["x", "y"]} for text in TEXTS]
    table.write_text("\n".join(json.dumps(line) for line in lines))
    assert run_job(table, qwen2_vl_folder, out=tmp_path / "out") == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.strip().splitlines()[-1])
    assert [(row["replies"], row["unparsed"]) for row in report["rows"]] == [(4, 4), (4, 4)]
    warning = "none: 0 of 4 replies could be read as one option"
    assert f"warning: {warning}" in printed
    assert report["warnings"][0].startswith(warning)
    assert "0 of 4" in printed.split("\n\n")[0]
    assert warning in (tmp_path / "out" / "table.md").read_text()


def test_only_rows_whose_replies_mostly_cannot_be_read_are_warned_about(rows: list[Row]) -> None:
    assert unreadable(rows) == []
    few = [replace(rows[0], replies=100, unparsed=unparsed) for unparsed in (10, 11)]
    assert [warning.split(" replies")[0] for warning in unreadable(few)] == ["none: 89 of 100"]


def test_columns_that_are_not_read_are_named_with_the_known_ones(table: Path) -> None:
    table.write_text(json.dumps({"video": "a", "question": "?", "answer": "x", "option": ["x", "y"], "author": "me"}))
    (note,) = read_question_table(table, None, VideoConfig()).notes
    assert "columns option, author are not read; known: video, question, answer, options, task" in note
    assert note.endswith("did you mean 'options' by 'option'?")
    table.write_text(json.dumps({"video": "a", "question": "?", "anwser": "x"}))
    with pytest.raises(TableError, match="has no column 'answer'; columns found: video, question, anwser"):
        read_question_table(table, None, VideoConfig())
