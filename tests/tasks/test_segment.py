"""The segment task without the training loop: losses, masks, predictions, refused configs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.tasks import make_task, segment_text
from tests.messages import raises

BATCH, SIZE, PAIRS = 3, 32, 4
NAMES = ("background", "circle", "star")
SPEC = {
    "image": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), np.uint8),
    "image_mask": jax.ShapeDtypeStruct((BATCH,), np.float32),
    "segmentation": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE), np.uint8),
}


def task_of(*, spec=SPEC, model=None, text=None, loss=None):
    cfg = config.base()
    cfg.task = "segment"
    cfg.model = dict(name="lraspp_demo") | (model or {})
    cfg.loss, cfg.text = loss or {}, text or {}
    return make_task(cfg, DataSpec(batch=spec, num_classes=len(NAMES), mask_classes=NAMES))


def batch_of():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, len(NAMES), (BATCH, SIZE, SIZE)).astype(np.uint8)
    masks[0, :5] = 255
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8),
        "image_mask": np.ones(BATCH, np.float32),
        "segmentation": masks,
    }


@pytest.fixture(scope="module")
def trained():
    """A task with cross entropy, its parameters, and the features of a batch."""
    task = task_of()
    params, extra = task.init(jax.random.key(0))
    features, new = jax.jit(task.encode)(params, extra, batch_of(), None)
    return task, params, extra, features, new


def test_the_loss_is_the_mean_over_pixels_with_a_class(trained):
    task, params, extra, features, _ = trained
    batch = batch_of()
    loss, (_, metrics) = task.objective(params, extra, features, batch, None)
    logits = np.asarray(features["logits"], np.float64)
    assert logits.shape == (BATCH, SIZE, SIZE, len(NAMES))
    used = batch["segmentation"] != 255
    log_sum = np.log(np.exp(logits).sum(-1))[used]
    chosen = np.take_along_axis(logits, np.where(used, batch["segmentation"], 0)[..., None], -1)
    expected = (log_sum - chosen[..., 0][used]).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    hits, count = metrics["pixel_accuracy"]
    assert count == used.sum()
    assert hits == (logits.argmax(-1) == batch["segmentation"])[used].sum()


def test_rescaling_with_equal_weights_is_the_cross_entropy(trained):
    _, params, extra, features, _ = trained
    options = segment_text.TextLoss(name="rescale")
    batch = batch_of()
    logits, target = features["logits"], batch["segmentation"].astype(np.int32)[..., None]
    target = np.where(target == 255, -1, target)
    fields = {
        segment_text.IMAGE: jnp.array([0, 1, 1, 2]),
        segment_text.VALID: jnp.ones(PAIRS),
        segment_text.MAPS: jnp.full((PAIRS, 4, 4), 0.01),
    }
    value = segment_text.rescaled(options, logits, jnp.asarray(target), fields)
    plain, _ = trained[0].objective(params, extra, features, batch, None)
    np.testing.assert_allclose(value, plain, rtol=1e-5)


def test_masks_of_a_step_use_the_statistics_of_the_batch(trained):
    task, params, extra, features, new = trained
    masks = np.asarray(jax.jit(functools.partial(task.masks, size=20))(params, extra, batch_of()))
    classes = np.asarray(features["logits"]).argmax(-1)
    at = np.arange(20) * SIZE // 20
    np.testing.assert_array_equal(masks, classes[:, at][:, :, at])
    changed = [
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (extra, new)), strict=True)
    ]
    assert any(changed)


def test_predictions_use_running_averages(trained):
    task, params, extra, features, new = trained
    predict = jax.jit(task.predict["logits"])
    first = np.asarray(predict(params, extra, batch_of())["logits"])
    single = {name: value[:1] for name, value in batch_of().items()}
    alone = np.asarray(predict(params, extra, single)["logits"])
    np.testing.assert_allclose(first[:1], alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(first, np.asarray(features["logits"]), atol=1e-3)
    assert not np.allclose(first, np.asarray(predict(params, new, batch_of())["logits"]), atol=1e-3)


def test_configs_that_do_not_fit_are_refused():
    text = dict(encoder="runs/flair")
    wide = dict(adaptation=dict(name="contrastive_global", width=8))
    by_text = dict(adaptation=dict(name="conv_attn_pool_by_text", width=8, num_heads=2))
    for options, loss, facts in (
        (dict(spec={"image": SPEC["image"]}), {}, ("data.segmentation",)),
        (dict(model=dict(num_classes=7)), {}, ("num_classes=7", "3")),
        (dict(model=dict(name="lrasp_demo")), {}, ("lrasp_demo", "lraspp_demo")),
        ({}, dict(aux_weight=0.4), ("aux_weight=0.4",)),
        ({}, dict(aux_weight=-1.0), ("aux_weight=-1.0",)),
        ({}, dict(text=dict(name="rescale")), ("config.text.encoder",)),
        (dict(text=text), dict(text=dict(name="grouped")), ("config.model.adaptation",)),
        (dict(text=text, model=by_text), dict(text=dict(name="variable_text")), ("adaptation",)),
        (
            dict(text=text, model=wide),
            dict(text=dict(name="grouped", fuse_prediction=True)),
            ("fuse_prediction", "contrastive_diff"),
        ),
    ):
        with raises(UserError, *facts):
            task_of(**options, loss=loss)
