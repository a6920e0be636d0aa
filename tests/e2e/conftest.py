"""Runs shared by several tests; each is trained once."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from tests.e2e import program


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its directory, and the output and metrics at the end of its command."""

    path: pathlib.Path
    stdout: str
    log: str
    metrics: list[dict]


@pytest.fixture(scope="session")
def python(user_env):
    """`python(directory, *arguments)`: runs `python -m mmjax.main …` in a directory.

    XLA's flags are those of a user, not the ones that make tests faster.
    """

    def run(directory, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "mmjax.main", *arguments],
            cwd=directory,
            env=user_env(),
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def command(user_env):
    """`command(directory, *arguments)`: the same without repeating the imports, `program.run`."""

    def run(directory, *arguments, devices=1, before=None):
        env = user_env(devices=devices, quick=True)
        return program.run(arguments, pathlib.Path(directory), env, before=before)

    return run


@pytest.fixture(scope="session")
def pretrained(python, tmp_path_factory):
    """The demo recipe, trained for two steps in the default run directory."""
    directory = tmp_path_factory.mktemp("somewhere")
    done = python(directory, "--task=pretrain", "--config=demo:smoke")
    assert done.returncode == 0, done.stderr
    path = directory / "runs" / "pretrain-demo-smoke"
    return Run(path, done.stdout, done.stderr, program.metrics_of(path))


@pytest.fixture(scope="session")
def finetuned(command, pretrained, tmp_path_factory):
    """The fine-tuning demo, initialized from `pretrained` and trained for two steps."""
    directory = tmp_path_factory.mktemp("elsewhere")
    source = f"--override_checkpoint={pretrained.path}"
    done = command(directory, "--task=finetune", "--config=demo:smoke", source).check()
    path = directory / "runs" / "finetune-demo-smoke"
    return Run(path, done.stdout, done.log, program.metrics_of(path))
