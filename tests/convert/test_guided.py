"""Backbones of pictures and LGSSL's checkpoints converted, against their models in plain NumPy."""

import json
import re

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import mmjax
from mmjax import config, initialize, pictures
from mmjax.convert import backbones, guided, guided_plan, safetensors, torch_files
from mmjax.convert import run as run_of
from mmjax.errors import UserError
from mmjax.models.guided import make_model
from mmjax.models.towers import build_tower
from mmjax.rundir import RunDir
from mmjax.state import ModelDef
from mmjax.tools import cli
from tests.convert.runs import module_of
from tests.convert.torch_writer import Call, Global, save, save_as_before
from tests.models import torch_reference

rng = np.random.default_rng(0)
PICTURES = rng.normal(size=(2, 33, 40, 3)).astype(np.float32)
WIDTH = 64  # of the small ResNet's features
IDS = np.array([[48, 3, 14, 49, 0, 0, 0, 0, 0], [48, 9, 2, 6, 5, 3, 5, 8, 49]])
# The published table with few channels.
GROUPS = (
    *((1, 8, 1, 1), (6, 8, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2)),
    *((6, 16, 3, 1), (6, 24, 3, 2), (6, 24, 1, 1)),
)


def counted(state):
    """With BatchNorm's counters, which all these files have."""
    names = [name for name in state if name.endswith("running_mean")]
    return state | {n.replace("running_mean", "num_batches_tracked"): np.array(7) for n in names}


def resnet(num_classes=0, seed=0, blocks=(1, 2), **options):
    options = dict(bottleneck=True, width=8) | options
    return counted(
        torch_reference.torch_resnet_state(
            blocks=blocks, num_classes=num_classes, seed=seed, **options
        )
    )


def mobilenet(num_classes=0):
    return counted(
        torch_reference.torch_mobilenet_state(
            groups=GROUPS, stem=8, head=32, num_classes=num_classes
        )
    )


def in_timms_names(state):
    """A MobileNetV2's arrays, which timm has in the same order."""
    names = ["conv_stem.weight", "bn1"]
    for group, (expansion, _, count, _) in enumerate(GROUPS):
        parts = ("conv_dw", "conv_pw") if expansion == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        for j in range(count):
            for number, part in enumerate(parts, 1):
                block = f"blocks.{group}.{j}"
                names += [f"{block}.{part}.weight", f"{block}.bn{number}"]
    names += ["conv_head.weight", "bn2"]
    statistics = ("weight", "bias", "running_mean", "running_var")
    flat = [
        whole
        for name in names
        for whole in ([name] if name.endswith(".weight") else [f"{name}.{s}" for s in statistics])
    ]
    theirs = [name for name in state if "num_batches" not in name and "classifier" not in name]
    out = {new: state[old] for new, old in zip(flat, theirs, strict=True)}
    more = {"classifier.weight": "classifier.1.weight", "classifier.bias": "classifier.1.bias"}
    return counted(out) | {new: state[old] for new, old in more.items() if old in state}


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def drawn(**shapes):
    """Arrays by name, '__' for a dot: scales and variances around 1."""
    out = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape) * 0.2
        positive = len(shape) == 1 and name.endswith(("weight", "var"))
        value = np.exp(noise) if positive else noise
        out[name.replace("__", ".")] = value.astype(np.float32)
    return out


def mlp(prefix, *widths, final=False):
    """The state of a projection MLP as LGSSL's code names it."""
    shapes, last = {}, len(widths) - 2
    for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        shapes[f"{prefix}__{3 * i}__weight"] = (fan_out, fan_in)
        if i < last or final:
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{prefix}__{3 * i + 1}__{name}"] = (fan_out,)
    return counted(drawn(**shapes))


def through(state, prefix, x):
    """What that MLP computes."""
    i = 0
    while f"{prefix}.{3 * i}.weight" in state:
        x = np.maximum(x, 0) if i else x
        x = x @ state[f"{prefix}.{3 * i}.weight"].T.astype(np.float64)
        norm = f"{prefix}.{3 * i + 1}"
        if f"{norm}.weight" in state:
            weight, bias, mean, var = (
                state[f"{norm}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")
            )
            x = (x - mean) / np.sqrt(var + 1e-5) * weight + bias
        i += 1
    return x


