"""bench/on_gpu.sh: what it does without a GPU, and, with programs that stand for it, how stages end."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "on_gpu.sh"
STAGES = ["build", "check of every op", "gpu tests", "memcheck", "racecheck", "ops", "micro", "models"]

PYTHON = """#!/bin/bash
case "$*" in
  *registry*) echo linear; echo wkv5; exit ;;
esac
echo "python $*"
case "$*" in
  *"check "*wkv5) exit 1 ;;
  *gpu_tests*) echo "1 failed"; exit 1 ;;
  *"bench ops"*)  # the device is lost the first time
    echo '{"a row": 1}' >>"$OUT/ops.jsonl"
    [[ $(wc -l <"$OUT/ops.jsonl") == 2 ]] || exit 3
    exec sleep 60 ;;
esac
"""


def run(out: Path, path: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": path, **more}
    return subprocess.run(["bash", SCRIPT, *args, out], env=env, capture_output=True, text=True, check=False)


def summary(out: Path) -> list[str]:
    return (out / "summary.txt").read_text().splitlines()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="would run everything")
def test_without_a_gpu_every_stage_says_so(tmp_path):
    done = run(tmp_path / "out", os.environ["PATH"])
    assert done.returncode == 1
    assert done.stderr == ""
    assert summary(tmp_path / "out") == [f"{stage}: not run (there is no nvidia-smi)" for stage in STAGES]
    assert "== gpu tests: python3 bench/gpu_tests.py" in done.stdout


def test_wrong_arguments():
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: bench/on_gpu.sh OUT [SECONDS]\n")


def run_with_stand_ins(tmp_path: Path, seconds: int) -> tuple[int, Path]:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (
        ("nvidia-smi", "#!/bin/bash\necho 9.0\n"),
        ("compute-sanitizer", '#!/bin/bash\nshift 6\nexec "$@"\n'),
        ("python3", PYTHON),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    out = tmp_path / "out"
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(out)}
    command = ["bash", SCRIPT, out, str(seconds)]
    return subprocess.run(command, env=env, capture_output=True, timeout=90, check=False).returncode, out


def test_stages_go_on_after_a_failure_and_stop_in_time(tmp_path):
    status, out = run_with_stand_ins(tmp_path, 10)
    assert status == 1
    lines = summary(out)
    assert [line.split(":")[0] for line in lines] == STAGES
    assert "ok" in lines[0]
    assert lines[1].startswith("check of every op: FAILED with status 123")  # of the two ops, one
    assert lines[2].startswith("gpu tests: FAILED with status 1")
    assert "1 failed" in lines[2]
    assert [line.split(" after")[0] for line in lines[3:5]] == [
        f"{stage}: FAILED with status 123" for stage in ("memcheck", "racecheck")
    ]
    asked = [line for line in (out / "log.txt").read_text().splitlines() if line.startswith("python -c")]
    check = "check --backend cuda --device cuda --dtype bfloat16"
    for op in ("linear", "wkv5"):
        assert sum(line.endswith(f"{check} --op {op}") for line in asked) == 2  # under either tool
        assert sum(line.endswith(f"{check} --all-cases --op {op}") for line in asked) == 1
    assert "out of time" in lines[5]
    assert all("ok" in line or "no time left" in line for line in lines[6:])
    assert (out / "ops.jsonl").read_text() == '{"a row": 1}\n' * 2
    assert (out / "plots.tar.gz").stat().st_size > 0
    assert len(list(out.iterdir())) <= 8


def test_stages_without_time_are_not_begun(tmp_path):
    status, out = run_with_stand_ins(tmp_path, 1)
    assert status == 1
    assert summary(out) == [f"{stage}: not run (no time left)" for stage in STAGES]


def test_a_missing_tool_is_named(tmp_path):
    """A machine with a GPU and without compute-sanitizer does the rest."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("nvidia-smi", "#!/bin/bash\necho 9.0\n"), ("python3", "#!/bin/bash\nexit 0\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    done = run(tmp_path / "out", f"{tools}:/usr/bin:/bin", CUDA_HOME=str(tmp_path))
    assert done.returncode == 1
    lines = summary(tmp_path / "out")
    assert [line for line in lines if "not run" in line] == [
        f"{stage}: not run (there is no compute-sanitizer)" for stage in ("memcheck", "racecheck")
    ]
    assert sum("ok" in line for line in lines) == len(STAGES) - 2


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
