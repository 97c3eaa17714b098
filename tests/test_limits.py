"""What ends a process, seen from outside it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("error", "code"), [("device-side assert triggered", 70), ("out of memory", 1)])
def test_a_process_ends_with_its_gpu_but_not_for_want_of_memory(error: str, code: int) -> None:
    program = (
        "import torch\n"
        "from jobs.cluster.process_limits import ended_by_a_lost_gpu\n"
        "try:\n"
        "    with ended_by_a_lost_gpu():\n"
        f"        raise torch.AcceleratorError('CUDA error: {error}')\n"
        "except torch.AcceleratorError:\n"
        "    exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert ("AcceleratorError" in done.stderr) == (code == 70)
