"""Every published recipe compiles for TPUs and GPUs. See `tests.aot.published` for a table."""

import pytest

from tests.aot import published


@pytest.mark.slow
@pytest.mark.parametrize("case", published.CASES, ids=str)
def test_a_published_recipe_compiles_and_fits(case, monkeypatch):
    if not published.has_compiler(case):
        pytest.skip("its compiler is not installed")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    result = published.analyze(case)
    assert result["fits"], result["memory"]
    assert not result["uncounted"]


@pytest.mark.parametrize(("task", "recipe"), published.RECIPES)
def test_published_batches_fill_the_devices(task, recipe):
    for topology, devices in (("v5e:2x4", 8), ("h200:1x1x1", 1)):
        cfg = published.config_of(published.Case(task, recipe, topology, "train_step"))
        assert cfg.batch_size == 8 * devices


def test_the_table_has_one_row_per_result():
    result = dict(
        recipe="touch tvl",
        function="train_step",
        topology="v5e:2x4",
        per_device=8,
        compile_seconds=61.2,
        fits=False,
        memory=dict(arguments=2**20, temporaries=2**21, peak=2**32, limit=2**31),
        collectives=[dict(count=3, kind="all-reduce", bytes=2**10)],
    )
    failed = dict(case=published.CASES[0], error="crashed with SIGSEGV")
    lines = published.table([result, failed]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:5] == ["touch tvl", "train_step", "v5e:2x4", "8", "61 s"]
    assert cells[5:8] == ["1.0 MiB", "2.0 MiB", "4.0 GiB of 2.0 GiB: no"]
    assert cells[8] == "3 all-reduce (1.0 KiB)"
    assert "SIGSEGV" in lines[3] and len({line.count("|") for line in lines}) == 1
