"""Models train under torch's own DDP and FSDP2: two gloo processes give the losses of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

#: One launch per mode trains them all: keep these tests in one process.
pytestmark = pytest.mark.xdist_group("distributed")

MODELS = ("striped_hyena", "rwkv5", "sparse_transformer", "m2_bert")
WORKER = Path(__file__).with_name("distributed_worker.py")


def run(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@cache
def losses(mode):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run([*([sys.executable] if mode == "alone" else launch), str(WORKER), mode])


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_equal_one(model, mode):
    together = losses(mode)[model]
    assert together == pytest.approx(losses("alone")[model], rel=1e-4)
    assert together[-1] != pytest.approx(together[0], rel=1e-4)  # it did train
