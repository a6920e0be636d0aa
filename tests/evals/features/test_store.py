"""The feature store: every example once, shared by evaluators, on any number of devices."""

import jax
import numpy as np
import pytest

from mmjax import sharding
from mmjax.errors import UserError
from tests.evals.synthetic import labeled_arrays, train_and_test
from tests.messages import raises


def test_every_example_occurs_once_ordered_by_id(make_harness, clips):
    harness = make_harness({"test": clips})
    (evaluator,) = harness.make(r=dict(type="retrieval", batch_size=8))  # 37 = 4 * 8 + 5
    features = evaluator.store.get(harness.state, evaluator.requests[0])
    np.testing.assert_array_equal(features.example_id, np.arange(37))
    np.testing.assert_array_equal(features.arrays["video/text"], 2 * clips["video/text"])


def test_limit_selects_the_first_examples(make_harness, clips):
    harness = make_harness({"test": clips})
    (evaluator,) = harness.make(r=dict(type="retrieval", batch_size=8, limit=10))
    features = evaluator.store.get(harness.state, evaluator.requests[0])
    np.testing.assert_array_equal(features.example_id, np.arange(10))
    assert evaluator.run(harness.state, 1)["r/text_to_video/R@1_chance"] == pytest.approx(1 / 10)


def test_selected_examples_are_computed_in_id_order(make_harness, clips):
    harness = make_harness({"test": clips})
    (evaluator,) = harness.make(r=dict(type="retrieval", batch_size=8))
    features = evaluator.store.get_examples(
        harness.state, evaluator.requests[0], np.array([30, 4, 9])
    )
    np.testing.assert_array_equal(features.example_id, [4, 9, 30])
    np.testing.assert_array_equal(
        features.arrays["text/video"], 2 * clips["text/video"][[4, 9, 30]]
    )
    np.testing.assert_array_equal(features.masks["text"], clips["text_mask"][[4, 9, 30]])


def test_corrupt_records_are_skipped_only_on_request(make_harness, clips):
    cfg = dict(type="retrieval", batch_size=8)
    results = make_harness({"test": clips}, corrupt=(2, 36), policy="skip").run(r=cfg)
    remaining = {k: np.delete(v, (2, 36), axis=0) for k, v in clips.items()}
    assert results == make_harness({"test": remaining}).run(r=cfg)
    with raises(RuntimeError, "features", "test", 35, 37, "corrupt='skip'"):
        make_harness({"test": clips}, corrupt=(2, 36)).run(r=cfg)


def test_evaluators_share_the_features_of_a_step(make_harness):
    rng = np.random.default_rng(0)
    arrays = {
        "video": rng.normal(size=(40, 1, 8)).astype(np.float32),
        "label": (np.arange(40) % 4).astype(np.int32),
    }
    harness = make_harness(train_and_test(arrays))
    probe, knn = harness.make(a=dict(type="linear_probe", Cs=(1.0,)), b=dict(type="knn"))
    for step in (1, 2):
        state = {**harness.state, "params": {"scale": np.float32(step)}}
        assert {*probe.run(state, step), *knn.run(state, step)} >= {"a/video/top1", "b/video/top1"}
        assert [o.dataset.iterations for o in harness.opened] == [step, step]
    assert sorted(o.split for o in harness.opened) == ["test", "train"]


