"""Heads of end tasks compute the numbers of pyVTAB's specification (sections 5, 18 and 19.9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.decoders.base import MAPS
from mmjax.models.decoders.registry import HEADS, build_head
from mmjax.models.towers.registry import build_tower
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models import torch_reference
from tests.models.decoders import fixture
from tests.random_arrays import random_arrays

SMALL = dict(conv=4, block1=8, block2=12, block3=16, block4=32)
SIZES = dict(conv=(8, 10), block1=(4, 5), block2=(2, 3), block3=(1, 2), block4=(1, 1))


def head_of(name, num_outputs=5, num_images=1, channels=None, embedding_dim=2048, **options):
    return ModelDef(
        lambda rngs: build_head(
            name,
            num_outputs=num_outputs,
            embedding_dim=embedding_dim,
            num_images=num_images,
            channels=fixture.RESNET50 if channels is None else channels,
            rngs=rngs,
            **options,
        )
    )


def features_of(num_images=1, batch=2, seed=0, **sizes):
    rng = np.random.default_rng(seed)
    maps = {
        name: rng.normal(size=(batch, num_images, *size, SMALL[name])).astype(np.float32)
        for name, size in (SIZES | sizes).items()
    }
    embedding = rng.normal(size=(batch, num_images, 6)).astype(np.float32)
    return maps | {"embedding": embedding}


def small(name, **options):
    return head_of(name, channels=SMALL, embedding_dim=6, **options)


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model.params))


# ---- Facts of the specification


@pytest.mark.parametrize(
    "name, num_outputs, num_images, expected",
    [
        ("unet", 1, 1, 99_689_988),
        ("unet", 3, 1, 99_694_604),
        ("siamese_unet", 1, 2, 110_843_204),
        ("mlp", 5, 2, 2_100_229),
        ("mlp", 400, 6, 6_497_168),
        ("deeplab", 20, 1, 31_850_148),
        ("deeplab", 5, 1, 31_815_573),
        ("deeplab_classifier", 37, 1, 17_388_762),
        ("linear", 37, 1, 37 * 2049),
    ],
)
def test_parameter_counts_equal_pyvtab(name, num_outputs, num_images, expected):
    assert count(head_of(name, num_outputs, num_images)) == expected


@pytest.fixture(scope="module")
def encoder():
    """(params, statistics, {map: [2, h, w, C]}, embedding) of an image and its mirror image."""
    model = ModelDef(lambda rngs: build_tower("resnet50", rngs=rngs))
    params, extra = fixture.arrays(model)

    def run(params, extra, x):
        module = model.bind(params, extra)
        return module.feature_maps(x), module(x)[0]

    x = np.concatenate([fixture.image(), fixture.image(mirrored=True)])
    return params, extra, *jax.jit(run)(params, extra, x)


def assert_statistics(x, mean, std):
    np.testing.assert_allclose([np.mean(x), np.std(x)], [mean, std], rtol=1e-4)


def test_feature_maps_of_resnet50_equal_the_fixture(encoder):
    _, _, maps, embedding = encoder
    for name, channels, size, mean, std in (
        ("conv", 64, 35, 0.2324107, 0.3430715),
        ("block1", 256, 18, 0.3813575, 0.5013931),
        ("block2", 512, 9, 0.3822335, 0.4899641),
        ("block3", 1024, 5, 0.4023839, 0.5497696),
        ("block4", 2048, 3, 0.3000585, 0.3997503),
    ):
        assert maps[name].shape == (2, size, size, channels)
        assert_statistics(maps[name][0], mean, std)
    assert maps.keys() == set(MAPS)
    assert_statistics(embedding[0], 0.3000585, 0.3326163)
    first = [0.0089612, 0.0568016, 0.1602479, 0.8289069]
    np.testing.assert_allclose(embedding[0, :4], first, rtol=1e-4, atol=1e-7)


def run_head(model, params, extra, features, size=(70, 70)):
    return jax.jit(lambda p, e, f: model.bind(p, e)(f, size=size))(params, extra, features)


def test_deeplab_equals_the_fixture(encoder):
    params, extra, maps, _ = encoder
    model = head_of("deeplab", paper_batch_norm=True)
    head = model.module.init_from_encoder(*fixture.arrays(model), params, extra)

    def run(head_params, head_extra, maps):
        module = model.bind(head_params, head_extra)
        features = {name: x[:1, None] for name, x in maps.items()}
        block = module.dilated(maps["block3"][:1], train=False)
        module.reducer_uses_batch = False
        evaluation = module(features, size=(70, 70))[0]
        module.reducer_uses_batch = True
        return block, module(features, size=(70, 70))[0], evaluation

    block, original, evaluation = jax.jit(run)(*head, maps)
    assert_statistics(block, 0.3015298, 0.4081401)
    assert_statistics(evaluation, -0.0214384, 0.1007221)
    np.testing.assert_allclose(
        [*evaluation[10, 20, :3], evaluation[69, 69, 4]],
        [0.0367148, -0.1763790, 0.1785674, -0.0223698],
        rtol=1e-4,
    )
    assert_statistics(original, 0.0098016, 0.1415142)
    np.testing.assert_allclose(
        [*original[10, 20, :3], original[69, 69, 4]],
        [0.0845457, -0.2493187, 0.2472935, -0.0961401],
        rtol=1e-4,
    )


@pytest.mark.slow
def test_decoders_of_100_million_parameters_equal_the_fixture(encoder):
    _, _, maps, _ = encoder
    model = head_of("unet", num_outputs=1)
    out = run_head(model, *fixture.arrays(model), {k: x[:1, None] for k, x in maps.items()})
    assert_statistics(out, -0.3970654, 0.4121805)
    samples = [out[0, 10, 20, 0], out[0, 35, 36, 0], out[0, 69, 69, 0]]
    np.testing.assert_allclose(samples, [-0.3122730, -0.4885702, -0.3473334], rtol=1e-4)
    model = head_of("siamese_unet", num_outputs=1, num_images=2)
    out = run_head(model, *fixture.arrays(model), {k: x[None] for k, x in maps.items()})
    assert_statistics(out, -0.1702547, 0.5274187)
    samples = [out[0, 10, 20, 0], out[0, 69, 69, 0]]
    np.testing.assert_allclose(samples, [0.3497162, -0.2664322], rtol=1e-4)


# ---- Small widths against NumPy


def _shuffle(x):
    out = np.empty((2 * x.shape[0], 2 * x.shape[1], x.shape[2] // 4))
    for i in range(2):
        for j in range(2):
            out[i::2, j::2] = x[..., 2 * i + j :: 4]
    return out


def _unet(params, maps):
    """Returns the output of a U-Net for one image, from {map: [h, w, C]} of even sizes."""
    x = maps["block4"]
    for number, name in enumerate((*reversed(MAPS[:-1]), None), 1):
        kernel = np.float64(params[f"up{number}"]["kernel"]).transpose(3, 2, 0, 1)
        x = torch_reference.convolve(x[None], kernel, stride=1, pad=1)[0]
        x = _shuffle(x + params[f"up{number}"]["bias"])
        if name is not None:
            x = np.where(x > 0, x, 0.01 * x) + maps[name]
    return x


EVEN = dict(conv=(16, 32), block1=(8, 16), block2=(4, 8), block3=(2, 4), block4=(1, 2))


@pytest.mark.parametrize("name, num_images", [("unet", 1), ("siamese_unet", 2)])
def test_unets_equal_numpy_for_any_channels(name, num_images):
    model = small(name, num_outputs=3, num_images=num_images)
    params, extra = random_arrays(model)
    features = features_of(num_images, batch=1, **EVEN)
    out = run_head(model, params, extra, features, size=(32, 64))
    maps = {key: features[key][0, 0] for key in MAPS}
    if num_images == 2:
        for number, key in enumerate(reversed(MAPS), 1):
            fusion = params[f"fusion{number}"]
            both = np.concatenate(list(features[key][0]), axis=-1)
            maps[key] = both @ np.float64(fusion["kernel"][0, 0]) + fusion["bias"]
    expected = _unet(params, maps)
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_image_level_heads_equal_numpy():
    features = features_of(num_images=3)
    x = features["embedding"].reshape(2, 18)
    model = small("mlp", num_images=3, hidden=7)
    params, extra = random_arrays(model)
    hidden = np.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    expected = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(run_head(model, params, extra, features), expected, rtol=1e-5)
    model = small("linear", num_images=3)
    params, extra = random_arrays(model)
    expected = x @ params["linear"]["kernel"] + params["linear"]["bias"]
    np.testing.assert_allclose(run_head(model, params, extra, features), expected, rtol=1e-4)


# ---- Behavior


def inputs_of(name):
    num_images = 2 if name == "siamese_unet" else 1
    options = dict(map_size=(1, 1)) if name == "deeplab_classifier" else {}
    features = features_of(num_images)
    return small(name, num_images=num_images, **options), features


@pytest.mark.parametrize("name", HEADS)
def test_heads_return_float32_of_the_size_and_run_for_several_seeds_at_once(name):
    model, features = inputs_of(name)
    features = {
        key: x.astype(jnp.bfloat16) for key, x in features.items() if key in model.module.needs
    }
    params, extra = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 3))

    def run(params, extra):
        module = model.bind(params, extra)
        return module(features, size=(15, 20), train=True), model.extra_of(module)

    out, new = jax.jit(jax.vmap(run))(params, extra)
    pixels = () if name in ("linear", "mlp", "deeplab_classifier") else (15, 20)
    assert out.shape == (3, 2, *pixels, 5) and out.dtype == jnp.float32
    single, _ = jax.jit(run)(*jax.tree.map(lambda leaf: leaf[1], (params, extra)))
    np.testing.assert_allclose(out[1], single, rtol=1e-3, atol=1e-4)
    assert np.abs(out[0] - out[1]).max() > 1e-3
    frozen = name == "deeplab"
    for path, leaf in tree.flatten(new).items():
        changed = np.abs(leaf - tree.flatten(extra)[path]).max() > 0
        unused = name == "deeplab_classifier" and path.split("/")[0] in ("reducer", "decoder")
        assert changed == (not unused and not (frozen and path.startswith("block4"))), path


def test_layers_are_initialized_as_in_pytorch():
    model = small("mlp", num_images=4, hidden=600)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    for leaf in params["hidden"].values():
        assert 0.99 * 24**-0.5 < np.abs(leaf).max() <= 24**-0.5
    params, _ = jax.jit(small("unet").init)(jax.random.key(0))
    for leaf in params["up1"].values():
        assert 0.9 * (9 * 32) ** -0.5 < np.abs(leaf).max() <= (9 * 32) ** -0.5


def test_paper_batch_norm_depends_on_the_batch_in_evaluation():
    for paper in (False, True):
        model = small("deeplab_plain", paper_batch_norm=paper)
        params, extra = random_arrays(model)
        features = features_of()
        both = run_head(model, params, extra, features)
        first = run_head(model, params, extra, {k: x[:1] for k, x in features.items()})
        assert (np.abs(both[0] - first[0]).max() > 1e-2) == paper
        norms = [model.module.aspp.branch2.norm, model.module.reducer.norm]
        assert [norm.epsilon for norm in norms] == [3e-4 if paper else 1e-5, 1e-5]
        assert [norm.momentum for norm in norms] == [0.9 if paper else 0.9997, 0.9997]


def test_deeplab_starts_from_the_last_group_for_every_seed(encoder):
    params, extra, _, _ = encoder
    model = head_of("deeplab", num_outputs=2)
    stacked = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), (2, *leaf.shape)), (model.params, model.extra)
    )
    head_params, head_extra = model.module.init_from_encoder(*stacked, params, extra)
    kernel = params["groups"]["3"]["1"]["second"]["conv"]["kernel"]
    np.testing.assert_array_equal(head_params["block4"]["1"]["second"]["conv"]["kernel"][1], kernel)
    mean = extra["groups"]["3"]["0"]["shortcut"]["norm"]["mean"]
    np.testing.assert_array_equal(head_extra["block4"]["0"]["shortcut"]["norm"]["mean"][0], mean)
    assert jax.tree.map(np.shape, (head_params, head_extra)) == jax.tree.map(np.shape, stacked)


def test_deeplab_refuses_encoders_without_its_bottlenecks():
    model = small("deeplab")
    for spec in ("resnet18", "mobilenet_v2", "resnet50"):  # the last has other widths
        tower = ModelDef(lambda rngs, spec=spec: build_tower(spec, rngs=rngs))
        arrays = (model.params, model.extra, tower.params, tower.extra)
        with raises(UserError, "deeplab_plain", "groups/3"):
            model.module.init_from_encoder(*arrays)


def test_flops_are_those_of_the_layers():
    shapes = {key: x.shape[1:] for key, x in features_of(num_images=2).items()}
    dense = small("mlp", num_images=2, hidden=7).module.flops(shapes)
    assert dense == 2 * (12 * 7 + 7 * 5)
    unet = small("siamese_unet", num_images=2, num_outputs=1).module.flops(shapes)
    pixels = {name: height * width for name, (height, width) in SIZES.items()}
    widths = [SMALL[name] for name in MAPS]
    expected = sum(
        2 * 9 * SMALL[k] * 4 * out * pixels[k] for k, out in zip(MAPS, [1, *widths], strict=False)
    )
    expected += sum(2 * 2 * SMALL[k] ** 2 * pixels[k] for k in MAPS)
    assert unet == expected
