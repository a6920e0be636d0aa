import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models import patches
from mmjax.models.heads import FACHead, JointHead
from mmjax.models.towers import build_tower
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from tests.models.vatt_fixture import REFERENCE, inputs, relative, tiny


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return tiny()


def test_features_and_projections_equal_vatts_published_code(reference, model):
    definition, params, extra = model

    @jax.jit
    def run(params, x):
        module = definition.bind(params, extra)
        pooled = module.encode(x)
        return pooled, module.project(pooled)

    pooled, projected = run(params, inputs(reference))
    for modality in ("video", "audio", "text"):
        assert relative(pooled[modality], reference[f"pooled/{modality}"]) < 1e-5
    assert set(projected) == {"video/audio", "video/text", "audio/video", "text/video"}
    for pair, value in projected.items():
        assert relative(value, reference[f"projected/{pair}"]) < 1e-5


def test_drop_token_equals_vatts_when_the_permutation_is_the_reversal(reference, monkeypatch):
    monkeypatch.setattr(
        patches, "drop_tokens", lambda key, n, keep, batch: n - 1 - np.arange(n // 2)
    )
    definition, params, extra = tiny(keep_tokens=0.5)
    module = definition.bind(params, extra)
    pooled, tokens = module.encode(
        inputs(reference), key=jax.random.key(0), train=True, tokens=True
    )
    for modality, kept in (("video", 4), ("audio", 5)):
        assert relative(pooled[modality], reference[f"dropped/{modality}"]) < 1e-5
        assert tokens[modality].shape == (1, kept, 64)


def test_head_in_training_equals_vatts_and_updates_its_statistics(reference, model):
    definition, params, extra = model
    module = definition.bind(params, extra)
    out = module.project({"video": jnp.asarray(reference["train/pooled/video"])}, train=True)
    assert relative(out["video/audio"], reference["train/projected/video/audio"]) < 2e-5
    assert relative(out["video/text"], reference["train/projected/video/text"]) < 2e-5
    names = {"mean": "moving_mean", "var": "moving_variance"}
    layers = {
        "video_hidden_norm": "hid_to_va/pre_bn",
        "video_fine_norm": "hid_to_va/bn",
        "video_coarse_norm": "va_to_vat/bn",
    }
    statistics = tree.flatten(definition.extra_of(module)["head"])
    assert len(statistics) == 6
    for path, value in statistics.items():
        layer, leaf = path.split("/")
        assert relative(value, reference[f"train/statistics/{layers[layer]}/{names[leaf]}"]) < 1e-5


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
def test_towers_have_as_many_parameters_as_vatts(spec, expected):
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
def test_models_have_as_many_parameters_as_vatts(name, size, expected):
    assert _count(ModelDef(make_model(name, size=size))) == expected


@pytest.mark.parametrize("video, expected", [(768, 1_316_608), (1024, 1_447_680)])
def test_the_head_has_as_many_parameters_as_vatts(video, expected):
    widths = dict(video=video, audio=768, text=512)
    assert _count(ModelDef(lambda rngs: FACHead(widths=widths, rngs=rngs))) == expected


@pytest.mark.parametrize(
    "layers, width, mlp, name", [(6, 512, 2048, "bert_small"), (12, 768, 3072, "bert_base")]
)
def test_bert_has_the_parameters_of_its_layers(layers, width, mlp, name):
    block = 4 * (width + 1) * width + 2 * width * mlp + mlp + width + 4 * width
    tokens = 65_536 * 300 + 300 * width + 16 * width + 2 * width + width
    expected = tokens + layers * block + 2 * width
    assert _count(ModelDef(lambda rngs: build_tower(name, rngs=rngs))) == expected


def test_mmv_is_its_towers_words_and_head():
    linear = 65_536 * 300 + 300 * 2048 + 2048
    head = 1024 * 512 + 512 * 512 + 2 * 512 * 4 + 512 * 256 + 256 * 4
    head += 2048 * 512 + 512 + 2048 * 256 + 256
    expected = 12_301_824 + 23_554_880 + linear + head
    assert _count(ModelDef(make_model("mmv_fac"))) == expected


def test_modalities_can_be_left_out_and_any_set_takes_the_joint_head():
    model = ModelDef(make_model("tx_fac", size="tiny", audio=None))
    assert set(model.params) == {"video", "text", "head"}
    model = ModelDef(make_model("tx_fac", size="tiny", video=None, head=dict(name="joint")))
    assert set(model.params) == {"audio", "text", "head"}
    with pytest.raises(UserError, match="joint"):
        ModelDef(make_model("tx_fac", size="tiny", video=None))


def test_joint_head_is_relu_dense_batch_norm():
    head = JointHead(widths=dict(audio=6, text=5, touch=4), joint=8, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    out = head({"audio": x}, train=True)
    y = np.maximum(x, 0) @ np.asarray(head.audio.kernel[...])
    y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    assert set(out) == {"audio/text", "audio/touch"}
    np.testing.assert_allclose(out["audio/text"], y, atol=1e-5)
    np.testing.assert_array_equal(out["audio/text"], out["audio/touch"])


def test_training_is_a_function_of_the_key_and_evaluation_has_no_randomness():
    definition = ModelDef(make_model("tx_fac", size="tiny", text=None, audio=dict(num_layers=1)))
    params, extra = jax.jit(definition.init)(jax.random.key(0))
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
    with pytest.raises(TypeError, match="key"):
        definition.bind(params, extra).encode(x, train=True)


def test_bfloat16_computes_in_half_precision_and_keeps_float32_parameters(reference):
    definition, params, extra = tiny(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(definition.params)} == {jnp.dtype("float32")}
    run = jax.jit(lambda params, x: definition.bind(params, extra).encode(x, tokens=True))
    pooled, tokens = run(params, inputs(reference))
    assert {x.dtype for x in tokens.values()} == {jnp.dtype("bfloat16")}
    for modality, value in pooled.items():
        assert value.dtype == jnp.float32
        assert 1e-4 < relative(value, reference[f"pooled/{modality}"]) < 0.1


def test_classifier_starts_as_vatts_do():
    definition = ModelDef(
        make_model(
            "classifier",
            backbone=dict(name="wat_tiny", num_layers=1),
            num_classes=11,
            dropout_rate=0.5,
        )
    )
    assert set(definition.params) == {"audio", "classifier"}
    params, extra = jax.jit(definition.init)(jax.random.key(0))
    np.testing.assert_allclose(params["classifier"]["bias"], -math.log(10), rtol=1e-6)
    module = definition.bind(params, extra)
    x = np.random.default_rng(0).normal(size=(2, 640)).astype(np.float32)
    pooled = jax.jit(lambda module: module.encode({"audio": x}))(module)
    expected = pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(module.classify(pooled), expected, atol=1e-5)
    dropped = module.classify(pooled, key=jax.random.key(1), train=True)
    assert np.abs(dropped - expected).max() > 1e-3

    video = make_model("classifier", backbone=dict(name="vit_tiny", num_layers=1), num_classes=5)
    module = jax.jit(lambda: video(nnx.Rngs(0)))()
    assert module.dropout_rate == 0.5
    np.testing.assert_array_equal(module.classifier.bias[...], 0)


def test_backbone_of_a_classifier_has_the_paths_of_pretraining():
    pretrained = tree.flatten(ModelDef(make_model("tx_fac", size="tiny")).params)
    finetuned = tree.flatten(
        ModelDef(make_model("classifier", backbone="vit_tiny", num_classes=3)).params
    )
    assert set(finetuned) - set(pretrained) == {"classifier/kernel", "classifier/bias"}


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("tx_fax", {}, "tx_fac"),
        ("tx_fac", dict(size="mmm"), "mbs"),
        ("tx_fac", dict(size="tiny", video="vit_bas"), "vit_base"),
        ("tx_fac", dict(size="tiny", video=dict(num_layer=2)), "num_layers"),
        ("tx_fac", dict(size="tiny", video=dict(keep_token=1)), "keep_tokens"),
        ("tx_fac", dict(size="tiny", drop_rate=0.1), "dropout_rate"),
        ("tx_fac", dict(size="tiny", head="fax"), "fac"),
        ("tx_fac", dict(size="tiny", head=dict(name="fac", corse=3)), "coarse"),
        ("tx_fac", dict(size="tiny", remat="ful"), "full"),
        ("tx_fac", dict(size="tiny", dropout_rate=1.0), r"\[0, 1\)"),
        ("tx_fac", dict(size="tiny", video=dict(keep_tokens=0)), "keep_tokens"),
        ("tx_fac", dict(size="tiny", video=dict(buckets=(2, 4))), "buckets"),
        ("tx_fac", dict(size="tiny", video=dict(axes=("a", "b", "c"))), "axes"),
        ("classifier", dict(backbone="vit_tiny", num_classes=1), "num_classes"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        ModelDef(make_model(name, **options))


def test_inputs_that_do_not_fit_are_named():
    definition = ModelDef(make_model("tx_fac", size="tiny", text=None))

    def encode(x):
        module = definition.bind(*definition.init(jax.random.key(0)))
        return module.encode(x)

    for x, message in (
        (dict(audio=np.zeros((1, 100), np.float32)), "no whole patch"),
        (dict(video=np.zeros((1, 4, 8, 8, 1), np.float32)), "channels"),
        (dict(text=np.zeros((1, 16), np.int32)), "text"),
    ):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(encode, x)


def test_flops_are_those_of_every_matrix_product():
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
