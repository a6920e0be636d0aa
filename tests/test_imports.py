"""What is compiled for the accelerator does not load TensorFlow, which would take its memory."""

import pkgutil
import subprocess
import sys

import mmjax
import mmjax.losses
import mmjax.models
import mmjax.tasks

_ALONE = ["step", "optim", "preprocess", "sharding", "state", "checkpoint", "initialize", "rundir"]


def modules_of(package):
    found = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(module.name for module in found)]


def test_tensorflow_is_not_loaded(user_env):
    names = [f"mmjax.{name}" for name in _ALONE]
    for package in (mmjax.losses, mmjax.models, mmjax.tasks):
        names += modules_of(package)
    assert len(names) > len(_ALONE) + 6
    # One after another, so that the culprit is known.
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'tensorflow' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=user_env()
    )
    assert done.returncode == 0, done.stderr
