"""Modules used on the accelerator do not import TensorFlow, which would reserve its memory."""

import pkgutil
import subprocess
import sys

import mmjax
import mmjax.losses
import mmjax.models
import mmjax.tasks

_MODULES = [
    "step",
    "optim",
    "preprocess",
    "sharding",
    "state",
    "checkpoint",
    "initialize",
    "rundir",
]


def modules_of(package):
    modules = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(module.name for module in modules)]


def test_tensorflow_is_not_imported(user_env):
    names = [f"mmjax.{name}" for name in _MODULES]
    for package in (mmjax.losses, mmjax.models, mmjax.tasks):
        names += modules_of(package)
    assert len(names) > len(_MODULES) + 6
    # Imported one by one, so that the failure names the module.
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'tensorflow' not in sys.modules, name\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=user_env()
    )
    assert process.returncode == 0, process.stderr
