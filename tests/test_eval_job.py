"""The evaluation job, with scripted evaluators and runs."""

import json
import logging
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mmjax import eval_job, eval_watch, sharding
from mmjax.checkpoints.find import find
from mmjax.checkpoints.manager import Checkpoints, DamagedError
from mmjax.errors import UserError
from mmjax.monitor import metrics_file
from tests.messages import assert_mentions, raises
from tests.scripted import Evaluator


class Run:
    """A run directory with checkpoints {step: state}; each pause calls the next `script` entry."""

    def __init__(self, path, steps=(), script=(), complete=None, trainer=True):
        self.path, self.complete, self.trainer = path, complete, trainer
        self.states = {step: {"params": float(step)} for step in steps}
        self.script, self.vanishing, self.damaged = list(script), (), ()

    def complete_step(self):
        return self.complete

    def has_trainer(self):
        return self.trainer

    def add(self, *steps, complete=None):
        self.states |= {step: {"params": float(step)} for step in steps}
        self.complete = complete

    def restore(self, step):
        if step in self.damaged:
            raise DamagedError(self.path, step, "not a checkpoint")
        if step in self.vanishing:
            del self.states[step]
            return None
        return self.states[step]

    @property
    def written(self):
        """{step: metrics}; fails if a metric is written twice."""
        result = {}
        for record in metrics_file.read_metrics(self.path):
            values = {k: v for k, v in record.items() if k not in ("step", "time")}
            assert not result.setdefault(record["step"], {}).keys() & values.keys()
            result[record["step"]] |= values
        return result

    def pause(self):
        if not self.script:
            return True
        self.script.pop(0)()
        return False

    def watch(self, *evaluators):
        return eval_watch.watch(
            self,
            evaluators,
            self.restore,
            eval_watch.Results(self.path, tensorboard=False),
            list_steps=lambda: sorted(self.states),
            pause=self.pause,
        )


def test_the_job_follows_new_checkpoints_and_ends_with_the_run(tmp_path):
    often, last = Evaluator("often", every=10), Evaluator("last")
    run = Run(tmp_path, steps=(10, 15))
    run.script = [
        lambda: None,  # no new checkpoint
        lambda: run.add(20),
        lambda: run.add(30),
        lambda: run.add(complete=30),  # step 30 is marked as the last one later
    ]
    assert run.watch(often, last) == 0
    assert often.seen == [10, 20, 30] and last.seen == [30]
    assert run.written[30] == {"often/value": 30.0, "last/value": 30.0}


def test_an_evaluator_is_due_at_the_first_checkpoint_after_a_multiple(tmp_path):
    often = Evaluator("often", every=10)
    run = Run(tmp_path, steps=(7, 14, 18, 21, 28, 40), complete=40)
    run.watch(often)
    assert often.seen == [14, 21, 40]


def test_finished_evaluations_are_not_repeated(tmp_path):
    first = Evaluator("often", every=10)
    run = Run(tmp_path, steps=(10, 20), script=[])
    assert run.watch(first) == 0  # stopped at the first pause
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')  # killed while writing
    again, new = Evaluator("often", every=10), Evaluator("new", every=10)
    run = Run(tmp_path, steps=(10, 20, 30), complete=30)
    assert run.watch(again, new) == 0
    assert again.seen == [30] and new.seen == [10, 20, 30]


def test_a_failed_evaluation_is_counted_and_retried_by_the_next_job(tmp_path):
    bad, good = Evaluator("bad", every=1, broken=(1, 2)), Evaluator("good", every=1)
    run = Run(tmp_path, steps=(1, 2, 3), complete=3)
    assert run.watch(bad, good) == 2
    assert bad.seen == good.seen == [1, 2, 3]
    assert run.written[1] == {"bad/failed": 1.0, "good/value": 1.0}
    repaired, good = Evaluator("bad", every=1), Evaluator("good", every=1)
    assert Run(tmp_path, steps=(1, 2, 3), complete=3).watch(repaired, good) == 0
    assert repaired.seen == [1, 2] and good.seen == []


def test_a_best_checkpoint_that_cannot_be_kept_stops_no_evaluation(tmp_path, monkeypatch, caplog):
    def keep(step, values):
        raise UserError(f"Cannot write {tmp_path / 'best'}: No space left on device.")

    best = types.SimpleNamespace(step=lambda: -1, improved_by=bool, keep=keep)
    monkeypatch.setattr(eval_job.Best, "from_config", lambda *args: best)
    monkeypatch.setattr(eval_job, "list_steps", lambda path: sorted(run.states))
    run = Run(tmp_path, steps=(1, 2), complete=2)
    often = Evaluator("often", every=1)
    cfg = types.SimpleNamespace(checkpoint={}, evals={})
    results = eval_watch.Results(run.path, tensorboard=False)
    assert eval_job._watch_run(cfg, run, [often], run.restore, results, run.pause) == 1
    assert often.seen == [1, 2] and run.written[2] == {"often/value": 2.0}
    assert_mentions(caplog.text, "step 1", "step 2", tmp_path / "best")


