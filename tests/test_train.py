"""The training loop: logging, checkpoints, and no implicit transfers between host and device."""

import jax
import numpy as np
import pytest

from mmjax import config, session, train
from mmjax.monitor.metrics_file import read_metrics


def test_a_run_logs_saves_and_makes_no_implicit_transfers(tmp_path, monkeypatch):
    """An implicit transfer in a step would make the device wait for the host."""
    cfg = config.load("touch", "demo:smoke")
    cfg.batch_size = 8  # one example per device
    cfg.total_steps, cfg.log_every, cfg.evals, cfg.tensorboard = 3, 1, {}, False
    cfg.checkpoint.every = 2
    for tower in ("touch", "image", "text"):
        cfg.model[tower].num_layers = 1  # compiles faster
    steps, update = [], session.Session.update

    def guarded(self, batch):
        with jax.transfer_guard("disallow"):
            update(self, batch)
        steps.append(self.step)

    monkeypatch.setattr(session.Session, "update", guarded)
    assert train.train(cfg, str(tmp_path)) == {}
    assert steps == [1, 2, 3]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    with pytest.raises(Exception, match="[Dd]isallowed"), jax.transfer_guard("disallow"):
        jax.numpy.add(jax.numpy.ones(2), np.ones(2))  # the guard does refuse transfers
