"""The profiled window of steps."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.errors import UserError
from mmjax.monitor.profiler import Profiler, parse_window


def test_parse():
    assert parse_window("20:25") == (20, 25)
    assert parse_window(" 0 : 1 ") == (0, 1)


@pytest.mark.parametrize("spec", ["20", "20:", ":3", "a:b", "-1:3", "1:2:3", "1.5:3"])
def test_a_malformed_window_is_quoted(spec):
    with pytest.raises(UserError, match=r"is not START:STOP.*'20:25'") as error:
        parse_window(spec)
    assert repr(spec) in str(error.value)


@pytest.mark.parametrize("spec", ["5:5", "6:5"])
def test_an_empty_window_is_an_error(spec):
    with pytest.raises(UserError, match="covers no step"):
        parse_window(spec)


def test_a_window_behind_the_end_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"after the last step \(99\)"):
        Profiler("100:105", tmp_path, total_steps=100)
    Profiler("99:105", tmp_path, total_steps=100)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize(("first", "traced"), [(0, [3, 4]), (4, [4]), (5, [])])
def test_exactly_the_window_is_traced(tmp_path, calls, first, traced):
    profiler = Profiler("3:5", tmp_path)
    inside = []
    for step in range(first, 8):
        profiler.update(step)
        if calls and calls[-1] != "stop":
            inside.append(step)
    profiler.close()
    assert inside == traced
    assert calls == ([str(tmp_path / "profile"), "stop"] if traced else [])


def test_a_run_that_ends_inside_the_window_closes_its_trace(tmp_path, calls):
    profiler = Profiler("3:50", tmp_path)
    for step in range(5):
        profiler.update(step)
    assert calls[-1] != "stop"
    profiler.close()
    profiler.close()
    assert calls.count("stop") == 1


def test_no_window_does_nothing(tmp_path, calls):
    profiler = Profiler(None, tmp_path)
    profiler.update(0)
    profiler.close()
    assert calls == [] and not profiler.folder.exists()


def test_a_real_trace_is_written(tmp_path):
    profiler = Profiler("1:2", tmp_path)
    value = jnp.ones(4)
    for step in range(3):
        profiler.update(step, value)
        value = value * 2
    assert list(profiler.folder.rglob("*.xplane.pb"))