def test_deleted_and_damaged_checkpoints_are_skipped(tmp_path, caplog):
    e = Evaluator("e", every=1)
    run = Run(tmp_path, steps=(1, 2, 3), complete=3, script=[lambda: None])
    run.vanishing, run.damaged = (1,), (2,)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert run.watch(e) == 1
    assert e.seen == [3]
    deleted, damaged = (str(record.getMessage()) for record in caplog.records)
    assert_mentions(deleted, "step 1", "--config.checkpoint.keep")
    assert_mentions(damaged, tmp_path / "checkpoints/2")
    assert_mentions(caplog.text, "not a checkpoint")  # the cause


@pytest.mark.parametrize(
    ("steps", "trainer", "facts"),
    [
        ((), True, ()),
        ((), False, ("--model_dir", "Ctrl-C")),
        ((1,), True, ("step 1",)),
        ((1,), False, ("step 1", "Ctrl-C")),
    ],
)
def test_the_job_logs_once_what_it_waits_for(tmp_path, caplog, steps, trainer, facts):
    run = Run(tmp_path, steps=steps, trainer=trainer, script=[lambda: None, lambda: None])
    with caplog.at_level(logging.INFO, logger="absl"):
        run.watch(Evaluator("e", every=1))
    # One message for three rounds.
    (message,) = [r.getMessage() for r in caplog.records if str(tmp_path) in r.getMessage()]
    assert_mentions(message, "trainer", *facts)
    # The way out is part of the message only if no trainer runs.
    assert ("step 1" in message) == bool(steps) and ("Ctrl-C" in message) == (not trainer)


def test_a_complete_run_without_its_last_checkpoint_is_an_error(tmp_path):
    with raises(UserError, tmp_path, "step 9", "[5]", "--override_checkpoint"):
        Run(tmp_path, steps=(5,), complete=9).watch(Evaluator("e"))


# ---------------------------------------------------------------------------- no result is lost


def test_results_are_printed_and_written_with_the_record_in_one_line(tmp_path, capsys):
    results = eval_watch.Results(tmp_path, tensorboard=False)
    values = {"r/R@1": 0.5, "r/R@1_chance": 0.005, "bad/failed": 1.0}
    assert results.write(40, values, ["r", "bad"])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["step"], record["r/R@1"], record["evaluated"]) == (40, 0.5, ["r"])
    assert_mentions(capsys.readouterr().out, tmp_path, 40, "R@1", 0.5, 0.005)
    assert (40, "r") in results and (40, "bad") not in results


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_the_write_neither_loses_nor_repeats_results(tmp_path, monkeypatch, moment):
    append = metrics_file.append

    def killed(*args, **options):
        if moment == "after":
            append(*args, **options)
        raise Killed

    monkeypatch.setattr(metrics_file, "append", killed)
    with pytest.raises(Killed):
        Run(tmp_path, steps=(1, 2), complete=2).watch(Evaluator("e", every=1))
    monkeypatch.undo()
    again, run = Evaluator("e", every=1), Run(tmp_path, steps=(1, 2), complete=2)
    assert run.watch(again) == 0
    assert again.seen == ([1, 2] if moment == "before" else [2])
    assert run.written == {1: {"e/value": 1.0}, 2: {"e/value": 2.0}}


def test_results_that_cannot_be_written_are_printed_and_evaluated_again_by_the_next_job(
    tmp_path, monkeypatch, capsys, caplog
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics_file.os, "write", full)
    first, run = Evaluator("e", every=1), Run(tmp_path, steps=(1, 2), complete=2)
    with caplog.at_level(logging.ERROR, logger="absl"):
        assert run.watch(first) == 2
    assert first.seen == [1, 2] and run.written == {}
    assert_mentions(capsys.readouterr().out, "Step 1 of", "Step 2 of")
    assert_mentions(caplog.text, "step 1", tmp_path / "metrics.jsonl", "No space left on device")
    monkeypatch.undo()
    again = Evaluator("e", every=1)
    assert run.watch(again) == 0 and again.seen == [1, 2]
    assert run.written == {1: {"e/value": 1.0}, 2: {"e/value": 2.0}}


def test_results_that_a_resumed_trainer_removed_are_evaluated_again(tmp_path):
    e, run = Evaluator("e", every=1), Run(tmp_path, steps=(1, 2))

    def resume_from_1():
        del run.states[2]
        metrics_file.roll_back(tmp_path, 1)

    run.script = [resume_from_1, lambda: run.add(2, 3, complete=3)]
    assert run.watch(e) == 0
    assert e.seen == [1, 2, 2, 3] and list(run.written) == [1, 2, 3]


