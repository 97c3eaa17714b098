"""What a run has to do: stored answers are found again, also those of older programs, and the recipe is respected."""

from pathlib import Path

import pytest
from store_samples import publish

from jobs.answering.answer_table import AnswerRow, AnswerTable
from jobs.answering.plan import Plan, _key, make_plan
from jobs.answering.questions import Question
from sttm.engine.sampling import SamplingConfig
from sttm.store.recipes import choose_recipe
from sttm.store.store import Store

GREEDY = SamplingConfig()
SAMPLED = SamplingConfig(max_tokens=6, temperature=0.5, top_p=0.9, seed=3, stop=(".", "\n"))


@pytest.mark.parametrize(
    ("question", "sampling", "row_id", "digest"),
    [
        (
            Question("7", "clip.mp4", "What is it?"),
            GREEDY,
            "",
            "292cedd1c0edc0a1b0f3c7ee1614423bee3350bc33e5060fa8383183b96fa697",
        ),
        (
            Question("8", "clip.mp4", "Which?", ("red", "blue")),
            SAMPLED,
            "",
            "0dc5d485bb4e5279543082c1c8588ad90005d7324919e386c3a7b1a6d86ad90f",
        ),
    ],
)
def test_the_key_of_an_answer_is_the_one_that_programs_of_commit_4fa5e17_wrote(
    question: Question, sampling: SamplingConfig, row_id: str, digest: str
) -> None:
    """The digests were computed by that commit's own code. A new key would ask every stored answer again."""
    assert _key(question, sampling, "ab" * 32, row_id) == digest


def test_the_key_of_a_row_that_cannot_be_asked_is_the_old_one_too() -> None:
    digest = "31b95170b435acb4761fe02e31ebb421c1204efc1653d4fd90e6fa638c9c5795"
    assert _key(Question("9", "clip.mp4", "", fault="empty"), GREEDY, "", "9") == digest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Videos a and b as int8, and a also as int4, made last."""
    store = Store.open(tmp_path / "store", create=True)
    publish(store, "a")
    publish(store, "b")
    publish(store, "a", "int4")
    return store


def plan_of(store: Store, table: AnswerTable, names: str = "ab", **options: object) -> Plan:
    questions = [Question(str(number), name, "What?") for number, name in enumerate(names, 1)]
    return make_plan(questions, store, table, GREEDY, "run", **options)  # type: ignore[arg-type]


def test_only_artifacts_of_the_chosen_recipe_are_asked(store: Store, tmp_path: Path) -> None:
    table, digest = AnswerTable(str(tmp_path / "out")), choose_recipe(store).digest
    plan = plan_of(store, table, recipe_digest=digest)
    assert [task.identity for task in plan.todo] == [store.find("a", digest).identity]
    (row,) = plan.rows.values()
    assert (row.id, row.error_code) == ("2", "no_video")
    assert row.error_message.endswith(f"(asked under recipe {digest[:12]})")
    other = choose_recipe(store).others[0].digest
    assert [task.video_id for task in plan_of(store, table, recipe_digest=other).todo] == ["a", "b"]


def test_answers_are_taken_again_errors_on_request_and_outages_always(store: Store, tmp_path: Path) -> None:
    table = AnswerTable(str(tmp_path / "out"))
    a, b = (task.key for task in plan_of(store, table).todo)
    table.add("x-0", [AnswerRow(a, "1", "a", "What?", answer="red")])
    assert [task.key for task in plan_of(store, table).todo] == [b]
    table.add("x-1", [AnswerRow(b, "2", "b", "What?", status="error", error_code="crashed")])
    assert plan_of(store, table).todo == []
    assert [task.key for task in plan_of(store, table, retry_errors=True).todo] == [b]
    table.add("x-2", [AnswerRow(b, "2", "b", "What?", status="error", error_code="lost", created_at="9999")])
    assert [task.key for task in plan_of(store, table).todo] == [b]


def test_equal_questions_are_asked_once_and_answered_under_the_id_of_each(store: Store, tmp_path: Path) -> None:
    plan = plan_of(store, AnswerTable(str(tmp_path / "out")), "aab")
    assert [task.video_id for task in plan.todo] == ["a", "b"]
    plan.rows[plan.todo[0].key] = AnswerRow(plan.todo[0].key, "1", "a", "What?", answer="red")
    assert [row and (row.id, row.answer) for row in plan.rows_in_order()] == [("1", "red"), ("2", "red"), None]
