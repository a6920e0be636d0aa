"""Schedules, sections and result tables of evaluators."""

import re

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evals import Schedule, format_results
from tests.messages import raises


@pytest.mark.parametrize(
    ("section", "facts"),
    [
        (dict(), ("config.evals.r", "type", "linear_probe")),
        (dict(type="retreival"), ("evals.r.type", "'retreival'", "'retrieval'")),
        (dict(type="retrieval", agregate="embd"), ("'evals.r.agregate'", "'evals.r.aggregate'")),
        (dict(type="retrieval", aggregate="max"), ("aggregate", "'max'", "cosine", "embd")),
        (dict(type="retrieval", query="video", target="video"), ("query", "target", "'video'")),
        (dict(type="retrieval", every=10, at="final"), ("every", 10, "'final'")),
        (dict(type="retrieval", every=-1), ("every", -1)),
        (dict(type="retrieval", where="evaluation"), ("where", "'evaluation'", "'eval'")),
        (dict(type="linear_probe", split=("a", "b")), ("train_split", 1, 2)),
        (dict(type="linear_probe", Cs=(0.0,)), ("config.evals.r.Cs", 0.0)),
        (dict(type="knn", neighbors=0), ("config.evals.r.neighbors", 0, 1)),
        (dict(type="knn", neighbors="20"), ("config.evals.r.neighbors", "int", "'20'")),
        (dict(type="knn", temperature=0.0), ("config.evals.r.temperature", "positive", 0.0)),
        (dict(type="classification", limit=-1), ("config.evals.r.limit", -1)),
        (dict(type="classification", batch_size=0), ("config.evals.r.batch_size", 0)),
        (dict(type="retrieval", name="x"), ("evals.r.name", "evals.r.query")),
        (dict(type="zero_shot", templates="a"), ("config.evals.r.templates", "{}", "'a'")),
    ],
)
def test_invalid_sections_fail_at_construction(make_harness, section, facts):
    with raises(UserError, *facts):
        make_harness({}).make(r=section)


def test_schedules_with_and_without_an_interval():
    every = Schedule(every=100)
    assert [s for s in range(1, 301) if every.due(s, final=False)] == [100, 200, 300]
    assert every.due(250, final=True) and not every.due(250, final=False)
    assert every.due(250, final=False, last=150) and not every.due(250, final=False, last=200)
    final = Schedule()
    assert final.due(100, final=True) and not final.due(100, final=False)


def test_the_table_has_a_chance_column():
    table = format_results({"r/a/R@1": 0.5, "r/a/R@1_chance": 0.01, "r/C": 3.0, "k/top1": 1.0})
    rows = [re.split(r"  +", line.strip()) for line in table.splitlines()[2:]]
    assert rows == [["r", "a/R@1", "0.5", "0.01"], ["C", "3"], ["k", "top1", "1"]]


def test_the_table_has_columns_for_metric_suffixes():
    results = {"r/a": 0.5, "r/a_chance": 0.1, "r/a_ci95": 0.02, "r/b": 0.25, "r/c_std": 1.0}
    head, _, *rows = format_results(results).splitlines()
    assert re.split(r"  +", head) == ["evaluator", "metric", "value", "chance", "± (95 %)"]
    cells = [re.split(r"  +", row.strip()) for row in rows]
    assert cells == [["r", "a", "0.5", "0.1", "0.02"], ["b", "0.25"], ["c_std", "1"]]


EVALUATOR = """
from mmjax.evals import Evaluator


class MeanNorm(Evaluator):
    def __init__(self, *, feature: str = "video", power: int = 1, split: str = "test", **common):
        super().__init__(**common)
        self.check_minimum(1, power=power)
        self.power = power
        self.feature = feature
        self.request = self.add_request([feature], split=split, batch_size=8)

    def evaluate(self, state):
        x = self.store.get(state, self.request).arrays[self.feature]
        return {"norm": float((abs(x) ** self.power).mean())}
"""


def test_an_evaluator_outside_the_package_is_selected_by_module_and_name(
    make_harness, tmp_path, monkeypatch
):
    (tmp_path / "lab_evaluators.py").write_text(EVALUATOR)
    monkeypatch.syspath_prepend(tmp_path)
    video = np.arange(24, dtype=np.float32).reshape(6, 2, 2) - 9
    harness = make_harness({"test": {"video": video}})
    section = dict(type="lab_evaluators:MeanNorm", power=2, at="final")
    results = harness.run(n=section)
    assert results == {"n/norm": pytest.approx(((2 * video) ** 2).mean())}
    for wrong, facts in (
        (dict(section, pover=2), ("'evals.n.pover'", "'evals.n.power'")),
        (dict(section, power="2"), ("config.evals.n.power", "int", "'2'")),
        (dict(section, power=0), ("config.evals.n.power", 1, 0)),
        (dict(section, type="lab_evaluators:Mean"), ("config.evals.n.type", "'Mean'", "MeanNorm")),
        (dict(section, type="lab_evaluator:Mean"), ("config.evals.n.type", "lab_evaluator")),
    ):
        with raises(UserError, *facts):
            harness.make(n=wrong)


def test_errors_at_the_start_name_the_section(make_harness):
    arrays = {"video": np.zeros((4, 1, 2), np.float32), "label": np.zeros(4, np.int32)}
    harness = make_harness({"train": arrays, "test": arrays})
    (evaluator,) = harness.make(near=dict(type="knn", feature="vidio"))
    with raises(UserError, "config.evals.near", "split 'train'", "'vidio'", "'video'"):
        evaluator.check(harness.state)
