"""A short, seeded selection of the drills."""

import pytest

from tests.drills import disk, eval_job, kill


@pytest.fixture(scope="module")
def kill_drill(tmp_path_factory, user_env):
    return kill.Drill(tmp_path_factory.mktemp("kill"), user_env(quick=True))


@pytest.fixture(scope="module")
def job_drill(tmp_path_factory, user_env):
    return eval_job.Drill(tmp_path_factory.mktemp("eval_job"), user_env(quick=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_points_equals_an_uninterrupted_one(kill_drill, seed):
    assert kill_drill.round(seed) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 33))
def test_many_runs_killed_at_random_points_equal_an_uninterrupted_one(kill_drill, seed):
    assert kill_drill.round(seed) == []


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_evaluation_job_loses_and_repeats_nothing(job_drill, seed):
    assert job_drill.round(seed) == []


@pytest.mark.parametrize("name", ["train", "build"])
def test_a_full_or_read_only_disk_costs_nothing_but_time(tmp_path, user_env, name):
    drill = disk.Drill(tmp_path, user_env(quick=True), name)
    assert [drill.round(seed) for seed in range(2)] == [[], []]
    assert drill.failed
