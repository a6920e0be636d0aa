"""The training loop. The task defines what is learned, `step.py` defines one update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging

from mmjax import config
from mmjax.config import Config
from mmjax.session import open_session


def train(
    cfg: Config | Mapping[str, Any],
    model_dir: str,
    *,
    max_hours: float = 0.0,
    profile: str = "",
) -> dict[str, float]:
    """Trains to `cfg.total_steps`, or until SIGTERM or `max_hours`, and evaluates.

    Args:
      cfg: A recipe with its overrides.
      model_dir: The run directory. A run that was interrupted there is resumed.
      max_hours: Save and stop after this many hours; 0 is no limit.
      profile: 'START:STOP', the steps to profile.

    Returns:
      The newest value of every evaluation metric; {} if the run was already complete.

    Raises:
      UserError: A problem that the user can fix.
    """
    cfg = config.resolve(cfg)
    with open_session(cfg, model_dir, max_hours=max_hours, profile=profile) as session:
        if session.already_complete:
            logging.info(
                "This run is already complete (step %d). Its results are in %s. To continue, "
                "increase --config.total_steps; for a new run, pass another --model_dir.",
                session.step,
                session.run.path / "metrics.jsonl",
            )
            return {}
        session.evaluate_missed()
        while not session.done:
            session.update(session.next_batch())
            if session.log_due:
                session.log()
            session.check_stop()
            if session.save_due:
                session.save()
            if not session.stop_reason:
                session.evaluate()
        return session.finish()
