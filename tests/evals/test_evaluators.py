"""Retrieval, k-NN, linear probe and classification evaluators, and their options."""

import re

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mmjax import sharding
from mmjax.errors import UserError
from mmjax.evals import Schedule, format_results, metrics
from mmjax.evals.knn import knn_scores
from mmjax.evals.retrieval import count_better
from tests.messages import assert_mentions, raises


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def ranks_by_sorting(similarity):
    """1-based rank of the diagonal in the descending order of each row, as in VATT."""
    order = np.argsort(-similarity, axis=1)
    return np.array([np.flatnonzero(row == i)[0] + 1 for i, row in enumerate(order)])


@pytest.fixture
def clips():
    """37 clips with 3 windows and 2 captions each."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(37, 1, 8))
    return {
        "video/text": (base + rng.normal(size=(37, 3, 8))).astype(np.float32),
        "text/video": (base + rng.normal(size=(37, 2, 8))).astype(np.float32),
        "text_mask": np.ones((37, 2), np.float32),
    }


@pytest.mark.parametrize("block", [5, 1024])
def test_retrieval_equals_sorting_the_whole_matrix(make_harness, clips, monkeypatch, block):
    monkeypatch.setattr("mmjax.evals.blocks.MAX_BLOCK", block)
    results = make_harness({"test": clips}).run(
        r=dict(type="retrieval", aggregate=("embd", "cosine"), batch_size=8)
    )
    text, video = clips["text/video"][:, 0], clips["video/text"]
    matrices = {
        "": unit(text) @ unit(video.mean(1)).T,
        "_cosine": np.einsum("qd,nvd->qnv", unit(text), unit(video)).mean(-1),
    }
    for suffix, similarity in matrices.items():
        ranks = ranks_by_sorting(similarity)
        for k in (1, 5, 10):
            assert results[f"r/text_to_video{suffix}/R@{k}"] == pytest.approx((ranks <= k).mean())
        assert results[f"r/text_to_video{suffix}/median_rank"] == np.median(ranks)
        assert results[f"r/text_to_video{suffix}/mean_rank"] == pytest.approx(ranks.mean())
    assert results["r/text_to_video/R@1_chance"] == pytest.approx(1 / 37)
    assert results["r/text_to_video/mean_rank"] != results["r/text_to_video_cosine/mean_rank"]


def test_a_single_window_is_normalized(make_harness, clips):
    clips["video/text"] = clips["video/text"][:, :1] * np.geomspace(1, 50, 37)[:, None, None]
    results = make_harness({"test": clips}).run(
        r=dict(type="retrieval", aggregate=("embd", "cosine"), batch_size=8)
    )
    similarity = unit(clips["text/video"][:, 0]) @ unit(clips["video/text"][:, 0]).T
    for name in ("text_to_video", "text_to_video_cosine"):
        rank = pytest.approx(ranks_by_sorting(similarity).mean())
        assert results[f"r/{name}/mean_rank"] == rank


def test_all_captions_are_queries_and_targets(make_harness, clips):
    clips["text_mask"][5, 1] = 0  # clip 5 has one caption only
    clips["text_mask"][7] = 0  # clip 7 has none
    results = make_harness({"test": clips}).run(
        r=dict(type="retrieval", query=("text", "video"), target=("text", "video"), captions="all")
    )
    kept = np.array([i for i in range(37) if i != 7])
    example, caption = np.nonzero(clips["text_mask"])
    similarity = (
        unit(clips["text/video"][example, caption]) @ unit(clips["video/text"].mean(1)[kept]).T
    )
    own = example[:, None] == kept
    ranks = 1 + (similarity > similarity[own][:, None]).sum(1)
    assert results["r/text_to_video/mean_rank"] == pytest.approx(ranks.mean())
    best = np.where(own.T, similarity.T, -np.inf).max(1, keepdims=True)
    ranks = 1 + (similarity.T > best).sum(1)
    assert results["r/video_to_text/mean_rank"] == pytest.approx(ranks.mean())


def test_examples_without_a_modality_are_excluded(make_harness, clips):
    clips["video_mask"] = np.ones(37, np.float32)
    clips["video_mask"][3] = 0
    remaining = {k: np.delete(v, 3, axis=0) for k, v in clips.items()}
    cfg = dict(type="retrieval", batch_size=16)
    assert make_harness({"test": clips}).run(r=cfg) == make_harness({"test": remaining}).run(r=cfg)


def test_a_collapsed_model_retrieves_at_chance(make_harness):
    constant = np.full((50, 1, 8), 0.3, np.float32)
    results = make_harness({"test": {"video/audio": constant, "audio/video": constant}}).run(
        r=dict(type="retrieval", query="audio", target="video")
    )
    for metric in ("R@1", "R@10", "mean_rank", "median_rank"):
        name = f"r/audio_to_video/{metric}"
        assert results[name] == pytest.approx(results[f"{name}_chance"])


def test_positives_of_a_query_do_not_lower_its_rank():
    queries = np.array([[1.0, 0.0]])
    targets = np.array([[1.0, 0.0], [0.9, 0.1], [0.95, 0.0], [0.0, 1.0]])
    greater, ties = count_better(queries, np.array([4]), targets, np.array([9, 4, 4, 9]))
    assert (greater, ties) == (1, 0)  # the best positive scores 0.95, one negative 1.0


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


def test_corrupt_records_are_skipped_only_on_request(make_harness, clips):
    cfg = dict(type="retrieval", batch_size=8)
    results = make_harness({"test": clips}, corrupt=(2, 36), policy="skip").run(r=cfg)
    remaining = {k: np.delete(v, (2, 36), axis=0) for k, v in clips.items()}
    assert results == make_harness({"test": remaining}).run(r=cfg)
    with raises(RuntimeError, "features", "test", 35, 37):
        make_harness({"test": clips}, corrupt=(2, 36)).run(r=cfg)


def test_evaluators_share_the_features_of_a_step(make_harness):
    rng = np.random.default_rng(0)
    arrays = {
        "video": rng.normal(size=(40, 1, 8)).astype(np.float32),
        "label": (np.arange(40) % 4).astype(np.int32),
    }
    harness = make_harness({"train": arrays, "test": arrays})
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
    harness, traces = make_harness({"train": arrays, "test": arrays}), []
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
        harness, results = make_harness({"test": clips, "train": clips}), {}
        with jax.set_mesh(mesh):  # as in the training loop
            for evaluator in harness.make(mesh=mesh, **cfg):
                results |= evaluator.run(harness.state, 1)
        all_results.append(results)
    assert all_results[0] == all_results[1]
    with raises(UserError, "batch_size", 12, 8, 16):
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


def test_knn_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(7, size=300), rng.integers(7, size=90)
    centers = rng.normal(size=(7, 16))
    train = unit(centers[labels] + rng.normal(size=(300, 16)))
    test = unit(centers[test_labels] + rng.normal(size=(90, 16)))
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(train, labels)
    scores = knn_scores(train, labels, test, num_classes=7)
    np.testing.assert_allclose(
        scores / scores.sum(1, keepdims=True), reference.predict_proba(test), atol=1e-5
    )


def labeled_arrays(rng, size, centers):
    label = (np.arange(size) % len(centers)).astype(np.int32)
    video = centers[label][:, None] + rng.normal(size=(size, 2, centers.shape[1]))
    return {"video": video.astype(np.float32), "label": label}


def test_linear_probe_averages_over_split_pairs(make_harness):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 10))
    splits = {
        name: labeled_arrays(rng, 60, centers) for name in ("train1", "test1", "train2", "test2")
    }
    splits["test1"]["label"][:5] = -1  # unlabeled
    results = make_harness(splits, num_classes=20).run(
        p=dict(
            type="linear_probe",
            train_split=("train1", "train2"),
            split=("test1", "test2"),
            views={},
        ),
        k=dict(type="knn", train_split="train1", split="test1", views={}),
    )
    parts = [results[f"p/video/split{i}/top1"] for i in (1, 2)]
    assert results["p/video/top1"] == pytest.approx(np.mean(parts))
    assert parts[0] * 55 == pytest.approx(round(parts[0] * 55))
    assert results["p/video/top1"] > 0.8
    assert results["p/video/top5"] > 0.95  # chance: 5 / 6
    # Chance counts the six classes that occur, not the 20 that the dataset declares.
    for name in ("p", "k"):
        assert results[f"{name}/video/top1_chance"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    "options", [dict(classifier="svm"), dict(classifier="vatt", epochs=100), dict(seed=1)]
)
def test_linear_probe_protocols(make_harness, options):
    """Two pairs of splits, one training window, two test windows, a partial last batch."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(7, 10))
    splits = {
        name: labeled_arrays(rng, 70, centers) for name in ("train1", "test1", "train2", "test2")
    }
    for name in ("train1", "train2"):
        splits[name]["video"] = splits[name]["video"][:, :1]
    splits["train2"]["label"][:3] = -1
    results = make_harness(splits, num_classes=7).run(
        p=dict(
            type="linear_probe",
            train_split=("train1", "train2"),
            split=("test1", "test2"),
            batch_size=16,
            **options,
        )
    )
    names = ["top1", "top5", "mean_class_top1", "train_top1", "train_top5"]
    for name in names:
        parts = [results[f"p/video/split{i}/{name}"] for i in (1, 2)]
        assert results[f"p/video/{name}"] == pytest.approx(np.mean(parts))
        assert results[f"p/video/{name}"] > 0.8
    assert ("p/video/loss" in results) == (options.get("classifier") != "svm")
    assert ("p/video/C" in results) == (options.get("classifier") != "vatt")
    assert results["p/video/top5_chance"] == pytest.approx(5 / 7)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(classifier="svm", average="logits"), ("classifier=svm", "evals.p.average")),
        (
            dict(classifier="svm", epochs=3),
            ("classifier=svm", "'evals.p.epochs'", "evals.p.seed, evals.p.standardize"),
        ),
        (
            dict(classifier="vatt", Cs=(1.0,)),
            ("classifier=vatt", "'evals.p.Cs'", "evals.p.epochs, evals.p.seed"),
        ),
        (dict(epochs=3), ("classifier=logistic", "'evals.p.epochs'")),
        (dict(classifier="smv"), ("config.evals.p.classifier", "'smv'", "'svm'", "vatt")),
        (dict(Cs=()), ("config.evals.p.Cs", "()")),
        (dict(Cs=1.0), ("config.evals.p.Cs", "tuple", 1.0)),
        (dict(classifier="svm", validation=1.0), ("config.evals.p.validation", 1.0)),
        (dict(average="mean"), ("config.evals.p.average", "'mean'", "logits, probabilities")),
        (dict(classifier="vatt", epochs=0), ("config.evals.p.epochs", 0)),
        (dict(train_split=("a", "b")), ("config.evals.p", "train_split", 2, 1)),
        (dict(train_limit=-1), ("config.evals.p.train_limit", -1)),
    ],
)
def test_invalid_linear_probe_options_are_refused(make_harness, options, facts):
    with raises(UserError, *facts):
        make_harness({}).make(p=dict(type="linear_probe", **options))


