"""The whole product in a minute: encode a small corpus, index it on Ray, ask questions from the stored caches.

    python -m jobs.demo
    python -m jobs.demo --folder /tmp/demo

The corpus is synthetic clips, encoded as H.264, and, in a checkout, one real film clip. The model is the built-in one.
It was trained on clips of the synthetic kind, so its answers about them can be checked; of film it knows nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jobs.command import ConfigOption, print_table, run
from sttm.store.store import Store
from sttm.synthetic import HELD_OUT_SEED, Question, questions, render, sample_scenes
from sttm.synthetic.encode import encode_clip

FILM = Path(__file__).parent.parent / "tests" / "data" / "clips" / "bbb_12s_h264.mp4"  # not in an installed wheel
SCENES = 3
TASKS = ("colour", "count", "direction")


def demo(
    folder: Annotated[Path, typer.Option(help="where the corpus and the store go")] = Path(".demo"),
    config: ConfigOption = "tiny",
) -> int:
    """Index a small corpus and ask about it, with the built-in model."""
    corpus, store = folder / "corpus", folder / "store"
    asked = make_corpus(corpus)
    print(f"made {len(list(corpus.iterdir()))} videos in {corpus}\n", flush=True)
    code = _sttm("index", "--config", config, "--corpus", str(corpus), "--store", str(store)).returncode
    if code:
        return code
    answers = Table("video", "question", "answer", "expected", "first token", "cache load")
    for video, question in asked:
        done = _sttm("ask", "--store", str(store), "--video", video, question.text, "--json", capture=True)
        if done.returncode:
            return done.returncode
        line = json.loads(done.stdout)
        expected = question.answer or "(no right answer)"
        answers.add_row(
            video, question.text, line["answer"], expected, f"{line['ttft_s']:.3f} s", f"{line['load_s']:.3f} s"
        )
    print_table(answers)
    print_table(stored_table(Store.open(str(store))))
    python = os.path.relpath(sys.executable)
    print(f"ask more: {python} -m jobs.ask --store {store} --video {asked[0][0]} {asked[0][1].text!r}")
    return 0


def make_corpus(folder: Path) -> list[tuple[str, Question]]:
    """Write the corpus into a folder.

    Returns:
        The questions to ask, each with the file name of its video.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = []
    scenes = sample_scenes(seed=HELD_OUT_SEED, count=SCENES)
    for number, (scene, frames) in enumerate(zip(scenes, render(scenes).numpy(), strict=True)):
        name = f"synthetic-{number}.mp4"
        _write_if_changed(folder / name, encode_clip(frames))
        first = {question.task: question for question in reversed(questions(scene))}
        asked += [(name, first[task]) for task in TASKS if task in first]
    if FILM.exists():
        _write_if_changed(folder / FILM.name, FILM.read_bytes())
    return asked


def stored_table(store: Store) -> Table:
    """What the store holds of each video: tokens before and after the merge, and bytes."""
    table = Table("stored video", "visual tokens", "kept", "retained ratio", "KV cache", "reduced tokens")
    for row in store.catalog.rows():
        if row.status == "ok":
            table.add_row(
                row.name,
                str(row.tokens_before),
                str(row.tokens_after),
                f"{row.retained_ratio:.1%}",
                f"{row.kv_bytes / 1e6:.2f} MB",
                f"{row.tokens_bytes / 1e6:.2f} MB",
            )
    return table


def _write_if_changed(path: Path, data: bytes) -> None:
    """Write a file unless it holds these bytes: a new modification time would make the index read the video again."""
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


def _sttm(name: str, *arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run another command as a user would, in a process of its own. Its errors are shown."""
    command = [sys.executable, "-m", f"jobs.{name}", *arguments]
    done = subprocess.run(command, text=True, capture_output=capture, check=False)  # noqa: S603
    if capture and done.returncode:
        print(done.stderr, file=sys.stderr)
    return done


def command() -> None:
    """Entry point."""
    run(__doc__, demo=demo)


if __name__ == "__main__":
    command()
