"""FLAIR's model: published outputs, adapters, similarities, and operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.models.flair import Encoded, make_model
from mmjax.models.flair_maps import text_maps
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models.flair_fixture import make_flair, noise, published_images
from tests.random_arrays import random_arrays

SIZE = dict(width=32, num_heads=2, head_dim=16, mlp_dim=64, num_layers=1, scan_unroll=1)
IMAGE = dict(name="clip_vit_tiny", image_size=16, **SIZE)
TEXT = dict(name="clip_text_tiny", vocab_size=30, context_length=6, **SIZE)
TINY = dict(image=IMAGE, text=TEXT, width=24, num_heads=4)
IDS = np.array([[1, 5, 7, 29, 0, 0], [1, 29, 0, 0, 0, 0], [1, 4, 4, 4, 4, 29]])


def tiny(**options):
    model = ModelDef(make_model(**TINY, **options))
    return model, random_arrays(model)[0]


def tiny_inputs():
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    return images, IDS


# --------------------------------------------------------------------------------------------------
# Outputs of the original in PyTorch with the same weights.


def test_the_formula_of_the_weights_has_the_published_values():
    np.testing.assert_allclose(noise(4), [0.6793770, -0.8835247, -0.2521910, 0.7944683], rtol=1e-6)


@pytest.fixture(scope="module")
def published():
    model, params, arrays = make_flair()
    assert len(arrays) == 313
    assert sum(x.size for x in arrays.values()) == 150_674_434
    ids = np.zeros((2, 77), np.int32)
    ids[0, :10] = [49406, 518, 2368, 4341, 533, 962, 268, 9614, 269, 49407]
    ids[1, :2] = [49406, 49407]

    def run(params, images, ids):
        module = model.bind(params, {})
        towers = module.run({"image": images}, None)
        image, text = module.encode_images(images), module.encode_texts(ids)
        scale, bias = jnp.exp(module.logit_scale[...]), module.logit_bias[...]
        cosine = image.pooled @ text.pooled.T
        cosine /= jnp.linalg.norm(image.pooled) * jnp.linalg.norm(text.pooled, axis=1)
        pooled, weights = module.pool(image.tokens, text.pooled)
        return dict(
            towers=[x["image"] for x in towers],
            image=image,
            text=text,
            pooled=pooled[0],
            weights=weights[0],
            map=text_maps(module, image, Encoded(*(x[:1] for x in text))).values[0],
            conditioned=scale * module.similarity(image.tokens, text.pooled, broadcast=True) + bias,
            plain=scale * cosine,
        )

    return jax.device_get(jax.jit(run)(params, published_images(224), ids))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_towers_have_the_published_outputs(published):
    class_token, tokens = published["towers"]
    close([class_token.mean(), class_token.std()], [0.0133865, 1.01525])
    close([tokens.mean(), tokens.std()], [0.0084885, 1.011063])
    image, text = published["image"], published["text"]
    close(image.pooled[0, :4], [0.8706409, -0.0694797, 0.6268052, 0.1891002])
    close(image.tokens[0, 0, :2], [1.0959620, 0.7641003])
    close(image.tokens[0, 195, :2], [0.1008826, -0.2410488])
    close(text.pooled[0, :4], [0.4983874, 1.5316776, 0.0383699, 1.2650430])
    close(text.pooled[1, :4], [0.3034120, 1.9266438, -0.5286120, -0.2985755])
    close(text.tokens[0, 76, :2], [-0.7164933, 0.6166738])
    assert image.tokens.shape == (1, 196, 512) and text.tokens.shape == (2, 77, 512)


def test_the_pooling_has_the_published_outputs(published):
    close(published["pooled"][0, :4], [-1.3430392, -0.6366595, -0.6822149, -0.1748250])
    close(published["pooled"][1, :4], [-1.2960895, -0.6343969, -0.6779485, -0.2303007])
    close(published["weights"][:4, 0, -1], [0.0021446, 0.0042458, 0.0061647, 0.0062173])
    values = published["map"]
    close(values[0, :3], [0.0053311, 0.0050619, 0.0042100])
    close([values[13, 13], values.sum()], [0.0042466, 0.9949867])


def test_the_logits_have_the_published_values(published):
    close(published["conditioned"], [[-9.6333065, -9.8272285]])
    close(published["plain"], [[1.5498101, 1.0710974]])


# --------------------------------------------------------------------------------------------------
# Adapters, similarities, dtypes and operations, with tiny towers.


def test_adapters_are_linear_layers_after_the_projections():
    model, params = tiny(adapters=("vision_adapter", "text_adapter", "concat_adapter"))
    plain, _ = tiny()
    assert set(params) - set(plain.params) == {"vision_adapter", "text_adapter", "concat_adapter"}
    images, ids = tiny_inputs()

    @jax.jit
    def run(params):
        module = model.bind(params, {})
        base = plain.bind({name: params[name] for name in plain.params}, {})
        adapted = module.encode_images(images), module.encode_texts(ids)
        fused = module.fuse(adapted[0], Encoded(*(x[::-1] for x in adapted[0])))
        return adapted, (base.encode_images(images), base.encode_texts(ids)), fused

    adapted, base, fused = run(params)
    kernels = [params[name]["kernel"] for name in ("vision_adapter", "text_adapter")]
    for with_adapter, without, kernel in zip(adapted, base, kernels, strict=True):
        for actual, x in zip(with_adapter, without, strict=True):
            np.testing.assert_allclose(actual, x @ kernel, rtol=1e-4, atol=1e-5)
    kernel = params["concat_adapter"]["kernel"]
    assert kernel.shape == (48, 24)
    for actual, x in zip(fused, adapted[0], strict=True):
        expected = x @ kernel[:24] + x[::-1] @ kernel[24:]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_similarity_is_the_cosine_of_the_pooled_image_with_its_text():
    model, params = tiny()
    images, ids = tiny_inputs()

    @jax.jit
    def run(params):
        module = model.bind(params, {})
        image, text = module.encode_images(images), module.encode_texts(ids)
        every = module.similarity(image.tokens, text.pooled[:2], broadcast=True)
        own = module.similarity(image.tokens, text.pooled)
        pooled = [
            module.pool(tokens[None], query[None, None])[0][0, 0]
            for tokens, query in zip(image.tokens, text.pooled, strict=True)
        ]
        return every, own, text.pooled, jnp.stack(pooled)

    every, own, text, pooled = map(np.float64, run(params))
    lengths = np.linalg.norm(text, axis=1) * np.linalg.norm(pooled, axis=1)
    np.testing.assert_allclose(own, (pooled * text).sum(axis=1) / lengths, rtol=1e-4)
    assert every.shape == (3, 2)
    np.testing.assert_allclose(np.diagonal(every), own[:2], rtol=1e-4)


def test_half_precision_keeps_pooled_embeddings_and_similarities_in_float32():
    model, params = tiny(dtype="bfloat16")
    images, ids = tiny_inputs()

    def run(model):
        module = model.bind(params, {})
        image, text = module.encode_images(images), module.encode_texts(ids)
        return image, text, module.similarity(image.tokens, text.pooled)

    image, text, similarity = jax.jit(lambda: run(model))()
    assert image.pooled.dtype == text.pooled.dtype == similarity.dtype == jnp.float32
    assert image.tokens.dtype == text.tokens.dtype == jnp.bfloat16
    exact = jax.jit(lambda: run(tiny()[0]))()[2]
    np.testing.assert_allclose(similarity, exact, atol=0.03)
    assert np.any(similarity != exact)


def test_initial_values_are_those_of_the_published_code():
    model = ModelDef(make_model(**TINY, adapters=("concat_adapter",)))
    params, _ = model.init(jax.random.key(0))
    np.testing.assert_allclose(params["logit_scale"], 2.6592600, rtol=1e-6)
    assert params["logit_bias"] == -10
    np.testing.assert_allclose(params["image_projection"]["kernel"].std(), 32**-0.5, rtol=0.1)
    bound = (6 / (48 + 24)) ** 0.5  # Xavier
    largest = np.abs(params["concat_adapter"]["kernel"]).max()
    assert 0.95 * bound < largest <= bound


def test_operations_count_towers_projections_and_pooling():
    module = tiny()[0].module
    image = module.tower_flops("image", (16, 16, 3), train=False)[0]
    projections = 2 * 5 * 32 * 24
    shapes = {"image": (16, 16, 3)}
    assert module.flops(shapes) == image + projections
    pooling = 2 * (4 + 4 + 7 + 7) * 24 * 24 + 2 * 2 * 7 * 4 * 24
    assert module.flops(shapes, num_queries=7) == image + projections + pooling
    trained = module.flops(shapes, num_queries=7, train=True, frozen=("image",))
    assert trained == image + 3 * (projections + pooling)
    text = module.tower_flops("text", (6,), train=False)[0]
    assert module.flops({"text": (2, 6)}) == 2 * (text + 2 * 7 * 32 * 24)


def test_invalid_options_are_errors():
    with raises(UserError, "config.model.adapters", "'image_adapter'", "vision_adapter"):
        tiny(adapters=("image_adapter",))
    with raises(UserError, "concat_adapter", "config.model.adapters"):
        model, params = tiny()
        image = Encoded(jnp.zeros((1, 24)), jnp.zeros((1, 4, 24)))
        model.bind(params, {}).fuse(image, image)
