"""Tests of rates, shares and ETA with a simulated clock."""

import pytest

from mmjax.monitor.progress import Progress
from tests.messages import assert_mentions


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(progress, clock, steps, *, data, step):
    for _ in range(steps):
        with progress.data():
            clock.now += data
        with progress.step():
            clock.now += step


def test_rates_shares_and_eta_exclude_compilation():
    clock = Clock()
    progress = Progress(100, batch_size=32, clock=clock)
    run(progress, clock, 1, data=5.0, step=60.0)  # compilation
    run(progress, clock, 9, data=0.1, step=0.3)
    metrics = progress.metrics()
    assert progress.first_step_seconds == pytest.approx(60)
    assert metrics["perf/step_seconds"] == pytest.approx(0.4)
    assert metrics["perf/examples_per_second"] == pytest.approx(80)
    assert metrics["perf/data_share"] == pytest.approx(0.25)
    assert metrics["perf/step_share"] == pytest.approx(0.75)
    assert metrics["perf/eta_seconds"] == pytest.approx(90 * 0.4)
    assert progress.elapsed == pytest.approx(65 + 3.6)


def test_pauses_do_not_count():
    clock = Clock()
    progress = Progress(10, batch_size=1, clock=clock)
    run(progress, clock, 3, data=0, step=1.0)
    with progress.pause():
        clock.now += 1000
    run(progress, clock, 2, data=0, step=1.0)
    assert progress.metrics()["perf/step_seconds"] == pytest.approx(1)
    assert progress.metrics()["perf/eta_seconds"] == pytest.approx(5)


def test_other_time_counts_as_neither_data_nor_step():
    clock = Clock()
    progress = Progress(10, batch_size=1, clock=clock)
    run(progress, clock, 2, data=0.2, step=0.2)
    clock.now += 0.4  # e.g. logging
    metrics = progress.metrics()
    assert metrics["perf/data_share"] == metrics["perf/step_share"] == pytest.approx(0.25)


def test_waiting_for_the_device_after_the_last_step_counts():
    clock = Clock()
    progress = Progress(10, batch_size=4, clock=clock)
    run(progress, clock, 5, data=0, step=0)  # Steps are dispatched asynchronously.
    clock.now += 8  # Fetching the metrics waits for them.
    assert progress.metrics()["perf/examples_per_second"] == pytest.approx(2)


def test_the_eta_follows_recent_steps():
    clock = Clock()
    progress = Progress(2000, batch_size=1, clock=clock)
    run(progress, clock, 500, data=0, step=10.0)
    run(progress, clock, 500, data=0, step=1.0)
    assert progress.metrics()["perf/eta_seconds"] == pytest.approx(1000)


def test_resumed_run_computes_the_eta_from_its_first_step():
    clock = Clock()
    progress = Progress(900, first_step=890, batch_size=1, clock=clock)
    run(progress, clock, 4, data=0, step=1.0)
    assert progress.metrics()["perf/eta_seconds"] == pytest.approx(6)


def test_the_compiling_step_gives_no_rates():
    clock = Clock()
    progress = Progress(900, batch_size=1, clock=clock)
    assert progress.metrics() == {}
    assert progress.line(0).endswith("  0/900")
    run(progress, clock, 1, data=0, step=12.0)
    assert progress.metrics() == {}
    line = progress.line(1, {"loss": 3.0})
    assert_mentions(line, "  1/900", "loss 3 ", "12.0 s")
    assert not any(rate in line for rate in ("ex/s", "%", "MFU", "ETA"))


def test_waiting_for_the_first_results_counts_for_the_first_step():
    clock = Clock()
    progress = Progress(900, batch_size=8, clock=clock)
    for _ in range(2):
        run(progress, clock, 1, data=0, step=1.0)
        with progress.step():
            clock.now += 3.0
    assert progress.first_step_seconds == pytest.approx(4)
    assert progress.metrics()["perf/examples_per_second"] == pytest.approx(8 / 4)
    assert progress.metrics()["perf/step_share"] == pytest.approx(1)


def test_line_has_losses_rates_memory_and_eta(monkeypatch):
    monkeypatch.setattr(
        "mmjax.monitor.report.device_memory", lambda: [{"peak": 2**30}, {"peak": 1.2 * 2**30}]
    )
    clock = Clock()
    progress = Progress(900, batch_size=203, flops_per_step=0.205e12, peak_flops=2e12, clock=clock)
    run(progress, clock, 400, data=0.0075, step=0.2425)
    line = progress.line(400, {"loss": 2.3123})
    assert_mentions(line, "400/900", "loss 2.312 ", "812 ex/s", "data 3 %", "step 97 %")
    assert_mentions(line, "MFU 41 %", "1.2 GiB", "ETA 2:05")
    assert line.index("/900") == progress.line(0).index("/900")  # aligned
    assert "\n" not in line
    assert progress.metrics()["perf/mfu"] == pytest.approx(0.41)


def test_no_mfu_without_a_known_peak():
    clock = Clock()
    progress = Progress(10, batch_size=1, flops_per_step=1e9, peak_flops=None, clock=clock)
    run(progress, clock, 3, data=0, step=1.0)
    assert "perf/mfu" not in progress.metrics() and "MFU" not in progress.line(3)


def test_failed_step_is_not_counted():
    clock = Clock()
    progress = Progress(10, batch_size=1, clock=clock)
    run(progress, clock, 2, data=0, step=1.0)
    with pytest.raises(ZeroDivisionError), progress.step():
        raise ZeroDivisionError
    assert progress.metrics()["perf/eta_seconds"] == pytest.approx(8)


def test_waiting_without_a_new_batch_adds_time_but_no_step():
    clock = Clock()
    progress = Progress(10, batch_size=1, clock=clock)
    run(progress, clock, 3, data=0, step=1.0)
    with progress.step():
        clock.now += 2
    metrics = progress.metrics()
    assert metrics["perf/step_seconds"] == pytest.approx(2)
    assert metrics["perf/step_share"] == pytest.approx(1)
    assert metrics["perf/eta_seconds"] == pytest.approx(7 * 2)
