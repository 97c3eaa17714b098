"""What `jobs.ask` does beyond one plain question, which `tests/test_cluster.py` asks in a process of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from indexed import index_clips

from jobs.ask import ask
from sttm.errors import ConfigError, QuestionError, StoreError, SttmError
from sttm.models.checkpoint import BUILT_IN, BUILT_IN_NOTICE
from sttm.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> str:
    return index_clips(tmp_path_factory.mktemp("ask"), qwen2_vl_folder, count=2)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_follow_up_knows_what_was_said_and_loads_nothing(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask(["What is it?", "And why?"], store, ["clip-0.mp4"], set_=["sampling.max_tokens=6"], as_json=True)
    first, second = lines(capsys)
    ask(["And why?"], store, ["clip-0.mp4"], set_=["sampling.max_tokens=6"], as_json=True)
    (alone,) = lines(capsys)
    assert first["load_s"] > 0
    assert second["load_s"] == 0
    assert second["answer"] != alone["answer"]


def test_a_stop_text_ends_the_answer(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask(["What is it?"], store, ["clip-0.mp4"], set_=["sampling.max_tokens=12"], as_json=True)
    (free,) = lines(capsys)
    stop = free["answer"][4:6]
    ask(
        ["What is it?"],
        store,
        ["clip-0.mp4"],
        set_=["sampling.max_tokens=12", f"sampling.stop={json.dumps([stop])}"],
        as_json=True,
    )
    (stopped,) = lines(capsys)
    assert stopped["answer"] == free["answer"][: free["answer"].index(stop)].strip()


def test_the_likeliest_option_is_chosen(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask(["Which?"], store, ["clip-0.mp4"], option=["red", "blue"], as_json=True)
    (found,) = lines(capsys)
    assert found["answer"] == max(found["probabilities"], key=found["probabilities"].get)
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    with pytest.raises(ConfigError, match="2 or more"):
        ask(["Which?"], store, ["clip-0.mp4"], option=["red"])


def test_several_videos_are_asked_about_only_on_request(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["clip-0.mp4", "clip-1.mp4"]
    with pytest.raises(ConfigError, match="--approximate"):
        ask(["What?"], store, both)
    ask(["What?"], store, both, approximate=True, set_=["sampling.max_tokens=4"], as_json=True)
    (found,) = lines(capsys)
    ask(["What?"], store, both[:1], set_=["sampling.max_tokens=4"], as_json=True)
    (one,) = lines(capsys)
    assert one["kv_tokens"] < found["kv_tokens"] < 2 * one["kv_tokens"]
    opened = Store.open(store)
    assert found["identity"].split() == [opened.find(name).identity for name in both]


def test_of_several_recipes_the_newest_is_taken_with_a_notice_and_a_prefix_names_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = index_clips(tmp_path, BUILT_IN, count=1)
    old = Store.open(store).find("clip-0.mp4")
    index_clips(tmp_path, BUILT_IN, count=1, scheme="exact")
    new = Store.open(store).find("clip-0.mp4")
    assert old.recipe_digest != new.recipe_digest
    capsys.readouterr()
    ask(["What?"], store, ["clip-0.mp4"], as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["identity"] == new.identity
    notice, built_in = printed.err.splitlines()[:2]
    assert notice.startswith(f"2 recipes in this store: taking the newest, {new.recipe_digest[:12]}")
    assert built_in == BUILT_IN_NOTICE
    ask(["What?"], store, ["clip-0.mp4"], recipe=old.recipe_digest[:12], as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["identity"] == old.identity
    assert "recipes in this store" not in printed.err
    for wrong in ("zzz", "0" * 13):
        with pytest.raises(StoreError, match=f"no recipe '{wrong}' in .*{old.recipe_digest[:12]}"):
            ask(["What?"], store, ["clip-0.mp4"], recipe=wrong)


@pytest.mark.parametrize(
    ("question", "settings", "error", "says"),
    [
        (" ", {}, QuestionError, "the question is empty"),
        ("What is \udcff?", {}, QuestionError, "not valid Unicode"),
        ("What?" * 10_000, {}, QuestionError, "50000 characters, over 32000"),
        ("Which?", {"option": ["red", ""]}, QuestionError, "an option is empty"),
        ("What?", {"set_": ["sampling.temperature=.nan"]}, ConfigError, "sampling.temperature: .*nan"),
        ("What?", {"set_": ["sampling.temperature=.inf"]}, ConfigError, "sampling.temperature: .*inf"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    store: str, question: str, settings: dict[str, Any], error: type[SttmError], says: str
) -> None:
    with pytest.raises(error, match=says) as found:
        ask([question], store, ["clip-0.mp4"], **settings)
    str(found.value).encode()


def test_next_to_no_temperature_is_greedy(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for temperature in ("0", "1.0e-50"):
        settings = [f"sampling.temperature={temperature}", "sampling.max_tokens=6"]
        ask(["What?"], store, ["clip-0.mp4"], set_=settings, as_json=True)
    greedy, cold = lines(capsys)
    assert cold["answer"] == greedy["answer"]
