"""The guided task apart from the loop: what each method compares, learns, and remembers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config
from mmjax.configs.guided._methods import METHODS, method
from mmjax.errors import UserError
from mmjax.losses import contrastive, self_supervised
from mmjax.tasks import DataFacts, make_task

BATCH, SIZE, WORDS, GIVEN = 6, 16, 5, 7
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
    context_length=WORDS,
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
        words = (BATCH, 1, WORDS) if text == "tower" else (BATCH, 1, GIVEN)
        dtype = np.int32 if text == "tower" else np.float32
        spec |= {
            "text": jax.ShapeDtypeStruct(words, dtype),
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
            text_features=GIVEN if text == "features" else 0,
            prototypes=parts["prototypes"],
        ),
        **dict(model),
    )
    cfg.augment = dict(image=augment if augment is not None else dict())  # no draws: exact values
    cfg.loss = loss or parts["loss"]
    spec = spec_of(views or len(parts["crops"]), text)
    return make_task(cfg, DataFacts(spec=spec, vocab_size=20))


def batch_of(views=2, text=None, **changes):
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (BATCH, views, SIZE, SIZE, 3), np.uint8),
        "image_mask": np.ones(BATCH, np.float32),
    }
    if text == "tower":
        batch["text"] = draw.integers(1, 20, (BATCH, 1, WORDS), np.int32)
    elif text:
        batch["text"] = draw.normal(size=(BATCH, 1, GIVEN)).astype(np.float32)
    if text:
        batch["text_mask"] = np.ones((BATCH, 1), np.float32)
    return batch | changes


def init(task):
    # Not compiled as a whole: what is of the same shape in two tasks is compiled once.
    return task.init(jax.random.key(0))


@functools.cache  # compiled once for each task
def step_of(task):
    def loss(params, extra, batch):
        key = jax.random.key(1)
        features, new = task.encode(params, extra, batch, key)
        return task.objective(params, new, features, batch, key)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


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


# These differ from the methods without "lg" in their pictures alone, which `task_of` does not draw.
SAME = ("lgsimclr", "lgsimsiam")


@pytest.mark.parametrize("name", SAME)
def test_pairs_change_nothing_that_is_learned(name):
    guided, plain = method(name), method(name.removeprefix("lg"))
    for part in ("heads", "loss", "prototypes", "text"):
        assert guided[part] == plain[part]
    assert len(guided["crops"]) == len(plain["crops"]) and guided["pairs"] and not plain["pairs"]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SAME])
def test_every_method_trains_all_it_has(name):
    *_, loss, _, metrics, grads = trained(name)
    assert np.isfinite(loss)
    assert all(np.isfinite(total) and count > 0 for total, count in metrics.values())
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(leaf)
    ]
    assert all("prototypes" in path for path in still), still


def projections(name, head="projection"):
    """What the head gives for each view, by the model itself, view after view."""
    task, batch, params, extra, *_ = trained(name)
    features, new = task.encode(params, extra, batch, jax.random.key(1))
    module = task.model.bind(params, new)
    views = features["image"].shape[1]
    return [module.heads[head](features["image"][:, v], train=True) for v in range(views)], features


def test_simclr_is_the_loss_of_the_two_views():
    _, _, _, _, loss, *_ = trained("simclr")
    (a, b), _ = projections("simclr")
    np.testing.assert_allclose(loss, self_supervised.nt_xent(a, b, temperature=0.1), rtol=1e-5)


def test_slip_adds_what_the_third_view_says_of_the_text():
    task, _, params, _, loss, *_ = trained("slip")
    (a, b, _), features = projections("slip")
    picture = features["image"][:, 2] @ params["heads"]["clip"]["linear"]["0"]["kernel"]
    text = features["text"] @ params["heads"]["text"]["linear"]["0"]["kernel"]
    expected = self_supervised.nt_xent(a, b) + contrastive.info_nce(
        picture, text, logit_scale=1 / 0.07
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_lgslip_shares_a_head_whose_statistics_see_each_view_once():
    task, batch, params, extra, loss, new, *_ = trained("lgslip")
    (a, b), features = projections("lgslip")
    text = features["text"] @ params["heads"]["text"]["linear"]["0"]["kernel"]
    expected = self_supervised.nt_xent(a, b) + contrastive.info_nce(a, text, logit_scale=1 / 0.07)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    _, encoded = task.encode(params, extra, batch, jax.random.key(1))
    module = task.model.bind(params, encoded)
    for view in (0, 1):
        module.heads["projection"](features["image"][:, view], train=True)
    statistics = task.model.extra_of(module)["heads"]["projection"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        new["heads"]["projection"],
        statistics,
    )


def test_the_backbone_normalises_each_view_by_itself():
    task, batch = task_of("simclr", model=dict(image=RESNET)), batch_of()
    params, extra = init(task)
    features, new = jax.jit(task.encode)(params, extra, batch, jax.random.key(1))

    @jax.jit
    def by_hand(params, extra):
        module, pooled = task.model.bind(params, extra), []
        for view in (0, 1):
            pixels = batch["image"][:, view] / jnp.float32(255)
            pooled.append(module.encode({"image": pixels}, key=jax.random.key(0))["image"])
        return jnp.stack(pooled, axis=1), task.model.extra_of(module)

    pooled, statistics = by_hand(params, extra)
    np.testing.assert_allclose(features["image"], pooled, rtol=1e-4, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, new["image"], statistics["image"])


def test_declip_weighs_its_two_losses():
    *_, loss, _, metrics, _ = trained("declip")
    clip, neighbours = (metrics[f"loss_{name}"][0] for name in ("clip", "clip_neighbours"))
    np.testing.assert_allclose(loss, 0.8 * clip + 0.2 * neighbours, rtol=1e-6)


def test_nothing_flows_into_the_text_through_its_neighbour():
    task = task_of("declip", clip_neighbours=dict(bank_size=16))
    params, extra = init(task)
    (_, (new, _)), grads = loss_of(task, batch_of(1, "tower"), params, extra)
    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves((grads["text"], grads["heads"]["text"]))
    )
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads["image"]))
    assert int(new["banks"]["clip_neighbours"]["next"]) == BATCH


def test_nnclr_looks_up_before_it_keeps_the_second_view():
    _, _, params, extra, loss, new, *_ = trained("nnclr")
    projected, _ = projections("nnclr")
    task = trained("nnclr")[0]
    bank = np.asarray(extra["banks"]["nnclr"]["rows"])
    np.testing.assert_allclose(new["banks"]["nnclr"]["rows"][:BATCH], projected[1], atol=1e-5)
    np.testing.assert_array_equal(new["banks"]["nnclr"]["rows"][BATCH:], bank[BATCH:])
    module = task.model.bind(params, extra)
    predicted = [module.heads["predictor"](z, train=True) for z in projected]
    nearest = []
    for z in projected:
        z = np.asarray(z) / np.linalg.norm(z, axis=1, keepdims=True)
        nearest.append(bank[(z @ bank.T).argmax(axis=1)])
    halves = [
        self_supervised.one_way_nce(predicted[one], nearest[1 - one], temperature=0.1)
        for one in (0, 1)
    ]
    np.testing.assert_allclose(loss, 0.5 * sum(halves), rtol=1e-4)


def test_swav_freezes_prototypes_and_fills_its_queue():
    task, batch, params, extra, *_ = trained("swav")
    for step in range(5):
        (_, (extra, _)), grads = loss_of(task, batch, params, extra)
        assert np.any(grads["prototypes"]["kernel"]) == (step >= 1)
        rows = np.asarray(extra["queues"]["rows"])
        filled = int((rows[0] != 0).any(axis=1).sum())
        assert filled == min(12, BATCH * step)  # the first step is too early
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1.0, rtol=1e-5)


def test_swav_assigns_with_the_queue_once_it_is_full():
    task, batch, params, extra, *_ = trained("swav")
    draw = np.random.default_rng(1).normal(size=(2, 12, 4)).astype(np.float32)
    full = extra | {"queues": {"rows": jnp.asarray(draw), "calls": jnp.int32(9)}}
    half = full | {"queues": {"rows": jnp.asarray(draw).at[:, -1].set(0), "calls": jnp.int32(9)}}
    empty = full | {"queues": {"rows": jnp.zeros((2, 12, 4)), "calls": jnp.int32(9)}}
    losses = [float(loss_of(task, batch, params, e)[0][0]) for e in (full, half, empty)]
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert abs(losses[0] - losses[2]) > 1e-4


@pytest.mark.parametrize("name", ["simclr", "simsiam", "nnclr", "clip"])
def test_examples_without_a_picture_do_not_count(name):
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
    first, second = (
        loss_of(task, batch | {"image": image, "image_mask": mask}, params, extra)
        for image in (batch["image"], changed)
    )
    assert float(first[0][0]) == pytest.approx(float(second[0][0]), rel=1e-6)


def test_given_features_of_texts_need_no_tower():
    task = trained("clip_sbert")[0]
    assert "text" not in task.model.params
    assert task.model.params["heads"]["text"]["linear"]["0"]["kernel"].shape == (GIVEN, 6)


def test_features_for_evaluators():
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


def test_a_backbone_alone_can_be_evaluated_and_not_trained():
    cfg = config.base()
    cfg.model = dict(image=RESNET)
    cfg.task = "guided"
    task = make_task(cfg, DataFacts(spec=spec_of(2, None)))
    params, extra = init(task)
    assert list(params) == ["image"]
    out = task.predict["features"](params, extra, batch_of(1))
    assert list(out) == ["image"]
    with pytest.raises(UserError, match=r"config\.loss has no term"):
        task.encode(params, extra, batch_of(2), jax.random.key(0))


def test_flops_count_views_heads_and_texts():
    task = trained("slip")[0]
    spec = spec_of(3, "tower")
    module = task.model.module
    image = module.image.flops((SIZE, SIZE, 3), train=True)
    heads = {name: head.flops() for name, head in module.heads.items()}
    one = 3 * (image + heads["projection"] + heads["clip"])
    one += module.text.flops((WORDS,), train=True) + heads["text"]
    assert task.flops(spec) == pytest.approx(BATCH * 3 * one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(simclrr=dict()), "Did you mean 'simclr'"),
        (dict(simclr=dict(temprature=1.0)), "Did you mean 'loss.simclr.temperature'"),
        (dict(simclr=dict(weight=-1)), r"config\.loss\.simclr\.weight=-1"),
        (dict(simclr=dict(views=(0, 2))), "compares view 2, but an example has 2"),
        (dict(simclr=dict(views=(0,))), "must name two views"),
        (dict(simclr=dict(views=(1, 1))), "must name two views"),
        (dict(simclr=dict(views=(0, 1.5))), "must name two views"),
        (dict(simclr=dict(views=1)), r"config\.loss\.simclr\.views=1 must be such as"),
        (
            dict(simclr=dict(temperature=0.0)),
            r"config\.loss\.simclr\.temperature=0.0 must be above",
        ),
        (dict(simclr=dict(weight=float("nan"))), r"config\.loss\.simclr\.weight=nan"),
        (dict(nnclr=dict(bank_size=0)), r"config\.loss\.nnclr\.bank_size=0 must be at least 1"),
        (dict(swav=dict(queue_length=0)), r"queue_length=0 must be at least 1"),
        (dict(swav=dict(epsilon=0.0)), r"epsilon=0.0 must be above 0"),
        (dict(clip=dict(max_logit_scale=-1.0)), r"max_logit_scale=-1.0 must be at least 0"),
        (dict(clip=dict(head="text")), "head='text' is of texts"),
        (dict(simclr=dict(head="mlp")), "needs the head 'mlp'"),
        (dict(simsiam=dict()), "needs the head 'predictor'"),
        (dict(swav=dict()), r"needs config\.model\.prototypes"),
        (dict(clip=dict()), "needs the head 'clip'"),
        (dict(clip=dict(head="projection")), "needs the head 'text'"),
        (dict(simclr=1.0), "must be a section"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        task_of("simclr", **options)


def test_what_no_term_learns_is_told(caplog):
    heads = dict(projection=dict(dims=(8, 4)), predictor=dict(dims=(8, 4)))
    task_of("simclr", model=dict(heads=heads, prototypes=5))
    told = "config.model.heads.predictor, config.model.prototypes: only weight decay"
    assert told in caplog.text
    caplog.clear()
    task_of("swav")
    assert "weight decay" not in caplog.text


@pytest.mark.parametrize("name", ["simsiam", "nnclr"])
def test_a_predictor_gives_what_it_predicts(name):
    heads = dict(projection=dict(dims=(8, 4)), predictor=dict(dims=(8, 5)))
    with pytest.raises(UserError, match="different widths: projection 4, predictor 5"):
        task_of(name, model=dict(heads=heads))


def test_prototypes_start_at_length_one():
    """As LGSSL's published code has them in its first step."""
    kernel = task_of("swav").init(jax.random.key(0))[0]["prototypes"]["kernel"]
    assert kernel.shape == (SMALL["out"], SMALL["prototypes"])
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, rtol=1e-5)


