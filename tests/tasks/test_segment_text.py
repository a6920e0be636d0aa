"""The losses of diagnostic texts against loops over pairs, and their options."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.models.segmentation.adapters import build_adapter
from mmjax.state import ModelDef
from mmjax.tasks import segment_text
from mmjax.tasks.segment_text import TextLoss
from tests.messages import raises

CHANNELS, WIDTH, SCALE, BIAS = 6, 8, 1.5, -0.5
IMAGES = np.array([0, 0, 2, 1, 0])  # image of each pair; the last pair has no text
VALID = np.array([1, 1, 1, 1, 0], np.float32)
RANDOM = np.random.default_rng(0)


def random(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


BOTTLENECK, TEXTS, NEGATIVES = random(4, 3, 3, CHANNELS), random(5, WIDTH), random(5, 2, WIDTH)
TEXTS[3] = TEXTS[0]  # the same text for two images
OVERLAYS, FUSE = random(5, WIDTH), random(2 * WIDTH, WIDTH)
BATCH = {
    segment_text.EMBEDDING: TEXTS,
    segment_text.IMAGE: IMAGES,
    segment_text.VALID: VALID,
    segment_text.NEGATIVES: NEGATIVES,
    segment_text.OVERLAY: OVERLAYS,
    "image_mask": np.array([1, 1, 1, 0], np.float32),  # image 3 is padding
}


@pytest.fixture(scope="module")
def adapters():
    """{name: adapter} with random parameters."""
    result = {}
    for name, options in (
        ("contrastive_diff", {}),
        ("conv_attn_pool_by_text", dict(num_heads=2)),
    ):
        spec = dict(name=name, width=WIDTH, **options)
        model = ModelDef(
            lambda rngs, spec=spec: build_adapter(spec, bottleneck_width=CHANNELS, rngs=rngs)
        )
        result[name] = model.bind(*model.init(jax.random.key(0)))
    return result


def actual(options, adapter, batch=BATCH, **changes):
    how = dict(scale=SCALE, bias=BIAS, fuse=FUSE if options.fuse_prediction else None) | changes
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    return float(segment_text.contrastive(options, adapter, jnp.asarray(BOTTLENECK), batch, **how))


def softplus(x):
    return float(np.logaddexp(0, x))


def score(options, x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if options.normalize == "l2":
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return SCALE * float(x @ y) + BIAS


def expected_of_pairs(options, adapter):
    """The grouped losses, one pair and one comparison at a time."""

    def vector(pair, query):
        image = BOTTLENECK[IMAGES[pair]][None]
        result = adapter(image, query[None], jnp.zeros(1, int), train=False)[0]
        if not options.fuse_prediction:
            return result
        return np.concatenate([result, OVERLAYS[pair]]) @ FUSE

    pairs = [p for p in range(5) if VALID[p]]
    losses = {}
    for p in pairs:
        own = vector(p, TEXTS[p])
        others = [q for q in pairs if q != p] if options.name != "grouped_paired_negative" else []
        if options.exclude == "same_image":
            others = [q for q in others if IMAGES[q] != IMAGES[p]]
        if options.exclude == "same_text":
            others = [q for q in others if not np.array_equal(TEXTS[q], TEXTS[p])]
        dedicated = list(NEGATIVES[p]) if segment_text.WITH_NEGATIVES.count(options.name) else []
        if options.name == "grouped_slacked_negative":
            dedicated = dedicated[: max(options.num_negatives - len(others), 0)]
        negative = 0.0
        for text in [TEXTS[q] for q in others] + dedicated:
            x = vector(p, text) if options.query == "candidate" else own
            negative += softplus(score(options, x, text))
        positive = softplus(-score(options, own, TEXTS[p]))
        losses.setdefault(IMAGES[p], []).append(positive + options.negative_weight * negative)
    return np.mean([np.mean(values) for values in losses.values()])


@pytest.mark.parametrize("adapter", ["contrastive_diff", "conv_attn_pool_by_text"])
@pytest.mark.parametrize(
    "options",
    [
        dict(name="grouped"),
        dict(name="grouped", normalize="l2", negative_weight=0.5, exclude="same_image"),
        dict(name="grouped", query="candidate", exclude="same_text"),
        dict(name="grouped", query="candidate", fuse_prediction=True),
        dict(name="grouped_paired_negative"),
        dict(name="grouped_paired_negative", query="candidate", fuse_prediction=True),
        dict(name="grouped_slacked_negative", num_negatives=4),
        dict(name="grouped_slacked_negative", num_negatives=5, query="candidate"),
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_losses_of_pairs_equal_loops(options, adapter, adapters):
    options, module = TextLoss(**options), adapters[adapter]
    expected = expected_of_pairs(options, module)
    np.testing.assert_allclose(actual(options, module), expected, rtol=2e-5)


def expected_of_images(options, adapter):
    """The losses with one vector per image. Padding has no part in the mean."""
    vectors, losses = adapter(jnp.asarray(BOTTLENECK)), []
    for image in range(3):
        own = [p for p in range(5) if IMAGES[p] == image and VALID[p]]
        others = [p for p in range(5) if IMAGES[p] != image and VALID[p]]
        if options.exclude == "same_text":
            copies = [TEXTS[p].tobytes() for p in own]
            others = [p for p in others if TEXTS[p].tobytes() not in copies]
        texts = [TEXTS[p] for p in others]
        if options.name == "paired_negative":
            texts = list(NEGATIVES[own[0]])
        positives = [softplus(-score(options, vectors[image], TEXTS[p])) for p in own]
        negatives = [softplus(score(options, vectors[image], text)) for text in texts]
        losses.append(np.mean(positives) + np.sum(negatives))
    return np.mean(losses)


@pytest.mark.parametrize(
    "options",
    [
        dict(name="variable_text"),
        dict(name="variable_text", normalize="l2", exclude="same_text"),
        dict(name="paired_negative"),
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_losses_of_images_equal_loops(options, adapters):
    options, module = TextLoss(**options), adapters["contrastive_diff"]
    expected = expected_of_images(options, module)
    np.testing.assert_allclose(actual(options, module), expected, rtol=2e-5)


@pytest.mark.parametrize("name", ["variable_text", "paired_negative", "grouped"])
def test_a_batch_without_texts_has_no_loss(name, adapters):
    batch = BATCH | {segment_text.VALID: np.zeros(5, np.float32)}
    assert actual(TextLoss(name=name), adapters["contrastive_diff"], batch) == 0


@pytest.mark.parametrize("detach", [False, True])
def test_detached_bottlenecks_get_no_gradient(detach, adapters):
    options = TextLoss(name="grouped", detach_bottleneck=detach)

    def loss(bottleneck):
        adapter = adapters["conv_attn_pool_by_text"]
        batch = {name: jnp.asarray(value) for name, value in BATCH.items()}
        return segment_text.contrastive(options, adapter, bottleneck, batch, scale=1.0, bias=0.0)

    assert bool(np.any(jax.grad(loss)(jnp.asarray(BOTTLENECK)))) is not detach


def test_options_that_a_loss_does_not_have_are_refused():
    for options, facts in (
        (dict(name="grouped", alpha=1.0), ("alpha", "grouped")),
        (dict(name="rescale", weight=0.5), ("weight", "rescale")),
        (dict(name="none", scale=2.0), ("scale", "none")),
        (dict(name="variable_text", query="candidate"), ("query", "variable_text")),
        (dict(name="group"), ("group", "grouped")),
        (dict(name="grouped", weight=1.5), ("weight=1.5", "convex")),
        (dict(name="grouped", weight=-0.5, convex=False), ("weight=-0.5",)),
        (dict(name="grouped", learn_scale=True, scale=0.0), ("scale=0.0", "learned")),
        (dict(name="grouped_paired_negative", exclude="same_text"), ("exclude",)),
        (dict(name="grouped", num_negatives=3), ("num_negatives",)),
    ):
        with raises(UserError, *facts):
            TextLoss(**options)


def test_every_option_belongs_to_a_loss():
    names = {field.name for field in dataclasses.fields(TextLoss)} - {"name"}
    losses = get_args(segment_text.LossName)
    assert set().union(*map(segment_text.options_of, losses)) == names
