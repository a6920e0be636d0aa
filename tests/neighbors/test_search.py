"""Nearest neighbors against brute force in float64, on ties, duplicates and near-ties."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax import neighbors
from mmjax.errors import UserError
from mmjax.neighbors import rerank, tile_search
from mmjax.neighbors import search as search_module
from tests.messages import assert_mentions, raises


def brute_force(features, k, *, groups=None, duplicate_ids=None, allow_equal=True):
    """Returns (neighbors, similarity) from a stable sort of all cosine similarities."""
    wide = features.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1)
    vectors = np.divide(wide, norm[:, None], where=norm[:, None] > 0, out=np.zeros_like(wide))
    vectors = vectors.astype(np.float32).astype(np.float64)
    scores = (
        np.array([(vectors * vector).sum(1) for vector in vectors]).clip(-1, 1).astype(np.float32)
    )
    allowed = ~np.eye(len(features), dtype=bool) & (norm > 0) & (norm > 0)[:, None]
    if groups is not None:
        allowed &= groups[:, None] == groups
    if duplicate_ids is not None:
        allowed &= duplicate_ids[:, None] != duplicate_ids
    if not allow_equal:
        allowed &= (vectors[:, None] != vectors).any(2)
    scores = np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores, 1, kind="stable")[:, :k]  # ties: lowest index first
    best = np.take_along_axis(scores, order, 1)
    missing = ((0, 0), (0, k - best.shape[1]))
    best, order = np.pad(best, missing, constant_values=-np.inf), np.pad(order, missing)
    valid = np.isfinite(best)
    return np.where(valid, order, -1), np.where(valid, best, 0)


def make(dataset, count=500, width=16):
    rng = np.random.default_rng(count)
    x = rng.standard_normal((count, width), np.float32)
    if dataset == "clusters":  # differences below the resolution of bfloat16
        x = (rng.standard_normal((7, width))[rng.integers(0, 7, count)] + 0.003 * x).astype("f4")
    if dataset == "copies":
        x = x[rng.integers(0, count // 8, count)] * rng.choice([0.5, 1, 4], (count, 1))
        x[[3, 17]] = 0
    if dataset == "ties":  # few distinct cosines
        x = rng.integers(-1, 2, (count, width))
    return x.astype(np.float32)


def settings(dtype="float32", block=64, tile=32, devices=8, held=None):
    """Returns settings for `devices` devices with memory for `held` blocks each."""
    return neighbors.Settings(
        dtype=dtype,
        block=block,
        tile=tile,
        device_bytes=2**30
        if held is None
        else held * block * 16 * (2 if dtype != "float32" else 4),
        devices=tuple(jax.local_devices()[:devices]),
    )


def search(features, k, options, resume_file=None, progress=lambda products: None, **limits):
    prepared = neighbors.prepare(features, **limits)
    return neighbors.nearest(
        prepared, k=k, settings=options, resume_file=resume_file, progress=progress
    )


def check(result, expected):
    np.testing.assert_array_equal(result.similarity, expected[1])
    np.testing.assert_array_equal(result.neighbors, expected[0])


@pytest.mark.parametrize("dataset", ["random", "clusters", "copies", "ties"])
@pytest.mark.parametrize(
    "options",
    [
        settings(),
        settings(held=1, devices=2),  # candidates in several parts
        settings(block=128, tile=128, devices=1),
        settings("bfloat16", held=1, devices=3),
    ],
    ids=["eight", "parts", "one", "bfloat16"],
)
def test_search_is_exact_with_ties_by_lowest_index(dataset, options):
    x = make(dataset)
    for k in (1, 5):
        check(search(x, k, options), brute_force(x, k))


def test_near_ties_in_bfloat16_are_searched_again_in_float32():
    # Similarities differ by less than 1e-3: below the resolution of bfloat16, so a search without
    # a float32 check would fail, and above that of float32.
    rng = np.random.default_rng(0)
    x = np.float32([1.0] * 8) + 0.02 * rng.standard_normal((400, 8), np.float32)
    rounded = x / np.linalg.norm(x, axis=1, keepdims=True)
    rounded = np.asarray(jax.numpy.asarray(rounded, "bfloat16"), np.float32)
    scores = rounded @ rounded.T - 2 * np.eye(len(x))
    expected = brute_force(x, 1)
    assert (scores.argmax(1) != expected[0][:, 0]).mean() > 0.5
    result = search(x, 1, settings("bfloat16", tile=16))
    assert result.counts["searched_again"] > 100
    check(result, expected)


def test_more_near_ties_than_candidates_trigger_an_exhaustive_search():
    # Cosines of distinct vectors that differ by less than the rounding error of float32 sums.
    base = np.zeros((300, 64), np.float32)
    base[:, 0] = 1
    base[np.arange(300), 1 + np.arange(300) % 60] = 1e-4 * (1 + np.arange(300) // 60)
    result = search(base, 2, settings(tile=16, block=64))
    assert result.counts["searched_exhaustively"] > 0
    check(result, brute_force(base, 2))


def test_neighbors_respect_groups_and_excluded_pairs():
    rng = np.random.default_rng(1)
    x = make("copies")
    groups = rng.integers(0, 40, len(x)) * 1000 - 7
    groups[:30] = np.arange(30) + 10**6  # groups of one
    ids = rng.integers(0, 90, len(x))
    for limits in (
        {"groups": groups},
        {"duplicate_ids": ids},
        {"groups": groups, "duplicate_ids": ids},
    ):
        result = search(x, 3, settings(held=1), **limits)
        check(result, brute_force(x, 3, **limits))
    assert (
        search(x, 1, settings(), groups=groups).counts["alone"] >= 28
    )  # up to two of 30 are zero vectors
    check(search(x, 3, settings(), allow_equal=False), brute_force(x, 3, allow_equal=False))


def test_group_sizes_do_not_trigger_recompilation():
    x, options = make("random", 600), settings(block=32, tile=32, devices=1)
    search(x, 1, options, groups=np.repeat(np.arange(3), 200))
    step, opened = (
        tile_search._make_step(options, 4, True)._cache_size(),
        rerank._best_of._cache_size(),
    )
    rng = np.random.default_rng(0)
    for count in (5, 50, 150):
        groups = rng.integers(0, count, len(x))
        groups[:count] = np.arange(count)
        groups[-count:] = np.arange(count)  # no group of one, so the size is the same
        search(x, 1, options, groups=groups)
    assert tile_search._make_step(options, 4, True)._cache_size() == step
    assert rerank._best_of._cache_size() == opened


def test_missing_neighbors_are_marked_with_minus_one():
    x = make("random", 3)
    check(search(x, 5, settings()), brute_force(x, 5))
    result = search(np.zeros((4, 2), np.float32), 2, settings())
    assert (result.neighbors == -1).all() and result.counts["zero"] == 4
    assert search(np.zeros((0, 2), np.float32), 1, settings()).neighbors.shape == (0, 1)


def test_features_may_be_memory_mapped_and_of_any_float_type(tmp_path):
    x = make("random", 200)
    for dtype in (np.float16, np.float64):
        np.save(tmp_path / "x.npy", x.astype(dtype))
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        result = search(mapped, 2, settings(), cache_bytes=0)
        check(result, brute_force(x.astype(dtype), 2))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [settings(block=32, held=1, devices=2), settings(block=32)])
def test_resumed_search_is_bit_exact(tmp_path, monkeypatch, options, caplog):
    monkeypatch.setattr(search_module, "_SAVE_SECONDS", -1.0)
    monkeypatch.setattr(search_module, "_SAVE_FRACTION", 0)
    x, work = make("clusters"), tmp_path / "search.npz"
    progress = []
    expected = search(x, 2, options, progress=progress.append)
    total = sum(progress)
    assert progress[0] == 0
    for stop in (0.3, 0.6, 0.9):
        done = []

        def killing(products, stop=stop, done=done):
            done.append(products)
            if sum(done) > stop * total:
                raise Killed

        with pytest.raises(Killed):
            search(x, 2, options, resume_file=work, progress=killing)
        if stop > 0.3:
            assert done[0] > 0.2 * total  # resumed from the saved progress
    done = []
    result = search(x, 2, options, resume_file=work, progress=done.append)
    assert done[0] > 0.5 * total and sum(done) == total
    check(result, (expected.neighbors, expected.similarity))
    assert str(work) not in caplog.text  # no warning about the file

    x[5] += 1  # saved progress of other features is not used
    changed = search(x, 2, options, resume_file=work, progress=(done := []).append)
    assert done[0] == 0
    assert_mentions(caplog.text, work)
    check(changed, brute_force(x, 2))
    for damaged in (b"not an archive", b"", work.read_bytes()[:100]):
        work.write_bytes(damaged)
        caplog.clear()
        check(search(x, 2, options, resume_file=work), brute_force(x, 2))
        assert_mentions(caplog.text, work)


def test_every_pair_of_blocks_is_multiplied_once():
    x, options = make("random"), settings(block=64, held=1, devices=1)
    progress = []
    search(x, 1, options, progress=progress.append)
    blocks = -(-len(x) // 64)
    assert sum(progress) == blocks * (blocks + 1) // 2
    prepared = neighbors.prepare(x, groups=np.repeat(np.arange(5), 100))
    # Groups of 100 vectors overlap blocks of 64: [0,1], [1,2,3], [3,4], [4,5,6], [6,7].
    assert neighbors.count_products(prepared.vectors, options) == 8 + 9


def test_cost_counts_products_flops_and_memory():
    groups = np.repeat(np.arange(5), 100)
    options = settings(block=64, devices=2)
    cost = neighbors.estimate_cost(500, 16, k=2, settings=options, groups=groups)
    assert cost.products == 17 and cost.flops == 17 * 2 * 64 * 64 * 16
    assert cost.passes == 3 and cost.cached and 0 < cost.seconds < 60
    assert 4 * 64 * 16 * 4 < cost.device_bytes < 2**20  # at least the vectors of four blocks
    assert 500 * 16 * 4 < cost.host_bytes < 2**20


def test_mutual_marks_pairs_that_are_neighbors_of_each_other():
    result = neighbors.SearchResult(
        np.array([[1, 2], [0, -1], [1, 0], [-1, -1]], np.int32), None, {}
    )
    expected = [[True, True], [True, False], [False, True], [False, False]]
    np.testing.assert_array_equal(neighbors.mutual(result), expected)


@pytest.mark.parametrize(
    ("features", "limits", "facts"),
    [
        (np.zeros((4, 2, 3), np.float32), {}, ("float32 [4, 2, 3]", "[N, D]")),
        (np.zeros((4, 2), np.int32), {}, ("int32 [4, 2]", "[N, D]")),
        (np.float32([[1, 2], [np.nan, 1]]), {}, ("text.npy[1, 0]", "nan")),
        (np.ones((4, 2)), {"groups": np.zeros(3, int)}, ("groups", "int64 [3]", "[4]")),
        (
            np.ones((4, 2)),
            {"duplicate_ids": np.zeros(4)},
            ("duplicate_ids", "float64 [4]", "integers [4]"),
        ),
    ],
)
def test_invalid_features_are_an_error(features, limits, facts):
    with raises(UserError, *facts):
        neighbors.prepare(features, name="text.npy", **limits)


def test_invalid_options_are_an_error():
    prepared = neighbors.prepare(make("random", 10))
    with raises(UserError, "k must be", 0, 1):
        neighbors.nearest(prepared, k=0)
    with raises(UserError, "--dtype", "'float8'", "auto, bfloat16, float32"):
        neighbors.choose_settings("float8")
    with raises(UserError, "tile=3", "block=64"):
        dataclasses.replace(settings(), tile=3)


def test_search_agrees_with_faiss():
    faiss = pytest.importorskip("faiss")
    x = neighbors.unit_vectors(make("random", 400, 24))
    index = faiss.IndexFlatIP(24)
    index.add(x)
    scores, indices = index.search(x, 4)
    result = search(x, 3, settings())
    assert (indices[:, 0] == np.arange(400)).all()
    np.testing.assert_array_equal(result.neighbors, indices[:, 1:])
    np.testing.assert_allclose(result.similarity, scores[:, 1:], atol=1e-6)
