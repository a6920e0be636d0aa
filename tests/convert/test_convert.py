"""Checkpoints written by TensorFlow, converted by the command, against VATT in plain NumPy."""

import json

import jax
import numpy as np
import pytest

from mmjax import checkpoint, config, evaluate, initialize, tree
from mmjax.convert import slots
from mmjax.errors import UserError
from mmjax.models.vatt import make_model
from mmjax.rundir import RunDir
from mmjax.state import ModelDef
from mmjax.tools import cli
from tests.convert import numpy_vatt, published

rng = np.random.default_rng(0)
VIDEO = rng.uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
AUDIO = rng.uniform(-1, 1, (3, 80)).astype(np.float32)
IDS = np.array([[3, 14, 15, 9, 2, 6], [5, 35, 8, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


def convert(tmp_path, shapes, *options, **write):
    """The run directory of a checkpoint of random arrays, and these."""
    (tmp_path / "source").mkdir()
    arrays = published.values(shapes)
    prefix = published.write(tmp_path / "source", arrays, **write)
    out = tmp_path / "run"
    assert cli.main(["convert", prefix, "--out", str(out), *options]) == 0
    return out, arrays


def load(run):
    """The module of a run directory with its arrays."""
    model = ModelDef(make_model(**config.plain(RunDir(run, create=False).read_config().model)))
    leaves, _ = initialize.load_params(str(run))
    extra = {k.removeprefix("extra/"): v for k, v in leaves.items() if k.startswith("extra/")}
    params = {k: v for k, v in leaves.items() if not k.startswith("extra/")}
    assert set(tree.flatten(model.params)) == set(params)
    assert set(tree.flatten(model.extra)) == set(extra)
    return model, tree.unflatten(params), tree.unflatten(extra)


def run_model(run, inputs):
    """Pooled features, tokens and the head's outputs, of a pretrained model."""
    model, params, extra = load(run)

    @jax.jit
    def forward(params, extra, inputs):
        module = model.bind(params, extra)
        pooled, tokens = module.encode(inputs, tokens=True)
        return pooled, tokens, module.project(pooled)

    with jax.default_matmul_precision("highest"):
        return forward(params, extra, inputs)


def close(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


def each(function, inputs):
    """A tower of numpy_vatt over a batch: pooled and tokens."""
    y = np.stack([function(x) for x in inputs])
    return y[:, 0], y[:, 1:]


def check_pretrained(run, arrays, expected, inputs, tokens=True):
    """`expected` is {modality: (pooled, tokens)}."""
    pooled, rest, projected = run_model(run, inputs)
    for modality, (one, all_) in expected.items():
        close(pooled[modality], one)
        if tokens:
            close(rest[modality], all_)
    head = numpy_vatt.head(
        numpy_vatt.weights(arrays, published.HEADS), *(expected[m][0] for m in expected)
    )
    assert set(head) == set(projected)
    for name, value in head.items():
        close(projected[name], value)


def patch_tower(arrays, place, patch, axes, **options):
    w = numpy_vatt.weights(arrays, place)
    return lambda x: numpy_vatt.patch_tower(w, patch, axes, x, **options)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """`(run directory, arrays)` of a tx_fac with the state of its optimizer."""
    return convert(tmp_path_factory.mktemp("tx_fac"), published.tx_fac(), adam=True)


def test_tx_fac(pretrained):
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

    # What else stands in the run directory.
    assert checkpoint.find(run) == (run, 500_000)
    cfg = RunDir(run, create=False).read_config()
    config.check(cfg)
    assert cfg.task == "pretrain" and cfg.data.video.num_frames == 4 and cfg.data.video.size == 8
    assert cfg.data.audio.num_samples == 80 and cfg.loss.name == "asymmetric_nce"
    assert json.loads((run / "run.json").read_text())["source"].endswith("ckpt-500000")
    assert RunDir(run, create=False).complete_step() == 500_000


def test_the_report_has_every_key_and_every_array(pretrained):
    run, shapes = pretrained[0], published.tx_fac()
    report = (run / "conversion.txt").read_text()
    keys, arrays = report.split("Every array and what it is made of:")
    rows = {
        line.split("← ")[1]: line.split("←")[0].split() for line in keys.splitlines() if "←" in line
    }
    for key, shape in shapes.items():
        # Slots of what is not trained are of no use.
        idle = key.endswith(("embedding/embeddings", "moving_mean", "moving_variance"))
        for slot in ("m", "v"):
            row = rows.pop(f"{key}/.OPTIMIZER_SLOT/optimizer/{slot}")
            assert row[:2] == ["optimizer", "slot"] if idle else row[0].startswith("opt/0/0/"), key
        row = rows.pop(key)
        assert " ".join(row[-len(shape) :]) == str(shape), key
    layer = "video/encoder/layers/attention/query/kernel"
    assert layer + "[1] float32 (16, 16)" in " ".join(keys.split())
    assert {key: row[:2] for key, row in rows.items()} == {
        "optimizer/iter": ["optimizer", "scalar"],
        "optimizer/beta_1": ["optimizer", "scalar"],
        "_CHECKPOINTABLE_OBJECT_GRAPH": ["object", "graph"],
    }
    _, params, extra = load(run)
    listed = [line.split()[0] for line in arrays.splitlines() if line.strip()]
    wanted = [f"params/{path}" for path in tree.flatten(params)]
    assert sorted(listed) == sorted(wanted + [f"extra/{path}" for path in tree.flatten(extra)])
    assert f"  params/{layer} (2, 16, 16) ← 2 keys" in arrays


def test_the_optimizer_state_is_taken_over(pretrained):
    run, arrays = pretrained
    model, _, _ = load(run)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        slots.abstract(RunDir(run, create=False).read_config(), model.params),
    )
    saved = checkpoint.Checkpoints(run, read_only=True)
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


def test_a_state_that_is_not_whole_is_left(tmp_path):
    run, _ = convert(tmp_path, published.finetuned(), "--head-dim", "8", adam=True)
    assert "optimizer slot" in (run / "conversion.txt").read_text()  # Adam's, where SGD trained
    parts = {path.split("/")[0] for path in checkpoint.Checkpoints(run).shapes(500_000)}
    assert parts == {"step", "params"}


def test_ut_fac(tmp_path):
    run, arrays = convert(tmp_path, published.ut_fac(), "--head-dim", "8")
    place = "_base_layer/unified_backbone/unified_transformer/"
    w = numpy_vatt.weights(arrays, place)
    inputs = {"video": VIDEO, "audio": AUDIO, "text": IDS}
    expected = {
        modality: each(
            lambda x, m=modality: numpy_vatt.unified(w, m, x, heads=2, layers=2),
            AUDIO[..., None] if modality == "audio" else x,
        )
        for modality, x in inputs.items()
    }
    check_pretrained(run, arrays, expected, inputs)
    assert RunDir(run, create=False).read_config().data.text.max_words == 6


@pytest.mark.parametrize("small", [False, True])
def test_bert(tmp_path, small):
    table = published.BERT_SMALL if small else published.BERT
    run, arrays = convert(tmp_path, published.tx_fac(table), "--head-dim", "8")
    w = numpy_vatt.weights(arrays, published.TEXT)
    one, all_ = each(lambda ids: numpy_vatt.bert(w, ids, heads=2, layers=2, small=small), IDS)
    pooled, tokens, _ = run_model(run, {"text": IDS})
    close(pooled["text"], one)
    close(tokens["text"], all_)
    assert "bert follow from the published classes" in (run / "conversion.txt").read_text()


def test_mmv_fac(tmp_path):
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
def test_a_finetuned_video_classifier(tmp_path, projections):
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
    close(actual, pooled)
    close(logits, numpy_vatt.dense(numpy_vatt.weights(arrays, "_ops/"), "cls", pooled))
    cfg = RunDir(run, create=False).read_config()
    assert cfg.task == "finetune" and cfg.model.num_classes == 5 and cfg.total_steps >= 90_000


def test_a_finetuned_spectrogram_classifier(tmp_path):
    run, arrays = convert(tmp_path, published.finetuned(published.SPT), "--head-dim", "8")
    spectrograms = rng.uniform(0, 1, (2, 13, 10)).astype(np.float32)  # the last frame is left over
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
        close(model.bind(params, extra).encode({"audio": spectrograms}), pooled)
    assert RunDir(run, create=False).read_config().augment.spectrogram.num_bins == 80


def test_all_ways_to_name_a_checkpoint(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()), step=7)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/gone/ckpt-7"\n')
    for source in (prefix, f"{prefix}.index", str(tmp_path)):
        assert cli.main(["convert", source, "--inspect", "--head-dim", "8"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{prefix}: classifier, step 7\n")
        assert (
            "vit_base: " in out
            and "num_heads=2" in out
            and "num_classes 5" in " ".join(out.split())
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint",
        "ckpt-7.data-00000-of-00001",
        "ckpt-7.index",
    ]
    assert cli.main(["convert", prefix, "--inspect", "--json", "--head-dim", "8"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["backbone"]["width"] == 16 and facts["problems"] == {}
    assert len(facts["keys"]) == len(published.finetuned()) + 1
    (tmp_path / "checkpoint").unlink()  # the only one in the folder
    assert cli.main(["convert", str(tmp_path), "--inspect", "--head-dim", "8"]) == 0
    # The head size of published models, where nothing else is said.
    assert cli.main(["convert", prefix, "--inspect"]) == 2
    assert "--head-dim" in capsys.readouterr().err


# ---- what does not fit

QUERY = published.ROOT + "_base/tx/layers/1/mha/q/kernel"
BIAS = published.ROOT + "_base/voxel_to_patch/bias"
MASK = published.ROOT + "_base/mask_embedding"
WRONG = {
    "a key that is not known": ({MASK: (16,)}, f"{MASK}: is no array of a model"),
    "a layer's key that is missing": ({QUERY: None}, f"{QUERY}: missing"),
    "a key that is missing": ({BIAS: None}, f"{BIAS}: missing, of video/patch/bias (16,)"),
    "another shape": ({BIAS: (17,)}, f"{BIAS}: makes video/patch/bias (17,), the model's is (16,)"),
    "a layer of another shape": ({QUERY: (16, 24)}, f"{QUERY}: has shape (16, 24)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_and_can_be_allowed(tmp_path, capsys, case):
    changes, words = WRONG[case]
    shapes = {k: s for k, s in (published.finetuned() | changes).items() if s is not None}
    prefix = published.write(tmp_path, published.values(shapes))
    out = tmp_path / "run"
    command = ["convert", prefix, "--head-dim", "8"]
    assert cli.main([*command, "--out", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".data-00000-of-00001", ".index"]
    assert cli.main([*command, "--inspect"]) == 1
    assert words in capsys.readouterr().out
    (key,) = changes
    assert cli.main([*command, "--out", str(out), "--allow", f"{key}$"]) == 0
    leaves, _ = initialize.load_params(str(out))
    fresh = {QUERY: "video/encoder/layers/attention/query/kernel", BIAS: "video/patch/bias"}
    if key in fresh:
        assert fresh[key] in capsys.readouterr().out
        assert (
            f"params/{fresh[key]} {leaves[fresh[key]].shape} ← fresh"
            in (out / "conversion.txt").read_text()
        )
    close(
        leaves["video/agg_token"], published.values(shapes)[published.ROOT + "_base/agg_embedding"]
    )


def test_a_checkpoint_of_something_else(tmp_path, capsys):
    prefix = published.write(tmp_path, {"net/dense/kernel": np.ones(3, np.float32)})
    assert cli.main(["convert", prefix, "--inspect"]) == 2
    assert "not of a VATT model" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "nothing"), "--inspect"]) == 2
    assert "no TensorFlow checkpoint. Give its prefix" in capsys.readouterr().err


def test_damaged_files(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    command = ["convert", prefix, "--head-dim", "8", "--out", str(tmp_path / "run")]
    data, index = tmp_path / "ckpt-500000.data-00000-of-00001", tmp_path / "ckpt-500000.index"
    whole = {path: path.read_bytes() for path in (data, index)}
    for path in whole:
        for end in (len(whole[path]) // 2, 0):
            path.write_bytes(whole[path][:end])
            assert cli.main(command) == 2
            assert f"{prefix} cannot be read" in capsys.readouterr().err
        path.unlink()
        assert cli.main(command) == 2
        assert f"without its file {path}" in capsys.readouterr().err
        path.write_bytes(whole[path])
    assert sorted(tmp_path.iterdir()) == [data, index]


def test_a_run_directory_is_not_overwritten(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    (tmp_path / "run").mkdir()
    command = ["convert", prefix, "--head-dim", "8", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    assert cli.main(command) == 2
    assert "is there already" in capsys.readouterr().err


def test_evaluation_says_to_convert(tmp_path):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    with pytest.raises(UserError, match=f"mmjax convert {prefix} --out"):
        evaluate.run_job(None, "", override_checkpoint=prefix)
