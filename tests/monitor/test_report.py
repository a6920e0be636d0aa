"""Tests of tables, formatting of sizes and durations, and memory of this process."""

import mmap
import os
import time

import jax
import pytest

from mmjax.monitor import report
from tests.messages import assert_mentions, raises


def test_table_aligns_text_left_and_numbers_right():
    text = report.format_table(
        ("name", "value", "n"), [("R@1", 0.34567, 200), ("mean rank", 12.5, 8)], title="Results"
    )
    assert text.splitlines() == [
        "Results",
        "name        value    n",
        "---------  ------  ---",
        "R@1        0.3457  200",
        "mean rank    12.5    8",
    ]


def test_table_rejects_incomplete_rows():
    with raises(ValueError, 2, 3, "['1', '2']"):
        report.format_table(("a", "b", "c"), [(1, 2)])


def test_final_report_has_results_memory_duration_and_metrics_path(capsys, tmp_path, monkeypatch):
    memory = {"device": "cuda:7", "in_use": 2**30, "peak": 3 * 2**30, "limit": None}
    monkeypatch.setattr(report, "device_memory", lambda: [memory])
    report.print_final("retrieval   R@1      0.31", tmp_path, seconds=61)
    text = capsys.readouterr().out
    assert text.startswith("retrieval   R@1      0.31\n")
    assert_mentions(text, "cuda:7", "3.0 GiB", "1:01", tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (2048, "2.0 KiB"),
        (1.2 * 2**30, "1.2 GiB"),
        (2**57, "131072 TiB"),
    ],
)
def test_format_bytes(count, text):
    assert report.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (41, "0:41"), (59.6, "1:00"), (11220, "3:07:00"), (90061, "1d 01:01:01")],
)
def test_format_seconds(seconds, text):
    assert report.format_seconds(seconds) == text


def test_host_memory_sees_an_allocation():
    before = report.device_memory()
    if before[0]["device"] != "host":
        pytest.skip("the devices of this machine report their own memory")
    size = 2**26
    # Not from the allocator, which may have kept freed memory of earlier tests.
    with mmap.mmap(-1, size) as block:
        block.write(b"1" * size)  # resident from now on
        for _ in range(50):  # some kernels count with a delay
            after = report.device_memory()
            if after[0]["in_use"] - before[0]["in_use"] > size * 0.9:
                break
            time.sleep(0.1)
    assert size * 0.9 < after[0]["in_use"] - before[0]["in_use"] < size * 2.5
    assert after[0]["peak"] >= after[0]["in_use"] * 0.9 and after[0]["limit"] is None


def test_memory_of_devices_that_report_it(monkeypatch):
    class Device:
        def __init__(self, name, stats):
            self.name, self.stats = name, stats

        def memory_stats(self):
            return self.stats

        def __str__(self):
            return self.name

    stats = {"bytes_in_use": 2**30, "peak_bytes_in_use": 2**31, "bytes_limit": 2**32}
    monkeypatch.setattr(jax, "local_devices", lambda: [Device("cuda:0", stats)])
    assert report.device_memory() == [
        {"device": "cuda:0", "in_use": 2**30, "peak": 2**31, "limit": 2**32}
    ]
    assert report.memory_table().splitlines()[-1].split() == (
        "cuda:0 1.0 GiB 2.0 GiB 4.0 GiB".split()
    )


def test_environment_has_versions_devices_and_available_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    description = report.environment()
    assert description["versions"]["jax"] == jax.__version__
    assert description["devices"].startswith(f"{jax.device_count()} x ")
    assert description["cpus"] == 3