def test_splits_with_equal_shapes_share_a_compilation(make_harness, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = labeled_arrays(rng, 40, rng.normal(size=(4, 8)))
    arrays |= {"video/text": arrays["video"], "text/video": arrays["video"]}
    harness, traces = make_harness(train_and_test(arrays)), []
    predict = harness.task.predict["features"]

    def traced(params, extra, batch):
        traces.append(sorted(batch))
        return predict(params, extra, batch)

    monkeypatch.setitem(harness.task.predict, "features", traced)
    results = harness.run(a=dict(type="knn"), b=dict(type="retrieval"))
    assert results.keys() > {"a/video/top1", "b/text_to_video/R@1"} and len(traces) == 1


def test_results_on_eight_devices_equal_those_on_one(make_harness, clips):
    clips["video"], clips["label"] = clips["video/text"], (np.arange(37) % 3).astype(np.int32)
    cfg = dict(
        r=dict(type="retrieval", batch_size=16),
        p=dict(type="linear_probe", batch_size=16, Cs=(0.1,)),
    )
    all_results = []
    for mesh in (sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(data=4, fsdp=2)):
        harness, results = make_harness(train_and_test(clips)), {}
        with jax.set_mesh(mesh):  # as in the training loop
            for evaluator in harness.make(mesh=mesh, **cfg):
                results |= evaluator.run(harness.state, 1)
        all_results.append(results)
    assert all_results[0] == all_results[1]
    with raises(UserError, "evals.r.batch_size", 12, 8, 16):
        harness.make(mesh=mesh, r=dict(type="retrieval", batch_size=12))


def test_the_moving_average_of_the_parameters_is_evaluated(make_harness, clips):
    harness = make_harness({"test": clips})
    harness.state["ema"] = {"scale": np.float32(7.0)}
    (evaluator,) = harness.make(r=dict(type="retrieval"))
    features = evaluator.store.get(harness.state, evaluator.requests[0])
    np.testing.assert_array_equal(features.arrays["text/video"], 7 * clips["text/video"])


def test_views_override_the_data_config(make_harness, clips):
    harness = make_harness({"test": clips})
    harness.run(
        r=dict(type="retrieval", data="d", views=dict(video=dict(num_clips=4, crop=(1, 2))))
    )
    (opened,) = harness.opened
    assert opened.data == "d"
    assert opened.cfg["video"] == dict(num_frames=4, num_clips=4, crop=(1, 2))
    with raises(UserError, "views", "'vidio'", "'video'"):
        harness.make(r=dict(type="retrieval", views=dict(vidio={})))


def test_views_keep_the_other_keys_of_nested_sections(make_harness, clips):
    harness = make_harness({"test": clips})
    harness.data_cfg["text"] = dict(max_tokens=4, keywords=dict(prompt="p", shuffle=True))
    keywords = dict(eval_subset=True, seed=3)
    harness.run(r=dict(type="retrieval", views=dict(text=dict(keywords=keywords), video=None)))
    cfg = harness.opened[0].cfg
    assert cfg["text"] == dict(max_tokens=4, keywords=dict(prompt="p", shuffle=True, **keywords))
    assert cfg["video"] is None
    # The data config of the training run is unchanged.
    assert harness.data_cfg["text"]["keywords"] == dict(prompt="p", shuffle=True)
    harness.run(r=dict(type="retrieval", views=dict(text=dict(keywords=None))))
    assert harness.opened[1].cfg["text"] == dict(max_tokens=4, keywords=None)
    with raises(UserError, "views.label", "config.data.label", None):
        harness.make(r=dict(type="retrieval", views=dict(label=dict(multi_label=True))))


def test_nonfinite_features_are_an_error(make_harness, clips):
    clips["text/video"][4, 0, 0] = np.inf
    with raises(UserError, "'text/video'", 1, 37, "[4]"):
        make_harness({"test": clips}).run(r=dict(type="retrieval"))


def test_a_missing_output_is_reported_before_anything_is_computed(make_harness, clips):
    harness = make_harness({"test": clips})
    state = jax.eval_shape(lambda: harness.state)
    (good,) = harness.make(r=dict(type="retrieval"))
    good.check(state)
    (bad,) = harness.make(r=dict(type="retrieval", query="texd"))
    with raises(UserError, "'texd/video'", "'text/video'"):
        bad.check(state)
    with raises(UserError, "'texd/video'", "'text/video'"):
        bad.run(harness.state, 1)