def language(seed=5):
    state = torch_reference.open_clip_state(
        width=8,
        text_width=64,
        num_layers=1,
        text_layers=2,
        image_size=8,
        patch_size=4,
        embed_dim=64,
        vocab_size=50,
        context_length=9,
        seed=seed,
    )
    left = ("visual.", "logit_scale", "text_projection")
    return {name: value for name, value in state.items() if not name.startswith(left)}


def lightning(state, step=3):
    """A checkpoint as PyTorch Lightning writes it."""
    moments = {0: {"step": np.array(step), "exp_avg": np.ones(3, np.float32)}}
    return dict(
        state_dict=state,
        epoch=1,
        global_step=step,
        optimizer_states=[{"state": moments, "param_groups": [{"lr": 1e-3, "params": [0]}]}],
        lr_schedulers=[{"last_epoch": 3, "_last_lr": [1e-3]}],
        hyper_parameters={
            **{"name": "simclr", "dims": [2048, 128]},
            "config": Call(Global("omegaconf.dictconfig", "DictConfig"), state={"_content": {}}),
        },
        callbacks={"ModelCheckpoint": {"best_model_score": np.array(0.5, np.float32)}},
    )


def convert(out, *arguments):
    assert cli.main(["convert", *arguments, "--out", str(out)]) == 0
    return out


def close(actual, expected):
    assert np.abs(np.asarray(actual) - expected).max() < 2e-5 * np.abs(expected).max()


def features(module, **inputs):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda inputs: module.encode(inputs))(inputs)


def embedded(module, head, x):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda x: module.heads[head](x, train=False))(x)


# ---- a backbone alone


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """(file, run directory) of a backbone as LGSSL publishes it."""
    folder = tmp_path_factory.mktemp("released")
    source = save(folder / "lgsimclr.ckpt", resnet())
    return source, convert(folder / "run", source)


def test_a_released_backbone(released, capsys):
    source, run = released
    close(
        features(module_of(run, make_model), image=PICTURES)["image"],
        torch_reference.torch_resnet(resnet(), PICTURES),
    )
    cfg = RunDir(run, create=False).read_config()
    config.check(cfg)
    assert cfg.task == "guided" and not cfg.loss and set(cfg.model) == {"image"}
    image = cfg.model.image
    assert (image.name, image.blocks, image.width_multiplier) == ("resnet50", (1, 2), 1 / 8)
    assert (cfg.data.image.size, cfg.data.image.resize) == (224, "bicubic")
    assert cfg.data.image.square == "crop_resized"
    assert tuple(cfg.augment.image.mean) == pictures.IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert tuple(cfg.augment.image.std) == pictures.IMAGENET_STD == (0.229, 0.224, 0.225)
    assert json.loads((run / "run.json").read_text())["source"] == source
    report = (run / "conversion.txt").read_text()
    keys, _ = report.split("Every array and what it is made of:")
    rows = {line.split("  ← ")[1] for line in keys.splitlines() if "  ← " in line}
    assert rows == set(resnet())
    counters = sum("num_batches" in name for name in resnet())
    assert f"Left over: {counters} constant\n" in report


def smooth(sizes):
    rows, columns = (np.arange(size)[:, None] / size for size in sizes)
    waves = np.sin(9 * rows[:, None] * rng.uniform(1, 2, 3)) * np.cos(7 * columns[None])
    return 128 + 110 * waves


