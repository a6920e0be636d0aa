"""The profiled window of steps."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.errors import UserError
from mmjax.monitor.profiler import Profiler, parse_window


def test_parse():
    assert parse_window("20:25") == (20, 25)
    assert parse_window(" 0 : 1 ") == (0, 1)
    assert parse_window("") is None


@pytest.mark.parametrize("spec", ["20", "20:", ":3", "a:b", "-1:3", "1:2:3", "1.5:3"])
def test_a_malformed_window_is_quoted(spec):
    with pytest.raises(UserError, match="is not START:STOP.*such as 20:25") as error:
        parse_window(spec)
    assert f"--profile={spec} " in str(error.value)


@pytest.mark.parametrize("spec", ["5:5", "6:5"])
def test_an_empty_window_is_an_error(spec):
    with pytest.raises(UserError, match="covers no step"):
        parse_window(spec)


def test_a_window_behind_the_end_is_an_error():
    with pytest.raises(UserError, match="behind the last step of this run, 99"):
        parse_window("100:105", total_steps=100)
    assert parse_window("99:105", total_steps=100) == (99, 105)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize(("first", "traced"), [(0, [3, 4]), (4, [4]), (5, [])])
def test_exactly_the_window_is_traced(tmp_path, calls, first, traced):
    inside = []
    with Profiler(tmp_path / "profile", (3, 5)) as profiler:
        for step in range(first, 8):
            profiler.at(step)
            if calls and calls[-1] != "stop":
                inside.append(step)
    assert inside == traced
    assert calls == ([str(tmp_path / "profile"), "stop"] if traced else [])


def test_a_run_that_ends_inside_the_window_closes_its_trace(tmp_path, calls):
    with pytest.raises(ZeroDivisionError), Profiler(tmp_path, (3, 50)) as profiler:
        for step in range(5):
            profiler.at(step)
        assert calls == [str(tmp_path)]
        raise ZeroDivisionError
    assert calls == [str(tmp_path), "stop"]


def test_no_window_does_nothing(tmp_path, calls):
    with Profiler(tmp_path / "profile", None) as profiler:
        profiler.at(0)
    assert calls == [] and not (tmp_path / "profile").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, calls):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/profile"):
        Profiler(tmp_path / "file" / "profile", (0, 1)).at(0)


def test_a_real_trace_is_written(tmp_path):
    value = jnp.ones(4)
    with Profiler(tmp_path, (1, 2)) as profiler:
        for step in range(3):
            profiler.at(step, value)
            value = value * 2
    assert list(tmp_path.rglob("*.xplane.pb"))
