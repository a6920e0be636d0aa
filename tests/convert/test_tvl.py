"""TVL's and OpenCLIP's files converted by the command, against their models in plain NumPy."""

import argparse
import collections
import json
import re

import jax
import numpy as np
import pytest

import mmjax
from mmjax import checkpoint, config, initialize, pictures, tree
from mmjax.convert import run as run_of
from mmjax.convert import safetensors, torch_files, tvl, tvl_plan
from mmjax.errors import UserError
from mmjax.models.tvl import make_model
from mmjax.rundir import RunDir
from mmjax.state import ModelDef
from mmjax.tasks import DataFacts, make_task
from mmjax.tools import cli
from tests.convert.runs import module_of
from tests.convert.torch_writer import save
from tests.models import torch_reference

rng = np.random.default_rng(0)
HEADS = ("--head-dim", "8")
TOUCH = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
IMAGE = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
IDS = np.array([[48, 3, 14, 49, 0, 0, 0, 0, 0], [48, 9, 2, 6, 5, 3, 5, 8, 49]])
PLACE = "model.tactile_encoder."


def touch_state(seed=1):
    return torch_reference.timm_vit_state(
        width=32, num_layers=2, image_size=16, patch_size=4, num_classes=24, seed=seed
    )


def resnet_state():
    return torch_reference.torch_resnet_state(
        blocks=(1, 2, 1, 1), width=8, num_classes=24, seed=2
    ) | {"layer1.0.bn1.num_batches_tracked": np.array(7)}


def clip_state(seed=3):
    state = torch_reference.open_clip_state(
        width=32,
        text_width=16,
        num_layers=2,
        text_layers=3,
        image_size=12,
        patch_size=4,
        embed_dim=24,
        vocab_size=50,
        context_length=9,
        seed=seed,
    )
    return {name: np.asarray(value) for name, value in state.items()}


def tvl_model(state, scale=2.5):
    """The entry `model` of a checkpoint."""
    encoder = {f"tactile_encoder.{name}": value for name, value in state.items()}
    return collections.OrderedDict(logit_scale=np.array(scale, np.float32), **encoder)


