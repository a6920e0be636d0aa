"""The run directory: written once, one trainer at a time."""

import json
import os
import subprocess
import sys

import pytest

from mmjax import config
from mmjax.errors import UserError
from mmjax.rundir import RunDir


def test_a_directory_is_made_with_its_parents(tmp_path):
    run = RunDir(tmp_path / "a" / "b")
    assert run.path == tmp_path / "a" / "b" and os.listdir(run.path) == []


def test_a_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--model_dir=.*file/run cannot be written to"):
        RunDir(tmp_path / "file" / "run")


def test_a_directory_that_cannot_be_written_to():
    # Not even root can make a file there.
    with pytest.raises(UserError, match="--model_dir=/proc/self cannot be written to.*Give a dir"):
        RunDir("/proc/self")


def test_a_reader_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        RunDir(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="not a run directory: it has no config.json"):
        RunDir(tmp_path, create=False).read_config()


# ---- one trainer

_HOLDER = """
import sys
from mmjax.rundir import RunDir
run = RunDir(sys.argv[1])
run.lock()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def trainer(tmp_path, user_env):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=user_env(),
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait(timeout=30)


def test_a_second_trainer_is_told_who_is_there(trainer, tmp_path):
    run = RunDir(tmp_path)
    assert run.has_trainer()
    with pytest.raises(UserError, match=f"Another trainer is using .*pid {trainer.pid} on"):
        run.lock()
    trainer.kill()  # whatever the manner of its death, the directory is free then
    trainer.wait(timeout=30)
    assert not run.has_trainer()
    run.lock()
    assert f"pid {os.getpid()} on" in (tmp_path / "trainer.lock").read_text()


def test_one_process_may_lock_and_unlock(tmp_path):
    run, reader = RunDir(tmp_path), RunDir(tmp_path, create=False)
    assert not reader.has_trainer()
    run.lock()
    assert run.has_trainer() and reader.has_trainer()
    with pytest.raises(UserError, match="Another trainer"):
        reader.lock()
    run.unlock()
    assert not reader.has_trainer()
    reader.lock()


def test_asking_does_not_look_like_training(tmp_path, monkeypatch):
    """An evaluation job asks at the very moment a trainer starts."""
    import fcntl

    handle = open(tmp_path / "trainer.lock", "w")
    fcntl.flock(handle, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda _: handle.close())
    run = RunDir(tmp_path)
    run.lock()
    assert run.has_trainer()


# ---- what is written at start and end


def test_what_is_known_at_start_and_what_changed_since(tmp_path):
    run, cfg = RunDir(tmp_path), config.base()
    cfg.task = "pretrain"
    cfg.data.train = ("a", "b")
    assert run.write_start(cfg, "the plan", "8 devices") == []
    assert config.plain(run.read_config()) == config.plain(cfg)
    assert (tmp_path / "parameters.txt").read_text() == "the plan\n"
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["command"] == sys.argv and about["devices"] == "8 devices"
    assert about["versions"]["jax"] == __import__("jax").__version__
    assert run.write_start(cfg, "", "") == []
    cfg.mesh.fsdp = 2
    cfg.data.train = ("a",)
    cfg.data.split = "test"
    assert run.write_start(cfg, "", "") == [
        "data.split: None → 'test'",
        "data.train: ['a', 'b'] → ['a']",
        "mesh.fsdp: 1 → 2",
    ]
    assert run.read_config().mesh.fsdp == 2
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_the_sentinel(tmp_path):
    run = RunDir(tmp_path)
    assert run.complete_step() is None
    run.write_complete(120)
    assert RunDir(tmp_path, create=False).complete_step() == 120
    run.clear_complete()
    run.clear_complete()
    assert run.complete_step() is None
