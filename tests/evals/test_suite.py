"""The suite evaluator: many datasets in one table, with the results of the single evaluators."""

import csv
import re

import numpy as np
import pytest

from mmjax.data.sources import benchmarks
from mmjax.errors import UserError
from mmjax.evals import suite_table
from tests.messages import assert_mentions, raises

PROBE = dict(penalty="squared", max_iterations=30)
EPISODES = dict(episodes=20, ways=3, shots=2, queries=2)


def image_features(rng, size, classes=4):
    labels = (np.arange(size) % classes).astype(np.int32)
    centers = np.random.default_rng(7).normal(size=(classes, 6))
    x = centers[labels] + 0.7 * rng.normal(size=(size, 6))
    return {"image": x[:, None].astype(np.float32), "label": labels}


@pytest.fixture
def harness(make_harness, tmp_path):
    """A harness with separate data per dataset, and a directory with four known datasets."""
    rng = np.random.default_rng(0)
    root = tmp_path / "sets"
    root.mkdir()
    sizes = {"train[:80%]": 40, "train[80%:]": 16, "train": 40, "validation": 16, "test": 30}
    for name, splits in (
        ("cifar10", ("train", "test")),
        ("dtd", ("train", "validation", "test")),
        ("flowers", ("train", "validation", "test")),
        ("pcam", ("train", "validation", "test")),
    ):
        arrays = {f"{split}_images": np.zeros((5, 2, 2, 3), np.uint8) for split in splits}
        arrays |= {f"{split}_labels": np.arange(5) for split in splits}
        np.savez(root / f"{name}.npz", **arrays)

    harness = make_harness({})
    harness.data_cfg["image"] = dict(size=8)
    harness.parts, make_dataset = {}, harness.make_eval_data

    def make_eval_data(data_cfg, *, data, split, **options):
        if (data, split) not in harness.parts:
            harness.parts[data, split] = image_features(rng, sizes[split])
        harness.splits[split] = harness.parts[data, split]
        return make_dataset(data_cfg, data=data, split=split, **options)

    harness.make_eval_data, harness.root = make_eval_data, root
    harness.directory = tmp_path / "results"
    harness.directory.mkdir()
    return harness


def run(harness, **options):
    cfg = dict(type="suite", root=str(harness.root), probe=PROBE, few_shot=EPISODES) | options
    return harness.run(directory=harness.directory, s=cfg)


def test_results_equal_those_of_the_single_evaluators(harness):
    results = run(harness, datasets=("cifar10", "flowers"), knn=dict(neighbors=3))
    cifar, flowers = (f"npz:{harness.root}/{name}.npz" for name in ("cifar10", "flowers"))
    parts = dict(train_split="train[:80%]", valid_split="train[80%:]")
    probe = dict(type="linear_probe", classifier="sweep", feature="image", **PROBE)
    episodes = dict(type="few_shot", train_split="train[:80%]", **EPISODES)
    single = harness.run(
        probe=dict(data=cifar, **parts, **probe),
        few=dict(data=cifar, **episodes),
        knn=dict(type="knn", feature="image", data=cifar, train_split="train[:80%]", neighbors=3),
        second=dict(data=flowers, valid_split="validation", metric="mean_per_class", **probe),
    )
    assert results["s/cifar10/linear"] == single["probe/image/top1"]
    assert results["s/cifar10/linear_C"] == single["probe/image/C"]
    assert results["s/cifar10/linear_chance"] == single["probe/image/top1_chance"]
    for suffix in ("", "_std", "_ci95", "_chance"):
        assert results[f"s/cifar10/few_shot{suffix}"] == single[f"few/image/top1{suffix}"]
    assert results["s/cifar10/knn"] == single["knn/image/top1"]
    assert results["s/flowers/linear"] == single["second/image/mean_class_top1"]
    mean = (results["s/cifar10/linear"] + results["s/flowers/linear"]) / 2
    assert results["s/average/linear"] == pytest.approx(mean)
    assert results["s/average/linear_datasets"] == 2


