"""Every benchmark runs on a tiny recipe; its figures agree with each other. Time is not judged."""

import json
import math
import subprocess
import sys

import pytest

RECIPE = """
from mmjax import config


def get_config(arg: str = ""):
    cfg = config.base()
    cfg.task = "finetune"
    cfg.batch_size = 4
    cfg.data = dict(train="world:tiny", video=dict(num_frames=4, size=24), label=dict())
    tower = dict(name="vit_tiny", num_layers=1, width=16, head_dim=8, num_heads=2, mlp_dim=16)
    cfg.model = dict(name="classifier", backbone=tower, dropout_rate=0.0)
    cfg.optimizer = dict(name="momentum", schedule=dict(name="constant", base=1e-3))
    return cfg
"""


def bench(user_env, recipe, *arguments):
    recipe.write_text(RECIPE)
    return subprocess.run(
        [sys.executable, "-m", "tools.bench", *arguments, "--task=finetune", f"--config={recipe}"],
        env=user_env(quick=True),
        cwd=recipe.parent,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_all_of_them(tmp_path, user_env):
    run = bench(
        user_env,
        tmp_path / "recipe.py",
        *("data", "step", "eval", "loop"),
        *("--seconds=0.02", "--repeats=1", "--depths", "2", "--steps=6", "--starts=0"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)  # and nothing else
    assert found["command"].startswith("python -m tools.bench data step eval loop --seconds=0.02")
    assert found["environment"]["versions"]["jax"]

    data = found["data"]
    assert data["input"]["batch"]["video"] == [[4, 4, 24, 24, 3], "uint8"]
    rates = {kind: data[kind]["clips_per_second"] for kind in ("pipeline", "floor", "floor_window")}
    assert min(rates.values()) > 0
    for floor in ("floor", "floor_window"):
        ratio = rates["pipeline"] / rates[floor]
        assert data[f"pipeline_over_{floor}"] == pytest.approx(ratio)

    step = found["step"]
    assert step["flops_per_step"] == pytest.approx(step["flops_per_second"] * step["step_seconds"])
    assert step["examples_per_second"] == pytest.approx(4 / step["step_seconds"])
    assert set(step["compilation_by_depth"]) == {"2"}
    assert step["compilation_by_depth"]["2"]["compile_seconds"] > 0

    assert found["eval"]["examples"] == 64 and found["eval"]["feature"] == ["video", [64, 1, 16]]
    assert found["eval"]["examples_per_second"] > 0 and found["eval"]["probe_seconds"] > 0

    loop = found["loop"]
    for kind in ("loop", "loop_same_batch"):
        ratio = loop[f"{kind}_step_seconds"] / loop["bare_step_seconds"]
        assert loop[f"{kind}_over_bare"] == pytest.approx(ratio)
        assert 0 <= loop[f"{kind}_data_share"] <= 1 and math.isfinite(ratio)


def test_a_step_on_noise_needs_no_dataset(tmp_path, user_env):
    run = bench(
        user_env,
        tmp_path / "recipe.py",
        *("step", "--synthetic", "--config.data.train=no/such/folder"),
        *("--seconds=0.02", "--repeats=1", "--depths"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    step = json.loads(run.stdout)["step"]
    assert step["examples_per_second"] == pytest.approx(4 / step["step_seconds"])


def test_one_encoder_packed_and_apart(tmp_path, user_env):
    def run(config):
        arguments = ["--synthetic", f"--config={config}", "--repeats=1", "--seconds=0.01"]
        return subprocess.run(
            [sys.executable, "-m", "tools.bench", "packed", *arguments],
            env=user_env(quick=True),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )

    done = run("demo:ut_fac,smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["packed"]
    ratio = found["apart_seconds"] / found["packed_seconds"]
    assert (
        found["apart_over_packed"] == pytest.approx(ratio) and found["packed_compile_seconds"] > 0
    )
    other = run("demo")
    assert other.returncode == 2 and "--config=demo:ut_fac" in other.stderr


def test_the_probe_beside_scikit_learn(tmp_path, user_env):
    small = ("--examples=300", "--dim=16", "--classes=3", "--repeats=1", "--strengths", "0.1")
    run = bench(user_env, tmp_path / "recipe.py", "probe", *small)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)["probe"]
    assert found["shape"] == [300, 16, 3]
    row = found["C=0.1"]
    for name in ("mmjax", "scikit_learn"):
        assert row[name]["objective"] == pytest.approx(row["lowest_objective"], rel=2e-4)
        assert abs(row[name]["gap"]) <= 1e-4 and row[name]["iterations"] > 1
    ratio = row["scikit_learn"]["seconds"] / row["mmjax"]["seconds"]
    assert row["scikit_learn_over_mmjax_seconds"] == pytest.approx(ratio)


def test_an_unknown_override_is_named(tmp_path, user_env):
    run = bench(user_env, tmp_path / "recipe.py", "data", "--config.data.vidio.size=8")
    assert run.returncode == 2 and run.stdout == ""
    assert "data.vidio" in run.stderr and "Traceback" not in run.stderr
