"""Fixtures that more than one test file uses."""

import os

# On busy cores OpenMP threads wait for each other: two can be ten times slower than one. Holds for child processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from checkpoints import write_qwen2_vl
from s3_server import s3_server

__all__ = ["s3_server"]


@pytest.fixture(scope="session")
def qwen2_vl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight Qwen2-VL checkpoint folder."""
    return write_qwen2_vl(tmp_path_factory.mktemp("checkpoints") / "qwen2_vl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