def test_missing_datasets_are_skipped_only_on_request(harness, monkeypatch, caplog):
    monkeypatch.setenv("TFDS_DATA_DIR", str(harness.root / "none"))
    with raises(UserError, "food101", harness.root / "food101.npz", "missing='skip'"):
        run(harness, datasets=("food101", "dtd"))
    results = run(harness, datasets="all", missing="skip")
    (message,) = [m for m in caplog.messages if str(harness.root) in m]
    message = message.replace(str(harness.root), "")
    available = {"cifar10", "dtd", "flowers", "pcam"}
    skipped = {name for name in benchmarks.LGSSL_BENCHMARKS if re.search(rf"\b{name}\b", message)}
    assert skipped == set(benchmarks.LGSSL_BENCHMARKS) - available and len(skipped) == 15 - 4
    assert {name.split("/")[1] for name in results} - {"average"} == available
    assert not any(name.startswith("s/pcam/few_shot") for name in results)
    assert results["s/average/linear_datasets"] == 4
    assert results["s/average/few_shot_datasets"] == 3
    text = (harness.directory / "s.txt").read_text()
    rows = {line.split()[0]: line.split() for line in text.splitlines()[3:]}
    assert len(rows) == 15 + 2
    assert rows["food101"] == ["food101", "–", "–", "–", "–"]
    assert rows["pcam"][3:] == ["–", "–", "–"]
    assert rows["flowers"][:3] == [
        "flowers",
        "mean_per_class",
        f"{100 * results['s/flowers/linear']:.1f}",
    ]
    assert rows["average"][2] == f"{100 * results['s/average/few_shot']:.1f}"
    title, *_, counts = text.splitlines()
    assert counts.split()[-2:] == ["4", "3"]
    assert title.split()[0] == "s" and re.findall(r"\d+", title) == ["10"]


