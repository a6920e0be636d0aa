"""VATT's models, heads and classifier against its published code."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.blocks import patches
from mmjax.models.blocks.heads import FACHead, JointHead
from mmjax.models.towers.registry import build_tower
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models.vatt_fixture import REFERENCE, inputs, relative_error, tiny_model
from tests.random_arrays import random_arrays


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_features_and_projections_equal_published_code(reference, model):
    definition, params, extra = model

    @jax.jit
    def run(params, x):
        module = definition.bind(params, extra)
        pooled = module.encode(x)
        return pooled, module.project(pooled)

    pooled, projected = run(params, inputs(reference))
    for modality in ("video", "audio", "text"):
        assert relative_error(pooled[modality], reference[f"pooled/{modality}"]) < 1e-5
    assert set(projected) == {"video/audio", "video/text", "audio/video", "text/video"}
    for pair, value in projected.items():
        assert relative_error(value, reference[f"projected/{pair}"]) < 1e-5


def test_drop_token_equals_published_code_for_a_reversing_permutation(reference, monkeypatch):
    monkeypatch.setattr(
        patches, "drop_tokens", lambda key, n, keep, batch: n - 1 - np.arange(n // 2)
    )
    definition, params, extra = tiny_model(keep_tokens=0.5)

    @jax.jit
    def run(params, x):
        module = definition.bind(params, extra)
        return module.encode(x, key=jax.random.key(0), train=True, tokens=True)

    pooled, tokens = run(params, inputs(reference))
    for modality, num_kept in (("video", 4), ("audio", 5)):
        assert relative_error(pooled[modality], reference[f"dropped/{modality}"]) < 1e-5
        assert tokens[modality].shape == (1, num_kept, 64)


def test_head_in_training_equals_published_code_and_updates_statistics(reference, model):
    definition, params, extra = model

    @jax.jit
    def run(params, video):
        module = definition.bind(params, extra)
        out = module.project({"video": video}, train=True)
        return out, definition.extra_of(module)

    out, updated = run(params, reference["train/pooled/video"])
    assert relative_error(out["video/audio"], reference["train/projected/video/audio"]) < 2e-5
    assert relative_error(out["video/text"], reference["train/projected/video/text"]) < 2e-5
    names = {"mean": "moving_mean", "var": "moving_variance"}
    layers = {
        "video_hidden_norm": "hid_to_va/pre_bn",
        "video_fine_norm": "hid_to_va/bn",
        "video_coarse_norm": "va_to_vat/bn",
    }
    statistics = tree.flatten(updated["head"])
    assert len(statistics) == 6
    for path, value in statistics.items():
        layer, leaf = path.split("/")
        assert (
            relative_error(value, reference[f"train/statistics/{layers[layer]}/{names[leaf]}"])
            < 1e-5
        )


def _count(model):
    return sum(math.prod(x.shape) for x in jax.tree.leaves((model.params, model.extra)))


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("vit_base", 87_446_016),
        ("vit_medium", 154_343_424),
        ("vit_large", 305_498_112),
        ("vit_xlarge", 533_695_488),
        ("wat_base", 86_078_976),
        ("wat_medium", 152_520_704),
        ("wat_large", 303_675_392),
        ("spt_base", 85_056_768),
        ("spt_medium", 151_157_760),
        ("spt_large", 302_201_856),
        ("t5_small", 19_038_252 + 65_536 * 300),
        (dict(name="vit_base", pre_projection=True, post_projection=1024), 88_824_064),
        (dict(name="vit_medium", pre_projection=True, post_projection=1024), 156_442_624),
        (dict(name="wat_base", pre_projection=True, post_projection=1024), 87_457_024),
        (dict(name="wat_medium", pre_projection=True, post_projection=1024), 154_619_904),
        ("i3d", 12_301_824),
        ("resnet2d_50", 23_554_880),
    ],
)
def test_tower_parameter_counts_equal_published_code(spec, expected):
    assert _count(ModelDef(lambda rngs: build_tower(spec, rngs=rngs))) == expected


@pytest.mark.parametrize(
    "name, size, expected",
    [
        ("tx_fac", "bbs", 213_540_652),
        ("tx_fac", "mbs", 280_569_132),
        ("tx_fac", "lbs", 431_723_820),
        ("ut_fac", "base", 113_628_928),
        ("ut_fac", "medium", 182_653_696),
        ("ut_fac", "large", 333_808_384),
    ],
)
def test_model_parameter_counts_equal_published_code(name, size, expected):
    assert _count(ModelDef(make_model(name, size=size))) == expected


@pytest.mark.parametrize("video, expected", [(768, 1_316_608), (1024, 1_447_680)])
def test_head_parameter_count_equals_published_code(video, expected):
    widths = dict(video=video, audio=768, text=512)
    assert _count(ModelDef(lambda rngs: FACHead(widths=widths, rngs=rngs))) == expected


@pytest.mark.parametrize(
    "layers, width, mlp, name", [(6, 512, 2048, "bert_small"), (12, 768, 3072, "bert_base")]
)
def test_bert_parameter_count_is_the_sum_over_layers(layers, width, mlp, name):
    block = 4 * (width + 1) * width + 2 * width * mlp + mlp + width + 4 * width
    tokens = 65_536 * 300 + 300 * width + 16 * width + 2 * width + width
    expected = tokens + layers * block + 2 * width
    assert _count(ModelDef(lambda rngs: build_tower(name, rngs=rngs))) == expected


def test_mmv_parameter_count_is_the_sum_of_towers_and_head():
    linear = 65_536 * 300 + 300 * 2048 + 2048
    head = 1024 * 512 + 512 * 512 + 2 * 512 * 4 + 512 * 256 + 256 * 4
    head += 2048 * 512 + 512 + 2048 * 256 + 256
    expected = 12_301_824 + 23_554_880 + linear + head
    assert _count(ModelDef(make_model("mmv_fac"))) == expected


def test_modalities_can_be_omitted_and_the_joint_head_accepts_any_set():
    model = ModelDef(make_model("tx_fac", size="tiny", audio=None))
    assert set(model.params) == {"video", "text", "head"}
    model = ModelDef(make_model("tx_fac", size="tiny", video=None, head=dict(name="joint")))
    assert set(model.params) == {"audio", "text", "head"}
    with raises(UserError, "'fac'", "video", ["audio", "text"], "'joint'"):
        ModelDef(make_model("tx_fac", size="tiny", video=None))


def test_joint_head_applies_relu_dense_and_batch_norm():
    head = JointHead(widths=dict(audio=6, text=5, touch=4), joint=8, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    out = head({"audio": x}, train=True)
    y = np.maximum(x, 0) @ np.asarray(head.audio.kernel[...])
    y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    assert set(out) == {"audio/text", "audio/touch"}
    np.testing.assert_allclose(out["audio/text"], y, atol=1e-5)
    np.testing.assert_array_equal(out["audio/text"], out["audio/touch"])


def test_training_is_deterministic_given_the_key_and_evaluation_ignores_it():
    definition = ModelDef(make_model("tx_fac", size="tiny", text=None, audio=dict(num_layers=1)))
    params, extra = random_arrays(definition)
    x = {"audio": np.random.default_rng(0).normal(size=(2, 1280)).astype(np.float32)}

    @jax.jit
    def run(seed):
        module = definition.bind(params, extra)
        return module.encode(x, key=jax.random.key(seed), train=True)["audio"]

    @jax.jit
    def evaluate(seed):
        module = definition.bind(params, extra)
        return module.encode(x, key=jax.random.key(seed))["audio"]

    np.testing.assert_array_equal(run(1), run(1))
    assert np.abs(run(1) - run(2)).max() > 1e-3
    np.testing.assert_array_equal(evaluate(1), evaluate(2))
    with raises(TypeError, "train=True", "key"):
        definition.bind(params, extra).encode(x, train=True)


def test_bfloat16_is_the_compute_dtype_and_parameters_stay_float32(reference):
    definition, params, extra = tiny_model(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(definition.params)} == {jnp.dtype("float32")}
    run = jax.jit(lambda params, x: definition.bind(params, extra).encode(x, tokens=True))
    pooled, tokens = run(params, inputs(reference))
    assert {x.dtype for x in tokens.values()} == {jnp.dtype("bfloat16")}
    for modality, value in pooled.items():
        assert value.dtype == jnp.float32
        assert 1e-4 < relative_error(value, reference[f"pooled/{modality}"]) < 0.1


def test_classifier_initialization_equals_published_code():
    definition = ModelDef(
        make_model(
            "classifier",
            backbone=dict(name="wat_tiny", num_layers=1),
            num_classes=11,
            dropout_rate=0.5,
        )
    )
    assert set(definition.params) == {"audio", "classifier"}
    initial = jax.jit(lambda key: definition.init(key)[0]["classifier"]["bias"])
    np.testing.assert_allclose(initial(jax.random.key(0)), -math.log(10), rtol=1e-6)
    params, extra = random_arrays(definition)
    module = definition.bind(params, extra)
    x = np.random.default_rng(0).normal(size=(2, 640)).astype(np.float32)
    pooled = jax.jit(lambda module: module.encode({"audio": x}))(module)
    expected = pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(module.classify(pooled), expected, atol=1e-5)
    dropped = module.classify(pooled, key=jax.random.key(1), train=True)
    assert np.abs(dropped - expected).max() > 1e-3

    video = make_model("classifier", backbone=dict(name="vit_tiny", num_layers=1), num_classes=5)
    assert nnx.eval_shape(lambda: video(nnx.Rngs(0))).dropout_rate == 0.5
    np.testing.assert_array_equal(jax.jit(lambda: video(nnx.Rngs(0)).classifier.bias[...])(), 0)


def test_classifier_backbone_has_the_parameter_paths_of_pretraining():
    pretrained = tree.flatten(ModelDef(make_model("tx_fac", size="tiny")).params)
    finetuned = tree.flatten(
        ModelDef(make_model("classifier", backbone="vit_tiny", num_classes=3)).params
    )
    assert set(finetuned) - set(pretrained) == {"classifier/kernel", "classifier/bias"}


@pytest.mark.parametrize(
    "name, options, facts",
    [
        ("tx_fax", {}, ("config.model.name", "'tx_fax'", "'tx_fac'")),
        ("tx_fac", dict(size="mmm"), ("size", "tx_fac", "'mmm'", "bbs", "lbs", "mbs", "tiny")),
        (
            "tx_fac",
            dict(size="tiny", video="vit_bas"),
            ("config.model.video", "'vit_bas'", "'vit_base'"),
        ),
        (
            "tx_fac",
            dict(size="tiny", video=dict(num_layer=2)),
            ("vit_tiny", "'model.video.num_layer'", "'model.video.num_layers'"),
        ),
        (
            "tx_fac",
            dict(size="tiny", video=dict(keep_token=1)),
            ("vit_tiny", "'model.video.keep_token'", "'model.video.keep_tokens'"),
        ),
        (
            "tx_fac",
            dict(size="tiny", drop_rate=0.1),
            ("'model.drop_rate'", "'model.dropout_rate'"),
        ),
        ("tx_fac", dict(size="tiny", head="fax"), ("config.model.head", "'fax'", "'fac'")),
        (
            "tx_fac",
            dict(size="tiny", head=dict(name="fac", corse=3)),
            ("fac", "'model.head.corse'", "'model.head.coarse'"),
        ),
        ("tx_fac", dict(size="tiny", remat="ful"), ("config.model.remat", "'ful'", "'full'")),
        (
            "tx_fac",
            dict(size="tiny", dropout_rate=1.0),
            ("config.model.video", "'vit_tiny'", "dropout_rate", "[0, 1)", "1.0"),
        ),
        (
            "tx_fac",
            dict(size="tiny", video=dict(keep_tokens=0)),
            ("config.model.video", "keep_tokens", "(0, 1]"),
        ),
        (
            "tx_fac",
            dict(size="tiny", video=dict(buckets=(2, 4))),
            ("buckets", (2, 4), "temporal", "vertical", "horizontal"),
        ),
        (
            "tx_fac",
            dict(size="tiny", video=dict(axes=("a",))),
            ("config.model.video.axes", "vit_tiny"),
        ),
        ("classifier", dict(backbone="vit_tiny", num_classes=1), ("num_classes", 2, 1)),
    ],
)
def test_errors_mention_the_invalid_option(name, options, facts):
    with raises(UserError, *facts):
        ModelDef(make_model(name, **options))


def test_errors_mention_the_invalid_input():
    definition = ModelDef(make_model("tx_fac", size="tiny", text=None))

    def encode(x):
        module = definition.bind(*definition.init(jax.random.key(0)))
        return module.encode(x)

    for x, facts in (
        (
            dict(audio=np.zeros((1, 100), np.float32)),
            ("config.model.audio", (100,), (128,), "patch_size", "config.data.audio"),
        ),
        (
            dict(video=np.zeros((1, 4, 8, 8, 1), np.float32)),
            ("config.model.video", (4, 8, 8, 1), "3 channels", "config.data.video"),
        ),
        (dict(text=np.zeros((1, 16), np.int32)), ("'text'", "audio", "video")),
    ):
        with raises(UserError, *facts):
            jax.eval_shape(encode, x)


def test_flops_equal_the_sum_over_matrix_products():
    module = nnx.eval_shape(lambda: make_model("tx_fac", size="tiny")(nnx.Rngs(0)))

    def encoder(tokens, layers):
        linear = 4 * 128 * 128 + 2 * 128 * 512
        return layers * (tokens * linear + 2 * tokens * tokens * 128)

    video = 32 * (4 * 8 * 8 * 3) * 128 + encoder(33, 4)
    text = 17 * 128 * 128 + encoder(17, 2)
    head = 128 * 512 + 512 * 512 + 512 * 256, 128 * 256
    assert module.flops({"video": (8, 32, 32, 3)}) == 2 * (video + head[0])
    assert module.flops({"text": (5, 16)}) == 2 * 5 * (text + head[1])
    dropped = 16 * (4 * 8 * 8 * 3) * 128 + encoder(17, 4)
    assert module.flops({"video": (8, 32, 32, 3)}, train=True) == 3 * 2 * (dropped + head[0])
    classifier = nnx.eval_shape(
        lambda: make_model("classifier", backbone="vit_tiny", num_classes=10)(nnx.Rngs(0))
    )
    assert classifier.flops({"video": (2, 8, 32, 32, 3)}) == 2 * 2 * (video + 1280)