def write_tvl(path, model):
    """A file laid out as the published ones and those of one's own trainings."""
    optimizer = {
        "state": {
            0: {"step": np.array(40.0, np.float32), "exp_avg": np.array(0.1, np.float32)},
            4: {"step": np.array(40.0, np.float32), "exp_avg": np.ones(32, np.float32)},
        },
        "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.95), "params": [0, 4]}],
    }
    args = argparse.Namespace(tactile_model="vit_tiny_patch16_224", datasets=["ssvtp", "hct"])
    content = dict(model=model, optimizer=optimizer, epoch=12, scaler={"scale": 65536.0}, args=args)
    return save(path, content)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: path} of files."""
    folder = tmp_path_factory.mktemp("files")
    resnet = folder / "resnet.safetensors"
    safetensors.write(folder / "open_clip_model.safetensors", clip_state())
    safetensors.write(resnet, tvl_model(resnet_state()))
    return dict(
        tvl=write_tvl(folder / "tvl_enc.pth", tvl_model(touch_state())),
        clip=str(folder / "open_clip_model.safetensors"),
        clip_bin=save(folder / "open_clip_pytorch_model.bin", dict(clip_state())),
        resnet=str(resnet),
        timm=save(folder / "timm.pth", touch_state()),
    )


def convert(out, *arguments):
    assert cli.main(["convert", *arguments, *HEADS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """The run directory of TVL's file and OpenCLIP's."""
    return convert(tmp_path_factory.mktemp("run") / "run", files["tvl"], files["clip"])


def check(run, inputs, expected):
    module = module_of(run, make_model)
    with jax.default_matmul_precision("highest"):
        pooled = jax.jit(lambda inputs: module.encode(inputs))(inputs)
    assert set(pooled) == set(expected)
    for modality, value in expected.items():
        error = np.abs(np.asarray(pooled[modality]) - value).max()
        assert error < 2e-5 * np.abs(value).max(), modality


def clip_features(**options):
    state = clip_state()
    return {
        "image": torch_reference.open_clip_image(state, IMAGE, num_heads=4, **options),
        "text": torch_reference.open_clip_text(state, IDS, num_heads=2, **options),
    }


def test_features_of_all_three(run):
    touch = torch_reference.timm_vit(touch_state(), TOUCH, num_heads=4)
    inputs = {"touch": TOUCH, "image": IMAGE, "text": IDS}
    check(run, inputs, {"touch": touch, **clip_features()})


def test_the_run_directory(run, files):
    assert checkpoint.find(run) == (run, 40)  # the optimizer's count of steps
    cfg = RunDir(run, create=False).read_config()
    config.check(cfg)
    assert cfg.task == "touch" and cfg.init_from == ""
    assert (cfg.data.touch.size, cfg.data.image.size, cfg.data.text.max_words) == (16, 12, 9)
    assert cfg.model.touch.pool == "mean" and cfg.model.touch.projection == 24
    assert cfg.model.text.num_layers == 3 and cfg.model.text.vocab_size == 50
    record = json.loads((run / "run.json").read_text())
    assert record["source"] == f"{files['tvl']} and {files['clip']}"
    assert RunDir(run, create=False).complete_step() == 40
    leaves, _ = initialize.load_params(str(run))
    assert leaves["logit_scale"] == 2.5  # TVL's, not OpenCLIP's 4.6
    assert cfg.optimizer.frozen == ("^image/", "^text/")


def test_the_report_has_every_entry_of_every_file(run, files):
    report = (run / "conversion.txt").read_text()
    keys, arrays = report.split("Every array and what it is made of:")
    rows = [line.strip().split("  ← ") for line in keys.splitlines() if "  ← " in line]
    rows = {key: " ".join(what.split()) for what, key in rows}
    names = {f"tvl_enc.pth: {name}" for name in torch_files.entries(files["tvl"])}
    names |= {f"open_clip_model.safetensors: {name}" for name in clip_state()}
    assert set(rows) == names
    block = f"tvl_enc.pth: {PLACE}blocks.1.attn"
    layers = "touch/encoder/layers/attention"
    assert rows[f"{block}.qkv.weight"] == f"{layers}/{{query,key,value}}/kernel[1] float32 (96, 32)"
    assert rows[f"{block}.proj.bias"] == f"{layers}/out/bias[1] float32 (32,)"
    assert rows["tvl_enc.pth: epoch"] == "value: 12 int ()"
    assert rows["tvl_enc.pth: args.datasets"] == "value: ['ssvtp', 'hct'] list ()"
    assert rows["tvl_enc.pth: optimizer.state.4.exp_avg"] == "optimizer state float32 (32,)"
    left = "open_clip_model.safetensors: logit_scale"
    assert rows[left] == "left out, an earlier file has it float32 ()"
    module = module_of(run, make_model)
    params = tree.flatten(ModelDef(lambda rngs: module).params)
    listed = [line.split()[0] for line in arrays.splitlines() if line.strip()]
    assert sorted(listed) == sorted(f"params/{path}" for path in params)
    assert f"params/{layers}/query/kernel (2, 32, 32) ← 2 keys" in arrays


@pytest.mark.parametrize("place", ["", "module.", "state_dict.net."])
def test_all_of_it_in_one_file_below_any_name(files, tmp_path, place):
    """TVL's whole model has its CLIP inside."""
    model = {place + name: value for name, value in tvl_model(touch_state()).items()}
    inside = {f"{place}clip.{name}": value for name, value in clip_state().items()}
    one = tvl.read(save(tmp_path / "all.pt", {**model, **inside}))
    two = tvl.read_all((files["tvl"], files["clip"]))
    assert set(one.leaves) == set(two.leaves) and not one.problems and not one.unknown()
    for path, leaf in one.leaves.items():
        wanted = two.leaves[path].read(two.arrays())
        np.testing.assert_array_equal(leaf.read(one.arrays()), wanted)
    assert one.leftovers == {f"{place}clip.logit_scale": "left out, the model has its own"}


