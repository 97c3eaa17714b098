"""An installed wheel works in any folder: it holds its settings, its model and its page, and needs no checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a fresh environment that has the wheel, and the dependencies of this environment, but no checkout."""
    fresh = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
    (packages,) = fresh.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but .pth files in it are not read: this project's checkout, which is
    # installed there as an editable package, stays unknown.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    install = ["--python", str(fresh / "bin" / "python"), "install", "-q", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return fresh / "bin"


def sttm(bin_folder: Path, folder: Path, *arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([bin_folder / "sttm", *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_code_settings_model_and_page_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"sttm/configs/{path.name}" for path in ROOT.glob("configs/*.yaml")}
    code = {str(path.relative_to(ROOT)) for top in ("sttm", "jobs") for path in ROOT.glob(f"{top}/**/*.py")}
    assert names >= shipped | code | {
        "sttm/py.typed",
        "sttm/models/tiny/model.safetensors",
        "jobs/serving/page/index.html",
    }
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sttm", "jobs"}


def test_installed_wheel_finds_its_settings_in_another_folder(bin_folder: Path, tmp_path: Path) -> None:
    shown = json.loads(sttm(bin_folder, tmp_path, "config", "show", "--json", "--config", "qwen2_vl_7b"))
    assert "site-packages/sttm/configs" in shown["video.max_frames"]["from"]
    where = [bin_folder / "python", "-c", "import sttm, jobs; print(sttm.__file__, jobs.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env={}, capture_output=True, text=True, check=True).stdout
    assert str(ROOT) not in found


@pytest.mark.slow
def test_installed_wheel_runs_the_demo_and_indexes_and_asks_in_another_folder(bin_folder: Path, tmp_path: Path) -> None:
    out = sttm(bin_folder, tmp_path, "demo")
    assert "stored video" in out
    corpus, store = tmp_path / ".demo" / "corpus", tmp_path / "store"
    index = ["index", "--corpus", str(corpus / "synthetic-0.mp4"), "--store", str(store), "--set", "merge.budget=0.5"]
    assert json.loads(sttm(bin_folder, tmp_path, *index).strip().split("\n")[-1])["done"] == 1
    ask = ["ask", "--store", "store", "--video", "synthetic-0.mp4", "How many red objects are there?", "--json"]
    assert json.loads(sttm(bin_folder, tmp_path, *ask))["kv_tokens"] > 784
    evaluate = ["evaluate", "--limit", "1", "--reducers", "sttm", "--budgets", "0.5"]
    assert json.loads(sttm(bin_folder, tmp_path, *evaluate).strip().split("\n")[-1])["videos"] == 1
