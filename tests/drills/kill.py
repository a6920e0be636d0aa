"""Kills a training run at random points, resumes it, and compares it with an uninterrupted run.

    python -m tests.drills.kill --rounds 30 --seed 0

Each round kills the run three times and then lets it finish. `metrics.jsonl` must be the same line
by line except times, the states bit for bit, and nothing may be left behind.
"""

from __future__ import annotations

import functools
import pathlib
import random
import sys

from tests.drills import runs
from tests.e2e import program

KILLS = 3  # per round


class Drill(runs.KillDrill):
    """Kills and resumes training."""

    def __init__(self, directory: pathlib.Path, env: dict[str, str]):
        super().__init__(directory, env)
        self.expected = directory / "expected" / "run"
        counted = directory / "events"
        self._train("expected", runs.Count(counted)).check()
        self._events = int(counted.read_text())

    def _train(self, name: str, before=None) -> program.Finished:
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        return program.run(runs.arguments(), directory, self._env, before=before, timeout=600)

    def round(self, seed: int) -> list[str]:
        """Returns the differences from the uninterrupted run."""
        rng, name = random.Random(seed), f"round-{seed}"
        kills = [runs.Kill.sample(rng, self._events) for _ in range(KILLS)]
        if wrong := self._kill_and_finish(functools.partial(self._train, name), kills):
            return wrong
        found = runs.differences(self.expected, self._directory / name / "run")
        return [f"after {kills}: {line}" for line in found]


def main() -> int:
    """Runs the drill and returns the exit status."""
    return runs.repeat("kill", Drill, __doc__)


if __name__ == "__main__":
    sys.exit(main())
