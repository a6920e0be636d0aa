"""Losses and statistics of end tasks: published values, brute force, ignored elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.losses import end_task
from mmjax.losses.end_task import LOSSES, statistic_names
from tests.messages import raises

OPTIONS = ("name", "class_weights", "ignore")
loss = jax.jit(end_task.loss, static_argnames=OPTIONS)
statistics = jax.jit(end_task.statistics, static_argnames=("target_type", "threshold", "depth"))

LOGITS = np.array([[2, 0, 0, 0, 0], [0, 1, 0, 0, 3], [0, 0, 0, 1, 0]], np.float32)
LABELS = np.array([0, 1, 3])


def maps(*rows):
    """float32 [B, H, W, 1] from nested lists [B, H, W]."""
    return np.array(rows, np.float32)[..., None]


# ---- losses: values of pyVTAB's published code


def test_cross_entropy():
    assert loss(LOGITS, LABELS, name="cross_entropy") == pytest.approx(1.1960026, abs=1e-6)
    weighted = dict(name="cross_entropy", class_weights=(0.1, 1, 1, 1, 1))
    assert loss(LOGITS, LABELS, **weighted) == pytest.approx(1.5231526, abs=1e-6)
    # The same numbers as the pixels of one image, among ignored ones.
    pixels = np.zeros((1, 2, 3, 5), np.float32)
    pixels[0, 0] = LOGITS
    target = np.array([[LABELS, [-1, -1, -1]]])[..., None]
    assert loss(pixels, target, name="cross_entropy") == pytest.approx(1.1960026, abs=1e-6)
    assert loss(pixels, target, **weighted) == pytest.approx(1.5231526, abs=1e-6)
    # COCO ignores class 0.
    without_zero = (2.2505224 + 0.9048325) / 2
    assert loss(pixels, target, name="cross_entropy", ignore=0) == pytest.approx(without_zero)


def test_binary_cross_entropy():
    logits, mask = maps([[2, -1], [0.5, -3]]), maps([[1, 0], [0, 1]])
    assert loss(logits, mask, name="binary_cross_entropy") == pytest.approx(1.1157136, abs=1e-6)


KITTI = (
    maps([[0.10, 0.50], [0.30, 0.90]], [[0.20, 0.20], [0.00, 0.70]]),
    maps([[0.12, np.nan], [0.36, 0.86]], [[np.nan, 0.21], [0.10, np.nan]]),
)


def test_l1():
    assert loss(*KITTI, name="l1") == pytest.approx(0.046, abs=1e-6)


def test_weighted_l1():
    outputs, target = maps([[0.5, 0.2, 0.9]]), maps([[1, 0, 0.5]])
    assert loss(outputs, target, name="weighted_l1") == pytest.approx(0.2333333, abs=1e-6)


def test_cross_entropy_equals_that_of_torch():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels, weights = random.integers(5, size=(2, 3, 4)), (0.1, 1.0, 2.0, 0.5, 3.0)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).moveaxis(-1, 1), torch.tensor(labels), torch.tensor(weights)
    )
    result = loss(logits, labels[..., None], name="cross_entropy", class_weights=weights)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def sample(name, seed=0):
    """Returns outputs and targets with ignored elements, and a mask of the valid ones."""
    random = np.random.default_rng(seed)
    outputs = random.normal(size=(2, 3, 4, 3)).astype(np.float32)
    if name == "cross_entropy":
        target = random.integers(-1, 3, size=(2, 3, 4, 1)).astype(np.int32)
        return outputs, target, np.broadcast_to(target >= 0, outputs.shape)
    target = random.normal(size=outputs.shape).astype(np.float32)
    target = (target > 0).astype(np.float32) if name == "binary_cross_entropy" else target
    valid = random.random(outputs.shape) < 0.5
    return outputs, np.where(valid, target, np.nan).astype(np.float32), valid


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_elements_affect_neither_the_loss_nor_gradients(name):
    outputs, target, valid = sample(name)
    value, gradient = jax.value_and_grad(lambda o: loss(o, target, name=name))(outputs)
    assert np.isfinite(value)
    assert np.all((gradient != 0) == valid)
    # Not even if the outputs there are not finite.
    for bad in (np.nan, np.inf):
        other = jax.value_and_grad(lambda o: loss(o, target, name=name))(
            np.where(valid, outputs, np.float32(bad))
        )
        jax.tree.map(np.testing.assert_array_equal, other, (value, gradient))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_ignored_elements_is_zero_with_zero_gradients(name):
    outputs, target, _ = sample(name)
    target = np.full_like(target, -1 if name == "cross_entropy" else np.nan)
    value, gradient = jax.value_and_grad(lambda o: loss(o, target, name=name))(outputs)
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_map_over_heads(name):
    target = sample(name)[1]
    heads = np.stack([sample(name, seed)[0] for seed in range(3)])
    result = jax.vmap(lambda outputs: loss(outputs, target, name=name))(heads)
    np.testing.assert_allclose(result, [loss(h, target, name=name) for h in heads], rtol=1e-6)
    assert result.dtype == jnp.float32
    half = loss(heads[0].astype(jnp.bfloat16), target, name=name)
    assert half.dtype == jnp.float32 and half == pytest.approx(float(result[0]), rel=0.02)


def test_a_loss_of_your_own():
    name = "mmjax.losses.end_task:weighted_l1"
    assert loss(*KITTI, name=name) == loss(*KITTI, name="weighted_l1")


@pytest.mark.parametrize(
    ("shape", "options", "facts"),
    [
        ((3,), dict(name="crossentropy"), ("config.loss.name", "'crossentropy'", "cross_entropy")),
        (
            (3,),
            dict(name="cross_entropy", class_weight=(1,)),
            ("'cross_entropy'", "'loss.class_weight'", "'loss.class_weights'"),
        ),
        ((3,), dict(name="cross_entropy", ignore="0"), ("config.loss.ignore", "int", "'0'")),
        ((3,), dict(name="cross_entropy", class_weights=(1, 2)), ("config.loss.class_weights", 5)),
        ((3,), dict(name="l1", ignore=0), ("'l1'", "'loss.ignore'")),
        ((4,), dict(name="cross_entropy"), ("(3, 5)", "(3,)", "(4,)", "image size")),
        ((3, 5), dict(name="l1"), ("(3, 5)", "int", "image size")),
    ],
)
def test_invalid_losses_are_an_error(shape, options, facts):
    with raises(UserError, *facts):
        end_task.loss(LOGITS, np.zeros(shape, np.int32), **options)


# ---- statistics


def test_statistics_of_labels():
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 8)).astype(np.float32)
    labels = random.integers(8, size=50)
    result = statistics(logits, labels, target_type="label")
    order = np.argsort(-logits, axis=1)
    np.testing.assert_array_equal(result["correct"], order[:, 0] == labels)
    np.testing.assert_array_equal(result["correct5"], (order[:, :5] == labels[:, None]).any(1))
    losses = [loss(logits[i : i + 1], labels[i : i + 1], name="cross_entropy") for i in range(50)]
    np.testing.assert_allclose(result["loss"], losses, rtol=1e-5)


def test_equal_logits_are_chance():
    result = statistics(np.zeros((2, 10), np.float32), np.array([0, 9]), target_type="label")
    np.testing.assert_allclose(result["correct"], 0.1)
    np.testing.assert_allclose(result["correct5"], 0.5)


def test_counts_of_classes():
    random = np.random.default_rng(1)
    logits = random.normal(size=(3, 6, 7, 4)).astype(np.float32)
    labels = random.integers(-1, 3, size=(3, 6, 7, 1))  # class 3 is absent
    labels[2] = -1  # everything is ignored
    counts = statistics(logits, labels, target_type="classes")["counts"]
    predicted, valid = logits.argmax(-1), labels[..., 0] >= 0
    for b in range(3):
        for c in range(4):
            hit, own = predicted[b] == c, labels[b, ..., 0] == c
            expected = [(hit & own).sum(), (hit & valid[b]).sum(), own.sum()]
            np.testing.assert_array_equal(counts[b, c], expected)
    assert not counts[2].any() and counts[0, 3, 1] > 0


def test_counts_of_binary_maps():
    logits = maps([[2, -1], [0.5, -3]], [[-1, -1], [-1, -1]], [[1, 1], [1, -1]], [[0, 5], [5, 0]])
    mask = maps([[1, 0], [0, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 1]], [[1, np.nan], [1, np.nan]])
    counts = statistics(logits, mask, target_type="binary")["counts"]
    # A logit of 0 is negative.
    np.testing.assert_array_equal(counts[:, 0], [[1, 2, 2], [0, 0, 0], [0, 3, 1], [1, 1, 2]])
    both = statistics(
        np.concatenate([logits, -logits], axis=-1), np.tile(mask, 2), target_type="binary"
    )["counts"]
    np.testing.assert_array_equal(both[:, 0], counts[:, 0])
    np.testing.assert_array_equal(both[0, 1], [1, 2, 2])


def test_statistics_of_values():
    random = np.random.default_rng(2)
    target = random.normal(size=(3, 5, 6, 1)).astype(np.float32)
    outputs = (target * random.uniform(0.4, 2, size=target.shape)).astype(np.float32)
    target[random.random(target.shape) < 0.3] = np.nan
    target[1], target[0, 0, 0] = np.nan, 0
    result = statistics(outputs, target, target_type="values", threshold=0.2)
    assert all(value.shape == (3,) and value.dtype == jnp.float32 for value in result.values())
    for b in range(3):
        pairs = np.stack([outputs[b].ravel(), target[b].ravel()], axis=1)
        pairs = pairs[~np.isnan(pairs[:, 1])]
        above = [(o, t) for o, t in pairs if t > 0]
        expected = {
            "valid": len(pairs),
            "abs_error": sum(abs(o - t) for o, t in pairs),
            "squared_error": sum((o - t) ** 2 for o, t in pairs),
            "within": sum(abs(o - t) <= 0.2 for o, t in pairs),
            "positive": len(above),
            "abs_relative": sum(abs(o - t) / t for o, t in above),
            **{f"delta{i}": sum(max(o / t, t / o) < 1.25**i for o, t in above) for i in (1, 2, 3)},
        }
        assert result.keys() == expected.keys() | {"loss"}
        for name, value in expected.items():
            assert float(result[name][b]) == pytest.approx(value, rel=1e-5), name


def test_relative_errors_of_a_depth_with_an_offset():
    """Errors of distances: THOR's targets are (x − 0.5) / 0.25."""
    distance, actual = np.array([0.6, 0.2, 0.9]), np.array([0.5, 0.4, 0.0])
    outputs, target = (
        ((x - 0.5) / 0.25).astype(np.float32).reshape(1, 1, 3, 1) for x in (distance, actual)
    )
    result = statistics(outputs, target, target_type="values", depth=(0.25, 0.5))
    assert result["positive"][0] == 2 and result["delta1"][0] == 1
    assert float(result["abs_relative"][0]) == pytest.approx(0.1 / 0.5 + 0.2 / 0.4, rel=1e-5)
    assert float(result["abs_error"][0]) == pytest.approx((0.1 + 0.2 + 0.9) / 0.25, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_statistics_have_the_loss_of_each_example(name):
    outputs, target, _ = sample(name)
    kind = {"cross_entropy": "classes", "binary_cross_entropy": "binary"}.get(name, "values")
    options = dict(name=name) | (dict(class_weights=(1, 2, 3)) if kind == "classes" else {})
    result = end_task.statistics(outputs, target, target_type=kind, loss=options)["loss"]
    expected = [loss(outputs[i : i + 1], target[i : i + 1], **options) for i in range(2)]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("target_type", "num_outputs", "expected"),
    [
        ("label", 7, {"correct", "correct5", "loss"}),
        ("classes", 3, {"counts", "loss"}),
        ("binary", 1, {"counts", "loss"}),
    ],
)
def test_names_of_statistics(target_type, num_outputs, expected):
    assert set(statistic_names(target_type, num_outputs)) == expected
    depth, flow = (set(statistic_names("values", count)) for count in (1, 2))
    assert flow - depth == {"flow_valid", "endpoint_error", "outliers"} and depth < flow


