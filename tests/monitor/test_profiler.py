"""Tests of `--profile`: parsing the window of steps and tracing exactly that window."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.errors import UserError
from mmjax.monitor.profiler import Profiler, parse_window
from tests.messages import assert_mentions, raises


def test_parse_window():
    assert parse_window("20:25") == (20, 25)
    assert parse_window(" 0 : 1 ") == (0, 1)
    assert parse_window("") is None


@pytest.mark.parametrize("spec", ["20", "20:", ":3", "a:b", "-1:3", "1:2:3", "1.5:3"])
def test_malformed_window_is_quoted(spec):
    with raises(UserError, f"--profile={spec}", "START:STOP", "20:25"):
        parse_window(spec)


@pytest.mark.parametrize("spec", ["5:5", "6:5"])
def test_empty_window_is_rejected(spec):
    with raises(UserError, f"--profile={spec}", "START", "STOP") as info:
        parse_window(spec)
    assert "START:STOP" not in str(info.value)  # The format is valid.


def test_window_after_the_last_step_is_rejected():
    with raises(UserError, "--profile=100:105", 99):
        parse_window("100:105", total_steps=100)
    assert parse_window("99:105", total_steps=100) == (99, 105)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(directory))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize(("first", "traced"), [(0, [3, 4]), (4, [4]), (5, [])])
def test_only_the_window_is_traced(tmp_path, calls, first, traced):
    inside = []
    with Profiler(tmp_path / "profile", (3, 5)) as profiler:
        for step in range(first, 8):
            profiler.at(step)
            if calls and calls[-1] != "stop":
                inside.append(step)
    assert inside == traced
    assert calls == ([str(tmp_path / "profile"), "stop"] if traced else [])


def test_trace_is_closed_if_the_run_ends_inside_the_window(tmp_path, calls):
    with pytest.raises(ZeroDivisionError), Profiler(tmp_path, (3, 50)) as profiler:
        for step in range(5):
            profiler.at(step)
        assert calls == [str(tmp_path)]
        raise ZeroDivisionError
    assert calls == [str(tmp_path), "stop"]


def test_without_a_window_nothing_is_traced(tmp_path, calls):
    with Profiler(tmp_path / "profile", None) as profiler:
        profiler.at(0)
    assert calls == [] and not (tmp_path / "profile").exists()


def test_directory_that_cannot_be_created_is_named(tmp_path, calls):
    (tmp_path / "file").write_text("")
    with raises(UserError, tmp_path / "file" / "profile") as info:
        Profiler(tmp_path / "file" / "profile", (0, 1)).at(0)
    assert_mentions(info.value, info.value.__cause__.strerror)


def test_jax_writes_a_trace_file(tmp_path):
    value = jnp.ones(4)
    with Profiler(tmp_path, (1, 2)) as profiler:
        for step in range(3):
            profiler.at(step, value)
            value = value * 2
    assert list(tmp_path.rglob("*.xplane.pb"))
