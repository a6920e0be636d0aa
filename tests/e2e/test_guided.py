"""Language-guided sampling as a user runs it: from captions to pairs, training and evaluation."""

import functools
import json
import re
import signal

import numpy as np
import pytest

from mmjax.data.pairs import pair_files
from mmjax.data.pipeline import precomputed_features
from mmjax.data.sources import registry as sources
from mmjax.tools import cli
from tests.e2e import program
from tests.e2e.test_resume import state_of
from tests.messages import assert_mentions

STEPS = 4
SMALL = (
    "--task=guided",
    f"--config.total_steps={STEPS}",
    "--config.checkpoint.every=2",
    "--config.tensorboard=False",
    "--config.model.image.blocks=(1, 1)",
)
WITHOUT_EVALS = (*SMALL, "--config.evals={}")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def paired(directory):
    """The directories that `mmjax sentences` and `mmjax neighbors` write for the tiny world."""
    features, neighbors = directory / "features", directory / "pairs"
    options = ["--encoder", "words", "--width", "64", "--quiet"]
    assert cli.main(["sentences", "world:objects_tiny", "--out", str(features), *options]) == 0
    options = ["--out", str(neighbors), "--k", "2", "--quiet"]
    assert cli.main(["neighbors", str(features), *options]) == 0
    return features, neighbors


@pytest.fixture(scope="module")
def trained(command, directory, paired):
    """(run directory, result of the command) of LGSimCLR on those pairs."""
    done = command(
        directory,
        *SMALL,
        "--config=demo:smoke",
        "--config.data.pairs.path=pairs",
        "--config.data.pairs.neighbors=2",
        "--model_dir=guided",
    )
    return directory / "guided", done.check()


def test_training_on_pairs_is_evaluated_on_novel_objects(trained):
    run, done = trained
    (line,) = done.log_lines("data.pairs", "objects/train")
    assert len(re.findall(r"\b64\b", line)) == 2  # 64 of 64 examples have a pair
    for text in ("few_shot", "probe", "knn", "image/top1"):
        assert text in done.stdout, text
    (line,) = [line for line in program.metrics_of(run) if "few_shot/image/top1" in line]
    assert line["few_shot/image/top1_chance"] == pytest.approx(0.2)
    assert 0 < line["few_shot/image/top1_ci95"] < 0.1


@pytest.fixture(scope="module")
def with_memory(command, directory):
    """`with_memory(method)`: the run of a method with a memory on one device."""

    @functools.cache
    def train(method):
        recipe = f"--config=demo:{method},smoke"
        command(directory, *WITHOUT_EVALS, recipe, f"--model_dir={method}").check()
        return directory / method

    return train


def test_resume_with_memory_banks_is_bit_exact(with_memory, command, directory):
    run = functools.partial(command, directory, *WITHOUT_EVALS, "--config=demo:nnclr,smoke")
    stop = functools.partial(program.signal_at, 2, signal.SIGTERM)
    run("--model_dir=part", before=stop).check().check_log("SIGTERM", "step 3")
    run("--model_dir=part").check().check_log("step 3", "part")
    whole = with_memory("nnclr")
    expected, actual = (state_of(path, STEPS) for path in (whole, directory / "part"))
    assert any("banks" in path and "rows" in path for path in expected)
    assert expected.keys() == actual.keys()
    assert all(np.array_equal(expected[path], actual[path]) for path in expected)


@pytest.mark.parametrize("method, memory", [("nnclr", "banks/.*/rows"), ("swav", "queues/rows")])
def test_sharded_memories_do_not_change_the_losses(method, memory, with_memory, command, directory):
    axes = ("data", None)
    sharded = f"{method}-4"
    command(
        directory,
        *WITHOUT_EVALS,
        f"--config=demo:{method},smoke",
        f"--model_dir={sharded}",
        f"--config.sharding_rules=(('^extra/{memory}', {axes}),)",
        devices=4,
    ).check()
    one, four = map(program.curve, (with_memory(method), directory / sharded))
    assert four == pytest.approx(one, rel=2e-3)


