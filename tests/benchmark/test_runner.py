"""The queue of a benchmark: finished, failing, interrupted and shared cells, and their results."""

import dataclasses
import io
import json
import math
import pathlib
import shutil

import numpy as np
import pytest

from mmjax import cache, session
from mmjax.benchmark import cell as cell_lib
from mmjax.benchmark import heads, results, runner
from mmjax.benchmark.experiments import Experiment
from mmjax.benchmark.progress import Reporter
from mmjax.benchmark.runner import Settings, make_cells, run_all
from mmjax.benchmark.runs import Run
from mmjax.checkpoints.run_dir import RunDir
from mmjax.errors import UserError
from mmjax.evals.end_task import BEST_FILE, BestHeads
from mmjax.formats import torch_reader
from tests.benchmark.images import color_encoder, write_classes, write_image
from tests.messages import assert_mentions

GOOD = dict(optimizer="adam", lr=0.05)
CONFIGS = {"adam-0.05": GOOD, "broken": dict(optimizer="adam", lr=3e38)}
EPOCHS = 3


def make_run(name, configs=None, **options):
    options = dict(end_task=name, epochs=EPOCHS, batch_size=8, seeds=2) | options
    return Run(name=name, configs=CONFIGS if configs is None else configs, **options)


PETS, EUROSAT = make_run("Pets"), make_run("Eurosat", dict(good=GOOD))
RUNS = (
    *(PETS, EUROSAT, make_run("dtd"), make_run("SUN397", dict(good=GOOD)), make_run("CalTech-101")),
    make_run("Imagenet", dict(good=GOOD, other=dict(optimizer="sgd", lr=0.1))),
    make_run("Imagenetv2", {}),
    make_run("heads", {}, end_task="CIFAR-10", head_weights="elsewhere/%s/*.pt"),
)
EXPERIMENT = Experiment("mine", "colors:0")