def test_the_vocabulary_of_clip(files, tmp_path, capsys):
    merges = tmp_path / "bpe_simple_vocab.txt"
    merges.write_text("#version\nt h\nth e</w>\n")
    rows = 2 * 256 + 2 + 2  # bytes, also at the end of a word; merges; start and end
    table = rng.normal(size=(rows, 16)).astype(np.float32)
    source = save(tmp_path / "clip.bin", clip_state() | {"token_embedding.weight": table})
    run = convert(tmp_path / "run", source, "--vocab", str(merges))
    text = RunDir(run, create=False).read_config().data.text
    assert (text.vocab, text.tokenizer) == (str(run / merges.name), "clip")
    assert (run / merges.name).read_text() == merges.read_text()
    assert f"Vocabulary: {merges}, tokenizer clip" in (run / "conversion.txt").read_text()
    capsys.readouterr()
    command = ["convert", files["clip"], *HEADS, "--vocab", str(merges), "--inspect"]
    assert cli.main(command) == 2
    assert "has 516 words, the checkpoint's table 50" in capsys.readouterr().err


@pytest.mark.parametrize("options, quick", [((), False), (("--quick-gelu",), True)])
def test_open_clip_alone(files, tmp_path, options, quick, capsys):
    run = convert(tmp_path / "run", files["clip_bin"], *options)
    assert ("as --quick-gelu says" in capsys.readouterr().out) == quick
    check(run, {"image": IMAGE, "text": IDS}, clip_features(quick_gelu=quick))
    cfg = RunDir(run, create=False).read_config()
    config.check(cfg)
    assert cfg.model.touch is None and cfg.data.touch is None and cfg.checkpoint.best == ""
    assert cfg.evals.test.pairs == ("image_text",)
    assert (cfg.evals.affinity.query, cfg.evals.affinity.target) == ("image", "text")
    assert initialize.load_params(str(run))[0]["logit_scale"] == np.float32(4.6)


def test_tvl_alone_embeds_touch(tmp_path):
    state = torch_reference.timm_vit_state(
        width=64, num_layers=1, image_size=16, patch_size=4, num_classes=24, seed=1
    )
    model = mmjax.load(write_tvl(tmp_path / "tvl_enc.pth", tvl_model(state)))
    assert model.modalities == ("touch",)
    picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
    turned = np.rot90(picture)[None] / 255
    turned = (turned - pictures.TACTILE_MEAN) / np.array(pictures.TACTILE_STD)
    expected = torch_reference.timm_vit(state, turned.astype(np.float32), num_heads=1)[0]
    expected = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(model.embed_touch(picture), expected, atol=1e-5)


def test_a_resnet(files, tmp_path):
    run = convert(tmp_path / "run", files["resnet"], files["clip"])
    expected = torch_reference.torch_resnet(resnet_state(), TOUCH)
    check(run, {"touch": TOUCH}, {"touch": expected})
    report = (run / "conversion.txt").read_text()
    assert "extra/touch/groups/1/0/shortcut/norm/var" in report
    assert "1 constant" in report  # BatchNorm's count of batches
    cfg = RunDir(run, create=False).read_config()
    assert cfg.model.touch.blocks == (1, 2, 1, 1) and cfg.model.touch.width_multiplier == 1 / 8


def test_a_vit_of_timms_that_pools_the_class_token(tmp_path, files, capsys):
    """ImageNet's: a norm of all tokens, and no fc_norm."""
    state = {name.replace("fc_norm", "norm"): value for name, value in touch_state().items()}
    safetensors.write(tmp_path / "vit.safetensors", state)
    run = convert(tmp_path / "run", str(tmp_path / "vit.safetensors"), files["clip"])
    cfg = RunDir(run, create=False).read_config()
    assert (cfg.model.touch.pool, cfg.model.touch.final_norm) == ("class", "layer")
    leaves, _ = initialize.load_params(str(run))
    np.testing.assert_array_equal(leaves["touch/encoder/final_norm/scale"], state["norm.weight"])
    assert leaves["logit_scale"] == np.float32(4.6)  # a timm model has none


