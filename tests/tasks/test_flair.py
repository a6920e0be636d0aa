"""The flair task without the training loop: loss, masks, references, frozen parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config, step, tree
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses.flair import flair_loss
from mmjax.models.flair import Encoded
from mmjax.tasks import make_task
from tests.messages import raises
from tests.random_arrays import random_arrays

BATCH, SIZE, CAPTIONS, LENGTH = 6, 16, 2, 5
ENCODER = dict(width=8, num_layers=1, num_heads=1, head_dim=8, mlp_dim=8)
IMAGE = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), np.uint8)
MASK = jax.ShapeDtypeStruct((BATCH,), np.float32)
SPEC = {
    "image": IMAGE,
    "image_mask": MASK,
    "text": jax.ShapeDtypeStruct((BATCH, CAPTIONS, LENGTH), np.int32),
    "text_mask": jax.ShapeDtypeStruct((BATCH, CAPTIONS), np.float32),
}
REFERENCE = dict(reference=IMAGE, reference_mask=MASK)
TRAINED = ("^(image|text)(_projection)?/", "^pooling/", "^logit_")  # all but adapters


def task_of(*, spec=SPEC, frozen=(), adapters=(), train=True, **loss):
    cfg = config.base()
    cfg.task = "flair"
    cfg.model = dict(
        image=dict(name="clip_vit_tiny", image_size=SIZE, patch_size=8, **ENCODER),
        text=dict(name="clip_text_tiny", context_length=LENGTH, **ENCODER),
        width=8,
        num_heads=2,
        adapters=adapters,
        dropout_rate=0.0,
    )
    cfg.augment = dict(image=dict(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))
    cfg.loss = loss
    cfg.optimizer = dict(frozen=tuple(frozen))
    return make_task(cfg, DataSpec(batch=spec, vocab_size=20, train=train))


def fused_task(**options):
    return task_of(spec=SPEC | REFERENCE, adapters=("concat_adapter",), frozen=TRAINED, **options)


def batch_of(**changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, BATCH, SIZE, SIZE, 3), np.uint8)
    ones = np.ones((BATCH, CAPTIONS), np.float32)
    return {
        "image": images[0],
        "reference": images[1],
        "text": rng.integers(1, 20, (BATCH, CAPTIONS, LENGTH), np.int32),
        "image_mask": ones[:, 0],
        "reference_mask": ones[:, 0],
        "text_mask": ones,
        **changes,
    }


@functools.cache
def state(fused=False):
    """Returns a task, its parameters, and the features of its batch in training."""
    task = fused_task() if fused else task_of()
    params, _ = random_arrays(task.model)
    params |= {"logit_scale": jnp.float32(1.5), "logit_bias": jnp.float32(-1)}
    batch = batch_of() if fused else _without_reference(batch_of())
    features, _ = jax.jit(task.encode)(params, {}, batch, jax.random.key(1))
    return task, params, features


def _without_reference(batch):
    return {name: x for name, x in batch.items() if "reference" not in name}


def evaluate_loss(task, params, features, **changes):
    value, (_, metrics) = jax.jit(task.objective)(
        params, {}, features, batch_of(**changes), jax.random.key(2)
    )
    return value, {name: total / count for name, (total, count) in metrics.items()}


def expected_loss(scale, mask, **options):
    task, params, features = state()
    pool = task.model.bind(params, {}).pool
    return flair_loss(
        features["image"],
        features["tokens"],
        features["text"],
        lambda queries, tokens: pool(tokens, queries)[0],
        logit_scale=scale,
        logit_bias=-1.0,
        key=jax.random.key(2),
        mask=mask,
        **options,
    )


def test_the_loss_is_that_of_flair_with_a_mask_of_each_caption():
    _, params, features = state()
    text_mask, image_mask = np.ones((BATCH, CAPTIONS), np.float32), np.ones(BATCH, np.float32)
    text_mask[1, 0] = text_mask[2] = image_mask[4] = 0
    mask = text_mask * image_mask[:, None]
    masks = dict(text_mask=text_mask, image_mask=image_mask)
    value, metrics = evaluate_loss(task_of(), params, features, **masks)
    np.testing.assert_allclose(value, expected_loss(np.exp(1.5), mask), rtol=1e-5)
    conditioned = expected_loss(np.exp(1.5), mask, multi_positive=False)
    np.testing.assert_allclose(metrics["loss_text_conditioned"], conditioned, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_multi_positive"], 2 * value - conditioned, rtol=1e-4)
    assert abs(value - evaluate_loss(task_of(), params, features)[0]) > 1e-3
    alone, metrics = evaluate_loss(task_of(multi_positive=False), params, features, **masks)
    np.testing.assert_allclose(alone, conditioned, rtol=1e-5)
    assert "loss_multi_positive" not in metrics


@pytest.mark.parametrize(("log_scale", "scale"), [(9.0, 20.0), (-1.0, 2.0)])
def test_the_logit_scale_is_clamped(log_scale, scale):
    _, params, features = state()
    task = task_of(max_logit_scale=20.0, min_logit_scale=2.0)
    params = params | {"logit_scale": jnp.float32(log_scale)}
    value, metrics = evaluate_loss(task, params, features)
    np.testing.assert_allclose(metrics["logit_scale"], scale, rtol=1e-6)
    ones = np.ones((BATCH, CAPTIONS))
    np.testing.assert_allclose(value, expected_loss(scale, ones), rtol=1e-5)


def test_top1_is_that_of_images_without_a_text():
    _, params, features = state()
    _, metrics = evaluate_loss(task_of(), params, features)
    image, text = (np.float64(features[name]) for name in ("image", "text"))
    image /= np.linalg.norm(image, axis=-1, keepdims=True)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    best = np.einsum("bd,ckd->bck", image, text).max(axis=-1).argmax(axis=1)
    np.testing.assert_allclose(metrics["top1_image_text"], np.mean(best == np.arange(BATCH)))


def test_an_image_is_fused_with_its_reference_in_this_order():
    task, params, features = state(fused=True)
    module = task.model.bind(params, {})
    batch = batch_of()
    images = [
        module.encode_images(((batch[name] / np.float32(255)) - 0.5) / 0.2)
        for name in ("reference", "image")
    ]
    fused = module.fuse(*images)
    assert isinstance(fused, Encoded)
    np.testing.assert_allclose(features["image"], fused.pooled, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(features["tokens"], fused.tokens, rtol=1e-3, atol=1e-4)
    swapped = module.fuse(*images[::-1])
    assert np.abs(swapped.pooled - fused.pooled).max() > 0.1
    # Examples without a reference are ignored.
    mask = np.array([1, 0, 1, 1, 1, 1], np.float32)
    with_mask, _ = evaluate_loss(task, params, features, reference_mask=mask)
    as_text, _ = evaluate_loss(task, params, features, text_mask=mask[:, None].repeat(2, 1))
    assert with_mask == as_text != evaluate_loss(task, params, features)[0]


@pytest.mark.parametrize("fused", [False, True])
def test_embeddings_of_evaluation_are_those_of_training(fused):
    task, params, features = state(fused)
    batch = batch_of() if fused else _without_reference(batch_of())
    views = {k: v[:, None] if v.dtype == np.uint8 else v for k, v in batch.items()}
    outputs = jax.jit(task.predict["features"])(params, {}, views)
    assert set(outputs) == {"image", "text", "image/text", "text/image"}
    for name, trained in (
        ("image/text", features["image"][:, None]),
        ("text/image", features["text"]),
    ):
        expected = trained / np.linalg.norm(trained, axis=-1, keepdims=True)
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-5)
    assert outputs["image"].shape == (BATCH, 1, 8) and outputs["text"].shape == (BATCH, 2, 8)
    alone = task.predict["features"](params, {}, {"image": views["image"]})
    assert set(alone) == ({"image"} if fused else {"image", "image/text"})


def test_only_trained_parts_get_gradients():
    task, params, _ = state(fused=True)
    matched = tree.first_match(TRAINED, list(tree.flatten(params)), what="frozen")
    frozen = {path: index is not None for path, index in matched.items()}
    assert [path for path, is_frozen in frozen.items() if not is_frozen] == [
        "concat_adapter/kernel"
    ]
    trainable, rest = step.split_params(params, frozen)
    run = jax.jit(functools.partial(step.loss_and_grads, task, accumulate_steps=1))
    _, grads, _, _ = run(trainable, rest, {}, batch_of(), jax.random.key(0))
    ((path, grad),) = tree.flatten(grads).items()
    assert path == "concat_adapter/kernel" and np.abs(grad).min() > 0
    assert task.frozen == ("image", "text") and task_of().frozen == ()


def test_operations_of_frozen_towers_are_counted_once():
    spec = SPEC | REFERENCE
    fused, module = fused_task(), fused_task().model.module
    image = module.tower_flops("image", (SIZE, SIZE, 3), train=True)[0]
    text = module.tower_flops("text", (LENGTH,), train=True)[0]
    queries, tokens = BATCH + CAPTIONS - 1, 4
    heads = 2 * (2 * (1 + tokens) + CAPTIONS * (1 + LENGTH)) * 8 * 8  # projections
    heads += 2 * 2 * (1 + tokens) * 8 * 8  # concat_adapter
    heads += 2 * 2 * (tokens + queries) * 8 * 8 + 4 * queries * tokens * 8  # pooling
    towers = 2 * image + CAPTIONS * text
    assert fused.flops(spec) == pytest.approx(BATCH * (towers + 3 * heads))
    trained = task_of(spec=spec, adapters=("concat_adapter",))
    assert trained.flops(spec) == pytest.approx(BATCH * 3 * (towers + heads))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(spec={k: v for k, v in SPEC.items() if "text" not in k}), ("config.data.text",)),
        (dict(spec={k: v for k, v in SPEC.items() if "image" not in k}), ("config.data.image",)),
        (dict(spec=SPEC | REFERENCE), ("config.data.reference", "concat_adapter", "adapters")),
        (dict(adapters=("concat_adapter",)), ("concat_adapter", "config.data.reference", "frozen")),
        (
            dict(spec=SPEC | {"image": jax.ShapeDtypeStruct((BATCH, 8), np.float32)}),
            ("config.data.image.features",),
        ),
        (dict(max_scale=3.0), ("loss.max_scale", "max_logit_scale")),
        (dict(min_logit_scale=200.0), ("config.loss.min_logit_scale=200", "max_logit_scale=100")),
    ],
)
def test_invalid_configs_are_errors(options, facts):
    with raises(UserError, *facts):
        task_of(**options)


def test_an_unused_adapter_can_be_frozen():
    frozen = task_of(adapters=("concat_adapter",), frozen=("^concat_adapter/",))
    assert frozen.model.module.adapters == ("concat_adapter",)
    task_of(adapters=("concat_adapter",), train=False)


def test_a_tower_is_required():
    cfg = config.base()
    cfg.task, cfg.model = "flair", dict(text=None)
    with raises(UserError, "config.model.text"):
        make_task(cfg, DataSpec(batch=SPEC, train=False))
