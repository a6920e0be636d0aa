"""The fine-tuning task without the training loop."""

import jax
import numpy as np
import pytest

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.tasks import make_task
from tests.random_arrays import random_arrays

TOWER = dict(width=8, num_layers=1, num_heads=1, head_dim=8, mlp_dim=8, dropout_rate=0.0)


def task_of(backbone, **loss):
    cfg = config.base()
    cfg.task = "finetune"
    backbone = {**backbone, **TOWER, "keep_tokens": 1.0}
    cfg.model = dict(name="classifier", backbone=backbone, dropout_rate=0.0)
    cfg.loss = loss
    spec = {
        "audio": jax.ShapeDtypeStruct((6, 1280), np.float32),
        "label": jax.ShapeDtypeStruct((6, 3), np.float32),
    }
    return make_task(cfg, DataSpec(batch=spec, num_classes=3, sample_rate=8000))


BATCH = dict(
    audio=np.random.default_rng(0).normal(size=(6, 1280)).astype(np.float32),
    label=np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]], np.float32),
)


def reference_loss(logits, known, *, balance=True, groups=1):
    """Mean over known examples of binary cross-entropies, optionally balanced as in VATT."""
    logits, labels = np.asarray(logits, np.float64), BATCH["label"]
    losses = (np.logaddexp(0, logits) - labels * logits).sum(axis=1)
    if balance:
        for part in np.split(np.arange(6), groups):
            kept = labels[part] * known[part, None]
            shares = kept / np.maximum(kept.sum(axis=0), 1)
            losses[part] *= shares.sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    return losses[known > 0].mean()


@pytest.mark.parametrize("loss", [dict(), dict(groups=2), dict(balance=False)])
@pytest.mark.parametrize(
    "backbone", [dict(name="wat_tiny"), dict(name="ut_tiny", modality="audio")]
)
def test_loss_is_the_weighted_cross_entropy_of_labeled_examples(backbone, loss):
    task = task_of(backbone, **loss)
    params, extra = random_arrays(task.model)

    @jax.jit
    def run(params, batch, key):
        features, new_extra = task.encode(params, extra, batch, key)
        value, _ = task.objective(params, new_extra, features, batch, key)
        views = dict(batch, audio=batch["audio"][:, None])
        return value, task.predict["logits"](params, extra, views)["logits"]

    value, logits = run(params, BATCH, jax.random.key(1))
    known = np.array([1, 1, 1, 1, 1, 0], np.float32)
    expected = reference_loss(logits, known, **loss)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    without_audio = dict(BATCH, audio_mask=np.array([1, 0, 1, 1, 1, 1], np.float32))
    known[1] = 0
    expected = reference_loss(logits, known, **loss)
    result, _ = run(params, without_audio, jax.random.key(1))
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert abs(result - value) > 1e-3  # the example without audio would count