@pytest.fixture(scope="module", autouse=True)
def encoders(tmp_path_factory):
    """Opens `colors:SEED` (of its own width for seeds above 5); keeps features in a cache."""

    def open_encoder(source):
        if not source.startswith("colors:"):
            raise UserError(f"{source} is no encoder:\nfirst detail\nsecond detail")
        seed = int(source.removeprefix("colors:"))
        return color_encoder(seed, width=max(seed, 5))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(runner, "open_encoder", open_encoder)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Datasets: two are complete, one has a damaged image, and two lack files."""
    root = tmp_path_factory.mktemp("data")
    write_classes(root)
    write_classes(root, name="eurosat")
    write_classes(root, name="imagenet", suffix="JPEG")
    (root / "imagenet/test").rename(root / "imagenet/val")
    for label in range(3):
        for n in range(3):
            path = root / "imagenetv2" / str(label) / f"{n}.jpeg"
            write_image(path, 1000 * label + 10 * n + 3)
    write_classes(root, name="SUN397", train=2, test=2)
    (root / "SUN397/test/b/1.png").write_bytes(b"no image")
    write_classes(root, name="dtd")
    shutil.rmtree(root / "dtd/test")
    return root


@dataclasses.dataclass
class Benchmark:
    """What `run_all` returned and printed."""

    out: pathlib.Path
    outcomes: list
    text: str

    def outcome(self, run, experiment="mine"):
        (one,) = [o for o in self.outcomes if (o.experiment, o.run) == (experiment, run)]
        return one

    def result(self, run, config, experiment="mine"):
        return results.read(results.path_of(self.out, experiment, run, config))

    def log(self, run, experiment="mine"):
        return (self.out / experiment / ".runs" / run / "log.txt").read_text()


def run_benchmark(out, root, *, runs=RUNS, experiments=(EXPERIMENT,), **settings):
    """Runs a benchmark as `mmjax benchmark` does."""
    settings = Settings(out=str(out), root=str(root), **settings)
    queue, stream = make_cells(experiments, runs, settings), io.StringIO()
    with Reporter(out, total=len(queue), stream=stream) as reporter:
        outcomes = run_all(queue, settings, reporter)
    return Benchmark(out, outcomes, stream.getvalue())


@pytest.fixture(scope="module")
def benchmark(root, tmp_path_factory):
    """All runs, on datasets of which some are missing or damaged."""
    return run_benchmark(tmp_path_factory.mktemp("out"), root)


def test_every_cell_ends_in_a_state_and_none_stops_the_others(benchmark):
    states = {one.run: one.state for one in benchmark.outcomes}
    assert states == {
        **dict.fromkeys(("Pets", "Eurosat", "Imagenet", "Imagenetv2"), "finished"),
        **dict.fromkeys(("dtd", "CalTech-101", "heads"), "skipped"),
        "SUN397": "failed",
    }


def test_missing_and_half_present_datasets_are_named_and_skipped(benchmark, root):
    reason = benchmark.outcome("CalTech-101").reason
    for split in ("train", "test"):
        assert_mentions(reason, root / "{caltech-101,caltech}" / split / "*/*.jpg")
    half = benchmark.outcome("dtd").reason
    assert_mentions(half, root / "dtd/test/*/*.jpg")
    assert str(root / "dtd/train") not in half
    lines = [line for line in benchmark.text.splitlines() if "Skipping" in line]
    assert len(lines) == 3 and sum("dtd" in line for line in lines) == 1


def test_a_failing_cell_has_one_line_with_its_reason_and_a_log(benchmark, root):
    outcome = benchmark.outcome("SUN397")
    assert "\n" not in outcome.reason
    assert_mentions(outcome.reason, root / "SUN397/test/b/1.png")
    assert_mentions(benchmark.log("SUN397"), root / "SUN397/test/b/1.png")
    (line,) = [
        line for line in benchmark.text.splitlines() if "SUN397" in line and "failed" in line
    ]
    assert_mentions(line, outcome.reason)


def test_progress_counts_the_cells_that_can_run(benchmark):
    lines = benchmark.text.splitlines()
    started = [line.split()[1] for line in lines if line.endswith("…")]
    assert started == [f"{n}/5" for n in range(1, 6)]
    assert any("Pets" in line and "finished in" in line and "top1" in line for line in lines)
    assert not list((benchmark.out / ".progress").iterdir())


def test_results_are_means_over_seeds_of_the_heads_selected_on_validation(benchmark):
    result = benchmark.result("Pets", "adam-0.05")
    assert result.seeds == (0, 1) and len(result.test_values) == 2
    assert result.test_accuracy == pytest.approx(np.mean(result.test_values))
    assert result.ci95 == pytest.approx(results.confidence(result.test_values))
    assert result.metric == "top1" and result.higher_is_better and result.epochs == EPOCHS
    assert result.config["lr"] == 0.05 and result.protocol == "default"
    assert 1 <= result.best_epoch <= EPOCHS and 0 <= result.validation_accuracy <= 1
    assert {"top1", "top5", "loss", "mean_per_class"} == set(result.metrics)
    best = BestHeads.read(benchmark.out / "mine/.runs/Pets" / BEST_FILE)
    assert result.validation_accuracy == pytest.approx(best.values["adam-0_05"].mean())


def test_a_diverged_configuration_has_no_value_and_the_others_do(benchmark):
    values = json.loads(results.path_of(benchmark.out, "mine", "Pets", "broken").read_text())
    for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "ci95"):
        assert values[key] is None, key
    assert values["test_values"] == [None, None]
    assert_mentions(benchmark.outcome("Pets").reason, "broken: top1 nan")
    assert benchmark.result("Pets", "adam-0.05").test_accuracy > 0.4


def accuracy_of(path, images, labels):
    """Returns the accuracy of the head in a file, by NumPy."""
    head = torch_reader.tensors(path)
    encoder = color_encoder()
    embedding = encoder.trunk.embedding(encoder.params, encoder.extra, images[:, None])[:, 0]
    logits = np.float16(embedding) @ np.asarray(head["head.weight"]).T + head["head.bias"]
    return float((logits.argmax(axis=1) == labels).mean())


def test_the_file_of_a_head_has_the_reported_accuracy_of_its_first_seed(benchmark, tmp_path):
    images, labels = write_classes(tmp_path)["test"]
    path = benchmark.out / "mine/Pets-adam-0.05/model_head.pt"
    expected = benchmark.result("Pets", "adam-0.05").test_values[0]
    assert accuracy_of(path, images, labels) == pytest.approx(expected)


def test_heads_of_imagenet_are_evaluated_on_imagenet_v2(benchmark, tmp_path):
    images, labels = write_classes(tmp_path)["test"]  # those of this ImageNet v2
    for config in ("good", "other"):
        result = benchmark.result("Imagenetv2", config)
        path = benchmark.out / f"mine/Imagenet-{config}/model_head.pt"
        assert result.test_accuracy == pytest.approx(accuracy_of(path, images, labels))
        assert result.train_loss is None and result.validation_accuracy is None
        written = results.path_of(benchmark.out, "mine", "Imagenetv2", config).read_text()
        assert "train_loss" not in json.loads(written)
    assert_mentions(benchmark.outcome("Imagenetv2").reason, "good: top1", "other: top1")


# Running again ------------------------------------------------------------------------------------


def test_a_second_run_does_only_what_is_not_finished(benchmark, root, monkeypatch):
    path = results.path_of(benchmark.out, "mine", "Eurosat", "good")
    before, pets = path.read_bytes(), benchmark.result("Pets", "adam-0.05")
    path.unlink()
    trained = []
    original = cell_lib.run_cell
    monkeypatch.setattr(
        runner.cells_lib,
        "run_cell",
        lambda cell, *args, **kwargs: trained.append(cell.run) or original(cell, *args, **kwargs),
    )
    again = run_benchmark(benchmark.out, root, runs=(PETS, EUROSAT))
    assert trained == ["Eurosat"]
    assert {one.run: one.state for one in again.outcomes} == dict(
        Pets="done before", Eurosat="finished"
    )
    assert benchmark.result("Pets", "adam-0.05") == pets
    old, new = json.loads(before), json.loads(path.read_bytes())  # of the complete run directory
    assert {k: v for k, v in old.items() if k != "seconds"} == {
        k: v for k, v in new.items() if k != "seconds"
    }
    assert "Pets" not in again.text


def test_results_of_other_options_weights_or_data_are_not_overwritten(benchmark, root):
    path = results.path_of(benchmark.out, "mine", "Eurosat", "good")
    before = path.read_bytes()
    others = dict(
        options=dict(runs=(dataclasses.replace(EUROSAT, epochs=7),)),
        weights=dict(runs=(EUROSAT,), experiments=(Experiment("mine", "colors:1"),)),
        protocol=dict(runs=(EUROSAT,), protocol="paper"),
    )
    for name, options in others.items():
        outcome = run_benchmark(benchmark.out, root, **options).outcome("Eurosat")
        assert outcome.state == "failed", name
        assert_mentions(outcome.reason, path, path.parent, "--out")
    assert path.read_bytes() == before


class Interrupted(KeyboardInterrupt):
    """Ctrl-C."""


def interrupt(monkeypatch, epoch):
    """Makes the trainer stop after the checkpoint of an epoch."""
    evaluate = session.Session.evaluate

    def stopping(self):
        evaluate(self)
        if self.step == epoch:
            self.checkpoints.wait()
            raise Interrupted

    monkeypatch.setattr(session.Session, "evaluate", stopping)


def test_an_interrupted_cell_continues_to_the_same_result(benchmark, root, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, 2)
        run_benchmark(tmp_path, root, runs=(EUROSAT,))
    other = run_benchmark(tmp_path, root, runs=(dataclasses.replace(EUROSAT, epochs=9),))
    assert_mentions(
        other.outcome("Eurosat").reason, tmp_path / "mine/.runs/Eurosat", "config.probe", "--out"
    )
    resumed = run_benchmark(tmp_path, root, runs=(EUROSAT,))
    assert resumed.outcome("Eurosat").state == "finished"
    assert_mentions(resumed.log("Eurosat"), "Resumed from step 2")
    result, expected = resumed.result("Eurosat", "good"), benchmark.result("Eurosat", "good")
    for field in ("test_loss", "test_accuracy", "train_loss", "validation_accuracy", "best_epoch"):
        assert getattr(result, field) == getattr(expected, field), field


# Several processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", ["cell", "trainer"])
def test_a_cell_of_another_process_is_left_to_it(benchmark, root, tmp_path, monkeypatch, holder):
    """Also while that process computes features, before it trains."""
    (_, _, cell), *_ = make_cells((EXPERIMENT,), (EUROSAT,), Settings(out=str(tmp_path), root=root))
    if holder == "cell":
        lock = cache.locked(cell.directory / "cell.lock")
    else:
        directory = RunDir(cell.directory)
        directory.lock()
        lock = None
    if lock:
        lock.__enter__()

    def sleep(seconds):
        """The other process finishes the cell."""
        shutil.copytree(benchmark.out / "mine/Eurosat-good", tmp_path / "mine/Eurosat-good")
        if lock:
            lock.__exit__(None, None, None)
        else:
            directory.unlock()

    monkeypatch.setattr(runner.time, "sleep", sleep)
    monkeypatch.setattr(runner.cells_lib, "run_cell", None)
    done = run_benchmark(tmp_path, root, runs=(EUROSAT,))
    assert done.outcome("Eurosat").state == "done before"


# Failures -----------------------------------------------------------------------------------------


def test_an_unexpected_error_is_in_the_log_with_its_traceback(root, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(cell_lib, "prepare", fail)
    failed = run_benchmark(tmp_path, root, runs=(EUROSAT,))
    reason = failed.outcome("Eurosat").reason
    assert_mentions(reason, "ZeroDivisionError", "one", tmp_path / "mine/.runs/Eurosat/log.txt")
    assert "two" not in reason
    assert_mentions(failed.log("Eurosat"), "Traceback", "two")


def test_a_failing_encoder_or_evaluation_fails_its_cells_with_a_log(root, tmp_path):
    experiments = (Experiment("bad", "nothing.pt"), Experiment("none", None))
    runs = (EUROSAT, make_run("Imagenetv2", {}))
    failed = run_benchmark(tmp_path, root, runs=runs, experiments=experiments)
    for run in ("Eurosat", "Imagenetv2"):
        reason = failed.outcome(run, "bad").reason
        assert "\n" not in reason
        assert_mentions(reason, "nothing.pt", tmp_path / f"bad/.runs/{run}/log.txt")
        assert_mentions(failed.log(run, "bad"), "first detail", "second detail")
        assert_mentions(failed.outcome(run, "none").reason, "none", "resnet50-0676ba61.pth")


def test_heads_to_evaluate_must_exist_and_fit(benchmark, root, tmp_path):
    def reason(pattern=None, weights="colors:0"):
        run = make_run("Imagenetv2", {}, head_weights=pattern)
        experiments = (Experiment("mine", weights),)
        done = run_benchmark(tmp_path, root, runs=(run,), experiments=experiments)
        assert done.outcome("Imagenetv2").state == "failed"
        return done.outcome("Imagenetv2").reason + done.log("Imagenetv2")

    assert_mentions(reason(), tmp_path / "mine/Imagenet-*/model_head.pt", "Imagenet")
    assert_mentions(reason(f"{tmp_path}/%s/x/*.pt"), tmp_path / "mine/x/*.pt")
    path = tmp_path / "mine" / "Imagenet-x" / heads.FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no head")
    assert_mentions(reason(), path)
    shutil.copy(benchmark.out / "mine/Imagenet-good" / heads.FILE_NAME, path)
    assert_mentions(reason(weights="colors:9"), path, "head.weight", "(5, 3)", "(9, 3)")


def test_a_pixelwise_run_on_an_encoder_without_maps_is_refused(tmp_path):
    run = make_run("NYUDepth", dict(good=GOOD), seeds=1, pre_encode=False)
    failed = run_benchmark(tmp_path, "world,train=8,test=4,size=16", runs=(run,))
    assert_mentions(failed.outcome("NYUDepth").reason, "unet", "embedding", "ResNet")


# The protocol of the paper ------------------------------------------------------------------------


def test_the_paper_reports_the_last_epoch_without_validation(root, tmp_path):
    done = run_benchmark(
        tmp_path, root, runs=(dataclasses.replace(PETS, seeds=None),), protocol="paper"
    )
    assert done.outcome("Pets").state == "finished"
    result = done.result("Pets", "adam-0.05")
    assert (result.protocol, result.seeds, result.ci95) == ("paper", (0,), None)
    assert result.validation_accuracy is None and result.best_epoch == EPOCHS
    assert not (tmp_path / "mine/.runs/Pets" / BEST_FILE).exists()
    images, labels = write_classes(tmp_path / "copy")["test"]
    path = tmp_path / "mine/Pets-adam-0.05/model_head.pt"
    assert accuracy_of(path, images, labels) == pytest.approx(result.metrics["top1"])
    # Batches of 8: the ninth test example is not in the metric of the paper.
    assert accuracy_of(path, images[:8], labels[:8]) == pytest.approx(result.metrics["paper_top1"])


def test_make_cells_splits_pixelwise_runs_and_keeps_the_order_of_encoders():
    two = {"a": GOOD, "b": GOOD}
    runs = (make_run("Pets", two), make_run("NYUDepth", two, seeds=None, pre_encode=False))
    experiments = (Experiment("x", "colors:0"), Experiment("y", "colors:1"))
    settings = Settings(out="out", pca=3, epochs=5, size=24)
    cells = [cell for _, _, cell in make_cells(experiments, runs, settings)]
    assert [cell.title for cell in cells[:3]] == [
        "x / Pets (2 configurations)",
        "x / NYUDepth (a)",
        "x / NYUDepth (b)",
    ]
    assert [cell.experiment for cell in cells] == ["x"] * 3 + ["y"] * 3
    assert len({cell.directory for cell in cells}) == 6
    assert [cell.options.pca for cell in cells[:3]] == [3, 0, 0]
    assert {(cell.options.epochs, cell.options.size) for cell in cells} == {(5, 24)}
    assert math.isclose(cells[0].options.validation, 0.1)
