"""Language-guided sampling as a user runs it: from captions to pairs, training, and judgement."""

import functools
import json
import signal

import numpy as np
import pytest

from mmjax.data import pairs, stored
from mmjax.tools import cli
from tests.e2e import program
from tests.e2e.test_resume import state_of

STEPS = 4
SMALL = (
    "--task=guided",
    f"--config.total_steps={STEPS}",
    "--config.checkpoint.every=2",
    "--config.tensorboard=False",
    "--config.model.image.blocks=(1, 1)",
)
ALONE = (*SMALL, "--config.evals={}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def paired(folder):
    """The folders that `mmjax sentences` and `mmjax neighbours` make of the tiny world."""
    features, found = folder / "features", folder / "pairs"
    words = ["--encoder", "words", "--width", "64", "--quiet"]
    assert cli.main(["sentences", "world:objects_tiny", "--out", str(features), *words]) == 0
    assert cli.main(["neighbours", str(features), "--out", str(found), "--k", "2", "--quiet"]) == 0
    return features, found


@pytest.fixture(scope="module")
def trained(command, folder, paired):
    """LGSimCLR on those pairs, and what the command said."""
    done = command(
        folder,
        *SMALL,
        "--config=demo:smoke",
        "--config.data.pairs.path=pairs",
        "--config.data.pairs.neighbours=2",
        "--model_dir=guided",
    )
    return folder / "guided", done.check()


def test_it_trains_on_pairs_and_is_judged_on_objects_it_has_not_met(trained):
    run, done = trained
    assert "64 of 64 records" in done.log
    for text in ("few_shot", "probe", "knn", "image/top1"):
        assert text in done.stdout, text
    (line,) = [line for line in program.metrics_of(run) if "few_shot/image/top1" in line]
    assert line["few_shot/image/top1_chance"] == pytest.approx(0.2)
    assert 0 < line["few_shot/image/top1_ci95"] < 0.1


def test_memories_are_saved_with_the_run(command, folder):
    run = functools.partial(command, folder, *ALONE, "--config=demo:nnclr,smoke")
    run("--model_dir=whole").check()
    stop = functools.partial(program.signal_at, 2, signal.SIGTERM)
    assert "Stopped by SIGTERM at step 3; saved." in run("--model_dir=part", before=stop).log
    assert "Resumed from step 3" in run("--model_dir=part").check().log
    wanted, found = (state_of(folder / name, STEPS) for name in ("whole", "part"))
    assert any("banks" in path and "rows" in path for path in wanted)
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(wanted[path], found[path]) for path in wanted)


@pytest.mark.parametrize("method, memory", [("nnclr", "banks/.*/rows"), ("swav", "queues/rows")])
def test_memories_may_be_split_over_devices(method, memory, command, folder):
    run = functools.partial(command, folder, *ALONE, f"--config=demo:{method},smoke")
    axes = ("data", None)
    run(f"--model_dir={method}-1").check()
    run(
        f"--model_dir={method}-4",
        f"--config.sharding_rules=(('^extra/{memory}', {axes}),)",
        devices=4,
    ).check()
    one, four = (program.curve(folder / f"{method}-{count}") for count in (1, 4))
    assert four == pytest.approx(one, rel=2e-3)


def test_captions_as_features_need_no_tower_in_training_or_evaluation(command, folder, paired):
    done = command(
        folder,
        *SMALL,
        "--config=demo:clip_sbert,smoke",
        "--config.data.text.features=features",
        "--config.evals={'knn': {'type': 'knn', 'data': 'world:objects_tiny', 'feature': 'image', "
        "'train_split': 'novel_train', 'split': 'novel_test', 'batch_size': 8, "
        "'views': {'text': None}}}",
        "--model_dir=sbert",
    )
    assert "image/top1" in done.check().stdout
    (folder / "features").rename(folder / "gone")
    try:
        again = command(folder, "--task=guided", "--mode=eval", "--override_checkpoint=sbert")
    finally:
        (folder / "gone").rename(folder / "features")
    assert "image/top1" in again.check().stdout


def test_a_suite_of_sets_judges_a_run(trained, command, folder):
    run, _ = trained
    draw = np.random.default_rng(0)
    root = folder / "sets"
    root.mkdir()
    arrays, labels = {}, np.arange(70) % 10
    for split in ("train", "test"):
        pictures = draw.integers(0, 64, (70, 16, 16, 3)) + 15 * labels[:, None, None, None]
        arrays |= {f"{split}_images": pictures.astype(np.uint8), f"{split}_labels": labels}
    np.savez(root / "cifar10.npz", **arrays)
    judge = functools.partial(
        command,
        folder,
        "--task=guided",
        "--mode=eval",
        "--evals=suite:cifar10,pets",
        "--config.evals.suite.root=sets",
        "--config.evals.suite.views.image.size=32",
        "--config.evals.suite.batch_size=16",
        "--config.evals.suite.few_shot.episodes=50",
        "--config.evals.suite.probe.penalty=squared",
    )
    first = judge(f"--override_checkpoint={run}").check()
    # The job beside a training; what the training keeps as its best is no matter of this one.
    written = json.loads((run / "config.json").read_text())
    written["checkpoint"]["best"] = "probe/image/top1"
    (run / "config.json").write_text(json.dumps(written))
    second = judge(f"--model_dir={run}", "--config.evals.suite.at=final").check()
    table = (run / "suite.txt").read_text()
    for text in ("cifar10", "pets", "average"):
        assert text in table, text
    assert "cifar10" in (run / "suite.csv").read_text() and "&" in (run / "suite.tex").read_text()
    results = [m for m in program.metrics_of(run) if "suite/cifar10/linear" in m]
    assert len(results) == 2 and results[0]["suite/average/linear_datasets"] == 1
    assert results[1]["suite/cifar10/few_shot"] == results[0]["suite/cifar10/few_shot"]
    assert "examples in" in first.log and "examples in" not in second.log  # from the disk


def test_a_backbone_finds_pairs_by_their_looks(trained, folder, monkeypatch, capsys):
    run, _ = trained
    monkeypatch.chdir(folder)
    looks, found = folder / "looks", folder / "look-pairs"
    assert cli.main(["embed", "image", "--run", str(run), "--out", str(looks), "--quiet"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"Next: mmjax neighbours {looks} --modality image --data ")
    assert said.endswith(" --out pairs/looks")
    rows = np.load(stored.features_path(looks, "train", "image"))
    assert rows.shape[0] == 64 and np.isfinite(rows).all()
    arguments = [str(looks), "--modality", "image", "--out", str(found), "--quiet"]
    assert cli.main(["neighbours", *arguments]) == 0
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(64)
    best = np.load(found / "neighbours.npy")[:, 0]
    np.testing.assert_allclose(cosines[np.arange(64), best], cosines.max(axis=1), atol=1e-5)
    assert pairs.read_description(found)["dataset"] == "objects"


def test_pairs_of_another_dataset_are_refused(command, folder, paired):
    wrong = command(
        folder,
        *ALONE,
        "--config=demo:smoke",
        "--config.data.train=world:objects",
        "--config.data.pairs.path=pairs",
        "--model_dir=wrong",
    ).check(2)
    assert "has the neighbours of 64 records of objects/train" in wrong.log


def test_evaluators_of_a_file_are_for_evaluation(command, folder):
    wrong = command(folder, *ALONE, "--config=demo:smoke", "--evals=suite").check(2)
    assert "--evals is for --mode=eval" in wrong.log
    wrong = command(folder, "--task=guided", "--mode=eval", "--evals=suit").check(2)
    assert "Did you mean 'suite'" in wrong.log
