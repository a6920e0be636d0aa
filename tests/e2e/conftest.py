"""Runs that several tests look at; each is made once."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from tests.e2e import program


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has ended: its directory, and what the command said and wrote then."""

    path: pathlib.Path
    stdout: str
    log: str
    metrics: list[dict]


@pytest.fixture(scope="session")
def python(user_env):
    """`python(folder, *arguments)`: `python -m mmjax.main …` as typed in `folder`.

    XLA's flags are a user's here, not those that make tests quick.
    """

    def run(folder, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "mmjax.main", *arguments],
            cwd=folder,
            env=user_env(),
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def command(user_env):
    """`command(folder, *arguments)`: the same without the time that imports take, `program.run`."""

    def run(folder, *arguments, devices=1, before=None):
        env = user_env(devices=devices, quick=True)
        return program.run(arguments, pathlib.Path(folder), env, before=before)

    return run


@pytest.fixture(scope="session")
def pretrained(python, tmp_path_factory):
    """The demo recipe, two steps, in the default run directory."""
    folder = tmp_path_factory.mktemp("somewhere")
    done = python(folder, "--task=pretrain", "--config=demo:smoke")
    assert done.returncode == 0, done.stderr
    path = folder / "runs" / "pretrain-demo-smoke"
    return Run(path, done.stdout, done.stderr, program.metrics_of(path))


@pytest.fixture(scope="session")
def finetuned(command, pretrained, tmp_path_factory):
    """The fine-tuning demo from it, two steps."""
    folder = tmp_path_factory.mktemp("elsewhere")
    source = f"--override_checkpoint={pretrained.path}"
    done = command(folder, "--task=finetune", "--config=demo:smoke", source).check()
    path = folder / "runs" / "finetune-demo-smoke"
    return Run(path, done.stdout, done.log, program.metrics_of(path))