def test_heads_into_a_common_space(tmp_path, files):
    model = {k: v for k, v in tvl_model(touch_state()).items() if ".head." not in k}
    widths = {"tactile": 32, "vision": 24, "text": 24}
    heads = {
        f"modality_heads.{name}.weight": rng.normal(size=(10, width)).astype(np.float32)
        for name, width in widths.items()
    }
    source = write_tvl(tmp_path / "tvl.pth", {**model, **heads})
    run = convert(tmp_path / "run", source, files["clip"])
    module = module_of(run, make_model)
    state = {k.removeprefix("tactile_encoder."): v for k, v in model.items()}
    pooled = torch_reference.timm_vit(state, TOUCH, num_heads=4)
    expected = pooled @ heads["modality_heads.tactile.weight"].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with jax.default_matmul_precision("highest"):
        projected = module.project(module.encode({"touch": TOUCH}))["touch"]
    np.testing.assert_allclose(projected, expected, atol=1e-5)
    out = tmp_path / "tvl.safetensors"
    assert cli.main(["convert", str(run), "--to", "tvl", "--out", str(out)]) == 0
    same(torch_files.tensors(out), {**model, **heads})


def test_the_task_takes_the_config(run):
    """What evaluation and training build of `config.json`."""
    cfg = RunDir(run, create=False).read_config()
    picture = jax.ShapeDtypeStruct((4, 16, 16, 3), np.uint8)
    spec = {"touch": picture, "image": picture, "text": jax.ShapeDtypeStruct((4, 1, 9), np.int32)}
    task = make_task(cfg, DataFacts(spec=spec, vocab_size=50))
    leaves, _ = initialize.load_params(str(run))
    assert set(tree.flatten(task.model.params)) == set(leaves)


# ---- back to PyTorch's names