def test_classification_metrics_cover_all_examples(make_harness):
    rng = np.random.default_rng(0)
    arrays = labeled_arrays(rng, 45, 0.5 * rng.normal(size=(8, 8)))
    results = make_harness({"test": arrays}, num_classes=8).run(
        c=dict(type="classification", batch_size=16)
    )
    logits = 2 * arrays["video"].mean(1)
    assert results["c/top1"] == pytest.approx((logits.argmax(1) == arrays["label"]).mean())
    assert results["c/loss"] == pytest.approx(
        metrics.softmax_cross_entropy(logits, arrays["label"])
    )
    assert results["c/top5_chance"] == pytest.approx(5 / 8)
    arrays["label"][0] = 8
    with raises(UserError, "fake", "label", 8):
        make_harness({"test": arrays}).run(c=dict(type="classification"))


def test_multi_label_classification_names_empty_classes(make_harness, caplog):
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=(45, 3)).astype(np.float32)
    label[:, 1] = 0
    video = (label[:, None] + rng.normal(size=(45, 2, 3))).astype(np.float32)
    with caplog.at_level("WARNING", logger="absl"):
        results = make_harness(
            {"test": {"video": video, "label": label}}, class_names=["a", "dog", "c"]
        ).run(c=dict(type="classification"))
    assert_mentions(caplog.text, "dog")
    assert results["c/skipped_classes"] == 1
    expected = metrics.multi_label_metrics(video.mean(1), label).means()
    for name, value in expected.items():
        assert results[f"c/{name}"] == pytest.approx(value)
    assert results["c/mAP_chance"] == pytest.approx(label[:, [0, 2]].mean())


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


def test_the_table_has_columns_for_metric_suffixes():
    results = {"r/a": 0.5, "r/a_chance": 0.1, "r/a_ci95": 0.02, "r/b": 0.25, "r/c_std": 1.0}
    head, _, *rows = format_results(results).splitlines()
    assert re.split(r"  +", head) == ["evaluator", "metric", "value", "chance", "± (95 %)"]
    cells = [re.split(r"  +", row.strip()) for row in rows]
    assert cells == [["r", "a", "0.5", "0.1", "0.02"], ["b", "0.25"], ["c_std", "1"]]
