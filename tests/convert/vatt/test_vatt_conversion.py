"""Converted TensorFlow checkpoints of VATT compute the features of a plain NumPy implementation."""

import json
import re

import jax
import numpy as np
import pytest

from mmjax import config, eval_job, tree
from mmjax.checkpoints.find import find
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert.load import load_params
from mmjax.convert.vatt import optimizer_slots
from mmjax.errors import UserError
from mmjax.formats import safetensors
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from mmjax.tools import cli
from tests.convert import numpy_vatt, published
from tests.convert.runs import read_report
from tests.messages import assert_mentions, raises

rng = np.random.default_rng(0)
VIDEO = rng.uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
AUDIO = rng.uniform(-1, 1, (3, 80)).astype(np.float32)
IDS = np.array([[3, 14, 15, 9, 2, 6], [5, 35, 8, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


def convert(tmp_path, shapes, *options, **write):
    """Returns the run directory of a converted checkpoint of random arrays, and these arrays."""
    (tmp_path / "source").mkdir()
    arrays = published.values(shapes)
    prefix = published.write(tmp_path / "source", arrays, **write)
    out = tmp_path / "run"
    assert cli.main(["convert", prefix, "--out", str(out), *options]) == 0
    return out, arrays


def load(run):
    """Returns the model of a run directory, and its params and extra."""
    model = ModelDef(make_model(**config.plain(RunDir(run, create=False).read_config().model)))
    leaves, _ = load_params(str(run))
    extra = {k.removeprefix("extra/"): v for k, v in leaves.items() if k.startswith("extra/")}
    params = {k: v for k, v in leaves.items() if not k.startswith("extra/")}
    assert set(tree.flatten(model.params)) == set(params)
    assert set(tree.flatten(model.extra)) == set(extra)
    return model, tree.unflatten(params), tree.unflatten(extra)


def run_model(run, inputs):
    """Returns pooled features, tokens and outputs of the head of a pretrained model."""
    model, params, extra = load(run)

    @jax.jit
    def forward(params, extra, inputs):
        module = model.bind(params, extra)
        pooled, tokens = module.encode(inputs, tokens=True)
        return pooled, tokens, module.project(pooled)

    with jax.default_matmul_precision("highest"):
        return forward(params, extra, inputs)


def assert_close(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


def each(function, inputs):
    """Applies a tower of numpy_vatt to each example; returns pooled features and tokens."""
    y = np.stack([function(x) for x in inputs])
    return y[:, 0], y[:, 1:]


def check_pretrained(run, arrays, expected, inputs, tokens=True):
    """Compares a run with `expected`, {modality: (pooled, tokens)}, and with the NumPy head."""
    pooled, all_tokens, projected = run_model(run, inputs)
    for modality, (expected_pooled, expected_tokens) in expected.items():
        assert_close(pooled[modality], expected_pooled)
        if tokens:
            assert_close(all_tokens[modality], expected_tokens)
    head = numpy_vatt.head(
        numpy_vatt.weights(arrays, published.HEADS), *(expected[m][0] for m in expected)
    )
    assert set(head) == set(projected)
    for name, value in head.items():
        assert_close(projected[name], value)


def patch_tower(arrays, prefix, patch, axes, **options):
    w = numpy_vatt.weights(arrays, prefix)
    return lambda x: numpy_vatt.patch_tower(w, patch, axes, x, **options)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """`(run directory, arrays)` of a tx_fac checkpoint with optimizer state."""
    return convert(tmp_path_factory.mktemp("tx_fac"), published.tx_fac(), adam=True)


def test_tx_fac_computes_the_features_of_vatt(pretrained):
    run, arrays = pretrained
    text = numpy_vatt.weights(arrays, published.TEXT)
    video = patch_tower(
        arrays, published.VIDEO, "voxel_to_patch", numpy_vatt.SPACE_TIME, heads=2, layers=2
    )
    audio = patch_tower(arrays, published.AUDIO, "wave_to_patch", ["temporal"], heads=3, layers=1)
    expected = {
        "video": each(video, VIDEO),
        "audio": each(audio, AUDIO[..., None]),
        "text": each(lambda ids: numpy_vatt.t5(text, ids, heads=2, layers=2), IDS),
    }
    check_pretrained(run, arrays, expected, {"video": VIDEO, "audio": AUDIO, "text": IDS})


def test_run_directory_has_step_config_and_source(pretrained):
    run, _ = pretrained
    assert find(run) == (run, 500_000)
    cfg = RunDir(run, create=False).read_config()
    config.resolve(cfg)
    assert cfg.task == "pretrain" and cfg.data.video.num_frames == 4 and cfg.data.video.size == 8
    assert cfg.data.audio.num_samples == 80 and cfg.loss.name == "asymmetric_nce"
    assert json.loads((run / "run.json").read_text())["source"].endswith("ckpt-500000")
    assert RunDir(run, create=False).complete_step() == 500_000


def test_report_lists_every_key_and_every_array(pretrained):
    run, shapes = pretrained[0], published.tx_fac()
    _, targets, num_keys = read_report(run)
    for key, shape in shapes.items():
        # The optimizer slots of arrays that are not trained cannot be used.
        untrained = key.endswith(("embedding/embeddings", "moving_mean", "moving_variance"))
        for slot in ("m", "v"):
            target = targets.pop(f"{key}/.OPTIMIZER_SLOT/optimizer/{slot}")
            assert target.startswith("optimizer" if untrained else "opt/0/0/"), key
        assert targets.pop(key).endswith(f" float32 {shape}"), key
    layer = "video/encoder/layers/attention/query/kernel"
    query = published.ROOT + published.VIDEO + "tx/layers/1/mha/q/kernel"
    assert read_report(run).targets[query] == f"{layer}[1] float32 (16, 16)"
    assert set(targets) == {"optimizer/iter", "optimizer/beta_1", "_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert all("opt/" not in target and "/" not in target for target in targets.values())
    _, params, extra = load(run)
    arrays = {f"params/{path}": x for path, x in tree.flatten(params).items()}
    arrays |= {f"extra/{path}": x for path, x in tree.flatten(extra).items()}
    assert set(num_keys) == {f"{path} {x.shape}" for path, x in arrays.items()}
    assert num_keys[f"params/{layer} (2, 16, 16)"] == 2
    assert all(num_keys.values())


def test_optimizer_state_is_converted(pretrained):
    run, arrays = pretrained
    model, _, _ = load(run)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        optimizer_slots.abstract_state(RunDir(run, create=False).read_config(), model.params),
    )
    saved = Checkpoints(run, read_only=True)
    state, _ = saved.restore(500_000, {"opt": abstract})
    leaves = {path.rsplit("0/", 1)[-1]: v for path, v in tree.flatten(state["opt"]).items()}
    assert leaves.pop("count") == 500_000
    trained = set(tree.flatten(model.params)) - {"text/word_embedding"}
    moments = {path for path in leaves if path != "1/count"}
    assert moments == {f"{slot}/{path}" for slot in ("mu", "nu") for path in trained}
    wi = published.ROOT + published.VIDEO + "tx/layers/{}/feed_forward/mlp/wi/kernel"
    for slot, factor in {"mu": 2, "nu": 3}.items():
        np.testing.assert_array_equal(
            leaves[f"{slot}/video/encoder/layers/mlp/up/kernel"],
            [factor * arrays[wi.format(i)] for i in range(2)],
        )


def test_incomplete_optimizer_state_is_left_out(tmp_path):
    run, _ = convert(tmp_path, published.finetuned(), "--head-dim", "8", adam=True)
    # The slots are Adam's, but the recipe trains with SGD.
    slot_targets = [
        target for key, target in read_report(run).targets.items() if ".OPTIMIZER_SLOT" in key
    ]
    assert len(slot_targets) == 2 * len(published.finetuned())
    assert all(target.startswith("optimizer") for target in slot_targets)
    parts = {path.split("/")[0] for path in Checkpoints(run).shapes(500_000)}
    assert parts == {"step", "params"}


def test_ut_fac_computes_the_features_of_vatt(tmp_path):
    run, arrays = convert(tmp_path, published.ut_fac(), "--head-dim", "8")
    w = numpy_vatt.weights(arrays, "_base_layer/unified_backbone/unified_transformer/")
    inputs = {"video": VIDEO, "audio": AUDIO, "text": IDS}
    expected = {
        modality: each(
            lambda x, m=modality: numpy_vatt.unified(w, m, x, heads=2, layers=2),
            AUDIO[..., None] if modality == "audio" else x,
        )
        for modality, x in inputs.items()
    }
    check_pretrained(run, arrays, expected, inputs)
    assert RunDir(run, create=False).read_config().data.text.max_tokens == 6


@pytest.mark.parametrize("small", [False, True])
def test_bert_text_towers_compute_the_features_of_vatt(tmp_path, small):
    table = published.BERT_SMALL if small else published.BERT
    run, arrays = convert(tmp_path, published.tx_fac(table), "--head-dim", "8")
    w = numpy_vatt.weights(arrays, published.TEXT)
    expected_pooled, expected_tokens = each(
        lambda ids: numpy_vatt.bert(w, ids, heads=2, layers=2, small=small), IDS
    )
    pooled, tokens, _ = run_model(run, {"text": IDS})
    assert_close(pooled["text"], expected_pooled)
    assert_close(tokens["text"], expected_tokens)
    assert "inferred" not in (run / "conversion.txt").read_text()


def test_mmv_fac_computes_the_features_of_vatt(tmp_path):
    run, arrays = convert(tmp_path, published.mmv_fac())
    video = rng.uniform(-1, 1, (2, 8, 32, 32, 3)).astype(np.float32)
    audio = rng.uniform(0, 1, (2, 40, 32)).astype(np.float32)
    text = numpy_vatt.weights(arrays, published.TEXT)
    expected = {
        "video": (numpy_vatt.i3d(numpy_vatt.weights(arrays, published.VIDEO), video), None),
        "audio": (
            numpy_vatt.resnet2d(numpy_vatt.weights(arrays, published.AUDIO), audio[..., None]),
            None,
        ),
        "text": (np.stack([numpy_vatt.linear_text(text, ids) for ids in IDS]), None),
    }
    inputs = {"video": video, "audio": audio, "text": IDS}
    check_pretrained(run, arrays, expected, inputs, tokens=False)
    model = RunDir(run, create=False).read_config().model
    assert model.name == "mmv_fac" and model.audio.blocks == (2, 1, 1, 1)


@pytest.mark.parametrize("projections", [False, True])
def test_finetuned_video_classifier_computes_the_logits_of_vatt(tmp_path, projections):
    shapes = published.finetuned(projections=projections)
    run, arrays = convert(tmp_path, shapes, "--head-dim", "8", step=90_000)
    tower = patch_tower(
        arrays,
        "_base/",
        "voxel_to_patch",
        numpy_vatt.SPACE_TIME,
        heads=2,
        layers=2,
        projections=projections,
    )
    pooled, _ = each(tower, VIDEO)
    model, params, extra = load(run)
    module = model.bind(params, extra)
    with jax.default_matmul_precision("highest"):
        actual = module.encode({"video": VIDEO})
        logits = module.classify(actual)
    assert_close(actual, pooled)
    assert_close(logits, numpy_vatt.dense(numpy_vatt.weights(arrays, "_ops/"), "cls", pooled))
    cfg = RunDir(run, create=False).read_config()
    assert cfg.task == "finetune" and cfg.model.num_classes == 5 and cfg.total_steps >= 90_000


def test_finetuned_spectrogram_classifier_computes_the_features_of_vatt(tmp_path):
    run, arrays = convert(tmp_path, published.finetuned(published.SPT), "--head-dim", "8")
    spectrograms = rng.uniform(0, 1, (2, 13, 10)).astype(np.float32)  # one frame too many
    tower = patch_tower(
        arrays,
        "_base/",
        "spectrum_to_patch",
        ["temporal", "spectoral"],
        heads=2,
        layers=2,
        bias=False,
    )
    pooled, _ = each(tower, spectrograms[..., None])
    model, params, extra = load(run)
    with jax.default_matmul_precision("highest"):
        assert_close(model.bind(params, extra).encode({"audio": spectrograms}), pooled)
    assert RunDir(run, create=False).read_config().augment.spectrogram.num_bins == 80


def test_a_checkpoint_is_found_by_prefix_index_file_or_directory(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()), step=7)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/gone/ckpt-7"\n')
    for source in (prefix, f"{prefix}.index", str(tmp_path)):
        assert cli.main(["convert", source, "--inspect", "--head-dim", "8"]) == 0
        out = capsys.readouterr().out
        assert_mentions(out.splitlines()[0], prefix, "classifier", 7)
        assert_mentions(" ".join(out.split()), "vit_base", "num_heads=2", "num_classes 5")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint",
        "ckpt-7.data-00000-of-00001",
        "ckpt-7.index",
    ]
    assert cli.main(["convert", prefix, "--inspect", "--json", "--head-dim", "8"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["backbone"]["width"] == 16 and facts["mismatches"] == {}
    assert len(facts["keys"]) == len(published.finetuned()) + 1
    (tmp_path / "checkpoint").unlink()  # it is the only one in the directory
    assert cli.main(["convert", str(tmp_path), "--inspect", "--head-dim", "8"]) == 0
    # The default is the head size of the published models, which does not divide this width.
    assert cli.main(["convert", prefix, "--inspect"]) == 2
    assert_mentions(capsys.readouterr().err, "--head-dim", 16)


# ---- Errors

QUERY = published.ROOT + "_base/tx/layers/1/mha/q/kernel"
BIAS = published.ROOT + "_base/voxel_to_patch/bias"
MASK = published.ROOT + "_base/mask_embedding"
WRONG = {
    "unknown key": ({MASK: (16,)}, ()),
    "missing key of a layer": ({QUERY: None}, ()),
    "missing key": ({BIAS: None}, ("video/patch/bias", (16,))),
    "other shape": ({BIAS: (17,)}, ("video/patch/bias", (17,), (16,))),
    "other shape in one layer": ({QUERY: (16, 24)}, ((16, 24), (16, 16))),
}


@pytest.mark.parametrize("case", WRONG)
def test_keys_that_do_not_fit_are_reported_and_can_be_allowed(tmp_path, capsys, case):
    changes, facts = WRONG[case]
    (key,) = changes
    shapes = {k: s for k, s in (published.finetuned() | changes).items() if s is not None}
    prefix = published.write(tmp_path, published.values(shapes))
    out = tmp_path / "run"
    command = ["convert", prefix, "--head-dim", "8"]
    assert cli.main([*command, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    (problem,) = [line for line in error.splitlines() if key in line]
    assert_mentions(problem, *facts)
    assert_mentions(error, prefix, "--allow")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".data-00000-of-00001", ".index"]
    assert cli.main([*command, "--inspect"]) == 1
    assert problem in capsys.readouterr().out.splitlines()
    assert cli.main([*command, "--out", str(out), "--allow", f"{key}$"]) == 0
    leaves, _ = load_params(str(out))
    num_keys = read_report(out).num_keys
    random = [array for array, number in num_keys.items() if number == 0]
    paths = {QUERY: "video/encoder/layers/attention/query/kernel", BIAS: "video/patch/bias"}
    if key in paths:
        assert_mentions(capsys.readouterr().out, paths[key])
        assert random == [f"params/{paths[key]} {leaves[paths[key]].shape}"]
    else:
        assert not random
    assert_close(
        leaves["video/agg_token"], published.values(shapes)[published.ROOT + "_base/agg_embedding"]
    )


@pytest.mark.parametrize(
    "name, shape",
    [
        ("tx/layers/{i}/mha/q/kernel", (16,)),
        ("tx/layers/{i}/feed_forward/mlp/wi/kernel", (16, 0)),
        ("voxel_to_patch/kernel", (4, 16)),
        ("pos_embedding_lookup/temporal_position_embeddings/embeddings", (16,)),
    ],
)
def test_arrays_of_a_wrong_rank_are_named(tmp_path, capsys, name, shape):
    shapes, key = published.finetuned(), f"{published.ROOT}_base/{name}"
    keys = [key.replace("{i}", str(layer)) for layer in range(2)]
    shapes |= {each: shape for each in keys if each in shapes}
    prefix = published.write(tmp_path, published.values(shapes))
    assert cli.main(["convert", prefix, "--head-dim", "8", "--inspect"]) == 2
    assert_mentions(capsys.readouterr().err, prefix, key, ", ".join(map(str, shape)))


def test_a_layer_with_an_impossible_index_is_named(tmp_path, capsys):
    source, key = tmp_path / "model.safetensors", "blocks.999999.norm1.weight"
    safetensors.write(source, {"patch_embed.proj.weight": np.ones((4, 3, 2, 2)), key: np.ones(4)})
    assert cli.main(["convert", str(source), "--inspect"]) == 2
    assert_mentions(capsys.readouterr().err, source)


def test_checkpoints_of_other_models_are_rejected(tmp_path, capsys):
    prefix = published.write(tmp_path, {"net/dense/kernel": np.ones(3, np.float32)})
    assert cli.main(["convert", prefix, "--inspect"]) == 2
    assert_mentions(
        capsys.readouterr().err, prefix, "VATT", "model/layer_with_weights-0", "net/dense/kernel"
    )
    nothing = tmp_path / "nothing"
    assert cli.main(["convert", str(nothing), "--inspect"]) == 2
    assert_mentions(capsys.readouterr().err, nothing, "TensorFlow", ".index", ".safetensors")


def test_damaged_and_missing_files_are_rejected(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    command = ["convert", prefix, "--head-dim", "8", "--out", str(tmp_path / "run")]
    data, index = tmp_path / "ckpt-500000.data-00000-of-00001", tmp_path / "ckpt-500000.index"
    whole = {path: path.read_bytes() for path in (data, index)}
    for path in whole:
        for end in (len(whole[path]) // 2, 0):
            path.write_bytes(whole[path][:end])
            assert cli.main(command) == 2
            error = capsys.readouterr().err
            assert_mentions(error, "TensorFlow", prefix)
            assert re.search(rf"{re.escape(prefix)}[^.\w]", error)  # no file of it
        path.unlink()
        assert cli.main(command) == 2
        assert_mentions(capsys.readouterr().err, "TensorFlow", path)
        path.write_bytes(whole[path])
    assert sorted(tmp_path.iterdir()) == [data, index]


def test_a_run_directory_is_not_overwritten(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    (tmp_path / "run").mkdir()
    command = ["convert", prefix, "--head-dim", "8", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    assert cli.main(command) == 2
    assert_mentions(capsys.readouterr().err, f"--out {tmp_path / 'run'}")


def test_evaluating_a_tensorflow_checkpoint_names_the_convert_command(tmp_path):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    with raises(UserError, f"mmjax convert {prefix} --out"):
        eval_job.run_job(None, "", override_checkpoint=prefix)
