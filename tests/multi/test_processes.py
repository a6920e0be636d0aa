"""Two real processes, talking over loopback, are one."""

import json
import pathlib
import socket
import subprocess
import sys

import fakes
import numpy as np
import pytest

from mmjax import distributed, tree
from mmjax.checkpoint import Checkpoints
from mmjax.errors import UserError
from tests.multi import evaluation

WORKER = pathlib.Path(__file__).parent / "worker.py"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


MESHES = {
    "dp": dict(mesh=dict(data=4), preset="dp"),
    "fsdp": dict(mesh=dict(data=1, fsdp=4), preset="fsdp"),
}


@pytest.fixture
def together(tmp_path, user_env):
    """A directory in which two processes trained on each of the meshes."""
    directory, count = tmp_path, 2
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(directory), json.dumps(MESHES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=user_env(
                devices=2,
                quick=True,
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES=str(count),
                JAX_PROCESS_ID=str(index),
            ),
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return directory


@pytest.fixture
def alone():
    """`(trainer, losses, state after two steps, state at the end)` of one device in one process."""
    trainer = fakes.Trainer(fakes.Contrast(), ema_decay=0.9)
    half, losses = trainer.run(2)
    end, more = trainer.run(2, state=half, first=2)
    return trainer, losses + more, half, end


def test_two_processes_are_one(together, alone):
    for name in MESHES:  # one test, so that workers do not start a job each
        compare(together / name, *alone)
    want = evaluation.results(fakes.one_device())
    for index in range(2):
        found = json.loads((together / f"evaluation-{index}.json").read_text())
        assert found.pop("broken/failed") == 1  # on both, and then they go on together
        assert found == pytest.approx(want, abs=1e-4)


def compare(directory, trainer, losses, half, end):
    seen = [json.loads((directory / f"process-{i}.json").read_text()) for i in range(2)]
    for index, found in enumerate(seen):
        np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
        assert found["processes"] == 2 and found["devices"] == [2, 4]
        assert found["primary"] == (index == 0)
        assert found["any"] == [False, True, True]
        mean = float(np.asarray(end["extra"]["mean"]).sum())
        np.testing.assert_allclose(found["mean"], mean, rtol=1e-4)
    # What they saved together, one process reads.
    saved = Checkpoints(directory, read_only=True)
    state, meta, step = saved.restore_newest(trainer.abstract)
    saved.close()
    assert step == 2 and meta == {"step": 2}
    for path, leaf in tree.flatten(half).items():
        np.testing.assert_allclose(
            tree.flatten(state)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path
        )


def test_half_an_address_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS is not: set all three"):
        distributed.initialize()
