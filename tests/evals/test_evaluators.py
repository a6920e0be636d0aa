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


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def ranks_by_sorting(similarity):
    """1-based rank of the diagonal in each row's descending order, as in VATT."""
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
def test_retrieval_equals_sorting_the_whole_matrix(bench, clips, monkeypatch, block):
    monkeypatch.setattr("mmjax.evals.retrieval._MAX_BLOCK", block)
    found = bench({"test": clips}).run(
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
            assert found[f"r/text_to_video{suffix}/R@{k}"] == pytest.approx((ranks <= k).mean())
        assert found[f"r/text_to_video{suffix}/median_rank"] == np.median(ranks)
        assert found[f"r/text_to_video{suffix}/mean_rank"] == pytest.approx(ranks.mean())
    assert found["r/text_to_video/R@1_chance"] == pytest.approx(1 / 37)
    assert found["r/text_to_video/mean_rank"] != found["r/text_to_video_cosine/mean_rank"]


def test_one_window_is_normalised_too(bench, clips):
    clips["video/text"] = clips["video/text"][:, :1] * np.geomspace(1, 50, 37)[:, None, None]
    found = bench({"test": clips}).run(
        r=dict(type="retrieval", aggregate=("embd", "cosine"), batch_size=8)
    )
    similarity = unit(clips["text/video"][:, 0]) @ unit(clips["video/text"][:, 0]).T
    for name in ("text_to_video", "text_to_video_cosine"):
        rank = pytest.approx(ranks_by_sorting(similarity).mean())
        assert found[f"r/{name}/mean_rank"] == rank


def test_all_captions_are_queries_and_targets(bench, clips):
    clips["text_mask"][5, 1] = 0  # clip 5 has one caption only
    clips["text_mask"][7] = 0  # clip 7 has none
    found = bench({"test": clips}).run(
        r=dict(type="retrieval", query=("text", "video"), target=("text", "video"), captions="all")
    )
    kept = np.array([i for i in range(37) if i != 7])
    example, caption = np.nonzero(clips["text_mask"])
    similarity = (
        unit(clips["text/video"][example, caption]) @ unit(clips["video/text"].mean(1)[kept]).T
    )
    own = example[:, None] == kept
    ranks = 1 + (similarity > similarity[own][:, None]).sum(1)
    assert found["r/text_to_video/mean_rank"] == pytest.approx(ranks.mean())
    best = np.where(own.T, similarity.T, -np.inf).max(1, keepdims=True)
    ranks = 1 + (similarity.T > best).sum(1)
    assert found["r/video_to_text/mean_rank"] == pytest.approx(ranks.mean())


def test_examples_without_a_modality_are_left_out(bench, clips):
    clips["video_mask"] = np.ones(37, np.float32)
    clips["video_mask"][3] = 0
    left = {k: np.delete(v, 3, axis=0) for k, v in clips.items()}
    cfg = dict(type="retrieval", batch_size=16)
    assert bench({"test": clips}).run(r=cfg) == bench({"test": left}).run(r=cfg)


def test_a_collapsed_model_retrieves_at_chance(bench):
    same = np.full((50, 1, 8), 0.3, np.float32)
    found = bench({"test": {"video/audio": same, "audio/video": same}}).run(
        r=dict(type="retrieval", query="audio", target="video")
    )
    for metric in ("R@1", "R@10", "mean_rank", "median_rank"):
        name = f"r/audio_to_video/{metric}"
        assert found[name] == pytest.approx(found[f"{name}_chance"])


def test_own_targets_do_not_count_against_each_other():
    queries = np.array([[1.0, 0.0]])
    targets = np.array([[1.0, 0.0], [0.9, 0.1], [0.95, 0.0], [0.0, 1.0]])
    greater, ties = count_better(queries, np.array([4]), targets, np.array([9, 4, 4, 9]))
    assert (greater, ties) == (1, 0)  # the best own target scores 0.95, one foreign target 1.0


def test_every_example_counts_once_in_the_order_of_ids(bench, clips):
    b = bench({"test": clips})
    (evaluator,) = b.make(r=dict(type="retrieval", batch_size=8))  # 37 = 4 * 8 + 5
    features = evaluator.store.get(b.state, evaluator.requests[0])
    np.testing.assert_array_equal(features.example_id, np.arange(37))
    np.testing.assert_array_equal(features.arrays["video/text"], 2 * clips["video/text"])


def test_a_limit_takes_the_first_examples(bench, clips):
    b = bench({"test": clips})
    (evaluator,) = b.make(r=dict(type="retrieval", batch_size=8, limit=10))
    features = evaluator.store.get(b.state, evaluator.requests[0])
    np.testing.assert_array_equal(features.example_id, np.arange(10))
    assert evaluator.run(b.state, 1)["r/text_to_video/R@1_chance"] == pytest.approx(1 / 10)


def test_corrupt_records_are_left_out_only_if_asked(bench, clips):
    cfg = dict(type="retrieval", batch_size=8)
    found = bench({"test": clips}, corrupt=(2, 36), policy="skip").run(r=cfg)
    left = {k: np.delete(v, (2, 36), axis=0) for k, v in clips.items()}
    assert found == bench({"test": left}).run(r=cfg)
    with pytest.raises(RuntimeError, match="35 examples came.*of 37"):
        bench({"test": clips}, corrupt=(2, 36)).run(r=cfg)


def test_evaluators_of_one_step_share_features(bench):
    rng = np.random.default_rng(0)
    arrays = {
        "video": rng.normal(size=(40, 1, 8)).astype(np.float32),
        "label": (np.arange(40) % 4).astype(np.int32),
    }
    b = bench({"train": arrays, "test": arrays})
    probe, knn = b.make(a=dict(type="linear_probe", strengths=(1.0,)), b=dict(type="knn"))
    for step in (1, 2):
        state = {**b.state, "params": {"scale": np.float32(step)}}
        assert {*probe.run(state, step), *knn.run(state, step)} >= {"a/video/top1", "b/video/top1"}
        assert [o.made.iterations for o in b.opened] == [step, step]
    assert sorted(o.split for o in b.opened) == ["test", "train"]


def test_splits_of_one_form_share_a_compilation(bench, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = labelled(rng, 40, rng.normal(size=(4, 8)))
    arrays |= {"video/text": arrays["video"], "text/video": arrays["video"]}
    b, traces = bench({"train": arrays, "test": arrays}), []
    predict = b.task.predict["features"]

    def traced(params, extra, batch):
        traces.append(sorted(batch))
        return predict(params, extra, batch)

    monkeypatch.setitem(b.task.predict, "features", traced)
    found = b.run(a=dict(type="knn"), b=dict(type="retrieval"))
    assert len(found) > 8 and len(traces) == 1


def test_eight_devices_give_what_one_gives(bench, clips):
    clips["video"], clips["label"] = clips["video/text"], (np.arange(37) % 3).astype(np.int32)
    cfg = dict(
        r=dict(type="retrieval", batch_size=16),
        p=dict(type="linear_probe", batch_size=16, strengths=(0.1,)),
    )
    found = []
    for mesh in (sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(data=4, fsdp=2)):
        b, results = bench({"test": clips, "train": clips}), {}
        with jax.set_mesh(mesh):  # as inside a training
            for evaluator in b.make(mesh=mesh, **cfg):
                results |= evaluator.run(b.state, 1)
        found.append(results)
    assert found[0] == found[1]
    with pytest.raises(UserError, match="12 is not divisible by 8"):
        b.make(mesh=mesh, r=dict(type="retrieval", batch_size=12))


def test_the_moving_average_is_what_is_evaluated(bench, clips):
    b = bench({"test": clips})
    b.state["ema"] = {"scale": np.float32(7.0)}
    (evaluator,) = b.make(r=dict(type="retrieval"))
    features = evaluator.store.get(b.state, evaluator.requests[0])
    np.testing.assert_array_equal(features.arrays["text/video"], 7 * clips["text/video"])


def test_views_change_the_data_config(bench, clips):
    b = bench({"test": clips})
    b.run(r=dict(type="retrieval", data="d", views=dict(video=dict(num_clips=4, crop=(1, 2)))))
    (opened,) = b.opened
    assert opened.data == "d"
    assert opened.cfg["video"] == dict(num_frames=4, num_clips=4, crop=(1, 2))
    with pytest.raises(UserError, match="'vidio'.*Did you mean 'video'"):
        b.make(r=dict(type="retrieval", views=dict(vidio={})))


def test_knn_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels, right = rng.integers(7, size=300), rng.integers(7, size=90)
    centres = rng.normal(size=(7, 16))
    train = unit(centres[labels] + rng.normal(size=(300, 16)))
    test = unit(centres[right] + rng.normal(size=(90, 16)))
    theirs = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(train, labels)
    ours = knn_scores(train, labels, test, num_classes=7)
    np.testing.assert_allclose(
        ours / ours.sum(1, keepdims=True), theirs.predict_proba(test), atol=1e-5
    )


def labelled(rng, size, centres):
    label = (np.arange(size) % len(centres)).astype(np.int32)
    video = centres[label][:, None] + rng.normal(size=(size, 2, centres.shape[1]))
    return {"video": video.astype(np.float32), "label": label}


def test_linear_probe_averages_the_splits_of_a_dataset(bench):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 10))
    splits = {name: labelled(rng, 60, centres) for name in ("train1", "test1", "train2", "test2")}
    splits["test1"]["label"][:5] = -1  # five clips without a label
    found = bench(splits, num_classes=20).run(
        p=dict(
            type="linear_probe",
            train_split=("train1", "train2"),
            split=("test1", "test2"),
            views={},
        ),
        k=dict(type="knn", train_split="train1", split="test1", views={}),
    )
    parts = [found[f"p/video/split{i}/top1"] for i in (1, 2)]
    assert found["p/video/top1"] == pytest.approx(np.mean(parts))
    assert parts[0] * 55 == pytest.approx(round(parts[0] * 55))
    assert found["p/video/top1"] > 0.8
    assert found["p/video/top5"] >= found["p/video/top1"]
    # A guess among the classes that occur, of the 20 that the dataset knows.
    for name in ("p", "k"):
        assert found[f"{name}/video/top1_chance"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    "options", [dict(classifier="svm"), dict(classifier="vatt", epochs=100), dict(seed=1)]
)
def test_the_protocols_of_the_linear_probe(bench, options):
    """Several pairs of splits, one training window, four test windows, no whole batches."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(7, 10))
    splits = {name: labelled(rng, 70, centres) for name in ("train1", "test1", "train2", "test2")}
    for name in ("train1", "train2"):
        splits[name]["video"] = splits[name]["video"][:, :1]
    splits["train2"]["label"][:3] = -1
    found = bench(splits, num_classes=7).run(
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
        parts = [found[f"p/video/split{i}/{name}"] for i in (1, 2)]
        assert found[f"p/video/{name}"] == pytest.approx(np.mean(parts))
        assert found[f"p/video/{name}"] > 0.8
    assert ("p/video/loss" in found) == (options.get("classifier") != "svm")
    assert ("p/video/C" in found) == (options.get("classifier") != "vatt")
    assert found["p/video/top5_chance"] == pytest.approx(5 / 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classifier="svm", average="logits"), "option of classifier='svm': 'average'"),
        (dict(classifier="svm", epochs=3), "classifier='svm': 'epochs'.*Valid: seed, standardize"),
        (dict(classifier="vatt", strengths=(1.0,)), "'vatt': 'strengths'.*Valid: epochs, seed"),
        (dict(epochs=3), "option of classifier='logistic': 'epochs'"),
        (dict(classifier="smv"), "Did you mean 'svm'"),
        (dict(strengths=()), "strengths=.*must be positive numbers"),
        (dict(classifier="svm", validation=1.0), "validation=1.0 must be within 0 and 1"),
        (dict(average="mean"), "average='mean' must be"),
        (dict(classifier="vatt", epochs=0), "epochs=0 must be positive"),
        (dict(train_split=("a", "b")), "2 train_split but 1 split"),
    ],
)
def test_options_that_are_not_the_classifiers(bench, options, message):
    with pytest.raises(UserError, match=message):
        bench({}).make(p=dict(type="linear_probe", **options))


def test_classification_of_all_examples(bench):
    rng = np.random.default_rng(0)
    arrays = labelled(rng, 45, 0.5 * rng.normal(size=(8, 8)))
    found = bench({"test": arrays}, num_classes=8).run(c=dict(type="classification", batch_size=16))
    logits = 2 * arrays["video"].mean(1)
    assert found["c/top1"] == pytest.approx((logits.argmax(1) == arrays["label"]).mean())
    assert found["c/loss"] == pytest.approx(metrics.softmax_cross_entropy(logits, arrays["label"]))
    assert found["c/top5_chance"] == pytest.approx(5 / 8)
    arrays["label"][0] = 8
    with pytest.raises(UserError, match="label 8.*8 classes"):
        bench({"test": arrays}).run(c=dict(type="classification"))


def test_multi_label_classification_names_empty_classes(bench, caplog):
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=(45, 3)).astype(np.float32)
    label[:, 1] = 0
    video = (label[:, None] + rng.normal(size=(45, 2, 3))).astype(np.float32)
    with caplog.at_level("WARNING", logger="absl"):
        found = bench(
            {"test": {"video": video, "label": label}}, class_names=["a", "dog", "c"]
        ).run(c=dict(type="classification"))
    assert "dog" in caplog.text and found["c/skipped_classes"] == 1
    want = metrics.multi_label_metrics(video.mean(1), label).means()
    for name, value in want.items():
        assert found[f"c/{name}"] == pytest.approx(value)
    assert found["c/mAP_chance"] == pytest.approx(label[:, [0, 2]].mean())


def test_features_that_are_not_finite_are_an_error(bench, clips):
    clips["text/video"][4, 0, 0] = np.inf
    with pytest.raises(UserError, match=r"'text/video' is not finite for 1 of 37.*\[4\]"):
        bench({"test": clips}).run(r=dict(type="retrieval"))


def test_a_missing_output_is_named_before_anything_is_computed(bench, clips):
    b = bench({"test": clips})
    state = jax.eval_shape(lambda: b.state)
    (good,) = b.make(r=dict(type="retrieval"))
    good.check(state)
    (bad,) = b.make(r=dict(type="retrieval", query="texd"))
    with pytest.raises(UserError, match="'texd/video'.*Did you mean 'text/video'"):
        bad.check(state)
    with pytest.raises(UserError, match="'texd/video'"):
        bad.run(b.state, 1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(), "config.evals.r has no type"),
        (dict(type="retreival"), "Did you mean 'retrieval'"),
        (dict(type="retrieval", agregate="embd"), "evals.r.agregate.*Did you mean 'aggregate'"),
        (dict(type="retrieval", aggregate="max"), "aggregate 'max'"),
        (dict(type="retrieval", query="video", target="video"), "no pair"),
        (dict(type="retrieval", every=10, at="final"), "not both"),
        (dict(type="retrieval", every=-1), "number of steps"),
        (dict(type="retrieval", where="evaluation"), "Did you mean 'eval'"),
        (dict(type="linear_probe", split=("a", "b")), "1 train_split but 2 split"),
        (dict(type="linear_probe", strengths=(0.0,)), "positive"),
        (dict(type="knn", neighbours=0), "at least 1"),
    ],
)
def test_what_cannot_be_fails_when_evaluators_are_made(bench, section, message):
    with pytest.raises(UserError, match=message):
        bench({}).make(r=section)


def test_schedules():
    every = Schedule(every=100)
    assert [s for s in range(1, 301) if every.due(s, final=False)] == [100, 200, 300]
    assert every.due(250, final=True) and not every.due(250, final=False)
    assert every.due(250, final=False, last=150) and not every.due(250, final=False, last=200)
    final = Schedule()
    assert final.due(100, final=True) and not final.due(100, final=False)


def test_the_table_has_chance_beside_the_metric():
    table = format_results({"r/a/R@1": 0.5, "r/a/R@1_chance": 0.01, "r/C": 3.0, "k/top1": 1.0})
    rows = [re.split(r"  +", line.strip()) for line in table.splitlines()[2:]]
    assert rows == [["r", "a/R@1", "0.5", "0.01"], ["C", "3"], ["k", "top1", "1"]]


def test_views_keep_the_other_keys_of_sections_within_sections(bench, clips):
    b = bench({"test": clips})
    b.data_cfg["text"] = dict(max_words=4, keywords=dict(prompt="p", shuffle=True))
    keywords = dict(eval_subset=True, seed=3)
    b.run(r=dict(type="retrieval", views=dict(text=dict(keywords=keywords), video=None)))
    cfg = b.opened[0].cfg
    assert cfg["text"] == dict(max_words=4, keywords=dict(prompt="p", shuffle=True, **keywords))
    assert cfg["video"] is None
    assert b.data_cfg["text"]["keywords"] == dict(
        prompt="p", shuffle=True
    )  # training's is as it was
    b.run(r=dict(type="retrieval", views=dict(text=dict(keywords=None))))
    assert b.opened[1].cfg["text"] == dict(max_words=4, keywords=None)
    with pytest.raises(UserError, match="views.label is given but config.data.label is None"):
        b.make(r=dict(type="retrieval", views=dict(label=dict(multi_label=True))))


def test_some_examples_alone(bench, clips):
    b = bench({"test": clips})
    (evaluator,) = b.make(r=dict(type="retrieval", batch_size=8))
    found = b.run(r=dict(type="retrieval", batch_size=8)) and evaluator.store.pick(
        b.state, evaluator.requests[0], np.array([30, 4, 9])
    )
    np.testing.assert_array_equal(found.example_id, [4, 9, 30])
    np.testing.assert_array_equal(found.arrays["text/video"], 2 * clips["text/video"][[4, 9, 30]])
    np.testing.assert_array_equal(found.masks["text"], clips["text_mask"][[4, 9, 30]])


def test_the_table_has_columns_for_what_stands_beside_a_metric():
    results = {"r/a": 0.5, "r/a_chance": 0.1, "r/a_ci95": 0.02, "r/b": 0.25, "r/c_std": 1.0}
    head, _, *rows = format_results(results).splitlines()
    assert re.split(r"  +", head) == ["evaluator", "metric", "value", "chance", "± (95 %)"]
    cells = [re.split(r"  +", row.strip()) for row in rows]
    assert cells == [["r", "a", "0.5", "0.1", "0.02"], ["b", "0.25"], ["c_std", "1"]]
