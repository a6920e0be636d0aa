"""Shared test setup: eight CPU devices per process and one MMJAX_CACHE for all workers."""

import importlib.metadata
import os
import pathlib
import shutil
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
_DEVICES = "--xla_force_host_platform_device_count={}"
# Compilation dominates the run time of tests. Turning LLVM optimizations off halves it, and the
# older fusion emitter with single-threaded code generation halves it again. The demo in tests/e2e
# compiles with the settings of a user.
_QUICK = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
# XLA aborts on unknown flags, and later versions may drop these.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK += ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")

# Directories of tests that run whole commands.
_LONG = ("tests/e2e/", "tests/multi/", "tests/docs/", "tests/tools/")

# JAX reads these when it creates its first array, so set them before importing any test module.
_USER_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([_USER_FLAGS, _DEVICES.format(8), *_QUICK])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_configure(config):
    """Creates one MMJAX_CACHE per session; pytest-xdist workers inherit the variable."""
    if not hasattr(config, "workerinput"):
        config.mmjax_cache = tempfile.mkdtemp(prefix="mmjax-tests-")
        os.environ["MMJAX_CACHE"] = config.mmjax_cache


def pytest_collection_modifyitems(items):
    """Starts with the files that train, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


def pytest_unconfigure(config):
    if hasattr(config, "mmjax_cache"):
        shutil.rmtree(config.mmjax_cache, ignore_errors=True)


@pytest.fixture(scope="session")
def user_env():
    """Returns a function that makes the environment of a user's process (`python -m mmjax.…`).

    The environment has `devices` CPU devices (default: one), this checkout on PYTHONPATH and the
    cache of the session. `quick` turns LLVM optimizations off. Other keywords become environment
    variables.
    """

    def make(devices=1, quick=False, **variables):
        env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        env["JAX_PLATFORMS"] = "cpu"
        extra_flags = _QUICK if quick else ()
        env["XLA_FLAGS"] = " ".join([_USER_FLAGS, _DEVICES.format(devices), *extra_flags])
        env["PYTHONPATH"] = os.pathsep.join(
            [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        return env | variables

    return make


@pytest.fixture
def mesh():
    """A one-device mesh, set as the current mesh like in the trainer."""
    from mmjax import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
