"""Initialization from other runs and published files: matching by name, resizing and reports."""

import functools

import fakes
import jax
import numpy as np
import pytest

from mmjax import config, init_from, tree
from mmjax.checkpoints.manager import Checkpoints
from mmjax.convert.load import load_params
from mmjax.errors import UserError
from mmjax.formats import safetensors
from mmjax.models.blocks import positions
from mmjax.models.tvl import make_model as make_touch_model
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from mmjax.tools import cli
from tests.convert import published, torch_writer
from tests.messages import assert_mentions, raises
from tests.models import torch_reference

LEFT, RIGHT, HEAD = "left/mlp/wi/kernel", "right/mlp/wi/kernel", "head/mlp/wo/kernel"


def shapes(**sizes):
    return {
        path.replace("__", "/"): jax.ShapeDtypeStruct(size, np.float32)
        for path, size in sizes.items()
    }


def arrays(**sizes):
    rng = np.random.default_rng(0)
    return {
        path.replace("__", "/"): rng.normal(size=size).astype(np.float32)
        for path, size in sizes.items()
    }


def refused(error):
    """Returns the line of the message that lists the parameters that init_allow does not allow."""
    (line,) = [line for line in str(error.value).splitlines() if "config.init_allow" in line]
    return line


# ---- match


def test_match_loads_equal_shapes_and_reports_the_rest():
    target = shapes(a__kernel=(2, 3), a__bias=(3,), b=(4,), c=(5,))
    source = arrays(a__kernel=(2, 3), a__bias=(3,), c=(6,), d=(7,))
    values, report = init_from.match(target, source)
    assert set(values) == {"a/kernel", "a/bias"}
    assert all(values[path] is source[path] for path in values)
    assert report.loaded == ["a/kernel", "a/bias"]
    assert report.missing == ["b"] and report.unexpected == ["d"]
    assert report.mismatched == ["c (6,) ≠ (5,)"] and report.resized == []


def test_the_report_has_counts_and_truncated_names():
    report = init_from.Report(loaded=["x"] * 3, missing=[f"m{i}" for i in range(14)])
    lines = dict(line.split(None, 1) for line in str(report).splitlines())
    assert lines["loaded"] == "3" and lines["unexpected"] == "0"
    assert lines["missing"].startswith("14: m0, m1, ")
    assert_mentions(lines["missing"], "m11", 2)
    assert "m12" not in lines["missing"]  # only the first 12 names


def test_renaming_applies_the_pairs_in_order():
    source = arrays(encoder__layer_0__w=(2,), encoder__layer_1__w=(2,))
    names = ((r"layer_(\d)", r"block/\1"), ("^encoder/block", "video"))
    values, report = init_from.match(
        shapes(video__0__w=(2,), video__1__w=(2,)), source, names=names
    )
    assert np.array_equal(values["video/1/w"], source["encoder/layer_1/w"])
    assert len(report.loaded) == 2 and not report.unexpected and not report.missing


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        ((("^vidoe", "video"),), ("config.init_map", "'^vidoe'", "ax, bx")),
        ((("(", ""),), ("config.init_map", "'('", "unterminated subpattern")),
        ((("[ab]x", "cx"),), ("config.init_map", "bx", "cx")),
    ],
)
def test_invalid_renaming_is_an_error(names, facts):
    with raises(UserError, *facts):
        init_from.match(shapes(cx=(1,)), arrays(ax=(1,), bx=(1,)), names=names)


@pytest.mark.parametrize("axis", ["temporal", "vertical", "horizontal", "spectral"])
def test_position_tables_are_resampled(axis):
    path = f"video/positions/{axis}"
    table = np.stack([np.arange(8.0), np.full(8, 3.0)], axis=1).astype(np.float32)
    target = {path: jax.ShapeDtypeStruct((16, 2), np.float32)}
    values, report = init_from.match(target, {path: table})
    assert report.resized == [f"{path} (8, 2) → (16, 2)"] and not report.mismatched
    # Interpolation is exact for linear functions: position q of 16 is position q / 2 of 8.
    expected = np.stack([np.arange(16) / 2, np.full(16, 3.0)], axis=1)
    np.testing.assert_allclose(values[path], expected, atol=1e-5)
    assert np.array_equal(values[path], positions.resize_table(table, 16))


