"""The web page in a real browser, by keyboard: pick, look, ask, read; and its strict policy."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser, browsing
from indexed import index_clips
from service import Service, serving

from sttm.models.checkpoint import BUILT_IN, BUILT_IN_NOTICE
from sttm.store.store import Store

PAGE = Path(__file__).parent.parent / "jobs" / "serving" / "page"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")


def test_page_loads_nothing_from_elsewhere_and_runs_no_inline_code() -> None:
    html, script, style = ((PAGE / name).read_text() for name in ("index.html", "page.js", "page.css"))
    assert "//" not in re.sub(r"(^|\s)//.*", "", html + script + style)
    assert "<style" not in html
    assert " style=" not in html
    assert html.count("<script") == html.count('<script src="/page/page.js"') == 1
    assert "innerHTML" not in script


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, qwen2_vl_folder: Path) -> Store:
    return Store.open(index_clips(tmp_path_factory.mktemp("shown"), qwen2_vl_folder, count=2))


@pytest.fixture
def built_in(tmp_path: Path) -> Iterator[Service]:
    """A service with the built-in model."""
    with serving(index_clips(tmp_path, BUILT_IN, count=1)) as running:
        yield running


@pytest.fixture(scope="module")
def service(store: Store) -> Iterator[Service]:
    with serving(store.storage.url, "--set", "serve.shows_frames=true", key="page-key") as running:
        yield running


@needs_chromium
def test_pick_look_and_ask_by_keyboard(service: Service, store: Store, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as page:
        page.send("Page.navigate", url=service.url)
        page.wait("document.getElementById('key-form') && !document.getElementById('key-form').hidden")
        page.evaluate("document.getElementById('key').focus()")
        page.send("Input.insertText", text="page-key")
        page.press("Enter", "\r")
        page.wait("document.getElementById('videos').options.length === 2")
        look(page, store)
        ask(page, tmp_path)
        folder = os.environ.get("STTM_SCREENSHOTS")
        page.screenshot(Path(folder or tmp_path) / "page.png")
        allowed = [entry for entry in page.console if "401" not in entry]  # before the key was given
        assert allowed == []


def look(page: Browser, store: Store) -> None:
    """Every token of the chosen video is drawn in its frame, the largest brightest."""
    page.evaluate("document.getElementById('videos').focus()")
    page.press("ArrowDown")
    name = page.wait("state.video && document.getElementById('videos').value === state.video.id && state.video.name")
    row = store.find(name)
    said = page.evaluate("document.getElementById('sampled').textContent")
    assert said.startswith(f"{row.duration_s:.1f} s, {row.frames} frames of {row.frames_asked} asked for, one in ")
    tokens = store.load_tokens(row.identity)
    page.wait("state.strip !== null")
    frames = tokens.grid[0]
    shown = []
    page.evaluate("document.getElementById('frame').focus()")
    for _ in range(frames):
        shown.append(int(page.evaluate("document.getElementById('place').textContent").split(": ")[1].split()[0]))
        page.press("ArrowRight")
    assert shown == [int((tokens.boxes[:, 0] == t).sum()) for t in range(frames)]
    assert page.evaluate("brightness(1, 9) < brightness(3, 9) && brightness(3, 9) < brightness(9, 9)")


def ask(page: Browser, folder: Path) -> None:
    """Two turns are asked and their answers streamed; Escape stops one."""
    for turn, question in enumerate(("What is it?", "And why?")):
        page.evaluate("document.getElementById('question').focus()")
        page.send("Input.insertText", text=question)
        page.press("Enter", "\r")
        page.wait("document.getElementById('timing').textContent.includes('first token')")
        turns = page.evaluate("state.turns.map((turn) => [turn.role, turn.content])")
        assert [role for role, _ in turns] == ["user", "assistant"] * (turn + 1)
        assert turns[2 * turn][1] == question
        assert turns[-1][1]
        shown = page.evaluate("[...document.querySelectorAll('.turn')].map((box) => box.textContent)")
        assert shown == [content for _, content in turns]


@needs_chromium
def test_the_page_says_what_the_built_in_model_knows(built_in: Service, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as page:
        page.send("Page.navigate", url=built_in.url)
        page.wait("document.getElementById('notice') && !document.getElementById('notice').hidden")
        assert page.evaluate("document.getElementById('notice').textContent") == BUILT_IN_NOTICE
        page.screenshot(Path(os.environ.get("STTM_SCREENSHOTS") or tmp_path) / "built_in.png")
    assert BUILT_IN_NOTICE in built_in.stop()[1]


@needs_chromium
def test_markup_in_names_and_answers_stays_text(service: Service, tmp_path: Path) -> None:
    with browsing(tmp_path / "profile") as page:
        page.send("Page.navigate", url=service.url)
        page.wait("typeof state === 'object'")
        text = "<img src=x onerror=alert(1)>"
        page.evaluate(f"state.turns = [{{role: 'user', content: '{text}'}}]; showTurns()")
        assert page.evaluate("document.querySelectorAll('#turns img').length") == 0
        assert page.evaluate("document.querySelector('.turn').textContent") == text


def test_page_is_served_with_a_strict_policy(service: Service) -> None:
    for path, kind in (("/", "text/html"), ("/page/page.js", "text/javascript"), ("/page/page.css", "text/css")):
        answer = service.get(path)
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/index.html", "/page/../app.py", "/page/%2e%2e/app.py", "/page/"):
        assert service.get(path).status_code == 404


def test_frames_are_decoded_from_the_source_only_while_it_is_the_same(service: Service, store: Store) -> None:
    row = store.find("clip-0.mp4")
    strip = service.get(f"/videos/{row.video_id}/frames")
    assert (strip.status_code, strip.headers["content-type"]) == (200, "image/jpeg")
    source = Path(row.uri.removeprefix("file://"))
    data = source.read_bytes()
    try:
        source.write_bytes(data + b"\0")
        changed = service.get(f"/videos/{row.video_id}/frames")
        assert (changed.status_code, changed.json()["error"]["code"]) == (422, "no_frames")
    finally:
        source.write_bytes(data)
