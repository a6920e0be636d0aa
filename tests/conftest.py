"""What all tests share: eight CPU devices in every process, and one cache for all workers."""

import importlib.metadata
import os
import pathlib
import shutil
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
_DEVICES = "--xla_force_host_platform_device_count={}"
# Tests compile much and compute little: without LLVM's optimisations they take half the time, and
# half of that again where fusions are emitted the plain way and on one thread. The demo of
# tests/e2e compiles as it does for users.
_QUICK = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
# XLA aborts at flags that it does not know, and a later one may have dropped these.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK += ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")

# Read when JAX makes its first array, so before any test module is imported.
_USER_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([_USER_FLAGS, _DEVICES.format(8), *_QUICK])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_configure(config):
    """One MMJAX_CACHE for the whole session: the workers of pytest-xdist inherit the variable."""
    if not hasattr(config, "workerinput"):
        config.mmjax_cache = tempfile.mkdtemp(prefix="mmjax-tests-")
        os.environ["MMJAX_CACHE"] = config.mmjax_cache


def pytest_unconfigure(config):
    if hasattr(config, "mmjax_cache"):
        shutil.rmtree(config.mmjax_cache, ignore_errors=True)


@pytest.fixture(scope="session")
def user_env():
    """Makes the environment of a user's process, for tests that start `python -m mmjax.…`.

    It has one CPU device (or `devices`), this checkout on its path and the session's cache; `quick`
    turns LLVM's optimisations off, other keywords become variables.
    """

    def make(devices=1, quick=False, **variables):
        env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        env["JAX_PLATFORMS"] = "cpu"
        quickly = _QUICK if quick else ()
        env["XLA_FLAGS"] = " ".join([_USER_FLAGS, _DEVICES.format(devices), *quickly])
        env["PYTHONPATH"] = os.pathsep.join(
            [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        return env | variables

    return make


@pytest.fixture
def mesh():
    """One device, and the mesh is set, as the trainer does."""
    from mmjax import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
