"""Every benchmark runs on a tiny recipe and reports consistent numbers; speed is not tested."""

import importlib.metadata
import json
import os
import time

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mmjax.tools.bench import probe as bench_probe
from mmjax.tools.bench import text as bench_text
from tests.e2e import program
from tests.messages import assert_mentions

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


def _flops_per_step():
    """FLOPs of a training step of RECIPE: 3 forward passes' worth for each of 4 examples.

    In training, 4 of the 9 patches of 4×8×8 pixels are kept; with [CLS] these are 5 tokens.
    """
    width, kept, tokens, classes = 16, 4, 5, 8
    patches = 2 * kept * (4 * 8 * 8 * 3) * width
    layer = 2 * tokens * ((4 + 2) * width * width + 2 * tokens * width)
    return 3 * 4 * (patches + layer + 2 * width * classes)


def run_bench(arguments, *, env, cwd):
    """Returns the finished process and its wall-clock seconds."""
    began = time.perf_counter()
    process = program.run(["bench", *arguments], cwd, env, module="mmjax.tools.cli", timeout=500)
    return process, time.perf_counter() - began


def bench(user_env, recipe, *arguments):
    recipe.write_text(RECIPE)
    arguments = [*arguments, "--task=finetune", f"--config={recipe}"]
    return run_bench(arguments, env=user_env(quick=True), cwd=recipe.parent)


def test_data_step_eval_and_loop_report_consistent_numbers(tmp_path, user_env):
    process, elapsed = bench(
        user_env,
        tmp_path / "recipe.py",
        *("data", "step", "eval", "loop"),
        *("--seconds=0.02", "--repeats=1", "--depths", "2", "--steps=6", "--starts=0"),
    )
    process.check()
    result = json.loads(process.stdout)  # standard output holds nothing else
    assert result["command"].startswith("mmjax bench data step eval loop --seconds=0.02")
    versions = result["environment"]["versions"]
    assert versions["jax"] == importlib.metadata.version("jax")

    data = result["data"]
    assert data["input"]["batch"]["video"] == [[4, 4, 24, 24, 3], "uint8"]
    assert data["input"]["examples"] == 64
    rates = {name: data[name]["clips_per_second"] for name in ("pipeline", "floor", "floor_window")}
    for name, rate in rates.items():
        assert rate > 4 / elapsed  # at least one batch was measured
        cores = data[name]["cpu_ms_per_clip"] / 1e3 * rate
        assert 0 < cores < os.cpu_count() + 0.5
    for floor in ("floor", "floor_window"):
        ratio = rates["pipeline"] / rates[floor]
        assert data[f"pipeline_over_{floor}"] == pytest.approx(ratio)

    step = result["step"]
    assert step["flops_per_step"] == _flops_per_step() == 1_386_240
    assert step["flops_per_step"] == pytest.approx(step["flops_per_second"] * step["step_seconds"])
    assert step["examples_per_second"] == pytest.approx(4 / step["step_seconds"])
    assert set(step["compilation_by_depth"]) == {"2"}
    for compilation in (step["compilation"], step["compilation_by_depth"]["2"]):
        assert 0 < compilation["compile_seconds"] < elapsed

    evaluation = result["eval"]
    assert evaluation["examples"] == 64 and evaluation["feature"] == ["video", [64, 1, 16]]
    assert evaluation["examples_per_second"] > 64 / elapsed
    assert 0 < evaluation["probe_seconds"] < elapsed

    loop = result["loop"]
    for name in ("loop", "loop_same_batch"):
        ratio = loop[f"{name}_step_seconds"] / loop["bare_step_seconds"]
        assert loop[f"{name}_over_bare"] == pytest.approx(ratio)
        assert 0 < loop[f"{name}_step_seconds"] < elapsed / 6  # --steps=6
    assert loop["loop_same_batch_data_share"] < 0.5  # its batch is in memory already


def test_synthetic_step_needs_no_dataset(tmp_path, user_env):
    process, elapsed = bench(
        user_env,
        tmp_path / "recipe.py",
        *("step", "--synthetic", "--config.data.train=no/such/directory"),
        *("--seconds=0.02", "--repeats=1", "--depths"),
    )
    process.check()
    step = json.loads(process.stdout)["step"]
    assert step["examples_per_second"] == pytest.approx(4 / step["step_seconds"])
    assert 0 < step["step_seconds"] < elapsed and step["compilation_by_depth"] == {}


def test_packed_compares_the_shared_encoder_with_one_call_per_modality(tmp_path, user_env):
    def run(config):
        arguments = ["--synthetic", f"--config={config}", "--repeats=1", "--seconds=0.01"]
        return run_bench(["packed", *arguments], env=user_env(quick=True), cwd=tmp_path)

    process, elapsed = run("demo:ut_fac,smoke")
    process.check()
    result = json.loads(process.stdout)["packed"]
    ratio = result["apart_seconds"] / result["packed_seconds"]
    assert result["apart_over_packed"] == pytest.approx(ratio)
    for name in ("packed", "apart"):
        assert 0 < result[f"{name}_seconds"] < result[f"{name}_compile_seconds"] < elapsed
    other, _ = run("demo")
    assert_mentions(other.check(2).log, "packed", "--config=demo:ut_fac")


def test_probe_reaches_the_objective_of_scikit_learn(tmp_path, user_env):
    small = ("--examples=300", "--dim=16", "--classes=3", "--repeats=1", "--C", "0.1")
    process, elapsed = bench(user_env, tmp_path / "recipe.py", "probe", *small)
    process.check()
    result = json.loads(process.stdout)["probe"]
    assert result["shape"] == [300, 16, 3]
    x, labels = bench_probe.features(300, 16, 3)
    reference = LogisticRegression(C=0.1, tol=1e-9, max_iter=20_000).fit(x, labels)
    cross_entropy = log_loss(labels, reference.predict_proba(x), normalize=False)
    lowest = 0.5 * (reference.coef_.astype(float) ** 2).sum() + 0.1 * cross_entropy
    measured = result["C=0.1"]
    assert measured["lowest_objective"] == pytest.approx(lowest, rel=1e-5)
    for name in ("mmjax", "scikit_learn"):
        assert measured[name]["objective"] == pytest.approx(measured["lowest_objective"], rel=2e-4)
        assert measured[name]["objective"] == pytest.approx(lowest, rel=2e-4)
        assert abs(measured[name]["gap"]) <= 1e-4 and measured[name]["iterations"] > 1
        assert 0 < measured[name]["seconds"] < elapsed
    ratio = measured["scikit_learn"]["seconds"] / measured["mmjax"]["seconds"]
    assert measured["scikit_learn_over_mmjax_seconds"] == pytest.approx(ratio)


def test_text_does_not_exceed_the_ideal_rate():
    with bench_text.fixed_latency_server(0.05) as url:
        one, four = (
            bench_text.throughput(url, requests=requests, latency=0.05, seconds=0.1)
            for requests in (1, 4)
        )
    assert (one["ideal"], four["ideal"]) == (20, 80)
    for row in (one, four):
        assert 0 < row["pairs_per_second"] <= row["ideal"]
        assert row["ratio"] == pytest.approx(row["pairs_per_second"] / row["ideal"])
        assert row["cpu_seconds_per_pair"] > 0


def test_unknown_override_is_named(tmp_path, user_env):
    process, _ = bench(user_env, tmp_path / "recipe.py", "data", "--config.data.vidio.size=8")
    assert process.check(2).stdout == ""
    assert_mentions(process.log, "data.vidio", "video")