def test_csv_and_latex_tables(harness):
    results = run(harness, datasets=("dtd", "pcam"))
    with open(harness.directory / "s.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["dataset"] for row in rows] == ["dtd", "pcam", "average"]
    assert float(rows[0]["few_shot_ci95"]) == pytest.approx(
        100 * results["s/dtd/few_shot_ci95"], 1e-4
    )
    assert rows[1]["few_shot"] == "" and rows[1]["metric"] == "top1"
    tex = (harness.directory / "s.tex").read_text().splitlines()
    assert tex[:3] == [
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"dataset & linear & few-shot & $\pm$ (95 \%) & std \\",
    ]
    numbers = [
        results[f"s/dtd/{c}"] for c in ("linear", "few_shot", "few_shot_ci95", "few_shot_std")
    ]
    assert tex[4] == " & ".join(["dtd", *(f"{100 * n:.1f}" for n in numbers)]) + r" \\"
    assert tex[5].endswith(r" & -- & -- & -- \\")
    assert tex[-1] == r"\end{tabular}" and tex[-2] == r"\bottomrule"


def test_averages_are_over_the_available_results():
    results = {"a/linear": 0.5, "b/linear": 0.7, "a/few_shot": 0.9}
    assert suite_table.averages(results, ["a", "b", "c"]) == {
        "average/linear": pytest.approx(0.6),
        "average/linear_datasets": 2,
        "average/few_shot": 0.9,
        "average/few_shot_datasets": 1,
    }


def test_extra_datasets(harness):
    mine = dict(data="mine", metric="mean_per_class", few_shot=False)
    results = run(harness, datasets=(), extra=dict(mine=mine))
    section = dict(type="linear_probe", feature="image", data="mine", classifier="sweep", **PROBE)
    single = harness.run(p=dict(section, metric="mean_per_class"))
    assert results["s/mine/linear"] == single["p/image/mean_class_top1"]
    assert "s/mine/few_shot" not in results


def test_few_shot_support_from_train_and_valid(harness):
    results = run(
        harness, datasets=("dtd",), probe=None, few_shot={**EPISODES, "support": "train+valid"}
    )
    data = f"npz:{harness.root}/dtd.npz"
    parts = dict(support="train+valid", valid_split="validation")
    single = harness.run(f=dict(type="few_shot", data=data, **parts, **EPISODES))
    assert results["s/dtd/few_shot"] == single["f/image/top1"]
    assert "s/dtd/linear" not in results


def test_a_dataset_with_a_corrupt_image(harness, caplog):
    """Published SUN397 has one; the catalog skips it, whatever config.data.corrupt says."""
    arrays = {f"{split}_images": np.zeros((5, 2, 2, 3), np.uint8) for split in ("train", "test")}
    arrays |= {f"{split}_labels": np.arange(5) for split in ("train", "test")}
    np.savez(harness.root / "sun397.npz", **arrays)
    harness.corrupt = (3,)
    options = dict(probe=None, views=dict(image=dict(size=4)))
    results = run(harness, datasets=("sun397",), **options)
    assert any(
        "corrupt" in m and {"1", "29"} <= set(re.findall(r"\d+", m)) for m in caplog.messages
    )
    assert harness.requested["corrupt"] == "skip" and harness.requested["image"]["size"] == 4
    section = dict(
        type="few_shot", data=f"npz:{harness.root}/sun397.npz", train_split="train[:80%]"
    )
    single = harness.run(f=dict(section, views=dict(corrupt="skip"), **EPISODES))
    assert results["s/sun397/few_shot"] == single["f/image/top1"] > 1 / 3  # chance
    with raises(RuntimeError, "mine", "train", 39, 40):
        run(harness, datasets=(), extra=dict(mine=dict(data="mine", few_shot=True)), probe=None)
    mine = dict(data="mine", corrupt="skip")
    results = run(harness, datasets=(), extra=dict(mine=mine), probe=None)
    assert results["s/mine/few_shot"] > 1 / 3


def test_views_may_only_disable_sections_that_the_data_lack(harness):
    """A recipe may set text=None although the config of a converted backbone has no text."""
    del harness.data_cfg["text"]
    results = run(harness, datasets=("dtd",), probe=None)
    assert results == run(harness, datasets=("dtd",), probe=None, views=dict(text=None))
    assert results["s/dtd/few_shot"] > 1 / 3  # chance
    for name, views in (("'text'", dict(text=dict(max_tokens=3))), ("'images'", dict(images=None))):
        with raises(UserError, "config.evals.s.views", name, "image"):
            run(harness, datasets=("dtd",), views=views)


def test_a_failing_dataset_does_not_stop_the_others(harness, caplog):
    data = f"npz:{harness.root}/dtd.npz"
    # Too few examples for episodes.
    harness.parts[data, "train"] = image_features(np.random.default_rng(0), 4)
    results = run(harness, datasets=("dtd", "cifar10"))
    assert results["s/dtd/failed"] == 1.0
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert_mentions(message, "dtd", "shots", "ways", 3)
    assert results["s/average/few_shot_datasets"] == 1 and "s/cifar10/few_shot" in results
    (row,) = [
        r for r in (harness.directory / "s.txt").read_text().splitlines() if r.startswith("dtd")
    ]
    assert row.split()[1] == "failed"


def test_features_of_a_dataset_are_computed_once_and_released(harness):
    (suite,) = harness.make(
        s=dict(
            type="suite",
            root=str(harness.root),
            datasets=("dtd",),
            probe=PROBE,
            few_shot=EPISODES,
            knn={},
        ),
        directory=harness.directory,
    )
    suite.run(harness.state, 1)
    assert [opened.dataset.iterations for opened in harness.opened] == [1, 1, 1]
    assert not suite.store._features


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(datasets=("cifar",)), ("evals.s", "'cifar'", "'cifar10'")),
        (dict(datasets=("imagenet_a",)),
         ("config.evals.s.datasets", "'imagenet_a'", "test split", "zero_shot")),
        (dict(missing="ignore"), ("config.evals.s.missing", "'ignore'", "skip")),
        (dict(batch_size=0), ("config.evals.s.batch_size", 0)),
        (dict(extra=dict(mine="x")), ("config.evals.s.extra.mine", "'x'")),
        (dict(probe=dict(penalties=1)), ("evals.s.probe.penalties", "'evals.s.probe.penalty'")),
        (dict(probe=dict(split="test")),
         ("config.evals.s.probe.split", "config.evals.s.extra.NAME.test")),
        (dict(few_shot=dict(shot=1)), ("evals.s.few_shot.shot", "'evals.s.few_shot.shots'")),
        (dict(few_shot=dict(support="test")), ("support", "'test'", "train+valid")),
        (dict(knn=5), ("evals.s.knn", 5)),
        (dict(extra=dict(mine={})), ("extra.mine", "data", "config.data.train")),
        (dict(extra=dict(mine=dict(data="x", tset="test"))),
         ("extra.mine.tset", "extra.mine.test'")),
        (dict(extra=dict(cifar10=dict(data="x"))),
         ("config.evals.s.extra.cifar10", "'cifar10'", "config.evals.s.datasets")),
        (dict(extra=dict(average=dict(data="x"))), ("config.evals.s.extra.average", "'average'")),
        (dict(probe=dict(views={})), ("config.evals.s.probe.views", "config.evals.s.views")),
        (dict(probe=dict(max_iterations=0)), ("config.evals.s.probe.max_iterations", 0)),
        (dict(extra=dict(mine=dict(data="x", metric="top5"))),
         ("extra.mine.metric", "'top5'", "mean_per_class")),
        (dict(extra=dict(mine=dict(data="x", corrupt="skipp"))),
         ("extra.mine.corrupt", "'skipp'", "'skip'")),
    ],
)  # fmt: skip
def test_invalid_options_are_refused(harness, options, facts):
    with raises(UserError, *facts):
        run(harness, **{"datasets": ("cifar10",), **options})


def test_a_suite_without_any_dataset_is_refused(harness):
    with raises(UserError, "datasets", "root", harness.root):
        run(harness, datasets=())


def test_special_characters_of_latex_are_escaped():
    text = suite_table.as_tex({"r&d_1/linear": 0.5}, {"r&d_1": "top1"})
    assert text.splitlines()[4] == r"r\&d\_1 & 50.0 \\"
