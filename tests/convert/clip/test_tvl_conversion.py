"""Converted TVL and OpenCLIP files compute the features of plain NumPy models."""

import argparse
import collections
import json
import re

import jax
import numpy as np
import pytest

import mmjax
from mmjax import config, tree
from mmjax.checkpoints.find import find
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert import torch_source
from mmjax.convert.clip import load as clip_load
from mmjax.convert.clip import plan as clip_plan
from mmjax.convert.load import load_params
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.formats import safetensors, torch_reader
from mmjax.models.tvl import make_model
from mmjax.pixel_statistics import TACTILE_MEAN, TACTILE_STD
from mmjax.state import ModelDef
from mmjax.tasks import make_task
from mmjax.tools import cli
from tests.convert.runs import module_of, read_report
from tests.convert.torch_writer import save
from tests.messages import assert_mentions, raises
from tests.models import torch_reference

rng = np.random.default_rng(0)
HEADS = ("--head-dim", "8")
TOUCH = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
IMAGE = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
IDS = np.array([[48, 3, 14, 49, 0, 0, 0, 0, 0], [48, 9, 2, 6, 5, 3, 5, 8, 49]])
PREFIX = "model.tactile_encoder."


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
    """Returns the entry `model` of a TVL checkpoint."""
    encoder = {f"tactile_encoder.{name}": value for name, value in state.items()}
    return collections.OrderedDict(logit_scale=np.array(scale, np.float32), **encoder)


def write_tvl(path, model):
    """Writes a file with the structure of TVL's published and newly trained checkpoints."""
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
    """{name: path} of source files."""
    directory = tmp_path_factory.mktemp("files")
    resnet = directory / "resnet.safetensors"
    safetensors.write(directory / "open_clip_model.safetensors", clip_state())
    safetensors.write(resnet, tvl_model(resnet_state()))
    return dict(
        tvl=write_tvl(directory / "tvl_enc.pth", tvl_model(touch_state())),
        clip=str(directory / "open_clip_model.safetensors"),
        clip_bin=save(directory / "open_clip_pytorch_model.bin", dict(clip_state())),
        resnet=str(resnet),
        timm=save(directory / "timm.pth", touch_state()),
    )


