"""The guided task without the training loop: losses, gradients, memory banks and queues."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config
from mmjax.configs.guided._methods import METHODS, method
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.losses import contrastive, self_supervised
from mmjax.tasks import make_task
from tests.messages import assert_mentions, raises
from tests.random_arrays import random_arrays

BATCH, SIZE, NUM_TOKENS, TEXT_WIDTH = 6, 16, 5, 7
SMALL = dict(
    hidden=8,
    out=4,
    bottleneck=4,
    space=6,
    bank_size=16,
    prototypes=5,
    queue_length=12,
    queue_start=1,
    freeze_prototypes=1,
    blur_kernel=3,
)
VIT = dict(
    name="clip_vit_tiny",
    width=8,
    num_layers=1,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    projection=8,
    image_size=SIZE,
    patch_size=8,
    dropout_rate=0.0,
    scan_unroll=0,
)
RESNET = dict(
    name="resnet50", blocks=(1, 1), bottleneck=False, width_multiplier=0.125, zero_init_last=False
)
TEXT = dict(
    name="clip_text_tiny",
    context_length=NUM_TOKENS,
    width=8,
    num_layers=1,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    projection=10,
    dropout_rate=0.0,
    scan_unroll=0,
)


def spec_of(views, text):
    spec = {
        "image": jax.ShapeDtypeStruct((BATCH, views, SIZE, SIZE, 3), np.uint8),
        "image_mask": jax.ShapeDtypeStruct((BATCH,), np.float32),
    }
    if text:
        shape = (BATCH, 1, NUM_TOKENS) if text == "tower" else (BATCH, 1, TEXT_WIDTH)
        dtype = np.int32 if text == "tower" else np.float32
        spec |= {
            "text": jax.ShapeDtypeStruct(shape, dtype),
            "text_mask": jax.ShapeDtypeStruct((BATCH, 1), np.float32),
        }
    return spec


def task_of(name="simclr", *, views=None, text=None, augment=None, model=(), **loss):
    parts = method(name, **SMALL)
    cfg = config.base()
    cfg.task = "guided"
    text = text or parts["text"]
    cfg.model = dict(
        dict(
            image=VIT,
            text=TEXT if text == "tower" else None,
            heads=parts["heads"],
            text_features=TEXT_WIDTH if text == "features" else 0,
            prototypes=parts["prototypes"],
        ),
        **dict(model),
    )
    # Without augmentation, values are exact.
    cfg.augment = dict(image=augment if augment is not None else dict())
    cfg.loss = loss or parts["loss"]
    spec = spec_of(views or len(parts["crops"]), text)
    return make_task(cfg, DataSpec(batch=spec, vocab_size=20))


def batch_of(views=2, text=None, **changes):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, views, SIZE, SIZE, 3), np.uint8),
        "image_mask": np.ones(BATCH, np.float32),
    }
    if text == "tower":
        batch["text"] = rng.integers(1, 20, (BATCH, 1, NUM_TOKENS), np.int32)
    elif text:
        batch["text"] = rng.normal(size=(BATCH, 1, TEXT_WIDTH)).astype(np.float32)
    if text:
        batch["text_mask"] = np.ones((BATCH, 1), np.float32)
    return batch | changes


def init(task):
    """Returns random parameters, and the initial statistics, banks and queues."""
    params, _ = random_arrays(task.model)
    if "logit_scale" in params:
        params["logit_scale"] = jnp.float32(math.log(1 / 0.07))
    return params, jax.jit(lambda key: task.init(key)[1])(jax.random.key(0))


def loss_function(task):
    def loss(params, extra, batch):
        key = jax.random.key(1)
        features, new = task.encode(params, extra, batch, key)
        return task.objective(params, new, features, batch, key)

    return loss


@functools.cache  # compiled once per task
def step_of(task):
    return jax.jit(jax.value_and_grad(loss_function(task), has_aux=True))


def loss_of(task, batch, params, extra):
    return step_of(task)(params, extra, batch)


@functools.cache
def trained(name):
    """`(task, batch, params, extra, loss, new extra, metrics, gradients)` of one step."""
    task = task_of(name)
    parts = method(name, **SMALL)
    batch = batch_of(len(parts["crops"]), parts["text"])
    params, extra = init(task)
    (loss, (new, metrics)), grads = loss_of(task, batch, params, extra)
    return task, batch, params, extra, loss, new, metrics, grads


# These differ from the methods without "lg" only in their image pairs, which `task_of` omits.
SAME = ("lgsimclr", "lgsimsiam")


@pytest.mark.parametrize("name", SAME)
def test_caption_guided_methods_keep_the_heads_and_loss(name):
    guided, unguided = method(name), method(name.removeprefix("lg"))
    for part in ("heads", "loss", "prototypes", "text"):
        assert guided[part] == unguided[part]
    assert (
        len(guided["crops"]) == len(unguided["crops"]) and guided["pairs"] and not unguided["pairs"]
    )


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SAME])
def test_every_method_trains_all_parameters_and_lowers_its_loss(name):
    task, batch, params, extra, loss, _, metrics, grads = trained(name)
    terms = method(name, **SMALL)["loss"]
    values = {term: np.divide(*metrics[f"loss_{term}"]) for term in terms}
    weighted = sum(options.get("weight", 1.0) * values[term] for term, options in terms.items())
    np.testing.assert_allclose(loss, weighted, rtol=1e-5)
    # A gradient step that lowers the loss by 1% to first order.
    params, grads = jax.device_get((params, grads))
    rate = 0.01 * float(loss) / sum(np.sum(leaf**2) for leaf in jax.tree.leaves(grads))
    updated = jax.tree.map(lambda param, grad: np.float32(param - rate * grad), params, grads)
    assert loss_of(task, batch, updated, extra)[0][0] < 0.995 * loss
    untrained = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(leaf)
    ]
    assert all("prototypes" in path for path in untrained), untrained


def projections(name, head="projection"):
    """Returns the projections of each view, computed one view at a time, and the features."""
    task, batch, params, extra, *_ = trained(name)

    @jax.jit
    def run(params, extra, batch):
        features, new = task.encode(params, extra, batch, jax.random.key(1))
        module = task.model.bind(params, new)
        views = features["image"].swapaxes(0, 1)
        return [module.heads[head](view, train=True) for view in views], features

    return run(params, extra, batch)


def test_simclr_is_the_nt_xent_loss_of_two_views():
    _, _, _, _, loss, *_ = trained("simclr")
    (a, b), _ = projections("simclr")
    np.testing.assert_allclose(loss, self_supervised.nt_xent(a, b, temperature=0.1), rtol=1e-5)


def test_slip_adds_a_clip_loss_of_the_third_view():
    task, _, params, _, loss, *_ = trained("slip")
    (a, b, _), features = projections("slip")
    image = features["image"][:, 2] @ params["heads"]["clip"]["linear"]["0"]["kernel"]
    text = features["text"] @ params["heads"]["text"]["linear"]["0"]["kernel"]
    expected = self_supervised.nt_xent(a, b) + contrastive.info_nce(
        image, text, logit_scale=1 / 0.07
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_lgslip_updates_the_shared_head_statistics_once_per_view():
    task, batch, params, extra, loss, new, *_ = trained("lgslip")
    (a, b), features = projections("lgslip")
    text = features["text"] @ params["heads"]["text"]["linear"]["0"]["kernel"]
    expected = self_supervised.nt_xent(a, b) + contrastive.info_nce(a, text, logit_scale=1 / 0.07)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)

    @jax.jit
    def statistics_of(params, extra, batch):
        _, encoded = task.encode(params, extra, batch, jax.random.key(1))
        module = task.model.bind(params, encoded)
        for view in (0, 1):
            module.heads["projection"](features["image"][:, view], train=True)
        return task.model.extra_of(module)["heads"]["projection"]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        new["heads"]["projection"],
        statistics_of(params, extra, batch),
    )


def test_the_backbone_normalizes_each_view_separately():
    task, batch = task_of("simclr", model=dict(image=RESNET)), batch_of()
    params, extra = init(task)
    features, new = jax.jit(task.encode)(params, extra, batch, jax.random.key(1))

    @jax.jit
    def reference(params, extra):
        module, pooled = task.model.bind(params, extra), []
        for view in (0, 1):
            pixels = batch["image"][:, view] / jnp.float32(255)
            pooled.append(module.encode({"image": pixels}, key=jax.random.key(0))["image"])
        return jnp.stack(pooled, axis=1), task.model.extra_of(module)

    pooled, statistics = reference(params, extra)
    np.testing.assert_allclose(features["image"], pooled, rtol=1e-4, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, new["image"], statistics["image"])


def test_declip_weights_its_two_losses():
    *_, loss, _, metrics, _ = trained("declip")
    clip, neighbors = (metrics[f"loss_{name}"][0] for name in ("clip", "clip_neighbors"))
    np.testing.assert_allclose(loss, 0.8 * clip + 0.2 * neighbors, rtol=1e-6)


def test_the_nearest_neighbor_loss_has_no_gradient_into_the_text():
    task = task_of("declip", clip_neighbors=dict(bank_size=16))
    params, extra = init(task)
    (_, (new, _)), grads = loss_of(task, batch_of(1, "tower"), params, extra)
    grads = jax.device_get(grads)
    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves((grads["text"], grads["heads"]["text"]))
    )
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads["image"]))
    assert int(new["banks"]["clip_neighbors"]["next"]) == BATCH


def test_nnclr_queries_the_bank_before_storing_the_second_view():
    _, _, params, extra, loss, new, *_ = trained("nnclr")
    projected, _ = projections("nnclr")
    task = trained("nnclr")[0]
    bank = np.asarray(extra["banks"]["nnclr"]["rows"])
    np.testing.assert_allclose(new["banks"]["nnclr"]["rows"][:BATCH], projected[1], atol=1e-5)
    np.testing.assert_array_equal(new["banks"]["nnclr"]["rows"][BATCH:], bank[BATCH:])

    @jax.jit
    def predict(params, projected):
        module = task.model.bind(params, extra)
        return [module.heads["predictor"](z, train=True) for z in projected]

    predicted = predict(params, projected)
    nearest = []
    for z in projected:
        z = np.asarray(z) / np.linalg.norm(z, axis=1, keepdims=True)
        nearest.append(bank[(z @ bank.T).argmax(axis=1)])
    halves = [
        self_supervised.one_way_nce(predicted[view], nearest[1 - view], temperature=0.1)
        for view in (0, 1)
    ]
    np.testing.assert_allclose(loss, 0.5 * sum(halves), rtol=1e-4)


def test_swav_freezes_prototypes_and_fills_its_queue():
    task, batch, params, extra, *_ = trained("swav")
    for step in range(5):
        (_, (extra, _)), grads = loss_of(task, batch, params, extra)
        assert np.any(grads["prototypes"]["kernel"]) == (step >= 1)
        queue = np.asarray(extra["queues"]["rows"])
        filled = int((queue[0] != 0).any(axis=1).sum())
        assert filled == min(12, BATCH * step)  # the queue starts after the first step
    np.testing.assert_allclose(np.linalg.norm(queue, axis=2), 1.0, rtol=1e-5)


def test_swav_uses_the_queue_only_once_it_is_full():
    task, batch, params, extra, *_ = trained("swav")
    queue = np.random.default_rng(1).normal(size=(2, 12, 4)).astype(np.float32)
    full = extra | {"queues": {"rows": jnp.asarray(queue), "calls": jnp.int32(9)}}
    half = full | {"queues": {"rows": jnp.asarray(queue).at[:, -1].set(0), "calls": jnp.int32(9)}}
    empty = full | {"queues": {"rows": jnp.zeros((2, 12, 4)), "calls": jnp.int32(9)}}
    losses = [float(loss_of(task, batch, params, e)[0][0]) for e in (full, half, empty)]
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert abs(losses[0] - losses[2]) > 1e-4


@pytest.mark.parametrize("name", ["simclr", "simsiam", "nnclr", "clip"])
def test_examples_without_an_image_do_not_affect_the_loss(name):
    parts = method(name, **SMALL)
    heads = {
        head: dict(options, dims=options["dims"][-1:], final_norm=False)
        for head, options in parts["heads"].items()
    }
    task = task_of(name, model=dict(heads=heads))
    batch = batch_of(len(parts["crops"]), parts["text"])
    mask = np.array([1, 0, 1, 1, 0, 1], np.float32)
    changed = batch["image"].copy()
    changed[mask == 0] = 255 - changed[mask == 0]
    params, extra = init(task)
    loss = jax.jit(loss_function(task))
    first, second = (
        float(loss(params, extra, batch | {"image": image, "image_mask": mask})[0])
        for image in (batch["image"], changed)
    )
    assert first == pytest.approx(second, rel=1e-6)


def test_precomputed_text_features_need_no_tower():
    task = trained("clip_sbert")[0]
    assert "text" not in task.model.params
    assert task.model.params["heads"]["text"]["linear"]["0"]["kernel"].shape == (TEXT_WIDTH, 6)


def test_predicted_features_have_one_entry_per_view_and_unit_length():
    task, _, params, extra, *_ = trained("clip")
    batch = batch_of(1, "tower")
    out = jax.jit(task.predict["features"])(params, extra, batch)
    assert {name: x.shape for name, x in out.items()} == {
        "image": (BATCH, 1, task.model.module.image.out_features),
        "text": (BATCH, 1, 10),
        "image/text": (BATCH, 1, 6),
        "text/image": (BATCH, 1, 6),
    }
    np.testing.assert_allclose(np.linalg.norm(out["text/image"], axis=-1), 1.0, rtol=1e-5)


def test_a_backbone_without_loss_terms_can_only_be_evaluated():
    cfg = config.base()
    cfg.model = dict(image=RESNET)
    cfg.task = "guided"
    task = make_task(cfg, DataSpec(batch=spec_of(2, None)))
    params, extra = init(task)
    assert list(params) == ["image"]
    out = task.predict["features"](params, extra, batch_of(1))
    assert list(out) == ["image"]
    with raises(UserError, "config.loss", "simclr", "clip_neighbors"):
        task.encode(params, extra, batch_of(2), jax.random.key(0))


def test_flops_include_views_heads_and_texts():
    task = trained("slip")[0]
    spec = spec_of(3, "tower")
    module = task.model.module
    image = module.image.flops((SIZE, SIZE, 3), train=True)
    heads = {name: head.flops() for name, head in module.heads.items()}
    forward = 3 * (image + heads["projection"] + heads["clip"])
    forward += module.text.flops((NUM_TOKENS,), train=True) + heads["text"]
    assert task.flops(spec) == pytest.approx(BATCH * 3 * forward)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(simclrr=dict()), ("config.loss", "'simclrr'", "'simclr'", "swav")),
        (dict(simclr=dict(temprature=1.0)), ("loss.simclr.temprature", "loss.simclr.temperature")),
        (dict(simclr=dict(weight=-1)), ("config.loss.simclr.weight", -1)),
        (
            dict(simclr=dict(views=(0, 2))),
            ("config.loss.simclr", "view 2", "config.data.image.crops"),
        ),
        (dict(simclr=dict(views=(0,))), ("config.loss.simclr.views", "(0,)", "(0, 1)")),
        (dict(simclr=dict(views=(1, 1))), ("config.loss.simclr.views", "(1, 1)", "(0, 1)")),
        (dict(simclr=dict(views=(0, 1.5))), ("config.loss.simclr.views", "1.5", "int")),
        (dict(simclr=dict(views=1)), ("config.loss.simclr.views", 1, "tuple")),
        (
            dict(simclr=dict(temperature=0.0)),
            ("config.loss.simclr.temperature", 0.0),
        ),
        (dict(simclr=dict(weight=float("nan"))), ("config.loss.simclr.weight", "nan")),
        (dict(nnclr=dict(bank_size=0)), ("config.loss.nnclr.bank_size", 0, 1)),
        (dict(swav=dict(queue_length=0)), ("config.loss.swav.queue_length", 0, 1)),
        (dict(swav=dict(epsilon=0.0)), ("config.loss.swav.epsilon", 0.0)),
        (dict(clip=dict(max_logit_scale=-1.0)), ("config.loss.clip.max_logit_scale", -1.0)),
        (dict(clip=dict(head="text")), ("config.loss.clip.head", "'text'")),
        (dict(simclr=dict(head="mlp")), ("config.loss.simclr", "'mlp'", "config.model.heads")),
        (dict(simsiam=dict()), ("config.loss.simsiam", "'predictor'", "config.model.heads")),
        (dict(swav=dict()), ("config.loss.swav", "config.model.prototypes", 3000)),
        (dict(clip=dict()), ("config.loss.clip", "'clip'", "config.model.heads")),
        (dict(clip=dict(head="projection")), ("config.loss.clip", "'text'", "config.model.heads")),
        (dict(simclr=1.0), ("config.loss.simclr", 1.0)),
    ],
)
def test_invalid_loss_options_are_refused(options, facts):
    with raises(UserError, *facts):
        task_of("simclr", **options)


def test_heads_and_prototypes_without_a_loss_are_logged(caplog):
    heads = dict(projection=dict(dims=(8, 4)), predictor=dict(dims=(8, 4)))
    task_of("simclr", model=dict(heads=heads, prototypes=5))
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert_mentions(message, "config.model.heads.predictor", "config.model.prototypes")
    assert "projection" not in message  # SimCLR trains it
    caplog.clear()
    task_of("swav")
    assert "config.model" not in caplog.text


@pytest.mark.parametrize("name", ["simsiam", "nnclr"])
def test_the_predictor_must_have_the_width_of_the_projection(name):
    heads = dict(projection=dict(dims=(8, 4)), predictor=dict(dims=(8, 5)))
    with raises(UserError, f"config.loss.{name}", "projection", 4, "predictor", 5):
        task_of(name, model=dict(heads=heads))


def test_prototypes_are_initialized_at_unit_length():
    """As in the first step of the published LGSSL code."""
    task = task_of("swav")
    kernel = jax.jit(lambda: task.init(jax.random.key(0))[0]["prototypes"]["kernel"])()
    assert kernel.shape == (SMALL["out"], SMALL["prototypes"])
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, rtol=1e-5)


def test_a_negative_number_of_prototypes_is_refused():
    with raises(UserError, "config.model.prototypes", -1):
        task_of("swav", model=dict(prototypes=-1))


def test_text_data_and_heads_must_match():
    heads = dict(clip=dict(dims=(6,)), text=dict(dims=(6,)))
    with raises(UserError, "config.model.heads.text", "config.data.text.features"):
        task_of("simclr", model=dict(heads=heads), clip=dict())
    with raises(UserError, "config.loss.clip", "config.data.text"):
        task_of("simclr", model=dict(heads=heads, text=TEXT), clip=dict())
    with raises(UserError, "config.loss.clip", "clip 4", "text 6"):
        heads = dict(clip=dict(dims=(4,)), text=dict(dims=(6,)))
        task_of("clip", model=dict(heads=heads))
    with raises(UserError, "config.model.heads", "'text'", "config.data.text=None"):
        task_of("simclr", text="tower")
    with raises(UserError, "config.data.text.features", "config.model.text_features=7", 8):
        task_of("clip_sbert", model=dict(text_features=8))
    with raises(UserError, "config.model.text_features", 8, "config.model.text)"):
        task_of("clip", model=dict(text_features=8))
    with raises(UserError, "config.model.heads.clip.dims", "(2048, 128)"):
        task_of("clip", model=dict(heads=dict(clip=dict())))
