"""A short, seeded selection of the drills."""

import pytest

from tests.drills.kill import Drill


@pytest.fixture(scope="module")
def kill_drill(tmp_path_factory, user_env):
    return Drill(tmp_path_factory.mktemp("kill"), user_env(quick=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_points_equals_an_uninterrupted_one(kill_drill, seed):
    assert kill_drill.round(seed) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 33))
def test_many_runs_killed_at_random_points_equal_an_uninterrupted_one(kill_drill, seed):
    assert kill_drill.round(seed) == []