def convert(out, *arguments):
    assert cli.main(["convert", *arguments, *HEADS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """The run directory converted from a TVL and an OpenCLIP file."""
    return convert(tmp_path_factory.mktemp("run") / "run", files["tvl"], files["clip"])


def check_features(run, inputs, expected):
    """Compares the pooled features of a run with {modality: expected}."""
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


def test_features_of_touch_image_and_text(run):
    touch = torch_reference.timm_vit(touch_state(), TOUCH, num_heads=4)
    inputs = {"touch": TOUCH, "image": IMAGE, "text": IDS}
    check_features(run, inputs, {"touch": touch, **clip_features()})


def test_run_directory_has_step_config_and_sources(run, files):
    assert find(run) == (run, 40)  # the optimizer's count of steps
    cfg = RunDir(run, create=False).read_config()
    config.resolve(cfg)
    assert cfg.task == "touch" and cfg.init_from == ""
    assert (cfg.data.touch.size, cfg.data.image.size, cfg.data.text.max_tokens) == (16, 12, 9)
    assert cfg.model.touch.pool == "mean" and cfg.model.touch.projection == 24
    assert cfg.model.text.num_layers == 3 and cfg.model.text.vocab_size == 50
    record = json.loads((run / "run.json").read_text())
    assert_mentions(record["source"], files["tvl"], files["clip"])
    assert RunDir(run, create=False).complete_step() == 40
    leaves, _ = load_params(str(run))
    assert leaves["logit_scale"] == 2.5  # TVL's, not OpenCLIP's 4.6
    assert cfg.optimizer.frozen == ("^image/", "^text/")


def test_report_lists_every_entry_of_every_file(run, files):
    _, targets, num_keys = read_report(run)
    names = {f"tvl_enc.pth: {name}" for name in torch_reader.entries(files["tvl"])}
    names |= {f"open_clip_model.safetensors: {name}" for name in clip_state()}
    assert set(targets) == names
    block = f"tvl_enc.pth: {PREFIX}blocks.1.attn"
    layers = "touch/encoder/layers/attention"
    qkv = f"{layers}/{{query,key,value}}/kernel[1] float32 (96, 32)"
    assert targets[f"{block}.qkv.weight"] == qkv
    assert targets[f"{block}.proj.bias"] == f"{layers}/out/bias[1] float32 (32,)"
    assert targets["tvl_enc.pth: epoch"].endswith(" 12 int ()")
    assert targets["tvl_enc.pth: args.datasets"].endswith(" ['ssvtp', 'hct'] list ()")
    moments = targets["tvl_enc.pth: optimizer.state.4.exp_avg"]
    assert moments == f"{torch_source.OPTIMIZER} float32 (32,)"
    duplicate = targets["open_clip_model.safetensors: logit_scale"]
    assert duplicate == f"{torch_source.DUPLICATE} float32 ()"
    module = module_of(run, make_model)
    params = tree.flatten(ModelDef(lambda rngs: module).params)
    assert set(num_keys) == {f"params/{path} {x.shape}" for path, x in params.items()}
    assert num_keys[f"params/{layers}/query/kernel (2, 32, 32)"] == 2
    assert all(num_keys.values())


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.net."])
def test_one_file_with_all_towers_equals_two_files(files, tmp_path, prefix):
    """TVL's complete model contains its CLIP model."""
    model = {prefix + name: value for name, value in tvl_model(touch_state()).items()}
    clip = {f"{prefix}clip.{name}": value for name, value in clip_state().items()}
    one = clip_load.read(save(tmp_path / "all.pt", {**model, **clip}))
    two = clip_load.read_all((files["tvl"], files["clip"]))
    assert set(one.leaves) == set(two.leaves) and not one.mismatches and not one.unknown_keys()
    for path, leaf in one.leaves.items():
        expected = two.leaves[path].read(two.arrays())
        np.testing.assert_array_equal(leaf.read(one.arrays()), expected)
    assert set(one.unused_keys) == {f"{prefix}clip.logit_scale"}


def test_the_vocabulary_of_clip_is_checked_and_copied(files, tmp_path, capsys):
    merges = tmp_path / "bpe_simple_vocab.txt"
    merges.write_text("#version\nt h\nth e</w>\n")
    size = 2 * 256 + 2 + 2  # bytes, also at the end of a word; merges; start and end
    table = rng.normal(size=(size, 16)).astype(np.float32)
    source = save(tmp_path / "clip.bin", clip_state() | {"token_embedding.weight": table})
    run = convert(tmp_path / "run", source, "--vocab", str(merges))
    text = RunDir(run, create=False).read_config().data.text
    assert (text.vocab, text.tokenizer) == (str(run / merges.name), "clip")
    assert (run / merges.name).read_text() == merges.read_text()
    (note,) = [line for line in read_report(run).summary.splitlines() if str(merges) in line]
    assert_mentions(note, "tokenizer clip")
    capsys.readouterr()
    command = ["convert", files["clip"], *HEADS, "--vocab", str(merges), "--inspect"]
    assert cli.main(command) == 2
    assert_mentions(capsys.readouterr().err, f"--vocab {merges}", 516, 50)


@pytest.mark.parametrize("options, quick", [((), False), (("--quick-gelu",), True)])
def test_open_clip_file_becomes_an_image_text_model(files, tmp_path, options, quick, capsys):
    run = convert(tmp_path / "run", files["clip_bin"], *options)
    # Without the flag, the report says how to choose OpenAI's activation.
    activation = [line for line in capsys.readouterr().out.splitlines() if "GELU" in line]
    assert ["quickgelu" in line for line in activation] == [not quick]
    assert_mentions(activation[0], "--quick-gelu", "1.702")
    check_features(run, {"image": IMAGE, "text": IDS}, clip_features(quick_gelu=quick))
    cfg = RunDir(run, create=False).read_config()
    config.resolve(cfg)
    assert cfg.model.touch is None and cfg.data.touch is None and cfg.checkpoint.best == ""
    assert cfg.evals.test.pairs == ("image_text",)
    assert (cfg.evals.affinity.query, cfg.evals.affinity.target) == ("image", "text")
    assert load_params(str(run))[0]["logit_scale"] == np.float32(4.6)


def test_a_tvl_file_without_open_clip_embeds_touch(tmp_path):
    state = torch_reference.timm_vit_state(
        width=64, num_layers=1, image_size=16, patch_size=4, num_classes=24, seed=1
    )
    model = mmjax.load(write_tvl(tmp_path / "tvl_enc.pth", tvl_model(state)))
    assert model.modalities == ("touch",)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    rotated = np.rot90(image)[None] / 255
    rotated = (rotated - TACTILE_MEAN) / np.array(TACTILE_STD)
    expected = torch_reference.timm_vit(state, rotated.astype(np.float32), num_heads=1)[0]
    expected = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(model.embed_touch(image), expected, atol=1e-5)


def test_resnet_touch_encoder_features(files, tmp_path):
    run = convert(tmp_path / "run", files["resnet"], files["clip"])
    expected = torch_reference.torch_resnet(resnet_state(), TOUCH)
    check_features(run, {"touch": TOUCH}, {"touch": expected})
    report = read_report(run)
    assert report.num_keys["extra/touch/groups/1/0/shortcut/norm/var (16,)"] == 1
    counter = f"resnet.safetensors: {PREFIX.removeprefix('model.')}layer1.0.bn1.num_batches_tracked"
    assert "touch/" not in report.targets[counter]  # BatchNorm's count of batches is not used
    cfg = RunDir(run, create=False).read_config()
    assert cfg.model.touch.blocks == (1, 2, 1, 1) and cfg.model.touch.width_multiplier == 1 / 8


def test_timm_vit_that_pools_the_class_token(tmp_path, files):
    """timm's ImageNet models normalize all tokens and have no `fc_norm`."""
    state = {name.replace("fc_norm", "norm"): value for name, value in touch_state().items()}
    safetensors.write(tmp_path / "vit.safetensors", state)
    run = convert(tmp_path / "run", str(tmp_path / "vit.safetensors"), files["clip"])
    cfg = RunDir(run, create=False).read_config()
    assert (cfg.model.touch.pool, cfg.model.touch.final_norm) == ("class", "layer")
    leaves, _ = load_params(str(run))
    np.testing.assert_array_equal(leaves["touch/encoder/final_norm/scale"], state["norm.weight"])
    assert leaves["logit_scale"] == np.float32(4.6)  # OpenCLIP's; timm models have none


def test_tvl_projection_heads_are_converted_and_exported(tmp_path, files):
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
    assert_same_arrays(torch_reader.tensors(out), {**model, **heads})


def test_the_task_of_the_config_has_exactly_the_converted_parameters(run):
    """Evaluation and training build this task from `config.json`."""
    cfg = RunDir(run, create=False).read_config()
    image = jax.ShapeDtypeStruct((4, 16, 16, 3), np.uint8)
    spec = {"touch": image, "image": image, "text": jax.ShapeDtypeStruct((4, 1, 9), np.int32)}
    task = make_task(cfg, DataSpec(batch=spec, vocab_size=50))
    leaves, _ = load_params(str(run))
    assert set(tree.flatten(task.model.params)) == set(leaves)


# ---- Export to PyTorch's names


def assert_same_arrays(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape, name
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_export_after_conversion_is_lossless(run, tmp_path, capsys):
    states = {
        "timm": touch_state(),
        "tvl": tvl_model(touch_state()),
        "open_clip": clip_state() | {"logit_scale": np.array(2.5, np.float32)},
    }
    for to, state in states.items():
        out = tmp_path / f"{to}.safetensors"
        assert cli.main(["convert", str(run), "--to", to, "--out", str(out)]) == 0
        assert_same_arrays(torch_reader.tensors(out), state)
        parameters = sum(value.size for value in state.values())
        assert_mentions(capsys.readouterr().out, out, f"{parameters:,}", len(state))
        assert cli.main(["convert", str(run), "--to", to, "--out", str(out)]) == 2
        assert_mentions(capsys.readouterr().err, f"--out {out}")
        assert_same_arrays(torch_reader.tensors(out), state)


def test_export_of_a_resnet_is_lossless(files, tmp_path):
    out = tmp_path / "resnet.safetensors"
    assert cli.main(["convert", files["resnet"], "--to", "timm", "--out", str(out)]) == 0
    state = resnet_state()
    counters = {n.replace("running_mean", "num_batches_tracked") for n in state if "_mean" in n}
    assert_same_arrays(torch_reader.tensors(out), state | dict.fromkeys(counters, np.array(0)))


def test_export_errors(run, files, tmp_path, capsys):
    out = str(tmp_path / "x.safetensors")
    npz = str(tmp_path / "x.npz")
    for arguments, facts in (
        ([str(run), "--to", "timm", "--out", npz], (npz, "--to timm", ".safetensors", ".pth")),
        ([files["clip"], "--to", "timm", "--out", out], ("--to timm", "touch")),
        ([files["tvl"], "--to", "open_clip", "--out", out], ("--to open_clip", "CLIP", "image")),
        (
            [str(run), "--to", "torchvision", "--out", out],
            ("--to torchvision", "ResNet", "MobileNetV2"),
        ),
        ([str(run), files["tvl"], "--to", "tvl", "--out", out], ("--to", "SOURCE", "--out")),
        ([str(run), "--to", "tvl", "--inspect"], ("--to", "SOURCE", "--out")),
        ([str(tmp_path), "--to", "tvl", "--out", out], (tmp_path, "<run>/checkpoints/<step>")),
    ):
        assert cli.main(["convert", *arguments]) == 2
        assert_mentions(capsys.readouterr().err, *facts)
    assert not list(tmp_path.iterdir())


# ---- Inspection and errors


def test_inspect_describes_the_model_of_a_file(files, capsys):
    assert cli.main(["convert", files["tvl"], "--inspect", *HEADS]) == 0
    out = capsys.readouterr().out
    assert_mentions(out.splitlines()[0], files["tvl"], "touch_tiny", "step 40")
    assert_mentions(out, "width=32", "num_heads=4", "image_size=16")
    assert cli.main(["convert", files["clip"], "--inspect", "--json", *HEADS]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["image"]["width"] == 32 and facts["mismatches"] == {}
    assert [row["key"] for row in facts["keys"]] == sorted(clip_state())
    assert facts["components"] == {"image": "clip_image", "text": "clip_text", "scalars": "scalars"}


QKV = f"{PREFIX}blocks.1.attn.qkv.weight"
WRONG = {
    "unknown": (
        {f"{PREFIX}mask_token": np.zeros((1, 1, 32), np.float32)},
        f"{PREFIX}mask_token",
        (),
    ),
    "missing layer": ({QKV: None}, QKV, ()),
    "missing": (
        {f"{PREFIX}patch_embed.proj.bias": None, f"{PREFIX}head.bias": None},
        f"{PREFIX}head.bias",
        ("touch/projection/bias", (24,)),
    ),
    "other shape": (
        {f"{PREFIX}fc_norm.weight": np.ones(31, np.float32)},
        f"{PREFIX}fc_norm.weight",
        ("touch/pool_norm/scale", (31,), (32,)),
    ),
    "other shape in one layer": (
        {f"{PREFIX}blocks.1.norm1.bias": np.ones(31, np.float32)},
        f"{PREFIX}blocks.1.norm1.bias",
        ((31,), (32,)),
    ),
    "size that is not divisible": ({QKV: np.ones((95, 32), np.float32)}, QKV, ((95, 32), 3)),
    "number of axes": (
        {f"{PREFIX}cls_token": np.ones((1, 32), np.float32)},
        f"{PREFIX}cls_token",
        ((1, 32), 3),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_fit_are_reported(tmp_path, case):
    changes, key, facts = WRONG[case]
    model = {f"model.{name}": value for name, value in tvl_model(touch_state()).items()} | changes
    model = {k.removeprefix("model."): v for k, v in model.items() if v is not None}
    source = write_tvl(tmp_path / "tvl.pth", model)
    plan = clip_plan.plan_conversion([source], head_dim=8)
    assert set(plan.mismatches) == {key}
    for fact in facts:  # as whole numbers
        assert re.search(rf"(?<!\w){re.escape(str(fact))}(?!\w)", plan.mismatches[key]), fact
    with raises(UserError, source, key, plan.mismatches[key], "--allow"):
        plan.check()


def test_allowed_problems_are_left_out_or_randomly_initialized(tmp_path, files, capsys):
    model = tvl_model(touch_state()) | {"tactile_encoder.mask_token": np.zeros(3, np.float32)}
    del model["tactile_encoder.blocks.0.norm2.weight"]
    source = write_tvl(tmp_path / "tvl.pth", model)
    command = ["convert", source, files["clip"], *HEADS]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    unknown = f"tvl.pth: {PREFIX}mask_token"
    assert_mentions(capsys.readouterr().err, unknown, f"{PREFIX}blocks.0.norm2.weight", "--allow")
    assert not (tmp_path / "run").exists()
    assert cli.main([*command, "--inspect"]) == 1
    assert_mentions(capsys.readouterr().out, unknown, f"{PREFIX}blocks.0.norm2.weight")
    allowed = ["--allow", "mask_token$", "--allow", "norm2.weight$"]
    run = convert(tmp_path / "run", source, files["clip"], *allowed)
    scale = "touch/encoder/layers/mlp_norm/scale"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if scale in line]
    assert re.search(r"(?<!\w)1(?!\w)", line)
    num_keys = read_report(run).num_keys
    assert [array for array, n in num_keys.items() if n == 0] == [f"params/{scale} (2, 32)"]
    leaves, _ = load_params(str(run))
    np.testing.assert_array_equal(leaves[scale], np.ones((2, 32)))


def test_files_of_other_models_and_misplaced_flags_are_rejected(tmp_path, files, capsys):
    other = save(tmp_path / "other.pt", {"vision_model.embeddings.class_embedding": np.zeros(3)})
    trunk = {f"visual.trunk.{name}": value for name, value in touch_state().items()}
    two = {f"{prefix}.{n}": v for prefix in ("model", "ema") for n, v in touch_state().items()}
    oblong = clip_state() | {"visual.positional_embedding": np.zeros((9, 32), np.float32)}
    touch, clip = files["tvl"], files["clip"]
    nothing, no_vocab = str(tmp_path / "nothing.pth"), str(tmp_path / "none.gz")
    for arguments, facts in (
        ([other], (other, "TVL", "OpenCLIP", "vision_model.embeddings.class_embedding")),
        ([save(tmp_path / "a.pt", trunk)], ("a.pt", "visual.", "ViT")),
        ([save(tmp_path / "b.pt", two)], ("b.pt", 2, "touch", "model.", "ema.")),
        ([save(tmp_path / "c.pt", oblong)], ("image", "4 × 4 × 3", 8)),
        ([touch, files["timm"]], (touch, files["timm"], "touch")),
        ([touch], ("touch", f"mmjax convert {touch} OPENCLIP_FILE --out RUN")),
        ([touch, str(tmp_path)], (tmp_path, "PyTorch", ".safetensors")),
        ([nothing], (nothing,)),
        ([touch, clip, "--head-dim", "5"], ("touch/encoder", 32, 5, "--head-dim")),
        ([touch, "--quick-gelu"], ("--quick-gelu", "CLIP")),
        ([touch, clip, "--vocab", no_vocab], (f"--vocab {no_vocab}",)),
    ):
        out = str(tmp_path / "run")
        assert cli.main(["convert", *HEADS, *arguments, "--out", out]) == 2
        assert_mentions(capsys.readouterr().err, *facts)
    assert not (tmp_path / "run").exists()
