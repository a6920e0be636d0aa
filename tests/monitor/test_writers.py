"""Tests of metrics.jsonl, TensorBoard events and Weights & Biases, read by other libraries."""

import errno
import json
import math
import os
import subprocess
import sys
import threading
import time
import types

import pytest

from mmjax.errors import UserError
from mmjax.monitor import metrics_file
from mmjax.monitor.metrics_file import METRICS_FILE, read_metrics
from mmjax.monitor.writers import MetricWriter
from tests.messages import assert_mentions, raises


def raw_lines(run_dir):
    return [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]


def events(run_dir):
    """Reads all events with TensorFlow, which verifies checksums; oldest file first."""
    import tensorflow as tf

    files = sorted(str(path) for path in (run_dir / "tensorboard").iterdir())
    return [event for file in files for event in tf.compat.v1.train.summary_iterator(file)]


def points(run_dir):
    """Returns (step, tag, value) of all scalar events."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(run_dir)
        for value in event.summary.value
    ]


def test_lines_hold_step_time_and_values(tmp_path):
    run, start = tmp_path / "a" / "run", time.time()
    with MetricWriter(run) as writer:
        writer.scalars(1, {"loss": 2.5, "eval/R@1": 1})
        writer.scalars(2, {"loss": 2.25})
    first, second = raw_lines(run)
    assert (first["step"], first["loss"], first["eval/R@1"]) == (1, 2.5, 1.0)
    assert second == {"step": 2, "time": second["time"], "loss": 2.25}
    assert start <= first["time"] <= second["time"] <= time.time()


def test_nan_and_infinities_are_written_as_valid_json(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(3, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / METRICS_FILE).read_text(), parse_constant=reject)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    record = read_metrics(tmp_path)[0]
    assert math.isnan(record["a"]) and record["b"] == math.inf and record["c"] == -math.inf


def test_tensorboard_reads_the_events(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(10, {"loss": 0.5})
        writer.scalars(20, {"loss": 0.25})
    assert points(tmp_path) == [(10, "loss", 0.5), (20, "loss", 0.25)]


def test_a_resumed_writer_removes_the_lines_after_its_checkpoint(tmp_path):
    with MetricWriter(tmp_path, resume_at=0) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {"loss": float(step)})
    with MetricWriter(tmp_path, resume_at=20) as writer:
        writer.scalars(30, {"loss": 0.5})
    lines = [(line["step"], line["loss"]) for line in raw_lines(tmp_path)]
    assert lines == [(10, 10.0), (20, 20.0), (30, 0.5)]
    # TensorBoard hides the outdated point because a session starts at step 21.
    starts = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(21, 1)]
    with MetricWriter(tmp_path, resume_at=0, tensorboard=False):
        assert raw_lines(tmp_path) == []  # killed before its first checkpoint


def test_lines_of_an_earlier_version_are_rolled_back_with_their_markers(tmp_path):
    lines = [{"step": 1, "a": 1.0}, {"step": 3, "a": 3.0}, {"resumed_from": 2}, {"step": 3, "a": 4}]
    text = "".join(json.dumps(line | {"time": 0.0}) + "\n" for line in lines)
    (tmp_path / METRICS_FILE).write_text(text + "\n[]\n{\n")
    assert [(line["step"], line["a"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (3, 4)]
    with MetricWriter(tmp_path, resume_at=3, tensorboard=False):
        assert [(line["step"], line["a"]) for line in raw_lines(tmp_path)] == [(1, 1.0), (3, 4)]


def test_a_line_appended_during_a_rollback_is_not_lost(tmp_path, monkeypatch):
    """An evaluation job waits for the lock of a resumed trainer, which replaces the file."""
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in (1, 2):
            writer.scalars(step, {"loss": float(step)})
    waiting, valid_lines = [], metrics_file._valid_lines

    def append_meanwhile(content):
        waiting.append(threading.Thread(target=metrics_file.append, args=(tmp_path, 1, {"e": 1})))
        waiting[0].start()
        time.sleep(0.1)
        assert waiting[0].is_alive()
        return valid_lines(content)

    monkeypatch.setattr(metrics_file, "_valid_lines", append_meanwhile)
    metrics_file.roll_back(tmp_path, 1)
    waiting[0].join(10)
    assert [line.get("loss") for line in raw_lines(tmp_path)] == [1.0, None]


def test_a_line_that_does_not_fit_on_the_disk_leaves_the_file_unchanged(tmp_path, monkeypatch):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.scalars(1, {"loss": 1.0})
        before, write = (tmp_path / METRICS_FILE).read_bytes(), os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
        with raises(UserError, tmp_path / METRICS_FILE, "full"):
            writer.scalars(2, {"loss": 2.0})
        monkeypatch.undo()
        assert (tmp_path / METRICS_FILE).read_bytes() == before


def test_two_writers_in_the_same_second_use_separate_event_files(tmp_path):
    with MetricWriter(tmp_path) as trainer, MetricWriter(tmp_path) as evaluation:
        trainer.scalars(1, {"loss": 1.0})
        evaluation.scalars(1, {"accuracy": 0.5})
    assert {tag for _, tag, _ in points(tmp_path)} == {"loss", "accuracy"}
    assert [set(line) - {"step", "time"} for line in raw_lines(tmp_path)] == [
        {"loss"},
        {"accuracy"},
    ]


def test_an_incomplete_line_is_removed_before_the_next_one(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": 1.0})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 2, "lo')
    with MetricWriter(tmp_path) as writer:
        writer.scalars(2, {"loss": 2.0})
    assert len(raw_lines(tmp_path)) == 2
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0)]


def test_only_process_zero_writes(tmp_path):
    with MetricWriter(tmp_path / "run", process_index=1) as writer:
        writer.scalars(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_tensorboard_can_be_disabled(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.scalars(1, {"loss": 1.0})
    assert os.listdir(tmp_path) == [METRICS_FILE]


def test_reserved_metric_names_are_rejected(tmp_path):
    with MetricWriter(tmp_path) as writer, raises(ValueError, "'time'"):
        writer.scalars(1, {"time": 1.0})


def test_run_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with raises(UserError, tmp_path / "file" / "run") as info:
        MetricWriter(tmp_path / "file" / "run")
    assert_mentions(info.value, info.value.__cause__.strerror)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_full_disk_error_names_the_file(tmp_path):
    (tmp_path / METRICS_FILE).symlink_to("/dev/full")
    with raises(UserError, tmp_path / METRICS_FILE, os.strerror(errno.ENOSPC)):
        with MetricWriter(tmp_path, tensorboard=False) as writer:
            writer.scalars(1, {"loss": 1.0})


def test_error_on_close_does_not_replace_an_earlier_error(tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path)
    monkeypatch.setattr(writer._events, "close", lambda: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ZeroDivisionError):
        with writer:
            raise ZeroDivisionError
    with raises(UserError, tmp_path / "tensorboard", "full"):
        writer = MetricWriter(tmp_path)
        monkeypatch.setattr(writer._events, "close", lambda: (_ for _ in ()).throw(OSError("full")))
        writer.close()


def test_wandb_receives_options_and_values(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricWriter(tmp_path, wandb={"project": "p"}) as writer:
        writer.scalars(7, {"loss": 1.5})
    assert calls == [
        {"dir": str(tmp_path), "resume": "allow", "project": "p"},
        (7, {"loss": 1.5}),
        "end",
    ]


def test_error_without_wandb_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with raises(UserError, "wandb", "pip install 'mmjax[wandb]'"):
        MetricWriter(tmp_path, wandb={"project": "p"})


def test_importing_the_monitor_does_not_load_tensorflow():
    code = (
        "import sys, mmjax.monitor.writers, mmjax.monitor.progress, mmjax.monitor.profiler\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
