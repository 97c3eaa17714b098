"""`import sttm`: the few public names, an example that runs, and nothing heavy loaded before it is needed."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sttm
from jobs.config import JobConfig
from sttm.config import COMMAND_SECTIONS, IndexConfig, load_index_config
from sttm.errors import ConfigError, QuestionError, StoreError
from sttm.synthetic import HELD_OUT_SEED, questions, render, sample_scenes
from sttm.synthetic.encode import encode_clip

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of the built-in model's kind and a file that is no video, below `clips`."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "clips").mkdir()
    for number, frames in enumerate(render(sample_scenes(seed=HELD_OUT_SEED, count=2)).numpy()):
        (folder / "clips" / f"clip-{number}.mp4").write_bytes(encode_clip(frames))
    return folder


def example() -> str:
    """The indented lines of the package's docstring."""
    lines = inspect.cleandoc(sttm.__doc__ or "").split("\n")
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


def test_example_of_the_docstring_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(example(), "docstring", "exec"), names)  # our own text
    out = capsys.readouterr().out
    assert out.count("1568 470") == 2
    assert len(out.strip().split("\n")) == 6
    cache, tokens = names["cache"], names["tokens"]
    assert isinstance(cache, sttm.KVCache)
    assert isinstance(tokens, sttm.Tokens)
    assert cache.keys[-1].shape[1] > len(tokens.features) == 470


def test_answers_are_right_and_follow_ups_know_what_was_said(folder: Path) -> None:
    scene = sample_scenes(seed=HELD_OUT_SEED, count=1)[0]
    archive = sttm.open(folder / "store")
    asked = [question for question in questions(scene) if question.answer][:12]
    right = sum(archive.ask("clip-0.mp4", question.text).answer == question.answer for question in asked)
    assert right >= len(asked) - 1
    first = archive.ask("clip-0.mp4", asked[0].text)
    follow_up = archive.ask("clip-0.mp4", asked[1].text, history=[asked[0].text, first.answer])
    assert follow_up.answer


def test_indexing_again_does_nothing_and_a_bad_file_costs_one_row(folder: Path) -> None:
    (folder / "clips" / "broken.mp4").write_bytes(b"no video at all")
    before = sttm.open(folder / "store").videos()
    rows = sttm.index(folder / "clips", folder / "store", "tiny")
    assert [(row.name, row.status) for row in rows] == [
        ("broken.mp4", "error"),
        ("clip-0.mp4", "ok"),
        ("clip-1.mp4", "ok"),
    ]
    assert rows[0].error_code
    assert sttm.open(folder / "store").videos() == before
    again = sttm.index(folder / "clips", folder / "store", "tiny")
    assert again == rows, "a video that failed is left alone"


def test_what_cannot_be_asked_is_an_error_and_among_many_one_answer(folder: Path) -> None:
    archive = sttm.open(folder / "store")
    with pytest.raises(StoreError, match=r"no video 'no-such\.mp4'"):
        archive.ask("no-such.mp4", "What?")
    with pytest.raises(QuestionError, match="the question is empty"):
        archive.ask("clip-0.mp4", " ")
    found = list(archive.ask_all("Which shape is there?", videos=["clip-0.mp4", "no-such.mp4"]))
    assert [bool(answer.error) for answer in found] == [False, True]
    with pytest.raises(StoreError, match="no recipe 'ffff'"):
        sttm.open(folder / "store", recipe="ffff")


def test_public_names_are_there_and_typed() -> None:
    assert all(getattr(sttm, name) is not None for name in sttm.__all__)
    assert sorted(sttm.__all__) == sttm.__all__ == dir(sttm)
    assert (ROOT / "sttm" / "py.typed").exists()
    with pytest.raises(AttributeError, match="module 'sttm' has no attribute 'indx'"):
        _ = sttm.indx  # type: ignore[attr-defined]


def test_import_loads_neither_ray_nor_a_decoder_nor_torch() -> None:
    code = "import sttm, sys; print(*({'ray', 'decord', 'av', 'torch', 'pyarrow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_sections_of_the_commands_are_no_fault_in_a_settings_file(tmp_path: Path) -> None:
    assert set(JobConfig.model_fields) == {*IndexConfig.model_fields, *COMMAND_SECTIONS}
    (tmp_path / "my.yaml").write_text("run: {gpus: 2}\nmerge: {budget: 0.4}\n")
    assert load_index_config(tmp_path / "my.yaml").merge.budget == 0.4
    (tmp_path / "bad.yaml").write_text("merg: {budget: 0.4}\n")
    with pytest.raises(ConfigError, match="unknown setting 'merg' in IndexConfig; did you mean 'merge'"):
        load_index_config(tmp_path / "bad.yaml")