@pytest.mark.parametrize("which", ["file", "run"])
def test_pictures_are_embedded_as_lgssl_evaluates_them(released, which):
    source = dict(zip(("file", "run"), released, strict=True))[which]
    model = mmjax.load(source, overrides=["--config.data.image.size=32"])
    assert model.modalities == ("image",)
    array = np.clip(smooth((50, 80)), 0, 255).astype(np.uint8)
    small = PIL.Image.fromarray(array).resize((51, 32), PIL.Image.Resampling.BICUBIC)
    middle = np.asarray(small)[:, 10:42] / 255
    middle = (middle - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = torch_reference.torch_resnet(resnet(), middle[None])[0]
    found = model.embed_image(array)
    assert found.shape == (WIDTH,) and found.dtype == np.float32
    # PIL rounds to grey levels between rows and columns.
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    with pytest.raises(UserError, match="has no text"):
        model.embed_text("a cat")


BASELINES = {
    "simclr": lambda state: lightning(
        below("encoder.", state)
        | below("projection.model.", drawn(__0__weight=(9, WIDTH)))
        | drawn(non_linear_evaluator__block_forward__0__weight=(4, 4))
    ),
    "simsiam": lambda state: dict(
        state_dict=below("module.encoder.", state)
        | drawn(module__encoder__fc__0__weight=(9, WIDTH), module__encoder__fc__1__bias=(9,))
        | drawn(module__predictor__0__weight=(9, 9)),
        epoch=100,
        arch="resnet50",
        optimizer={"state": {0: {"momentum_buffer": np.ones(3, np.float32)}}, "param_groups": []},
    ),
    "swav": lambda state: (
        below("module.", state)
        | drawn(
            module__projection_head__0__weight=(9, WIDTH), module__projection_head__1__bias=(9,)
        )
        | drawn(module__prototypes__weight=(30, 9))
    ),
    "mocov3": lambda state: dict(
        state_dict=below("module.base_encoder.", state)
        | drawn(module__base_encoder__fc__0__weight=(9, WIDTH))
        | below("module.momentum_encoder.", resnet(seed=9))
        | drawn(module__predictor__0__weight=(9, 9)),
        epoch=100,
    ),
    "torchvision": lambda state: state | drawn(fc__weight=(10, WIDTH), fc__bias=(10,)),
}


@pytest.mark.parametrize("name", BASELINES)
def test_published_baselines(tmp_path, name):
    source = save(tmp_path / f"{name}.pth", BASELINES[name](resnet()))
    plan = guided_plan.plan(source)
    assert not plan.problems and plan.step == (3 if name == "simclr" else 0)
    wanted = {path: x for path, x in guided_plan_leaves(resnet(), tmp_path).items()}
    assert plan.made_of.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(plan.read(path), value)
    left = {what for what in plan.becomes.values() if "left out" in what}
    assert left == {guided.HEAD} | ({guided.AVERAGE} if name == "mocov3" else set())
    assert guided.fits(source)


def guided_plan_leaves(state, folder):
    plan = guided_plan.plan(save(folder / "plain.pth", state))
    return {path: plan.read(path) for path in plan.made_of}


@pytest.mark.parametrize("names", ["torchvision", "timm"])
def test_mobilenets(tmp_path, names):
    state = mobilenet(num_classes=5)
    source = save(tmp_path / "m.pth", state if names == "torchvision" else in_timms_names(state))
    run = convert(tmp_path / "run", source)
    strides = [s if j == 0 else 1 for _, _, n, s in GROUPS for j in range(n)]
    expected = torch_reference.torch_mobilenet(state, PICTURES, strides)
    close(features(module_of(run, make_model), image=PICTURES)["image"], expected)
    image = RunDir(run, create=False).read_config().model.image
    assert image.name == "mobilenet_v2" and image.groups == GROUPS
    assert "2 left out, a head" in (run / "conversion.txt").read_text()


def test_a_file_of_pytorch_before_its_archives(tmp_path):
    """As torchvision's published weights are."""
    old = guided_plan.plan(save_as_before(tmp_path / "old.pth", resnet(num_classes=3)))
    new = guided_plan.plan(save(tmp_path / "new.pth", resnet(num_classes=3)))
    for path in new.made_of:
        np.testing.assert_array_equal(old.read(path), new.read(path))


# ---- LGSSL's trainings


def training(*parts):
    state = below("visual_backbone.", resnet())
    for part in parts:
        state |= part
    return state


CLIP_PARTS = (
    below("language_backbone.", language()),
    drawn(language_project__weight=(10, 64)),
    dict(clip_scale=np.array(2.7, np.float32)),
)
TRAININGS = {
    "simclr": (training(mlp("visual_project", WIDTH, 24, 24, 9)), dict(projection=(24, 24, 9))),
    "simsiam": (
        training(mlp("proj_mlp", WIDTH, 24, 24, 24, final=True), mlp("pred_mlp", 24, 8, 24)),
        dict(projection=(24, 24, 24), predictor=(8, 24)),
    ),
    "swav": (
        training(mlp("visual_project", WIDTH, 24, 9), drawn(prototypes__weight=(30, 9))),
        dict(projection=(24, 9)),
    ),
    "clip": (
        training(drawn(visual_project__weight=(10, WIDTH)), *CLIP_PARTS),
        dict(clip=(10,), text=(10,)),
    ),
    "slip": (
        training(
            mlp("visual_project", WIDTH, 24, 24, 9),
            drawn(clip_vis_project__weight=(10, WIDTH)),
            *CLIP_PARTS,
        ),
        dict(projection=(24, 24, 9), clip=(10,), text=(10,)),
    ),
    "lgslip": (
        training(mlp("visual_project", WIDTH, 24, 24, 10), *CLIP_PARTS),
        dict(projection=(24, 24, 10), text=(10,)),
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings(tmp_path, name):
    state, heads = TRAININGS[name]
    run = convert(tmp_path / "run", save(tmp_path / f"{name}.ckpt", lightning(state)))
    cfg, module = RunDir(run, create=False).read_config(), module_of(run, make_model)
    config.check(cfg)
    found = config.plain(cfg.model.heads)
    assert {head: options["dims"] for head, options in found.items()} == heads
    assert {h for h, options in found.items() if options["final_norm"]} == (
        {"projection"} if name == "simsiam" else set()
    )
    pooled = torch_reference.torch_resnet(
        {n.removeprefix("visual_backbone."): x for n, x in state.items()}, PICTURES
    )
    close(features(module, image=PICTURES)["image"], pooled)
    x = np.float32(pooled)
    if "projection" in heads:
        prefix = "proj_mlp" if name == "simsiam" else "visual_project"
        projected = through(state, prefix, pooled)
        close(embedded(module, "projection", x), projected)
    if name == "simsiam":
        predicted = through(state, "pred_mlp", projected)
        close(embedded(module, "predictor", np.float32(projected)), predicted)
    if "clip" in heads:
        names = dict(clip="visual_project.weight", slip="clip_vis_project.weight")
        close(embedded(module, "clip", x), pooled @ state[names[name]].T)
    if "text" in heads:
        tower = {n.removeprefix("language_backbone."): v for n, v in state.items()}
        tower["text_projection"] = np.eye(64)  # LGSSL's has none
        text = torch_reference.open_clip_text(tower, IDS, num_heads=1, quick_gelu=True)
        made = features(module, text=IDS)["text"]
        close(made, text)
        close(embedded(module, "text", np.float32(text)), text @ state["language_project.weight"].T)
        assert module.logit_scale[...] == np.float32(2.7)
        wanted = dict(clip=dict(head="projection")) if name == "lgslip" else {}
        assert config.plain(cfg.loss) == wanted
        assert (cfg.data.text.tokenizer, cfg.data.text.max_words) == ("clip", 9)
    if name == "swav":
        leaves, _ = initialize.load_params(str(run))
        wanted = state["prototypes.weight"].T
        np.testing.assert_array_equal(leaves["prototypes/kernel"], wanted)
    report = (run / "conversion.txt").read_text()
    assert "step 3" in report.splitlines()[0]
    rows = {
        line.split("  ← ")[1]: line.split()[0] for line in report.splitlines() if "  ← " in line
    }
    assert rows["hyper_parameters.name"] == "value:" and rows["epoch"] == "value:"
    assert rows["hyper_parameters.config"] == "value:"
    assert rows["optimizer_states.0.state.0.exp_avg"] == "optimizer"
    assert rows["callbacks.ModelCheckpoint.best_model_score"] == "outside"
    assert {f"state_dict.{key}" for key in state} <= set(rows)


def test_another_encoder_of_texts_is_left_out(tmp_path):
    """As in trainings on a frozen sentence encoder."""
    texts = drawn(
        language_backbone__0__auto_model__embeddings__word_embeddings__weight=(9, 4),
        language_project__weight=(10, 4),
        visual_project__weight=(10, WIDTH),
    )
    state = training(texts, dict(clip_scale=np.array(2.7, np.float32)))
    run = convert(tmp_path / "run", save(tmp_path / "sbert.ckpt", lightning(state)))
    assert set(RunDir(run, create=False).read_config().model) == {"image", "heads"}
    assert f"3 {guided.NO_TEXTS}" in (run / "conversion.txt").read_text()


def test_pictures_and_texts_of_a_training_meet(tmp_path):
    merges = tmp_path / "bpe_simple_vocab.txt"
    merges.write_text("#version\nt h\nth e</w>\n")
    state, _ = TRAININGS["lgslip"]
    table = rng.normal(size=(2 * 256 + 2 + 2, 64)).astype(np.float32)
    state = state | {"language_backbone.token_embedding.weight": table}
    source = save(tmp_path / "lgslip.ckpt", lightning(state))
    run = convert(tmp_path / "run", source, "--vocab", str(merges))
    model = mmjax.load(run, overrides=["--config.data.image.size=32"])
    image = model.embed_image(rng.integers(0, 256, (2, 32, 32, 3), np.uint8))
    text = model.embed_text(["the", "a"])
    assert image.shape == text.shape == (2, 10)
    np.testing.assert_allclose(np.linalg.norm([*image, *text], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.logit_scale, np.exp(2.7), rtol=1e-5)


def test_pictures_of_a_model_whose_texts_were_features(tmp_path):
    """Its head for texts has no tower below it, and none is needed for pictures."""
    state, _ = TRAININGS["clip"]
    source = save(tmp_path / "clip.ckpt", lightning(state))
    leaves, _ = initialize.load_params(source)
    cfg = guided_plan.config_of(source)
    cfg.model.text = cfg.data.text = None
    cfg.data.image.size = 32
    picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
    found = mmjax.inference.Model(cfg, leaves, source).embed_image(picture)
    x = (picture / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    backbone = {n.removeprefix("visual_backbone."): v for n, v in state.items()}
    expected = torch_reference.torch_resnet(backbone, x[None])[0] @ state["visual_project.weight"].T
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-4)


# ---- starting from the files


def start(spec, source, **options):
    """Values and the report of what a tower takes of a file."""
    model = ModelDef(lambda rngs: Holder(spec, rngs))
    target = initialize.target_of({"params": model.params, "extra": model.extra})
    return initialize.match(target, initialize.load_params(source)[0], **options)


class Holder(nnx.Module):
    """Towers by name."""

    def __init__(self, towers, rngs):
        for name, spec in towers.items():
            setattr(self, name, build_tower(spec, rngs=rngs))


SMALL = dict(name="resnet50", blocks=(1, 2), width_multiplier=0.125)


@pytest.mark.parametrize("tower", ["image", "touch"])
@pytest.mark.parametrize("projection", [0, 5])
def test_a_backbone_goes_where_a_model_has_one(tmp_path, tower, projection):
    source = save(tmp_path / "r.pth", resnet(num_classes=5))
    values, report = start({tower: dict(SMALL, projection=projection)}, source)
    assert not (report.missing or report.unexpected or report.mismatched)
    wanted = resnet(num_classes=5)["layer1.0.bn1.running_var"]
    np.testing.assert_array_equal(values[f"extra/{tower}/groups/0/0/first/norm/var"], wanted)
    assert (f"{tower}/projection/kernel" in values) == bool(projection)


def test_two_towers_that_could_take_it(tmp_path):
    source = save(tmp_path / "r.pth", resnet())
    towers = dict(image=SMALL, touch=SMALL)
    with pytest.raises(UserError, match=r"has two that could take them.*init_map"):
        start(towers, source)
    _, report = start(towers, source, names=(("backbone/", "touch/"),))
    assert not report.unexpected and all("image/" in path for path in report.missing)


def test_heads_come_along(tmp_path):
    source = save(tmp_path / "simclr.ckpt", lightning(TRAININGS["simclr"][0]))
    leaves, what = initialize.load_params(source)
    assert {"heads/projection/linear/2/kernel", "extra/heads/projection/norm/1/var"} <= set(leaves)
    assert what == f"the backbone of {source}" and "image/stem/conv/kernel" in leaves


# ---- back to PyTorch's names


def same(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            assert actual[name].dtype == value.dtype, name
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize(
    "make, suffix", [(resnet, ".pth"), (resnet, ".safetensors"), (mobilenet, ".pth")]
)
def test_every_bit_comes_back(tmp_path, make, suffix, capsys):
    source, out = save(tmp_path / "a.ckpt", make()), tmp_path / f"back{suffix}"
    command = ["convert", str(convert(tmp_path / "run", source)), "--to", "torchvision"]
    assert cli.main([*command, "--out", str(out)]) == 0
    same(torch_files.tensors(out), make())
    loaded = dict(resnet="timm.create_model('NAME'", mobilenet="torchvision.models.mobilenet_v2(")
    assert loaded[make.__name__] in capsys.readouterr().out
    assert cli.main([*command, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("width, name", [(64, "resnet18"), (32, "NAME")])
def test_the_model_that_takes_the_file_is_named_by_depth_and_width(tmp_path, width, name, capsys):
    state = resnet(blocks=(2, 2, 2, 2), bottleneck=False, width=width)
    source, out = save(tmp_path / "a.pth", state), str(tmp_path / "b.pth")
    assert cli.main(["convert", source, "--to", "torchvision", "--out", out]) == 0
    assert f"timm.create_model('{name}', num_classes=0)" in capsys.readouterr().out


def test_a_file_is_written_as_it_was_read(tmp_path):
    source = save(tmp_path / "a.pth", below("encoder.", resnet(num_classes=3)))
    out = tmp_path / "b.safetensors"
    assert cli.main(["convert", source, "--to", "torchvision", "--out", str(out)]) == 0
    same(safetensors.read(out), resnet(num_classes=3))


# ---- what does not fit

WRONG = {
    "unknown": (
        {"layer1.0.se.fc1.weight": np.ones((4, 4), np.float32)},
        "layer1.0.se.fc1.weight: is no array of a model that mmjax knows",
    ),
    "missing": (
        {"layer2.1.bn2.running_var": None},
        "layer2.1.bn2.running_var: missing, of image/groups/1/1/second/norm/var (16,)",
    ),
    "another shape": (
        {"layer1.0.conv2.weight": np.ones((8, 4, 3, 3), np.float32)},
        "layer1.0.conv2.weight: makes image/groups/0/0/second/conv/kernel (3, 3, 4, 8)",
    ),
    "axes": (
        {"conv1.weight": np.ones((8, 3, 7), np.float32)},
        "conv1.weight: has shape (8, 3, 7), not one of 4 axes",
    ),
}


@pytest.mark.parametrize("case", ["unknown", "missing", "another shape"])
def test_what_does_not_fit_is_named(tmp_path, case, capsys):
    changes, words = WRONG[case]
    state = {k: v for k, v in (resnet() | changes).items() if v is not None}
    source, run = save(tmp_path / "a.pth", state), str(tmp_path / "run")
    with pytest.raises(UserError, match=re.escape(words)):
        run_of.check(guided_plan.plan(source))
    assert cli.main(["convert", source, "--inspect"]) == 1
    assert words in capsys.readouterr().out
    assert cli.main(["convert", source, "--out", run, "--allow", words.split(":")[0]]) == 0


def test_files_of_something_else(tmp_path, capsys):
    two = below("student.", resnet()) | below("teacher.", resnet())
    short = {n: x for n, x in mobilenet().items() if not n.startswith("features.17.")}
    stem = {n: x for n, x in resnet().items() if n != "conv1.weight"}
    plain = save(tmp_path / "plain.pth", resnet())
    for arguments, words in (
        ([save(tmp_path / "a.pth", two)], "2 backbones: below 'student.' and 'teacher.'"),
        ([save(tmp_path / "b.pth", short)], "a MobileNetV2 of 6 groups of blocks, not 7"),
        ([save(tmp_path / "c.pth", stem)], "nothing for image/stem/conv/kernel"),
        ([save(tmp_path / "d.pth", {"x": np.ones(3)})], "holds neither a touch encoder of TVL"),
        ([plain, "--quick-gelu"], "--quick-gelu is of OpenCLIP's towers"),
        ([plain, "--vocab", "x.gz"], "--vocab is of a tower for texts"),
    ):
        assert cli.main(["convert", *arguments, "--out", str(tmp_path / "run")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tables_are_read_in_both_directions():
    """Every name of a table has one path, and every path one name."""
    for kind, rules in backbones.RULES.items():
        paths = [path for rule in rules for path in rule.ours]
        assert len(set(paths)) == len(paths) == len({rule.theirs for rule in rules}), kind
