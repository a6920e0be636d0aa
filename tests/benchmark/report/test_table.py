"""Selection, ranks, normalized scores and results.csv against computations by hand."""

import csv
import io
import math

import numpy as np
import pytest

from mmjax.benchmark.report import encoder_names, selection, summary, table
from mmjax.errors import UserError
from tests.benchmark import synthetic
from tests.messages import raises

# Results of three encoders on an accuracy and on a depth error; one is missing.
VALUES = {
    ("Supervised", "Pets"): 0.8,
    ("Supervised", "NYUDepth"): 0.5,
    ("MoCov2_800", "Pets"): 0.9,
    ("MoCov2_800", "NYUDepth"): 0.2,
    ("=mine()", "Pets"): 0.7,
}


def make(experiment, run, value, **more):
    task = synthetic.TASKS[run]
    fields = dict(metric=task.metric, higher_is_better=task.higher_is_better, end_task=run)
    return synthetic.make(
        **(dict(experiment=experiment, run=run, test_accuracy=value) | fields | more)
    )


@pytest.fixture
def built():
    found = [make(*key, value) for key, value in VALUES.items()]
    return table.build(found, end_tasks=synthetic.TASKS, runs=["Pets"])


def test_rows_are_encoders_and_columns_runs(built):
    assert [e.name for e in built.encoders] == ["=mine()", "MoCov2_800", "Supervised"]
    assert [c.title for c in built.columns] == ["Pets Cls.", "NYU Depth"]
    np.testing.assert_array_equal(built.values, [[0.7, np.nan], [0.9, 0.2], [0.8, 0.5]])


def test_columns_have_the_order_of_the_runs_then_of_the_registry():
    found = [make("a", run, 0.5) for run in ("dtd", "NYUDepth", "Imagenet")]
    found += [synthetic.make(experiment="a", run=run) for run in ("z", "y")]
    built = table.build(found, end_tasks=synthetic.TASKS, runs=["y", "NYUDepth"])
    assert [c.name for c in built.columns] == ["y", "NYUDepth", "Imagenet", "dtd", "z"]


def test_depth_is_the_right_way_up(built):
    np.testing.assert_array_equal(built.ranks, [[3, np.nan], [1, 1], [2, 2]])
    np.testing.assert_array_equal(built.mean_ranks, [3, 1, 2])
    assert built.by_mean_rank() == [1, 2, 0]
    np.testing.assert_allclose(built.relative, [[0, np.nan], [1, 1], [0.5, 0]])
    # Pets: (value - 0.8) / std of (0.7, 0.9, 0.8); depth: (0.5 - value) / std of (0.2, 0.5).
    deviation = math.sqrt(0.02 / 3)
    expected = [[-0.1 / deviation, np.nan], [0.1 / deviation, 0.3 / 0.15], [0, 0]]
    np.testing.assert_allclose(built.normalized, expected, atol=1e-12)


def test_without_the_supervised_encoder_scores_are_relative_to_the_mean():
    found = [make(name, "Pets", value) for name, value in (("a", 0.2), ("b", 0.4), ("c", 0.9))]
    built = table.build(found, end_tasks=synthetic.TASKS)
    values = np.array([0.2, 0.4, 0.9])
    expected = (values - values.mean()) / values.std()
    np.testing.assert_allclose(built.normalized[:, 0], expected)
    assert built.reference == ""


def test_equal_scores_share_a_rank_and_have_no_normalized_score():
    found = [make(name, "Pets", 0.1 + 0.2) for name in "abc"]
    built = table.build(found, end_tasks=synthetic.TASKS)
    assert built.ranks[:, 0].tolist() == [1, 1, 1]
    assert np.isnan(built.normalized).all()


