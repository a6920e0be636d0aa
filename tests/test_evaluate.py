"""Running evaluators on a train state."""

import logging

from mmjax import evaluate
from tests.messages import assert_mentions
from tests.scripted import Evaluator


def test_evaluators_share_features_of_one_state_only():
    first, second = Evaluator("first"), Evaluator("second")
    for step in (10, 15):
        results = evaluate.run_all([first, second], {"params": 7.0}, step)
        assert results == {"first/value": 7.0, "second/value": 7.0}
    assert first.seen == second.seen == [10, 15]
    assert first.cleared == 2  # no features of an earlier state are reused


def test_a_failing_evaluator_does_not_stop_the_others(caplog):
    bad, good = Evaluator("bad", broken=(3,)), Evaluator("good")
    with caplog.at_level(logging.ERROR, logger="absl"):
        results = evaluate.run_all([bad, good], {"params": 1.0}, 3)
    assert results == {"bad/failed": 1.0, "good/value": 1.0}
    assert evaluate.failures(results) == ["bad"]
    assert_mentions(caplog.text, "bad", "step 3", "error code 1234")