def test_statistics_of_flow():
    target = np.array([[[3, 4], [0, 100], [0, 10], [np.nan, 1], [0, 0]]], np.float32)[None]
    outputs = target + np.array([[3, 4], [0, 4], [0, 3], [9, 9], [0, 3.5]], np.float32)
    outputs = np.nan_to_num(outputs)
    result = statistics(outputs, target, target_type="values")
    # Errors 5, 4, 3, 3.5 pixels; 4 of 100 pixels is less than 5 %, and 3 pixels is no outlier.
    assert float(result["endpoint_error"][0]) == pytest.approx(15.5)
    assert result["flow_valid"][0] == 4 and result["outliers"][0] == 2
    assert result["valid"][0] == 9


def test_counts_are_exact_for_large_images():
    size = 4096  # 2^24 pixels
    target = jnp.zeros((1, size, size, 1), jnp.float32)
    outputs = jnp.full_like(target, 0.1).at[0, 0, 0].set(0.0)
    result = jax.jit(lambda o, t: statistics(o, t, target_type="values"))(outputs, target)
    assert result["valid"][0] == size**2 and result["within"][0] == 1
    # A sum in float32 one after the other would be wrong by several percent.
    assert float(result["abs_error"][0]) == pytest.approx(0.1 * (size**2 - 1), rel=2e-6)


