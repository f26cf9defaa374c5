"""The Triton kernels on a machine without a GPU: under Triton's interpreter, and compiled for one elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import triton_signatures

triton = pytest.importorskip("triton", reason="needs the package triton, which there is for Linux")

ROOT = Path(__file__).parents[2]
# Every case belongs to one of these; each group runs in a process of its own, since Triton chooses between its
# interpreter and its compiler when it is imported.
GROUPS = ("scan", "not scan and (mixer or model)", "not scan and not mixer and not model")


@pytest.mark.timeout(900)  # two minutes of one processor in all, which others may share
@pytest.mark.parametrize("group", GROUPS)
def test_cases_under_the_interpreter(group):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HYMATE_SCAN")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/support/triton_cases.py", "-p", "no:cacheprovider", "-k", group],
        cwd=ROOT,
        env={**environment, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=890,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="what Triton interprets it cannot compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", triton_signatures.KERNELS)
def test_kernels_compile_for_a_gpu_that_is_not_there(kernel, dtype):
    """For Hopper, in the tiles of a state of 16; no thread keeps more than 64 bytes outside of its registers."""
    for compiled in triton_signatures.compile_kernel(kernel, dtype, state=16):
        assert compiled.asm["cubin"]
        assert triton_signatures.stack_bytes(compiled) <= 64


@pytest.mark.timeout(900)
def test_gpu_check_runs_dry(tmp_path):
    """The script for a machine with a GPU, on tiny shapes in the interpreter: every section measures something."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'training'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu-check.json").read_text())
    statuses = {name: section["status"] for name, section in result.items() if name != "seconds"}
    assert statuses.pop("finetune").startswith("skipped: no prepared folder")
    assert statuses.pop("compilation").startswith("skipped: Triton's interpreter")
    assert set(statuses.values()) == {"done"}, statuses
    assert all(result[name]["rows"] for name in statuses)
    assert "| triton | float32 |" in (tmp_path / "gpu-check.md").read_text()
