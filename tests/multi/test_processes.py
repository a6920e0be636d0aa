"""Tests that two processes, connected over loopback, give the results of one."""

import json
import pathlib
import socket
import subprocess
import sys

import fakes
import numpy as np
import pytest

from mmjax import distributed, tree
from mmjax.checkpoints.manager import Checkpoints
from mmjax.errors import UserError
from tests.messages import raises
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
def two_processes(tmp_path, user_env):
    """Trains with two processes on each of the meshes and returns their directory."""
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
def one_process():
    """Returns (trainer, losses, state after two steps, final state) of one device."""
    trainer = fakes.Trainer(fakes.Contrast(), ema_decay=0.9)
    middle, losses = trainer.run(2)
    end, later_losses = trainer.run(2, state=middle, first=2)
    return trainer, losses + later_losses, middle, end


def test_two_processes_give_the_results_of_one(two_processes, one_process):
    for name in MESHES:  # One test for all meshes, so that the processes start only once.
        compare(two_processes / name, *one_process)
    expected = evaluation.results(fakes.one_device())
    for index in range(2):
        actual = json.loads((two_processes / f"evaluation-{index}.json").read_text())
        # An evaluator that fails on one process fails on both, and the next one runs.
        assert actual.pop("broken/failed") == 1
        assert actual == pytest.approx(expected, abs=1e-4)


def compare(directory, trainer, losses, middle, end):
    reports = [json.loads((directory / f"process-{i}.json").read_text()) for i in range(2)]
    for index, report in enumerate(reports):
        np.testing.assert_allclose(report["losses"], losses, rtol=1e-5)
        assert report["processes"] == 2 and report["devices"] == [2, 4]
        assert report["primary"] == (index == 0)
        assert report["any"] == [False, True, True]
        mean = float(np.asarray(end["extra"]["mean"]).sum())
        np.testing.assert_allclose(report["mean"], mean, rtol=1e-4)
    # One process reads the checkpoint that two processes saved.
    saved = Checkpoints(directory, read_only=True)
    state, meta, step = saved.restore_newest(trainer.abstract)
    saved.close()
    assert step == 2 and meta == {"step": 2}
    for path, leaf in tree.flatten(middle).items():
        np.testing.assert_allclose(
            tree.flatten(state)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path
        )


def test_incomplete_coordinator_variables_are_rejected(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    variables = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    with raises(UserError, *variables):
        distributed.initialize()