def test_csv_has_the_columns_of_pyvtab_and_no_formulas(built):
    rows = list(csv.DictReader(io.StringIO(summary.as_csv(built))))
    names = ["Pets", "NYUDepth"]
    columns = [*summary.NAME_COLUMNS, *names]
    columns += [f"{n}-normalized" for n in names] + [f"{n}-rank" for n in names]
    assert list(rows[0]) == columns
    by_name = {row["Encoder"]: row for row in rows}
    assert "'=mine()" in by_name
    moco = by_name["MoCov2_800"]
    assert (moco["Method"], moco["Epochs"], moco["Updates"]) == ("MoCo", "800", "800000000")
    assert (moco["NYUDepth"], moco["NYUDepth-normalized"], moco["NYUDepth-rank"]) == (
        *("0.2", "2", "1"),
    )
    assert by_name["'=mine()"]["NYUDepth-rank"] == ""


def test_summary_has_selection_correlations_and_failures(built):
    content = summary.as_object(built, [("a", "Pets", "why")])
    supervised = content["encoders"][2]
    assert supervised["results"]["Pets"]["rank"] == 2
    assert supervised["results"]["Pets"]["selected_on"] == "only"
    assert content["normalized_against"] == "Supervised"
    assert content["correlations"]["pearson"]["encoders"] == [[3, 2], [2, 2]]
    assert content["failures"] == [{"encoder": "a", "run": "Pets", "reason": "why"}]


def configs(higher, protocol, **validation):
    return [
        synthetic.make(
            config_name=name,
            test_accuracy=test,
            validation_accuracy=value,
            higher_is_better=higher,
            protocol=protocol,
        )
        for name, (test, value) in validation.items()
    ]


@pytest.mark.parametrize(
    ("higher", "protocol", "values", "name", "on"),
    [
        (True, "default", dict(a=(0.9, 0.5), b=(0.1, 0.6)), "b", "validation"),
        (False, "default", dict(a=(0.9, 0.5), b=(0.1, 0.6)), "a", "validation"),
        (True, "paper", dict(a=(0.9, 0.5), b=(0.1, 0.6)), "a", "test"),
        (False, "paper", dict(a=(0.9, 0.5), b=(0.1, 0.6)), "b", "test"),
        (True, "default", dict(a=(0.9, None), b=(0.1, None)), "a", "test"),
        (True, "default", dict(a=(0.9, None), b=(0.1, 0.6)), "b", "validation"),
        (True, "paper", dict(a=(math.nan, 0.5), b=(0.1, 0.6)), "b", "test"),
        (True, "default", dict(a=(0.9, 0.5)), "a", "only"),
    ],
)
def test_the_best_configuration_is_selected(higher, protocol, values, name, on):
    found = configs(higher, protocol, **values)
    (chosen,) = selection.select(found).values()
    assert (chosen.result.config_name, chosen.on, chosen.configs) == (name, on, len(values))


def test_results_that_cannot_be_compared_are_an_error():
    mixed = configs(True, "default", a=(0.9, 0.5)) + configs(True, "paper", b=(0.9, 0.5))
    with raises(UserError, "mine", "Pets", "protocol", "'default'", "'paper'"):
        selection.select(mixed)
    other = synthetic.make(experiment="other", end_task="dtd")
    with raises(UserError, "end_task", "other", "mine", "'dtd'", "'Pets'"):
        table.build([synthetic.make(), other], end_tasks=synthetic.TASKS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MoCov2HalfImagenet_100", ("MoCo", "Imagenet", "Balanced", 100, 500_000, 50_000_000)),
        ("SWAVLogImagenet", ("SWAV", "Imagenet", "Log", 200, 250_000, 50_000_000)),
        ("SWAVUnbalancedImagenet", ("SWAV", "Imagenet", "Linear", 200, 500_000, 100_000_000)),
        ("MoCov2Kinetics", ("MoCo", "Kinetics", "Balanced", 200, 1_000_000, 200_000_000)),
        ("Supervised", ("Supervised", "Imagenet", "Balanced", None, 1_000_000, None)),
        ("my_encoder", ("Other", None, None, None, None, None)),
    ],
)
def test_names_of_pyvtab_tell_the_pretraining(name, expected):
    e = encoder_names.parse(name)
    assert (e.method, e.dataset, e.balance, e.epochs, e.dataset_size, e.updates) == expected


def test_imagenet_is_shortened_as_in_pyvtab():
    assert encoder_names.parse("SWAVLogImagenet").short_name == "SWAVLogIN"