@pytest.mark.parametrize("target_type", ["label", "classes", "binary", "values"])
def test_statistics_are_nan_for_outputs_that_are_not_finite(target_type):
    outputs = np.ones((3, 4, 4, 2), np.float32)
    target = np.ones_like(outputs)
    if target_type == "classes":
        target = target[..., :1].astype(np.int32)
    if target_type == "label":
        outputs, target = outputs[:, 0, 0], np.ones(3, np.int32)
    good = statistics(outputs, target, target_type=target_type)
    outputs[1, ..., -1] = np.inf
    outputs[2, ..., 0] = np.nan
    result = statistics(outputs, target, target_type=target_type)
    for name, value in result.items():
        assert np.isnan(value[1:]).all(), name
        np.testing.assert_array_equal(value[0], good[name][0])


def test_labels_without_a_class_of_the_head_are_nan():
    result = statistics(LOGITS, np.array([0, 5, 3]), target_type="label")
    assert [np.isnan(x) for x in result["correct"]] == [False, True, False]
    target = np.array([0, 7]).reshape(1, 1, 2, 1)
    counts = statistics(np.zeros((1, 1, 2, 5), np.float32), target, target_type="classes")
    assert np.isnan(counts["counts"]).all()


def test_statistics_map_over_heads():
    outputs, target, _ = sample("cross_entropy")
    heads = np.stack([outputs, -outputs, 2 * outputs])
    result = jax.vmap(lambda head: statistics(head, target, target_type="classes"), out_axes=1)(
        heads
    )["counts"]
    assert result.shape == (2, 3, 3, 3)  # examples, heads, classes, counts
    for i, head in enumerate(heads):
        expected = statistics(head, target, target_type="classes")["counts"]
        np.testing.assert_array_equal(result[:, i], expected)


def test_an_unknown_target_type_is_an_error():
    with raises(UserError, "'lable'", "'label'"):
        statistics(LOGITS, LABELS, target_type="lable")
    with raises(UserError, "(3, 5)", "image size"):
        statistics(LOGITS, np.zeros((3, 4)), target_type="values")
