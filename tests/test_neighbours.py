"""The search against all cosines in float64, on data made to be hard: ties, copies, close calls."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax import neighbours
from mmjax.errors import UserError
from mmjax.neighbours import choice, tiles


def brute_force(features, k, *, groups=None, same=None, equal=True):
    """(neighbours, similarity) by the definition, from a sort of all cosines."""
    wide = features.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1)
    vectors = np.divide(wide, norm[:, None], where=norm[:, None] > 0, out=np.zeros_like(wide))
    vectors = vectors.astype(np.float32).astype(np.float64)
    scores = np.array([(vectors * row).sum(1) for row in vectors]).clip(-1, 1).astype(np.float32)
    allowed = ~np.eye(len(features), dtype=bool) & (norm > 0) & (norm > 0)[:, None]
    if groups is not None:
        allowed &= groups[:, None] == groups
    if same is not None:
        allowed &= same[:, None] != same
    if not equal:
        allowed &= (vectors[:, None] != vectors).any(2)
    scores = np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores, 1, kind="stable")[:, :k]  # the lowest number first among equals
    best = np.take_along_axis(scores, order, 1)
    missing = ((0, 0), (0, k - best.shape[1]))
    best, order = np.pad(best, missing, constant_values=-np.inf), np.pad(order, missing)
    there = np.isfinite(best)
    return np.where(there, order, -1), np.where(there, best, 0)


def make(kind, count=500, width=16):
    draw = np.random.default_rng(count)
    x = draw.standard_normal((count, width), np.float32)
    if kind == "clusters":  # nearer to each other than bfloat16 can tell
        x = (draw.standard_normal((7, width))[draw.integers(0, 7, count)] + 0.003 * x).astype("f4")
    if kind == "copies":
        x = x[draw.integers(0, count // 8, count)] * draw.choice([0.5, 1, 4], (count, 1))
        x[[3, 17]] = 0
    if kind == "ties":  # few different cosines
        x = draw.integers(-1, 2, (count, width))
    return x.astype(np.float32)


def settings(dtype="float32", block=64, tile=32, devices=8, held=None):
    """Of so many devices, which hold `held` blocks each."""
    return tiles.Settings(
        dtype=dtype,
        block=block,
        tile=tile,
        device_bytes=2**30
        if held is None
        else held * block * 16 * (2 if dtype != "float32" else 4),
        devices=tuple(jax.local_devices()[:devices]),
    )


def search(features, k, options, work=None, progress=lambda products: None, **limits):
    prepared = neighbours.prepare(features, **limits)
    return neighbours.nearest(prepared, k=k, settings=options, work=work, progress=progress)


def check(found, expected):
    np.testing.assert_array_equal(found.similarity, expected[1])
    np.testing.assert_array_equal(found.neighbours, expected[0])


@pytest.mark.parametrize("kind", ["random", "clusters", "copies", "ties"])
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
def test_exact_and_ties_by_number(kind, options):
    x = make(kind)
    for k in (1, 5):
        check(search(x, k, options), brute_force(x, k))


def test_bfloat16_is_not_believed_where_it_cannot_tell():
    # All within 1e-3 of each other: less than the rounding of bfloat16, so that a search that
    # trusted it would fail, and more than that of float32.
    draw = np.random.default_rng(0)
    x = np.float32([1.0] * 8) + 0.02 * draw.standard_normal((400, 8), np.float32)
    rounded = x / np.linalg.norm(x, axis=1, keepdims=True)
    rounded = np.asarray(jax.numpy.asarray(rounded, "bfloat16"), np.float32)
    scores = rounded @ rounded.T - 2 * np.eye(len(x))
    expected = brute_force(x, 1)
    assert (scores.argmax(1) != expected[0][:, 0]).mean() > 0.5
    found = search(x, 1, settings("bfloat16", tile=16))
    assert found.counts["searched_again"] > 100
    check(found, expected)


def test_more_equals_than_are_kept():
    # Cosines that differ by less than float32 sums do, between rows that are not equal.
    base = np.zeros((300, 64), np.float32)
    base[:, 0] = 1
    base[np.arange(300), 1 + np.arange(300) % 60] = 1e-4 * (1 + np.arange(300) // 60)
    found = search(base, 2, settings(tile=16, block=64))
    assert found.counts["searched_whole"] > 0
    check(found, brute_force(base, 2))


def test_groups_and_forbidden_pairs():
    draw = np.random.default_rng(1)
    x = make("copies")
    groups = draw.integers(0, 40, len(x)) * 1000 - 7
    groups[:30] = np.arange(30) + 10**6  # alone
    same = draw.integers(0, 90, len(x))
    for limits in ({"groups": groups}, {"same": same}, {"groups": groups, "same": same}):
        found = search(x, 3, settings(held=1), **limits)
        check(found, brute_force(x, 3, **limits))
    assert search(x, 1, settings(), groups=groups).counts["alone"] >= 28  # less the rows of zeros
    check(search(x, 3, settings(), equal=False), brute_force(x, 3, equal=False))


def test_groups_are_not_compiled_one_by_one():
    x, options = make("random", 600), settings(block=32, tile=32, devices=1)
    search(x, 1, options, groups=np.repeat(np.arange(3), 200))
    step, opened = tiles._make_step(options, 4, True)._cache_size(), choice._best_of._cache_size()
    draw = np.random.default_rng(0)
    for count in (5, 50, 150):
        groups = draw.integers(0, count, len(x))
        groups[:count] = np.arange(count)
        groups[-count:] = np.arange(count)  # nobody is alone: as many rows as before
        search(x, 1, options, groups=groups)
    assert tiles._make_step(options, 4, True)._cache_size() == step
    assert choice._best_of._cache_size() == opened


def test_fewer_others_than_asked_for():
    x = make("random", 3)
    check(search(x, 5, settings()), brute_force(x, 5))
    nobody = search(np.zeros((4, 2), np.float32), 2, settings())
    assert (nobody.neighbours == -1).all() and nobody.counts["zero"] == 4
    assert search(np.zeros((0, 2), np.float32), 1, settings()).neighbours.shape == (0, 1)


def test_types_and_files(tmp_path):
    x = make("random", 200)
    for dtype in (np.float16, np.float64):
        np.save(tmp_path / "x.npy", x.astype(dtype))
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        found = search(mapped, 2, settings(), cache_bytes=0)
        check(found, brute_force(x.astype(dtype), 2))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [settings(block=32, held=1, devices=2), settings(block=32)])
def test_resumes_bit_for_bit(tmp_path, monkeypatch, options, caplog):
    monkeypatch.setattr(neighbours, "_SAVE_SECONDS", -1.0)
    monkeypatch.setattr(neighbours, "_PATIENCE", 0)
    x, work = make("clusters"), tmp_path / "search.npz"
    whole = []
    expected = search(x, 2, options, progress=whole.append)
    total = sum(whole)
    assert whole[0] == 0
    for stop in (0.3, 0.6, 0.9):
        done = []

        def killing(products, stop=stop, done=done):
            done.append(products)
            if sum(done) > stop * total:
                raise Killed

        with pytest.raises(Killed):
            search(x, 2, options, work=work, progress=killing)
        if stop > 0.3:
            assert done[0] > 0.2 * total  # went on where the last one was killed
    done = []
    found = search(x, 2, options, work=work, progress=done.append)
    assert done[0] > 0.5 * total and sum(done) == total
    check(found, (expected.neighbours, expected.similarity))
    assert "starts over" not in caplog.text

    x[5] += 1  # other features, so the file is of no use
    changed = search(x, 2, options, work=work, progress=(done := []).append)
    assert done[0] == 0 and "starts over" in caplog.text
    check(changed, brute_force(x, 2))
    for damaged in (b"no such thing", b"", work.read_bytes()[:100]):
        work.write_bytes(damaged)
        check(search(x, 2, options, work=work), brute_force(x, 2))


def test_every_pair_of_blocks_is_multiplied_once():
    x, options = make("random"), settings(block=64, held=1, devices=1)
    counted = []
    search(x, 1, options, progress=counted.append)
    blocks = -(-len(x) // 64)
    assert sum(counted) == blocks * (blocks + 1) // 2
    prepared = neighbours.prepare(x, groups=np.repeat(np.arange(5), 100))
    # Groups of 100 rows begin and end inside blocks of 64: [0,1], [1,2,3], [3,4], [4,5,6], [6,7].
    assert neighbours.products(prepared.rows, options) == 8 + 9


def test_plan_counts_what_the_search_does():
    groups = np.repeat(np.arange(5), 100)
    options = settings(block=64, devices=2)
    found = neighbours.plan(500, 16, k=2, settings=options, groups=groups)
    assert found["products"] == 17 and found["flops"] == 17 * 2 * 64 * 64 * 16
    assert found["seconds"] > 0 and found["device_bytes"] > 4 * 64 * 16 * 4
    assert found["cached"] and found["host_bytes"] > 500 * 16 * 4


def test_mutual():
    found = neighbours.Found(np.array([[1, 2], [0, -1], [1, 0], [-1, -1]], np.int32), None, {})
    expected = [[True, True], [True, False], [False, True], [False, False]]
    np.testing.assert_array_equal(neighbours.mutual(found), expected)


@pytest.mark.parametrize(
    ("features", "limits", "message"),
    [
        (np.zeros((4, 2, 3), np.float32), {}, "2 variants of each record"),
        (np.zeros((4, 2), np.int32), {}, r"int32 \[4, 2\]; expected floating point"),
        (np.float32([[1, 2], [np.nan, 1]]), {}, "Row 1 of the features .* NaN"),
        (np.ones((4, 2)), {"groups": np.zeros(3, int)}, r"groups are int64 \[3\]; .* \[4\]"),
        (np.ones((4, 2)), {"same": np.zeros(4)}, r"same are float64 \[4\]; expected integers"),
    ],
)
def test_bad_features(features, limits, message):
    with pytest.raises(UserError, match=message):
        neighbours.prepare(features, **limits)


def test_bad_options():
    prepared = neighbours.prepare(make("random", 10))
    with pytest.raises(UserError, match="0 neighbours"):
        neighbours.nearest(prepared, k=0)
    with pytest.raises(UserError, match="float8"):
        neighbours.choose_settings("float8")
    with pytest.raises(UserError, match="Tiles of 3 rows do not divide blocks of 64"):
        dataclasses.replace(settings(), tile=3)


def test_faiss_agrees():
    faiss = pytest.importorskip("faiss")
    x = neighbours.rows.unit(make("random", 400, 24))
    index = faiss.IndexFlatIP(24)
    index.add(x)
    scores, numbers = index.search(x, 4)
    found = search(x, 3, settings())
    assert (numbers[:, 0] == np.arange(400)).all()
    np.testing.assert_array_equal(found.neighbours, numbers[:, 1:])
    np.testing.assert_allclose(found.similarity, scores[:, 1:], atol=1e-6)
