"""The run directory: creation, locking by one trainer, and its files."""

import json
import os
import subprocess
import sys

import pytest

from mmjax import config
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.run_dir import RunDir
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises


def test_a_directory_is_created_with_its_parents(tmp_path):
    run = RunDir(tmp_path / "a" / "b")
    assert run.path == tmp_path / "a" / "b" and os.listdir(run.path) == []


def test_a_path_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run"
    with raises(UserError, f"--model_dir={path}", "Errno 20"):
        RunDir(path)


def test_a_directory_without_write_access_is_an_error():
    # Not even root can create a file there.
    with raises(UserError, "--model_dir=/proc/self", "Errno 2"):
        RunDir("/proc/self")


def test_reading_requires_a_run_directory(tmp_path):
    with raises(UserError, f"--model_dir={tmp_path / 'none'}", "directory"):
        RunDir(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    with raises(UserError, tmp_path, "config.json"):
        RunDir(tmp_path, create=False).read_config()


# ---- locking

_HOLDER = """
import sys
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.run_dir import RunDir
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


def test_a_second_trainer_is_an_error_with_the_pid_of_the_first(trainer, tmp_path):
    run = RunDir(tmp_path)
    assert run.has_trainer()
    with raises(UserError, tmp_path, f"pid {trainer.pid} ", "--model_dir"):
        run.lock()
    trainer.kill()  # the system releases the lock of a process that died
    trainer.wait(timeout=30)
    assert not run.has_trainer()
    run.lock()
    assert f"pid {os.getpid()} " in (tmp_path / "trainer.lock").read_text()


def test_a_process_can_lock_and_unlock(tmp_path):
    run, reader = RunDir(tmp_path), RunDir(tmp_path, create=False)
    assert not reader.has_trainer()
    run.lock()
    assert run.has_trainer() and reader.has_trainer()
    with raises(UserError, tmp_path, f"pid {os.getpid()} "):
        reader.lock()
    run.unlock()
    assert not reader.has_trainer()
    reader.lock()


def test_a_concurrent_has_trainer_check_does_not_block_the_lock(tmp_path, monkeypatch):
    """An evaluation job checks for a trainer at the moment when one starts."""
    import fcntl

    handle = open(tmp_path / "trainer.lock", "w")
    fcntl.flock(handle, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda _: handle.close())
    run = RunDir(tmp_path)
    run.lock()
    assert run.has_trainer()


# ---- files written at start and end


def test_write_start_records_the_run_and_returns_config_changes(tmp_path):
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
        "data.train: ('a', 'b') → ('a',)",
        "mesh.fsdp: 1 → 2",
    ]
    assert run.read_config().mesh.fsdp == 2
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_the_completion_marker_can_be_written_and_cleared(tmp_path):
    run = RunDir(tmp_path)
    assert run.complete_step() is None
    run.write_complete(120)
    assert RunDir(tmp_path, create=False).complete_step() == 120
    run.clear_complete()
    run.clear_complete()
    assert run.complete_step() is None


def test_a_run_of_another_format_is_refused(tmp_path):
    run = RunDir(tmp_path)
    run.write_start(config.base(), "", "")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["format"] == run_dir.FORMAT
    for version in (None, run_dir.FORMAT + 1):
        changed = {k: v for k, v in record.items() if k != "format"}
        changed |= {"format": version} if version else {}
        (tmp_path / "run.json").write_text(json.dumps(changed))
        for refused in (run.read_config, run.lock):
            with raises(UserError, tmp_path, f"format {version or 1}", run_dir.FORMAT):
                refused()


def test_a_damaged_config_or_record_names_the_file(tmp_path):
    run = RunDir(tmp_path)
    run.write_start(config.base(), "", "")
    (tmp_path / "config.json").write_text("{")
    with raises(UserError, tmp_path / "config.json"):
        run.read_config()
    (tmp_path / "run.json").write_text("[]")
    with raises(UserError, tmp_path / "run.json", "--model_dir"):
        run.read_config()


DAMAGE = {"empty": b"", "half": b'{"step": ', "zeros": bytes(12), "list": b"[]", "bytes": b"\xff{"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_resume_does_not_depend_on_a_damaged_config(damage, tmp_path, caplog):
    run = RunDir(tmp_path)
    run.write_start(config.base(), "", "")
    (tmp_path / "config.json").write_bytes(DAMAGE[damage])
    with raises(UserError, tmp_path / "config.json", "training command"):
        run.read_config()
    with caplog.at_level("WARNING", logger="absl"):
        assert run.write_start(config.base(), "", "") == []
    assert_mentions(caplog.text, tmp_path / "config.json")
    assert config.plain(run.read_config()) == config.plain(config.base())


@pytest.mark.parametrize("content", [*DAMAGE.values(), b"{}", b'{"step": "8"}'])
def test_a_damaged_completion_marker_names_the_file_and_the_way_out(content, tmp_path):
    run = RunDir(tmp_path)
    (tmp_path / "train_complete").write_bytes(content)
    with raises(UserError, tmp_path / "train_complete", "Delete"):
        run.complete_step()