def test_precomputed_text_features_need_no_text_tower(command, directory, paired):
    done = command(
        directory,
        *SMALL,
        "--config=demo:clip_sbert,smoke",
        "--config.data.text.features=features",
        "--config.evals={'knn': {'type': 'knn', 'data': 'world:objects_tiny', 'feature': 'image', "
        "'train_split': 'novel_train', 'split': 'novel_test', 'batch_size': 8, "
        "'views': {'text': None}}}",
        "--model_dir=sbert",
    )
    assert "image/top1" in done.check().stdout
    (directory / "features").rename(directory / "gone")
    try:
        again = command(directory, "--task=guided", "--mode=eval", "--override_checkpoint=sbert")
    finally:
        (directory / "gone").rename(directory / "features")
    assert "image/top1" in again.check().stdout


def test_an_evaluator_suite_evaluates_a_run(trained, command, directory):
    run, _ = trained
    rng = np.random.default_rng(0)
    root = directory / "sets"
    root.mkdir()
    arrays, labels = {}, np.arange(70) % 10
    for split in ("train", "test"):
        images = rng.integers(0, 64, (70, 16, 16, 3)) + 15 * labels[:, None, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(root / "cifar10.npz", **arrays)
    evaluate = functools.partial(
        command,
        directory,
        "--task=guided",
        "--mode=eval",
        "--evals=suite:cifar10,pets",
        "--config.evals.suite.root=sets",
        "--config.evals.suite.views.image.size=32",
        "--config.evals.suite.batch_size=16",
        "--config.evals.suite.few_shot.episodes=50",
        "--config.evals.suite.probe.penalty=squared",
    )
    first = evaluate(f"--override_checkpoint={run}").check()
    # An evaluation job ignores the metric by which training keeps its best checkpoint.
    written = json.loads((run / "config.json").read_text())
    written["checkpoint"]["best"] = "probe/image/top1"
    (run / "config.json").write_text(json.dumps(written))
    second = evaluate(f"--model_dir={run}", "--config.evals.suite.at=final").check()
    table = (run / "suite.txt").read_text()
    for text in ("cifar10", "pets", "average"):
        assert text in table, text
    assert "cifar10" in (run / "suite.csv").read_text() and "&" in (run / "suite.tex").read_text()
    results = [m for m in program.metrics_of(run) if "suite/cifar10/linear" in m]
    assert len(results) == 2 and results[0]["suite/average/linear_datasets"] == 1
    assert results[1]["suite/cifar10/few_shot"] == results[0]["suite/cifar10/few_shot"]
    # The first job logs the time for features of 70 examples; the second reads them from disk.
    timing = re.compile(r"\b70\b.* \d+\.\d s\b")
    assert timing.search(first.log) and not timing.search(second.log)


def test_image_features_of_a_run_give_nearest_neighbors(trained, directory, monkeypatch, capsys):
    run, _ = trained
    monkeypatch.chdir(directory)
    looks, neighbors = directory / "looks", directory / "look-pairs"
    assert cli.main(["embed", "image", "--run", str(run), "--out", str(looks), "--quiet"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]  # the one to run next
    assert_mentions(command, f"mmjax neighbors {looks} --modality image --data ")
    assert command.endswith(" --out pairs/looks")
    features = np.load(precomputed_features.features_path(looks, "train", "image"))
    assert features.shape[0] == 64
    arguments = [str(looks), "--modality", "image", "--out", str(neighbors), "--quiet"]
    assert cli.main(["neighbors", *arguments]) == 0
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(64)
    assert np.unique(unit.round(4), axis=0).shape[0] > 32  # the encoder has not collapsed
    best = np.load(neighbors / "neighbors.npy")[:, 0]
    np.testing.assert_allclose(cosines[np.arange(64), best], cosines.max(axis=1), atol=1e-5)
    assert pair_files.read_description(neighbors)["dataset"] == "objects"


def test_pairs_of_another_dataset_are_rejected(command, directory, paired):
    wrong = command(
        directory,
        *WITHOUT_EVALS,
        "--config=demo:smoke",
        "--config.data.train=world:objects",
        "--config.data.pairs.path=pairs",
        "--model_dir=wrong",
    ).check(2)
    number = sources.open_source("world:objects", split="train").num_examples
    wrong.check_log("data.pairs.path=pairs", 64, "objects/train", number)


def test_evals_flag_needs_evaluation_mode_and_a_known_name(command, directory):
    wrong = command(directory, *WITHOUT_EVALS, "--config=demo:smoke", "--evals=suite").check(2)
    wrong.check_log("--evals", "--mode=eval", "config.evals")
    wrong = command(directory, "--task=guided", "--mode=eval", "--evals=suit").check(2)
    wrong.check_log("'suit'", "'suite'")