def same(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape, name
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_every_bit_comes_back(run, tmp_path, capsys):
    wanted = {
        "timm": touch_state(),
        "tvl": tvl_model(touch_state()),
        "open_clip": clip_state() | {"logit_scale": np.array(2.5, np.float32)},
    }
    for to, state in wanted.items():
        out = tmp_path / f"{to}.safetensors"
        assert cli.main(["convert", str(run), "--to", to, "--out", str(out)]) == 0
        same(torch_files.tensors(out), state)
        assert f"in {len(state)} arrays" in capsys.readouterr().out
        assert cli.main(["convert", str(run), "--to", to, "--out", str(out)]) == 2
        assert "is there already" in capsys.readouterr().err


def test_every_bit_of_a_resnet_comes_back(files, tmp_path):
    out = tmp_path / "resnet.safetensors"
    assert cli.main(["convert", files["resnet"], "--to", "timm", "--out", str(out)]) == 0
    state = resnet_state()
    counts = {n.replace("running_mean", "num_batches_tracked") for n in state if "_mean" in n}
    same(torch_files.tensors(out), state | dict.fromkeys(counts, np.array(0)))


def test_export_that_cannot_be(run, files, tmp_path, capsys):
    out = str(tmp_path / "x.safetensors")
    for arguments, words in (
        ([str(run), "--to", "timm", "--out", str(tmp_path / "x.npz")], "ends with .safetensors"),
        ([files["clip"], "--to", "timm", "--out", out], "there is no touch encoder"),
        ([files["tvl"], "--to", "open_clip", "--out", out], "no tower of CLIP for image"),
        ([str(run), "--to", "torchvision", "--out", out], "no ResNet or MobileNetV2 over"),
        ([str(run), files["tvl"], "--to", "tvl", "--out", out], "takes one SOURCE"),
        ([str(run), "--to", "tvl", "--inspect"], "takes one SOURCE"),
        ([str(tmp_path), "--to", "tvl", "--out", out], "not a run directory"),
    ):
        assert cli.main(["convert", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- what does not fit


def test_inspect_says_what_a_file_is(files, capsys):
    assert cli.main(["convert", files["tvl"], "--inspect", *HEADS]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{files['tvl']}: touch_tiny, step 40\n")
    assert "width=32" in out and "num_heads=4" in out and "image_size=16" in out
    assert cli.main(["convert", files["clip"], "--inspect", "--json", *HEADS]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["image"]["width"] == 32 and facts["problems"] == {}
    assert [row["key"] for row in facts["keys"]] == sorted(clip_state())
    assert facts["parts"] == {"image": "clip_image", "text": "clip_text", "scalars": "scalars"}


QKV = f"{PLACE}blocks.1.attn.qkv.weight"
WRONG = {
    "unknown": (
        {f"{PLACE}mask_token": np.zeros((1, 1, 32), np.float32)},
        f"{PLACE}mask_token: is no array of a model",
    ),
    "a layer is missing": ({QKV: None}, f"{QKV}: missing"),
    "missing": (
        {f"{PLACE}patch_embed.proj.bias": None, f"{PLACE}head.bias": None},
        f"{PLACE}head.bias: missing, of touch/projection/bias (24,)",
    ),
    "another shape": (
        {f"{PLACE}fc_norm.weight": np.ones(31, np.float32)},
        f"{PLACE}fc_norm.weight: makes touch/pool_norm/scale (31,), the model's is (32,)",
    ),
    "another layer's shape": (
        {f"{PLACE}blocks.1.norm1.bias": np.ones(31, np.float32)},
        f"{PLACE}blocks.1.norm1.bias: has shape (31,), that of its first layer is (32,)",
    ),
    "rows that are not of three": (
        {QKV: np.ones((95, 32), np.float32)},
        f"{QKV}: has shape (95, 32), not rows for 3 arrays alike",
    ),
    "axes": (
        {f"{PLACE}cls_token": np.ones((1, 32), np.float32)},
        f"{PLACE}cls_token: has shape (1, 32), not one of 3 axes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(tmp_path, case):
    changes, words = WRONG[case]
    model = {f"model.{name}": value for name, value in tvl_model(touch_state()).items()} | changes
    model = {k.removeprefix("model."): v for k, v in model.items() if v is not None}
    source = write_tvl(tmp_path / "tvl.pth", model)
    plan = tvl_plan.plan([source], head_dim=8)
    key, what = words.split(": ", 1)
    assert plan.problems[key].startswith(what)
    with pytest.raises(
        UserError, match=f"does not make a whole model:\n(.*\n)*.*{re.escape(words)}"
    ):
        run_of.check(plan)


def test_problems_can_be_allowed(tmp_path, files, capsys):
    model = tvl_model(touch_state()) | {"tactile_encoder.mask_token": np.zeros(3, np.float32)}
    del model["tactile_encoder.blocks.0.norm2.weight"]
    source = write_tvl(tmp_path / "tvl.pth", model)
    command = ["convert", source, files["clip"], *HEADS]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "tvl.pth: model.tactile_encoder.mask_token: is no array" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([*command, "--inspect"]) == 1
    assert "mask_token: is no array" in capsys.readouterr().out
    allowed = ["--allow", "mask_token$", "--allow", "norm2.weight$"]
    run = convert(tmp_path / "run", source, files["clip"], *allowed)
    assert "1 arrays are fresh: touch/encoder/layers/mlp_norm/scale" in capsys.readouterr().out
    leaves, _ = initialize.load_params(str(run))
    np.testing.assert_array_equal(leaves["touch/encoder/layers/mlp_norm/scale"], np.ones((2, 32)))


def test_files_of_something_else(tmp_path, files, capsys):
    other = save(tmp_path / "other.pt", {"vision_model.embeddings.class_embedding": np.zeros(3)})
    trunk = {f"visual.trunk.{name}": value for name, value in touch_state().items()}
    two = {f"{place}.{n}": v for place in ("model", "ema") for n, v in touch_state().items()}
    oblong = clip_state() | {"visual.positional_embedding": np.zeros((9, 32), np.float32)}
    touch, clip = files["tvl"], files["clip"]
    for arguments, words in (
        ([other], "holds neither a touch encoder of TVL"),
        ([save(tmp_path / "a.pt", trunk)], "below visual., is not a plain ViT"),
        ([save(tmp_path / "b.pt", two)], "2 towers for touch: below model. and ema."),
        ([save(tmp_path / "c.pt", oblong)], "8 positions"),
        ([touch, files["timm"]], "both hold a tower for touch"),
        ([touch], f"mmjax convert {touch} OPENCLIP_FILE --out RUN"),
        ([touch, str(tmp_path)], "is no file of PyTorch's"),
        ([str(tmp_path / "nothing.pth")], "there is no such file"),
        ([touch, clip, "--head-dim", "5"], "are not heads of 5"),
        ([touch, "--quick-gelu"], "--quick-gelu is of CLIP's towers"),
        ([touch, clip, "--vocab", str(tmp_path / "none.gz")], "there is no such file"),
    ):
        out = str(tmp_path / "run")
        assert cli.main(["convert", *HEADS, *arguments, "--out", out]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