@pytest.mark.parametrize("old, new", [(4, 7), (7, 4), (3, 6)])
def test_positions_of_square_images_are_resampled(old, new):
    """The class token is kept, a constant direction stays constant, and the center is exact."""
    vertical = np.repeat(np.arange(old, dtype=np.float32), old)
    table = np.stack([vertical, np.full(old * old, 3.0)], axis=1).astype(np.float32)
    table = np.concatenate([[[-5.0, 8.0]], table]).astype(np.float32)
    path = "image/positions"
    target = {path: jax.ShapeDtypeStruct((1 + new**2, 2), np.float32)}
    values, report = init_from.match(target, {path: table})
    assert report.resized == [f"{path} {table.shape} → {(1 + new**2, 2)}"]
    np.testing.assert_array_equal(values[path][0], table[0])
    square = values[path][1:].reshape(new, new, 2)
    np.testing.assert_allclose(square[..., 1], 3, atol=1e-5)
    np.testing.assert_allclose(square[..., 0], square[:, :1, 0].repeat(new, 1), atol=1e-5)
    middle = (new - 1) // 2, new // 2  # symmetric around the center
    assert abs(square[middle, 0, 0].mean() - (old - 1) / 2) < 1e-5


def test_only_position_tables_are_resampled():
    target = shapes(video__positions__temporal=(16, 3), video__positions__norm__scale=(4,))
    source = arrays(video__positions__temporal=(8, 2), video__positions__norm__scale=(8,))
    values, report = init_from.match(target, source)
    assert values == {} and len(report.mismatched) == 2
    # Positions of text are not a square grid, and another width is another model.
    target = shapes(text__positions=(5, 2), touch__positions=(17, 3))
    source = arrays(text__positions=(10, 2), touch__positions=(5, 2))
    values, report = init_from.match(target, source)
    assert values == {} and len(report.mismatched) == 2


# ---- from a run of mmjax


@pytest.fixture(scope="module")
def trainer():
    return fakes.Trainer(fakes.Contrast(), ema_decay=0.5, frozen=["^right/"])


@pytest.fixture(scope="module")
def run(trainer, tmp_path_factory):
    """A run with two checkpoints: (directory, {step: state})."""
    path = tmp_path_factory.mktemp("run")
    first, _ = trainer.run(1, state=trainer.init(seed=5))
    second, _ = trainer.run(1, state=first, first=1)
    saved = Checkpoints(path)
    saved.save(1, first, {})
    saved.save(2, second, {})
    saved.close()
    return path, {1: first, 2: second}


def test_load_params_reads_the_newest_or_the_requested_step(run):
    path, states = run
    for source, step in ((path, 2), (path / "checkpoints/1", 1), (path / "checkpoints/2", 2)):
        leaves, description = load_params(str(source))
        assert_mentions(description, f"step {step}", path)
        state = states[step]
        # The moving average where it exists, and the parameter elsewhere.
        assert np.array_equal(leaves[LEFT], tree.flatten(state["ema"])[LEFT])
        assert np.array_equal(leaves[RIGHT], tree.flatten(state["params"])[RIGHT])
        assert np.array_equal(leaves["extra/mean"], state["extra"]["mean"])
        assert set(leaves) == {LEFT, RIGHT, HEAD, "extra/mean", "extra/calls"}


