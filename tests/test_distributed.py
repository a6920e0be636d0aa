"""How a process ends whose job has lost another process."""

import logging
import os

import jax
import pytest

from mmjax import distributed
from tests.messages import assert_mentions

GLOO = "Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4567\nmore"


@pytest.fixture
def status(monkeypatch):
    """The exit statuses of this process, which is one of two."""
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    return statuses


def test_a_lost_process_ends_this_one_with_a_message(status, caplog):
    with caplog.at_level(logging.ERROR, logger="absl"), distributed.report_lost_processes():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert status == [1]
    (record,) = caplog.records
    assert_mentions(record.getMessage(), "Process 0", "closed by peer", "resume")
    assert "more" not in record.getMessage() and record.exc_info is None


def test_other_errors_are_raised(status, monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError), distributed.report_lost_processes():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    with pytest.raises(jax.errors.JaxRuntimeError), distributed.report_lost_processes():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert status == []
