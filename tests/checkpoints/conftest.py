"""Fixtures of the tests of run directories."""

import contextlib
import os

import pytest


@pytest.fixture
def unprivileged(tmp_path):
    """`with unprivileged():` gives up root's right to open everything."""

    @contextlib.contextmanager
    def user():
        if os.geteuid() != 0:
            yield
            return
        directories = [tmp_path, *list(tmp_path.parents)[:-2]]
        modes = [path.stat().st_mode for path in directories]
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.lchown(path, 65534, -1)
        for path in directories:
            path.chmod(0o755)
        os.seteuid(65534)  # all threads of the process
        try:
            yield
        finally:
            os.seteuid(0)
            for path, mode in zip(directories, modes, strict=True):
                path.chmod(mode)

    return user
