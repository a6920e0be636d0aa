"""Tables, sizes and the memory of this very process."""

import jax
import numpy as np
import pytest

from mmjax.monitor import report


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


def test_table_needs_whole_rows():
    with pytest.raises(ValueError, match="2 cells under 3"):
        report.format_table(("a", "b", "c"), [(1, 2)])


def test_the_final_report_has_results_memory_and_the_place_of_the_figures(capsys, tmp_path):
    report.print_final("retrieval   R@1      0.31", tmp_path, seconds=61)
    text = capsys.readouterr().out
    assert text.startswith("retrieval   R@1      0.31\n") and "peak" in text
    assert text.endswith(f"Done in 1:01. Metrics: {tmp_path / 'metrics.jsonl'}\n")


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
def test_bytes(count, text):
    assert report.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (41, "0:41"), (59.6, "1:00"), (11220, "3:07:00"), (90061, "1d 01:01:01")],
)
def test_seconds(seconds, text):
    assert report.format_seconds(seconds) == text


def test_host_memory_sees_an_allocation():
    before = report.device_memory()
    if before[0]["device"] != "host":
        pytest.skip("the devices of this machine report their own memory")
    block = np.ones(2**26, np.uint8)  # 64 MiB, touched
    after = report.device_memory()
    assert block.nbytes * 0.9 < after[0]["in_use"] - before[0]["in_use"] < block.nbytes * 2
    assert after[0]["peak"] >= after[0]["in_use"] * 0.9 and after[0]["limit"] is None


def test_memory_of_devices_that_know(monkeypatch):
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


def test_environment_names_versions_and_devices():
    description = report.environment()
    assert description["versions"]["jax"] == jax.__version__
    assert description["devices"].startswith(f"{jax.device_count()} x ")
    assert description["cpus"] >= 1
