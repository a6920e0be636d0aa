"""The evaluator `retrieval` compared with sorting the whole similarity matrix."""

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evals.retrieval import count_better
from tests.evals.synthetic import unit
from tests.messages import raises


def ranks_by_sorting(similarity):
    """1-based rank of the diagonal in the descending order of each row, as in VATT."""
    order = np.argsort(-similarity, axis=1)
    return np.array([np.flatnonzero(row == i)[0] + 1 for i, row in enumerate(order)])


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


def test_examples_with_both_modalities_are_required(make_harness, clips):
    clips["text_mask"][:] = 0
    facts = ("config.evals.r", "text and video", "split 'test' of fake", "config.evals.r.split")
    with raises(UserError, *facts):
        make_harness({"test": clips}).run(r=dict(type="retrieval"))