def test_there_are_no_fewer_prototypes_than_none():
    with pytest.raises(UserError, match=r"config\.model\.prototypes=-1"):
        task_of("swav", model=dict(prototypes=-1))


def test_texts_that_are_missing_are_refused():
    heads = dict(clip=dict(dims=(6,)), text=dict(dims=(6,)))
    with pytest.raises(UserError, match="takes the features of texts, and there are none"):
        task_of("simclr", model=dict(heads=heads), clip=dict())
    with pytest.raises(UserError, match=r"set config\.data\.text"):
        task_of("simclr", model=dict(heads=heads, text=TEXT), clip=dict())
    with pytest.raises(UserError, match="different widths: clip 4, text 6"):
        heads = dict(clip=dict(dims=(4,)), text=dict(dims=(6,)))
        task_of("clip", model=dict(heads=heads))
    with pytest.raises(UserError, match=r"set config\.data\.text=None"):
        task_of("simclr", text="tower")
    with pytest.raises(UserError, match="have 7 numbers each: set config.model.text_features=7"):
        task_of("clip_sbert", model=dict(text_features=8))
    with pytest.raises(UserError, match="leave it or the tower"):
        task_of("clip", model=dict(text_features=8))
    with pytest.raises(UserError, match=r"model\.heads\.clip\.dims is missing"):
        task_of("clip", model=dict(heads=dict(clip=dict())))