def test_records_of_earlier_versions_count_only_if_the_results_are_written(tmp_path):
    """Earlier versions recorded an evaluation before writing its results."""
    lines = [{"step": step, "evaluator": "e", "time": 0.0} for step in (1, 2)]
    (tmp_path / "evaluated.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "e/value": 1.0}\n')
    e, run = Evaluator("e", every=1), Run(tmp_path, steps=(1, 2), complete=2)
    assert run.watch(e) == 0
    assert e.seen == [2] and run.written == {1: {"e/value": 1.0}, 2: {"e/value": 2.0}}


# ------------------------------------------------------------------------------- real checkpoints


@pytest.fixture
def saved_run(tmp_path):
    """A run with two checkpoints: parameters, their moving average (EMA) and optimizer slots."""
    state = {
        "step": jnp.int32(0),
        "params": {"a": jnp.arange(4.0), "frozen": jnp.ones(2)},
        "ema": {"a": jnp.arange(4.0) * 10, "frozen": None},
        "opt": {"m": jnp.zeros(4)},
        "extra": {},
    }
    saved = Checkpoints(tmp_path, every=1)
    for step in (1, 2):
        saved.save(
            step, state | {"params": {"a": jnp.arange(4.0) * step, "frozen": jnp.ones(2)}}, {}
        )
    saved.close()
    return types.SimpleNamespace(path=tmp_path)


CFG = ml_collections.ConfigDict(dict(sharding="dp", sharding_rules=()))
PARAMS = {"a": np.zeros(4, np.float32), "frozen": np.zeros(2, np.float32)}


def test_restore_reads_params_ema_and_extra_through_a_snapshot(saved_run, mesh):
    state = eval_job._restore(saved_run, 2, PARAMS, {}, CFG, mesh)
    assert set(state) == {"params", "ema", "extra"}
    np.testing.assert_array_equal(state["params"]["a"], np.arange(4.0) * 2)
    np.testing.assert_array_equal(state["ema"]["a"], np.arange(4.0) * 10)
    assert state["ema"]["frozen"] is None
    assert sorted(p.name for p in saved_run.path.iterdir()) == [
        "checkpoints"
    ]  # the snapshot is deleted
    assert eval_job._restore(saved_run, 3, PARAMS, {}, CFG, mesh) is None
    eight = sharding.make_mesh(data=8)
    state = eval_job._restore(saved_run, 1, PARAMS, {}, CFG, eight)
    assert len(state["params"]["a"].sharding.device_set) == 8


def test_a_run_directory_that_takes_no_copy_is_evaluated_too(saved_run, mesh, tmp_path):
    (tmp_path / "evaluation_snapshot").write_text("a file where the copy should be")
    state = eval_job._restore(saved_run, 2, PARAMS, {}, CFG, mesh)
    np.testing.assert_array_equal(state["params"]["a"], np.arange(4.0) * 2)


def test_a_damaged_checkpoint_is_named_with_the_other_steps_of_the_run(saved_run, mesh, tmp_path):
    for path in (tmp_path / "checkpoints/2").rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes()[:-1])
    with raises(DamagedError, tmp_path / "checkpoints/2", "[1]") as error:
        eval_job._restore(saved_run, 2, PARAMS, {}, CFG, mesh)
    assert "evaluation_snapshot" not in str(error.value)


def test_a_different_architecture_is_an_error(saved_run, mesh):
    facts = ("step 2", saved_run.path, "params/a", "(5,)", "(4,)", "params/frozen (2,)")
    with raises(UserError, *facts):
        eval_job._restore(saved_run, 2, {"a": np.zeros(5, np.float32)}, {}, CFG, mesh)


def test_find_resolves_a_run_or_one_of_its_steps(saved_run):
    path = saved_run.path
    assert find(str(path)) == (path, 2)
    assert find(str(path / "checkpoints" / "1")) == (path, 1)
    with raises(UserError, path / "checkpoints/7", "[1, 2]"):
        find(str(path / "checkpoints" / "7"))
    with raises(UserError, path / "elsewhere", "<run>/checkpoints/<step>") as error:
        find(str(path / "elsewhere"))
    assert "[" not in str(error.value)  # no steps


def test_a_mesh_of_too_many_devices_is_reduced_to_the_available_ones():
    cfg = ml_collections.ConfigDict(dict(mesh=dict(data=4, fsdp=8, tensor=1), sharding="fsdp"))
    assert dict(eval_job._mesh(cfg).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    cfg.mesh = dict(data=2, fsdp=4, tensor=1)
    assert dict(eval_job._mesh(cfg).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