def test_a_source_without_checkpoints_is_an_error(run, tmp_path):
    path, _ = run
    with raises(UserError, tmp_path, "<run>/checkpoints/<step>"):
        load_params(str(tmp_path))
    with raises(UserError, path / "checkpoints/7", "[1, 2]"):
        load_params(str(path / "checkpoints" / "7"))
    with raises(UserError, tmp_path / "nowhere", "<run>/checkpoints/<step>"):
        load_params(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_from_source_sets_parameters_statistics_and_ema(run, trainer):
    path, states = run
    initial = trainer.init(seed=0)
    state = init_from.from_source(initial, str(path))
    expected = load_params(str(path))[0]
    for name, leaf in tree.flatten(state["params"]).items():
        assert np.array_equal(leaf, expected[name]), name
        assert leaf.sharding == tree.flatten(initial["params"])[name].sharding
    assert np.array_equal(state["extra"]["mean"], states[2]["extra"]["mean"])
    assert set(tree.flatten(state["ema"])) == {LEFT, HEAD}
    assert np.array_equal(tree.flatten(state["ema"])[LEFT], expected[LEFT])
    assert fakes.equal(state["opt"], initial["opt"]) and int(state["step"]) == 0
    new, metrics = trainer.step(state, fakes.batch_of(0))
    loss = trainer.step(initial, fakes.batch_of(0))[1]["loss"]
    assert int(new["step"]) == 1 and metrics["loss"] != loss


@pytest.fixture
def without_head(run):
    """The initial state of a model whose head has another name."""

    class Other(fakes.Contrast):
        def init(self, key):
            params, extra = super().init(key)
            params["tail"] = {"kernel": params.pop("head")["mlp"]["wo"]["kernel"]}
            return params, extra

    return fakes.Trainer(Other()).init()


def test_unmatched_parameters_must_be_allowed(run, without_head):
    path, _ = run
    with raises(UserError, "step 2", path, "config.init_map") as error:
        init_from.from_source(without_head, str(path), allow=["^head/"])
    assert_mentions(refused(error), "tail/kernel")
    assert "head/" not in refused(error)  # allowed
    state = init_from.from_source(without_head, str(path), allow=["^head/", "^tail/", "unused"])
    assert np.array_equal(
        state["params"]["tail"]["kernel"], without_head["params"]["tail"]["kernel"]
    )
    assert not np.array_equal(
        tree.flatten(state["params"])[LEFT], tree.flatten(without_head["params"])[LEFT]
    )


def test_renamed_parameters_are_loaded(run, without_head):
    names = (("^head/mlp/wo", "tail"),)
    state = init_from.from_source(without_head, str(run[0]), names=names)
    expected = load_params(str(run[0]))[0]
    assert np.array_equal(state["params"]["tail"]["kernel"], expected[HEAD])


def test_other_shapes_are_never_allowed(run):
    class Wider(fakes.Contrast):
        def init(self, key):
            params, extra = super().init(key)
            params["head"]["mlp"]["wo"]["kernel"] = np.zeros((fakes.HIDDEN, 3), np.float32)
            return params, extra

    initial = fakes.Trainer(Wider()).init()
    with raises(UserError, "head/mlp/wo/kernel (128, 64) ≠ (128, 3)", "config.init_allow"):
        init_from.from_source(initial, str(run[0]), allow=[".*"])


def test_a_source_without_any_matching_parameter_is_an_error(run):
    with raises(UserError, "step 2", run[0], "backbone/kernel", LEFT, "config.init_allow"):
        init_from.from_source(
            fakes.Trainer(fakes.Classify()).init(),
            str(run[0]),
            allow=["^(left|right|head|backbone)"],
        )


# ---- from TensorFlow checkpoints of VATT, without conversion

TOWER = dict(name="vit_base", width=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=32)
VIT = TOWER | dict(patch_size=(2, 4, 4), buckets=(2, 2, 2))
FINETUNING = ("^(audio|text|head)/", "^extra/", "^classifier/")


def classifier(backbone, num_classes=4):
    """Returns the initial state of a classifier."""
    model = ModelDef(make_model("classifier", backbone=backbone, num_classes=num_classes))
    params, extra = model.init(jax.random.key(0))
    return {"params": params, "extra": extra}


@pytest.fixture(scope="module")
def vatt(tmp_path_factory):
    """Random checkpoints of VATT: {name: (prefix, arrays)}."""
    out = {}
    for name in ("tx_fac", "ut_fac", "finetuned"):
        arrays = published.values(getattr(published, name)())
        directory = tmp_path_factory.mktemp(name)
        out[name] = published.write(directory, arrays, adam=name == "finetuned"), arrays
    return out


def prefix_of(tower):
    return f"{published.ROOT}_base_layer/{tower}"


def test_a_tensorflow_checkpoint_loads_the_same_parameters_as_its_conversion(vatt, tmp_path):
    prefix, _ = vatt["tx_fac"]
    assert cli.main(["convert", prefix, "--out", str(tmp_path / "run")]) == 0
    converted, _ = load_params(str(tmp_path / "run"))
    direct, description = load_params(prefix)
    assert_mentions(description, "step 500000", prefix)
    assert set(direct) == set(converted)
    assert all(np.array_equal(direct[path], converted[path]) for path in direct)


def test_finetuning_from_a_tensorflow_checkpoint_at_another_size(vatt):
    prefix, arrays = vatt["tx_fac"]
    initial = classifier(VIT | dict(buckets=(3, 2, 5)))
    params = tree.flatten(init_from.from_source(initial, prefix, allow=FINETUNING)["params"])
    base = prefix_of("vid_backbone/_base/")
    lookup = base + "pos_embedding_lookup/{}_position_embeddings/embeddings"
    for axis, length in {"temporal": 3, "vertical": 2, "horizontal": 5}.items():
        expected = positions.resize_table(arrays[lookup.format(axis)], length)
        np.testing.assert_array_equal(params[f"video/positions/{axis}"], expected)
    np.testing.assert_array_equal(
        params["video/encoder/layers/mlp/up/kernel"],
        [arrays[f"{base}tx/layers/{i}/feed_forward/mlp/wi/kernel"] for i in range(2)],
    )
    np.testing.assert_array_equal(
        params["classifier/kernel"], initial["params"]["classifier"]["kernel"]
    )


PROJECTIONS = dict(pre_projection=True, post_projection=20)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_single_tower_loads_the_encoder_of_a_unified_model(vatt, modality):
    prefix, arrays = vatt["ut_fac"]
    audio = TOWER | dict(name="wat_base", patch_size=16, buckets=5)
    tower = (VIT if modality == "video" else audio) | PROJECTIONS
    allow = ("^(video|audio|text|head)/".replace(f"{modality}|", "").replace(f"|{modality}", ""),)
    state = init_from.from_source(classifier(tower), prefix, allow=(*allow, *FINETUNING[1:]))
    params = tree.flatten(state["params"])
    base = prefix_of("unified_backbone/unified_transformer/")
    np.testing.assert_array_equal(
        params[f"{modality}/encoder/layers/attention/out/bias"],
        [arrays[f"{base}tx/layers/{i}/mha/o/bias"] for i in range(2)],
    )
    for ours, theirs in {
        "post_projection/kernel": f"post_proj/{modality}/kernel",
        "patch/bias": f"raw_to_embeddings/{modality}/bias",
        "agg_token": f"{modality[:3]}_agg_embedding",
    }.items():
        np.testing.assert_array_equal(params[f"{modality}/{ours}"], arrays[base + theirs])


def test_a_unified_backbone_loads_a_unified_model(vatt):
    prefix, arrays = vatt["ut_fac"]
    options = {key: value for key, value in VIT.items() if key != "name"}
    state = classifier(dict(name="ut_medium", post_projection=20, **options))
    params = tree.flatten(init_from.from_source(state, prefix, allow=FINETUNING)["params"])
    gamma = prefix_of("unified_backbone/unified_transformer/tx/final_layer_norm/gamma")
    np.testing.assert_array_equal(params["encoder/final_norm/scale"], arrays[gamma])


def test_a_tower_without_projections_cannot_load_a_unified_model(vatt):
    prefix, _ = vatt["ut_fac"]
    backbone = "config.model.backbone"
    with raises(UserError, f"{backbone}.pre_projection=True", f"{backbone}.post_projection=20"):
        init_from.from_source(classifier(VIT), prefix, allow=[".*"])
    target = shapes(video__encoder__w=(2,), audio__encoder__w=(2,))
    with raises(UserError, "config.model.video.pre_projection=True"):
        init_from.match(target, arrays(encoder__w=(2,)))


def test_the_classifier_is_loaded_only_for_an_equal_number_of_classes(vatt):
    prefix, arrays = vatt["finetuned"]
    kernel = arrays[published.ROOT + "_ops/cls/kernel"]
    state = init_from.from_source(classifier(VIT, 5), prefix)
    np.testing.assert_array_equal(state["params"]["classifier"]["kernel"], kernel)
    with raises(UserError, "classifier/kernel (16, 5) ≠ (16, 4)", "config.init_allow"):
        init_from.from_source(classifier(VIT, 4), prefix)
    initial = classifier(VIT, 4)
    params = init_from.from_source(initial, prefix, allow=FINETUNING)["params"]
    np.testing.assert_array_equal(
        params["classifier"]["kernel"], initial["params"]["classifier"]["kernel"]
    )
    bias = arrays[published.ROOT + "_base/voxel_to_patch/bias"]
    np.testing.assert_array_equal(params["video"]["patch"]["bias"], bias)


def test_unknown_checkpoint_keys_must_be_allowed(tmp_path):
    mask = published.ROOT + "_base/mask_embedding"
    prefix = published.write(tmp_path, published.values(published.finetuned() | {mask: (16,)}))
    with raises(UserError, prefix) as error:
        init_from.from_source(classifier(VIT, 5), prefix)
    assert_mentions(refused(error), mask)
    state = init_from.from_source(classifier(VIT, 5), prefix, allow=["mask_embedding$"])
    values, _ = load_params(prefix)
    np.testing.assert_array_equal(
        state["params"]["classifier"]["kernel"], values["classifier/kernel"]
    )


def test_a_missing_layer_is_an_error(tmp_path):
    query = published.ROOT + "_base/tx/layers/0/mha/q/kernel"
    without_query = {key: shape for key, shape in published.finetuned().items() if key != query}
    prefix = published.write(tmp_path, published.values(without_query))
    with raises(UserError, prefix, query):
        init_from.from_source(classifier(VIT, 5), prefix, allow=[".*"])


# ---- several sources, and word embeddings


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A file of embeddings of 50 words: (path, table)."""
    table = np.random.default_rng(1).normal(size=(50, 10)).astype(np.float32)
    path = tmp_path_factory.mktemp("words") / "words.npz"
    np.savez(path, word_embeddings=table)
    return str(path), table


def pretraining(vocab_size=50):
    """Returns the initial state of a small tx_fac."""
    size = {key: value for key, value in TOWER.items() if key != "name"}
    model = ModelDef(
        make_model(
            "tx_fac",
            video=VIT,
            audio=dict(name="wat_base", patch_size=16, buckets=5, **size),
            text=dict(name="t5_small", vocab_size=vocab_size, embedding_dim=10, **size),
        )
    )
    params, extra = model.init(jax.random.key(0))
    return {"params": params, "extra": extra}


def test_word_embeddings_leave_other_parameters_at_their_initial_values(words):
    path, table = words
    initial = pretraining()
    state = init_from.from_source(initial, path)
    before, after = tree.flatten(initial), tree.flatten(state)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["params/text/word_embedding"]
    np.testing.assert_array_equal(state["params"]["text"]["word_embedding"], table)
    with raises(UserError, path, "text/word_embedding (50, 10) ≠ (60, 10)"):
        init_from.from_source(pretraining(60), path)
    with raises(UserError, path) as error:
        init_from.from_source(classifier(VIT), path)
    assert_mentions(refused(error), "text/word_embedding")


def test_later_sources_fill_only_missing_parameters(vatt, words):
    path, table = words
    finetuned, arrays = vatt["finetuned"]
    rest = ("^(audio|text/(?!word)|head|classifier)", "^extra/")
    agg = arrays[published.ROOT + "_base/agg_embedding"]
    for sources in ((finetuned, path), (path, finetuned)):
        params = init_from.from_source(pretraining(), sources, allow=rest)["params"]
        np.testing.assert_array_equal(params["text"]["word_embedding"], table)
        np.testing.assert_array_equal(params["video"]["agg_token"], agg)
    other = vatt["tx_fac"][1][prefix_of("vid_backbone/_base/agg_embedding")]
    for sources, expected in (
        ((finetuned, vatt["tx_fac"][0]), agg),
        ((vatt["tx_fac"][0], finetuned), other),
    ):
        state = init_from.from_source(classifier(VIT, 5), sources, allow=FINETUNING)
        np.testing.assert_array_equal(state["params"]["video"]["agg_token"], expected)


def test_init_from_is_one_source_or_several():
    cfg = config.base()
    for value in ("runs/a", ("runs/a", "words.npz")):
        cfg.init_from = value
        config.resolve(cfg)
        assert cfg.init_from == value
    config.apply(cfg, ["--config.init_from=('b', 'c.npz')"])
    assert config.from_json(config.to_json(cfg)).init_from == ("b", "c.npz")
    with raises(UserError, "config.init_from", "str", 3):
        config.apply(cfg, ["--config.init_from=('a', 3)"])


# ---- from files of TVL and OpenCLIP, without conversion

SMALL = dict(width=16, num_layers=2, num_heads=2, head_dim=8)


@functools.cache
def touch_model(image_size=8, touch=True):
    """Returns the initial state of a model with the sizes of the files of `torch_files`."""
    towers = dict(
        image=dict(
            name="clip_vit_b16", image_size=8, patch_size=4, projection=12, mlp_dim=64, **SMALL
        ),
        text=dict(
            name="clip_text_b", vocab_size=30, context_length=7, projection=12, mlp_dim=64, **SMALL
        ),
    )
    if touch:
        towers["touch"] = dict(
            name="vit_tiny_patch16_224",
            image_size=image_size,
            patch_size=4,
            projection=12,
            mlp_dim=64,
            **SMALL,
        )
    model = ModelDef(make_touch_model(**towers))
    params, extra = model.init(jax.random.key(0))
    return {"params": params, "extra": extra}


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory):
    """Files and their contents: (TVL file, OpenCLIP file, touch arrays, OpenCLIP arrays)."""
    directory = tmp_path_factory.mktemp("torch")
    touch = torch_reference.timm_vit_state(
        width=16, num_layers=2, image_size=8, patch_size=4, num_classes=12
    )
    clip = torch_reference.open_clip_state(
        width=16,
        text_width=16,
        num_layers=2,
        text_layers=2,
        image_size=8,
        patch_size=4,
        embed_dim=12,
        vocab_size=30,
        context_length=7,
    )
    model = {f"tactile_encoder.{name}": value for name, value in touch.items()}
    model["logit_scale"] = np.array(2.0, np.float32)
    content = dict(model=model, epoch=1)
    tvl = torch_writer.save(directory / "tvl.pth", content)
    clip_path = str(directory / "open_clip_model.safetensors")
    safetensors.write(clip_path, {name: np.asarray(value) for name, value in clip.items()})
    return tvl, clip_path, touch, clip


def test_two_files_initialize_all_towers_in_any_order(torch_files):
    tvl, clip_path, touch, clip = torch_files
    for sources in ((tvl, clip_path), (clip_path, tvl)):
        params = tree.flatten(init_from.from_source(touch_model(), sources)["params"])
        assert params["logit_scale"] == 2.0  # that of TVL in any order
        np.testing.assert_array_equal(params["touch/projection/kernel"], touch["head.weight"].T)
        np.testing.assert_array_equal(params["image/projection/kernel"], clip["visual.proj"])
        query = [clip[f"transformer.resblocks.{i}.attn.in_proj_weight"][:16].T for i in range(2)]
        np.testing.assert_array_equal(params["text/encoder/layers/attention/query/kernel"], query)


def test_open_clip_does_not_set_the_logit_scale_of_a_new_touch_encoder(torch_files):
    """The scale of image-text pairs is not that of touch, so a new one must be allowed."""
    _, clip_path, _, clip = torch_files
    initial = touch_model()
    with raises(UserError, clip_path) as error:
        init_from.from_source(initial, clip_path, allow=["^touch/"])
    assert_mentions(refused(error), "logit_scale")
    params = init_from.from_source(initial, clip_path, allow=["^touch/", "^logit_"])["params"]
    assert params["logit_scale"] == initial["params"]["logit_scale"]
    params = init_from.from_source(touch_model(touch=False), clip_path)["params"]
    assert params["logit_scale"] == clip["logit_scale"]


def test_touch_positions_are_resampled_for_another_image_size(torch_files):
    tvl, clip_path, touch, _ = torch_files
    params = init_from.from_source(touch_model(image_size=16), (tvl, clip_path))["params"]
    assert params["touch"]["positions"].shape == (17, 16)
    np.testing.assert_array_equal(params["touch"]["positions"][0], touch["pos_embed"][0, 0])


def test_unmatched_and_missing_arrays_of_torch_files_are_an_error(torch_files, tmp_path):
    tvl, clip_path, touch, _ = torch_files
    with raises(UserError, tvl) as error:
        init_from.from_source(touch_model(), tvl)
    assert_mentions(refused(error), "image/class_token")
    state = {f"tactile_encoder.{k}": v for k, v in touch.items()}
    more = torch_writer.save(
        tmp_path / "more.pth", {**state, "tactile_encoder.x": touch["head.bias"]}
    )
    with raises(UserError, more, clip_path) as error:
        init_from.from_source(touch_model(), (more, clip_path), allow=["^logit_"])
    assert_mentions(refused(error), "tactile_encoder.x")
    assert "logit_scale" not in refused(error)  # allowed
    del state["tactile_encoder.blocks.1.mlp.fc1.weight"]
    less = torch_writer.save(tmp_path / "less.pth", state)
    with raises(UserError, less, "tactile_encoder.blocks.1.mlp.fc1.weight"):
        load_params(less)
    with raises(UserError, tmp_path / "nothing.pth"):
        load_params(str(tmp_path / "nothing.pth"))
