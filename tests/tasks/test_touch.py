"""The touch task without the training loop: pair losses, frozen towers, precomputed features."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.tasks import make_task
from tests.messages import raises
from tests.random_arrays import random_arrays

BATCH, SIZE, NUM_TOKENS = 6, 16, 5
ENCODER = dict(width=8, num_layers=1, num_heads=1, head_dim=8, mlp_dim=8, projection=12)
VISION = dict(ENCODER, image_size=SIZE, patch_size=8)
SPEC = {
    "touch": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), np.uint8),
    "touch_mask": jax.ShapeDtypeStruct((BATCH,), np.float32),
    "image": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), np.uint8),
    "image_mask": jax.ShapeDtypeStruct((BATCH,), np.float32),
    "text": jax.ShapeDtypeStruct((BATCH, 1, NUM_TOKENS), np.int32),
    "text_mask": jax.ShapeDtypeStruct((BATCH, 1), np.float32),
}


def task_of(*, spec=SPEC, frozen=(), model=(), augment=(), **loss):
    cfg = config.base()
    cfg.task = "touch"
    cfg.model = dict(
        dict(
            touch=dict(name="touch_tiny", **VISION),
            image=dict(name="clip_vit_tiny", **VISION),
            text=dict(name="clip_text_tiny", context_length=NUM_TOKENS, **ENCODER),
            dropout_rate=0.0,
        ),
        **dict(model),
    )
    cfg.augment = dict(augment)
    cfg.loss = loss
    cfg.optimizer = dict(frozen=tuple(frozen))
    return make_task(cfg, DataSpec(batch=spec, vocab_size=20))


def batch_of(**changes):
    rng = np.random.default_rng(0)
    batch = {
        "touch": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "text": rng.integers(1, 20, (BATCH, 1, NUM_TOKENS), np.int32),
        "touch_mask": np.ones(BATCH, np.float32),
        "image_mask": np.ones(BATCH, np.float32),
        "text_mask": np.ones((BATCH, 1), np.float32),
    }
    return batch | changes


@functools.cache
def default():
    """Returns a task, its parameters, and the features of its batch in training."""
    task = task_of()
    params, extra = init(task)
    features, _ = jax.jit(task.encode)(params, extra, batch_of(), jax.random.key(1))
    return task, params, extra, features


def init(task):
    """Returns random parameters that are large enough for clearly different embeddings."""
    params, extra = random_arrays(task.model)
    params = jax.tree.map(lambda x: x * (3.0 if x.ndim > 1 else 1.0), params)
    return params | {"logit_scale": jnp.float32(math.log(1 / 0.07))}, extra


def evaluate_loss(task, params=None, **changes):
    """Returns (loss, metrics) of the default features with changes of the batch, such as masks."""
    _, default_params, extra, features = default()
    value, (_, metrics) = jax.jit(task.objective)(
        params or default_params, extra, features, batch_of(**changes), jax.random.key(1)
    )
    return value, {name: total / count for name, (total, count) in metrics.items()}


@functools.cache
def embeddings():
    """Returns {'touch/text': [B, d], …} as for evaluators, where images have a view axis."""
    task, params, extra, _ = default()
    views = {k: v[:, None] if v.dtype == np.uint8 else v for k, v in batch_of().items()}
    outputs = jax.jit(task.predict["features"])(params, extra, views)
    return {name: np.asarray(x, np.float64)[:, 0] for name, x in outputs.items()}


def info_nce(a, b, scale, keep):
    """Mean of both softmax cross-entropies over the kept examples, in float64."""
    logits = scale * a[keep] @ b[keep].T
    rows = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(axis=0)) - np.diag(logits)
    return (rows.mean() + columns.mean()) / 2


@pytest.mark.parametrize("mean_over", ["weights", "pairs"])
def test_the_loss_is_the_weighted_mean_of_the_pairs(mean_over):
    task = task_of(weights=dict(touch_image=2.0, touch_text=0.5), mean_over=mean_over)
    text_mask, image_mask = np.ones((BATCH, 1), np.float32), np.ones(BATCH, np.float32)
    text_mask[1] = image_mask[4] = 0
    value, metrics = evaluate_loss(task, text_mask=text_mask, image_mask=image_mask)
    x = embeddings()
    np.testing.assert_allclose(np.linalg.norm(x["image/text"], axis=1), 1, rtol=1e-5)
    with_text, with_image = (np.delete(np.arange(BATCH), missing) for missing in (1, 4))
    image = info_nce(x["touch/image"], x["image/touch"], 1 / 0.07, with_image)
    text = info_nce(x["touch/text"], x["text/touch"], 1 / 0.07, with_text)
    np.testing.assert_allclose(metrics["loss_touch_image"], image, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_touch_text"], text, rtol=1e-4)
    divisor = 2.5 if mean_over == "weights" else 3
    np.testing.assert_allclose(value, (2 * image + 0.5 * text) / divisor, rtol=1e-4)
    nearest = (x["touch/text"] @ x["text/touch"].T)[with_text][:, with_text].argmax(axis=1)
    assert np.isclose(metrics["top1_touch_text"], np.mean(nearest == np.arange(BATCH - 1)))
    assert "loss_image_text" not in metrics


def test_groups_compare_examples_only_within_parts_of_the_batch():
    value, _ = evaluate_loss(task_of(weights=dict(touch_text=1.0), groups=2))
    x = embeddings()
    parts = [
        info_nce(x["touch/text"], x["text/touch"], 1 / 0.07, part)
        for part in (np.arange(3), np.arange(3, 6))
    ]
    np.testing.assert_allclose(value, np.mean(parts), rtol=1e-4)
    whole, _ = evaluate_loss(task_of(weights=dict(touch_text=1.0)))
    assert abs(whole - value) > 0.05


def test_touch_and_text_can_use_another_loss():
    _, default_metrics = evaluate_loss(task_of())
    _, soft_metrics = evaluate_loss(task_of(touch_text="soft_nce"))
    assert abs(default_metrics["loss_touch_text"] - soft_metrics["loss_touch_text"]) > 1e-3
    assert default_metrics["loss_touch_image"] == soft_metrics["loss_touch_image"]
    x = embeddings()
    similarity, scores = (
        x["text/touch"] @ x["text/touch"].T / 0.2,
        x["touch/text"] @ x["text/touch"].T,
    )
    scores = scores / 0.07

    def cross_entropy(axis):
        targets = np.exp(similarity) / np.exp(similarity).sum(axis=axis, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=axis, keepdims=True))
        return -(targets * logs).sum() / BATCH

    spec = dict(name="soft_nce", target_temperature=0.2)
    _, metrics = evaluate_loss(task_of(touch_text=spec))
    expected = (cross_entropy(0) + cross_entropy(1)) / 2
    np.testing.assert_allclose(metrics["loss_touch_text"], expected, rtol=1e-4)


def test_the_sigmoid_loss_uses_the_logit_bias():
    task = task_of(name="sigmoid", model=dict(logit_bias=0.0))
    _, metrics = evaluate_loss(task, default()[1] | {"logit_bias": jnp.float32(-10.0)})
    x = embeddings()
    logits = x["touch/text"] @ x["text/touch"].T / 0.07 - 10.0
    signs = 2 * np.eye(BATCH) - 1
    expected = np.log1p(np.exp(-signs * logits)).sum() / BATCH
    np.testing.assert_allclose(metrics["loss_touch_text"], expected, rtol=1e-4)


def test_the_logit_scale_is_clipped_at_its_limit():
    for limit, expected in ((100.0, 100.0), (0.0, np.exp(5.0)), (20.0, 20.0)):
        params = default()[1] | {"logit_scale": jnp.float32(5.0)}
        _, metrics = evaluate_loss(task_of(max_logit_scale=limit), params)
        np.testing.assert_allclose(metrics["logit_scale"], expected, rtol=1e-5)


def test_frozen_towers_run_without_dropout():
    task = task_of(frozen=("^image/", "^text/"), model=dict(dropout_rate=0.5))
    assert task.frozen == ("image", "text")
    _, params, extra, features = default()
    result, _ = jax.jit(task.encode)(params, extra, batch_of(), jax.random.key(1))
    for modality in ("image", "text"):
        np.testing.assert_allclose(result[modality], features[modality], rtol=1e-4, atol=1e-5)
    assert np.abs(result["touch"] - features["touch"]).max() > 0.1


def test_frozen_towers_cost_a_third_of_trained_towers():
    def cost(*frozen):
        return task_of(frozen=frozen).flops(SPEC)

    none, image, both = cost(), cost("^image/"), cost("^image/", "^text/")
    tower = task_of().model.module.image.flops((SIZE, SIZE, 3))
    assert none - image == 2 * BATCH * tower
    precomputed = SPEC | {"image": jax.ShapeDtypeStruct((BATCH, 12), np.float32)}
    task = task_of(spec=precomputed, frozen=("^image/", "^text/"))
    assert both - task.flops(precomputed) == BATCH * tower


def test_precomputed_features_replace_towers():
    task = task_of(frozen=("^image/", "^text/"))
    _, params, extra, features = default()
    precomputed = dict(
        image=np.asarray(features["image"]), text=np.asarray(features["text"])[:, None]
    )
    result, _ = jax.jit(task.encode)(params, extra, batch_of(**precomputed), jax.random.key(1))
    for modality in ("image", "text"):
        np.testing.assert_array_equal(result[modality], features[modality])
    np.testing.assert_allclose(result["touch"], features["touch"], rtol=1e-5)


def test_features_of_any_width_are_projected_into_a_common_space():
    text = dict(name="clip_text_tiny", context_length=NUM_TOKENS, **dict(ENCODER, projection=9))
    task = task_of(model=dict(common_dim=7, text=text), frozen=("^image/", "^text/"))
    # Only the projections into the common space are trained.
    assert task.frozen == ("image", "text")
    params, extra = init(task)
    features = {"touch": np.ones((2, 8)), "image": np.ones((2, 12)), "text": np.ones((2, 9))}
    projected = task.model.bind(params, extra).project(features)
    for modality, x in features.items():
        expected = x @ np.asarray(params["heads"][modality]["kernel"])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(projected[modality], expected, rtol=1e-5)


def test_thumbnails_are_the_original_images_at_most_96_pixels_wide():
    task, batch = default()[0], batch_of()
    views = {k: v[:, None] if v.dtype == np.uint8 else v for k, v in batch.items()}
    thumbnails = task.predict["inputs"]({}, {}, {k: jnp.asarray(v) for k, v in views.items()})
    np.testing.assert_array_equal(thumbnails["touch"][:, 0], batch["touch"])
    np.testing.assert_array_equal(thumbnails["text"], batch["text"])
    large = jnp.zeros((1, 1, 224, 224, 3), jnp.uint8)
    assert task.predict["inputs"]({}, {}, {"image": large})["image"].shape == (1, 1, 96, 96, 3)


WITHOUT_IMAGE = {name: leaf for name, leaf in SPEC.items() if not name.startswith("image")}
TWO_CAPTIONS = SPEC | {"text": jax.ShapeDtypeStruct((BATCH, 2, NUM_TOKENS), np.int32)}


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(spec=WITHOUT_IMAGE), ("config.data.image", "config.model.image=None")),
        (dict(model=dict(image=None)), ("config.model", "config.data.image=None")),
        (
            dict(model=dict(image=None, text=None)),
            ("--task=touch", "config.model.touch=", "config.model.text="),
        ),
        (dict(spec=TWO_CAPTIONS), ("--task=touch", "config.data.text.candidates=1", 2)),
        (
            dict(weights=dict(touch_video=1.0)),
            ("config.loss.weights", "touch_video", "touch_image, touch_text, image_text"),
        ),
        (dict(weights=dict(touch_text=1.0, text_touch=2.0)), ("config.loss.weights", "touch_text")),
        (dict(weights=dict(touch=1.0)), ("config.loss.weights.touch", 1.0, "video_text")),
        (dict(weights=dict(touch_text=-1.0)), ("config.loss.weights.touch_text", -1.0)),
        (dict(weights=dict(touch_text=0.0)), ("config.loss.weights", 0)),
        (dict(name="info_nse"), ("config.loss.name", "'info_nse'", "'info_nce'")),
        (dict(temperature=0.1), ("loss.temperature", "loss.chunk_size")),
        (dict(touch_text="soft"), ("config.loss.touch_text.name", "'soft'", "'soft_nce'")),
        (dict(touch_text="soft_nce", weights=dict(touch_image=1.0)), ("config.loss.touch_text",)),
        (dict(mean_over="all"), ("config.loss.mean_over", "'all'", "pairs", "weights")),
        (dict(groups=0), ("config.loss", "groups", 0, 1)),
        (dict(max_logit_scale=-1.0), ("config.loss", "max_logit_scale", -1)),
        (
            dict(frozen=("^vision/",)),
            ("config.optimizer.frozen", "'^vision/'", "image/class_token"),
        ),
    ],
)
def test_invalid_options_are_refused(options, facts):
    with raises(UserError, *facts):
        task_of(**options)


def test_groups_must_divide_the_batch():
    with raises(UserError, "groups", 4, 6):
        evaluate_loss(task_of(groups=4))
