"""Kills the evaluation job of a run at random points, restarts it, and compares the results.

    python -m tests.drills.eval_job --rounds 30 --seed 0

Each round kills the job three times and then lets it finish. In every second round a trainer runs
beside it, is killed once and resumes. Every result must be in `metrics.jsonl` once and equal that
of an uninterrupted job, the best checkpoint must be the same, and nothing may be left behind.
"""

from __future__ import annotations

import concurrent.futures
import functools
import pathlib
import random
import shutil
import sys

from tests.drills import runs
from tests.e2e import program

KILLS = 3  # of the job, per round


class Drill(runs.KillDrill):
    """Kills and restarts the evaluation job, and the trainer beside it."""

    def __init__(self, directory: pathlib.Path, env: dict[str, str]):
        super().__init__(directory, env)
        self._trained = directory / "trained" / "run"
        self._train("trained", runs.Count(directory / "training")).check()
        self.expected = directory / "expected" / "run"
        shutil.copytree(self._trained, self.expected)
        self._evaluate("expected", runs.Count(directory / "evaluation")).check()
        self._events = {
            name: int((directory / name).read_text()) for name in ("training", "evaluation")
        }

    def _run(self, name: str, process: str, before=None, *flags: str) -> program.Finished:
        """Runs a process of the run `name` in a directory of its own for its logs."""
        directory = self._directory / name / process
        directory.mkdir(parents=True, exist_ok=True)
        run = runs.arguments(self._directory / name / "run", "job")
        return program.run([*run, *flags], directory, self._env, before=before, timeout=600)

    def _train(self, name: str, before=None) -> program.Finished:
        return self._run(name, "trainer", before)

    def _evaluate(self, name: str, before=None) -> program.Finished:
        return self._run(name, "job", before, "--mode=eval")

    def round(self, seed: int) -> list[str]:
        """Returns the differences from the uninterrupted job."""
        rng, name = random.Random(seed), f"round-{seed}"
        kills = [runs.Kill.sample(rng, self._events["evaluation"]) for _ in range(KILLS)]
        of_trainer = runs.Kill.sample(rng, self._events["training"])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            if seed % 2:
                train = functools.partial(self._train, name)
                training = pool.submit(self._kill_and_finish, train, [of_trainer])
            else:
                shutil.copytree(self._trained, self._directory / name / "run")
                training = pool.submit(list)
            evaluate = functools.partial(self._evaluate, name)
            wrong = self._kill_and_finish(evaluate, kills) or training.result()
        if wrong:
            return wrong
        run = self._directory / name / "run"
        return [f"after {kills}: {line}" for line in runs.differences(self.expected, run)]


def main() -> int:
    """Runs the drill and returns the exit status."""
    return runs.repeat("eval_job", Drill, __doc__)


if __name__ == "__main__":
    sys.exit(main())
