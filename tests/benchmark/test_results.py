"""Files of results: what is written is read again, and bad files are named."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from mmjax.benchmark import declarations, find_results, results
from mmjax.errors import UserError
from tests.benchmark import synthetic
from tests.messages import raises


def find(out, **options):
    return find_results.find_results(out, end_tasks=synthetic.TASKS, **options)


def test_results_are_read_as_they_were_written(tmp_path):
    result = synthetic.make(
        seeds=(0, 1), test_values=(0.7, 0.9), ci95=0.1, metrics={"top1": 0.8, "loss": math.nan}
    )
    path = results.write(result, tmp_path)
    assert path == tmp_path / "mine" / "Pets-adam-0.0001" / "results.json"
    read = results.read(path)
    assert read.key == result.key and read.test_values == result.test_values
    assert math.isnan(read.metrics["loss"])
    assert find(tmp_path)[0].key == result.key


def test_files_have_the_names_of_pyvtab_and_no_training_without_training(tmp_path):
    trained = json.loads(results.write(synthetic.make(), tmp_path).read_text())
    assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy"} <= trained.keys()
    evaluated = synthetic.make(run="v2", train_loss=None, train_accuracy=None)
    written = json.loads(results.write(evaluated, tmp_path).read_text())
    assert "train_loss" not in written and "train_accuracy" not in written
    assert results.read(results.path_of(tmp_path, *evaluated.key)).train_loss is None


def test_diverged_results_are_null(tmp_path):
    diverged = dict(test_loss=math.inf, test_accuracy=math.nan, train_loss=math.nan)
    path = results.write(synthetic.make(**diverged), tmp_path)
    assert json.loads(path.read_text())["test_accuracy"] is None
    read = results.read(path)
    assert math.isnan(read.test_accuracy) and math.isnan(read.train_loss)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (dict(metric=None), ["metric"]),
        (dict(test_accuracy="high"), ["test_accuracy", "high"]),
        (dict(higher_is_better=1), ["higher_is_better"]),
        (dict(seeds=[0], test_values=[]), ["seeds", "test_values"]),
        (dict(seeds=[0, "b"], test_values=[1, 2]), ["seeds[1]", "'b'"]),
        (dict(seeds=[0], test_values=[0.5]), ["test_accuracy", "0.5", "0.8"]),
        (dict(colour="red"), ["colour"]),
        (dict(protocol="papr"), ["protocol", "papr", "paper"]),
        (dict(experiment="../../etc"), ["experiment", "slash"]),
    ],
)
def test_bad_fields_are_named(tmp_path, change, facts):
    path = results.write(synthetic.make(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with raises(UserError, path, *facts):
        results.read(path)


def test_missing_fields_and_damaged_files_are_named(tmp_path):
    path = results.write(synthetic.make(), tmp_path)
    values = json.loads(path.read_text())
    del values["cell_hash"], values["seconds"]
    path.write_text(json.dumps(values))
    with raises(UserError, path, "cell_hash", "seconds"):
        results.read(path)
    for text in ("", "[1]", '{"a": '):
        path.write_text(text)
        with raises(UserError, path):
            results.read(path)


def test_confidence_is_that_of_students_distribution():
    values = [0.5, 0.6, 0.8, 0.9]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert results.confidence(values) == pytest.approx((high - low) / 2)
    assert results.confidence([0.5]) is None


def write_original(out, directory, **values):
    path = out / "theirs" / directory / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dict(test_loss=0.1, test_accuracy=0.9) | values))
    return path


def test_files_of_pyvtab_belong_to_the_longest_run(tmp_path):
    write_original(tmp_path, "Pets-Detection-adam-0.0001", train_loss=0.2, train_accuracy=0.8)
    write_original(tmp_path, "Pets-adam-0.0001")
    write_original(tmp_path, "mine-sgd")
    found = {r.run: r for r in find(tmp_path, runs={"mine": "NYUDepth"})}
    assert {r.run: r.config_name for r in found.values()} == {
        "Pets-Detection": "adam-0.0001",
        "Pets": "adam-0.0001",
        "mine": "sgd",
    }
    assert found["mine"].end_task == "NYUDepth" and not found["mine"].higher_is_better
    assert {r.protocol for r in found.values()} == {"paper"}


def test_errors_of_single_files_are_reported_and_the_others_read(tmp_path):
    bad = write_original(tmp_path, "Nothing-adam")
    results.write(synthetic.make(), tmp_path)
    with raises(UserError, bad, "Nothing-adam"):
        find(tmp_path)
    errors = []
    assert len(find(tmp_path, on_error=lambda path, error: errors.append(path))) == 1
    assert errors == [bad]


def test_two_files_of_one_cell_are_an_error(tmp_path):
    path = results.write(synthetic.make(), tmp_path)
    copy = tmp_path / "mine" / "copy" / "results.json"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    with raises(UserError, path, copy):
        find(tmp_path)


def test_names_in_results_do_not_import_modules(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "planted:Task" not in declarations.known(["Pets"])
    results.write(synthetic.make(end_task="planted:Task"), tmp_path)
    (result,) = find(tmp_path)
    assert result.end_task == "planted:Task"
