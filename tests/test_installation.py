"""The package works however it is installed: recipes, assets and commands are found.

`pytest -m slow tests/test_installation.py` also trains in every installation.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.conftest import REPOSITORY
from tests.messages import assert_mentions

SOURCES = ("configs", "data", "mmjax", "tools", "setup.py", "pyproject.toml", "MANIFEST.in")
TOP_LEVEL = {"mmjax": "", "configs": "configs", "data": "assets", "tools": "tools"}
# Prints where the package and its parts come from. Run in a directory other than a checkout.
PROBE = """
import json, pathlib
import mmjax
from mmjax import assets, config, configs
from mmjax.tools import bench, cli
recipe = config.load("touch", "demo:smoke")
files = sorted(path.name for path in pathlib.Path(assets.__path__[0], "synonyms").iterdir())
print(json.dumps({
    "mmjax": mmjax.__file__, "configs": configs.__path__[0], "assets": assets.__path__[0],
    "tools": cli.__file__, "bench": bench.__file__, "task": recipe.task, "synonyms": files,
}))
"""


@dataclasses.dataclass(frozen=True)
class Installation:
    """A way to run mmjax.

    Attributes:
      environment: Virtual environment with the dependencies of this one.
      root: Directory that must contain everything that is used: a site-packages or a checkout.
      directory: The current directory of the commands.
      has_script: Whether the console script `mmjax` is installed.
      files: Files of the package, relative to it, that must be installed.
    """

    environment: pathlib.Path
    root: pathlib.Path
    directory: pathlib.Path
    has_script: bool = True
    files: frozenset[pathlib.Path] = frozenset()

    def python(self, *arguments, env):
        return run([self.environment / "bin/python", *arguments], cwd=self.directory, env=env)

    def script(self, *arguments, env):
        return run([self.environment / "bin/mmjax", *arguments], cwd=self.directory, env=env)


def run(command, *, cwd, env):
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=500
    )


def site_packages(environment):
    paths = {"base": str(environment), "platbase": str(environment)}
    return pathlib.Path(sysconfig.get_path("purelib", "venv", vars=paths))


def package_files(checkout):
    """Returns the files of the package, relative to it; top-level directories are mapped."""
    files = set()
    for source, target in TOP_LEVEL.items():
        for path in (checkout / source).rglob("*.*"):
            files.add(pathlib.Path(target) / path.relative_to(checkout / source))
    return frozenset(file for file in files if "__pycache__" not in file.parts)


class Builder:
    """Makes checkouts, packages and environments in a directory."""

    def __init__(self, directory):
        self.directory = directory
        self._env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_TARGET")}
        self._env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        self._pip = [sys.executable, "-m", "pip"]
        if not importlib.util.find_spec("pip"):
            venv.create(directory / "pip", with_pip=True)
            self._pip = [directory / "pip/bin/python", "-m", "pip"]
        # The build needs a setuptools that makes wheels itself; download one only if necessary.
        if not _has_setuptools(70, 1):
            target = directory / "setuptools"
            self._check(self._pip + ["install", "-q", "--target", target, "setuptools>=70.1"])
            self._env["PYTHONPATH"] = str(target)

    def checkout(self, name):
        """Copies the sources: building must not write into this checkout."""
        target = self.directory / name
        target.mkdir()
        for source in SOURCES:
            path = REPOSITORY / source
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, target / source, ignore=ignore)
            else:
                shutil.copy(path, target)
        shutil.copy(REPOSITORY / "README.md", target)
        return target

    def build(self, checkout, package):
        """Returns a new 'sdist' or 'wheel' of a checkout."""
        out = self.directory / f"{checkout.name}-{package}"
        code = f"from setuptools import build_meta; build_meta.build_{package}({str(out)!r})"
        out.mkdir()
        self._check([sys.executable, "-c", code], cwd=checkout)
        (file,) = out.iterdir()
        return file

    def environment(self, name, *requirement):
        """Makes an environment with the dependencies of this one, and installs mmjax there."""
        path = self.directory / name
        venv.create(path, symlinks=True)
        dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        # Only the directories are added: the .pth files in them, as of mmjax, have no effect.
        (site_packages(path) / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
        if requirement:
            options = ["-q", "--no-deps", "--no-build-isolation", "--ignore-installed"]
            python = ["--python", path / "bin/python"]
            self._check([*self._pip, *python, "install", *options, *requirement])
        return path

    def _check(self, command, cwd=None):
        process = run(command, cwd=cwd or self.directory, env=self._env)
        assert process.returncode == 0, process.stdout + process.stderr


def _has_setuptools(*minimum):
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= minimum


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return Builder(tmp_path_factory.mktemp("installation"))


@pytest.fixture(scope="module")
def installation(builder):
    """Returns a function that returns the installation of a name, and makes it at the first use."""
    cache = {}

    def make(name):
        elsewhere = builder.directory / f"elsewhere-{name}"
        elsewhere.mkdir()
        if name == "not_installed":
            checkout = builder.checkout("checkout-c")
            environment = builder.environment(name)
            return Installation(environment, checkout, checkout, has_script=False)
        if name == "other_checkout":
            checkout = builder.checkout("checkout-b")
            return Installation(get("editable").environment, checkout, checkout)
        checkout = builder.checkout(f"checkout-{name}")
        if name == "editable":
            return Installation(builder.environment(name, "-e", checkout), checkout, elsewhere)
        source = checkout if name == "plain" else builder.build(checkout, name)
        environment = builder.environment(name, source)
        files = package_files(checkout)
        shutil.rmtree(checkout)  # nothing may be read from there
        return Installation(environment, site_packages(environment), elsewhere, files=files)

    def get(name):
        if name not in cache:
            cache[name] = make(name)
        return cache[name]

    return get


@pytest.fixture
def env(user_env):
    """The environment of a user, without this checkout on PYTHONPATH."""
    variables = user_env(quick=True)
    del variables["PYTHONPATH"]
    return variables


WAYS = ("editable", "plain", "sdist", "wheel", "not_installed", "other_checkout")


@pytest.mark.parametrize("way", WAYS)
def test_recipes_assets_and_commands_come_from_the_installation(way, installation, env):
    mmjax = installation(way)
    process = mmjax.python("-c", PROBE, env=env)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["task"] == "touch" and "tactile.json" in result["synonyms"]
    for part in ("mmjax", "configs", "assets", "tools", "bench"):
        assert pathlib.Path(result[part]).resolve().is_relative_to(mmjax.root.resolve()), part


@pytest.mark.parametrize("way", WAYS)
def test_console_command(way, installation, env):
    mmjax = installation(way)
    process = mmjax.python("-m", "mmjax.tools.cli", "--help", env=env)
    assert process.returncode == 0, process.stderr
    assert_mentions(process.stdout, "usage: mmjax", "build", "bench")
    if mmjax.has_script:
        assert mmjax.script("--help", env=env).stdout == process.stdout


def test_console_script_says_that_it_runs_another_checkout(installation, env):
    mmjax = installation("other_checkout")
    process = mmjax.script("import", "--list", env=env)
    assert process.returncode == 0, process.stderr
    editable = installation("editable").root
    assert_mentions(process.stderr, editable, "python -m mmjax.tools.cli")


@pytest.mark.parametrize("way", ["sdist", "wheel", "plain"])
def test_every_file_is_installed(way, installation):
    mmjax = installation(way)
    assert pathlib.Path("assets/synonyms/tactile.json") in mmjax.files
    missing = [str(f) for f in mmjax.files if not (mmjax.root / "mmjax" / f).is_file()]
    assert not missing


def check_training(mmjax, env):
    arguments = ["--task=touch", "--config=demo:smoke", "--config.total_steps=2", "--model_dir=run"]
    process = mmjax.python("-m", "mmjax.main", *arguments, env=env)
    assert process.returncode == 0, process.stderr[-3000:]
    metrics = (mmjax.directory / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["step"] == 2


def test_demo_trains_from_a_wheel(installation, env):
    check_training(installation("wheel"), env)


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "wheel"])
def test_demo_trains(way, installation, env):
    check_training(installation(way), env)
