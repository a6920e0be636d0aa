"""Converted image backbones and LGSSL checkpoints compute the features of plain NumPy models."""

import json

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import mmjax
from mmjax import config, init_from
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert import torch_source
from mmjax.convert.load import load_params
from mmjax.convert.vision import infer_config as vision_config
from mmjax.convert.vision import load as vision_load
from mmjax.convert.vision import names as vision_names
from mmjax.convert.vision import plan as vision_plan
from mmjax.errors import UserError
from mmjax.formats import safetensors, torch_reader
from mmjax.models.guided import make_model
from mmjax.models.towers.registry import build_tower
from mmjax.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD
from mmjax.state import ModelDef
from mmjax.tools import cli
from tests.convert.runs import module_of, read_report
from tests.convert.torch_writer import Call, Global, save, save_legacy
from tests.messages import assert_mentions, raises
from tests.models import torch_reference

rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(2, 33, 40, 3)).astype(np.float32)
WIDTH = 64  # features of the small ResNet
IDS = np.array([[48, 3, 14, 49, 0, 0, 0, 0, 0], [48, 9, 2, 6, 5, 3, 5, 8, 49]])
# MobileNetV2's published groups of blocks, with few channels.
GROUPS = (
    *((1, 8, 1, 1), (6, 8, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2)),
    *((6, 16, 3, 1), (6, 24, 3, 2), (6, 24, 1, 1)),
)


def with_batch_counts(state):
    """Adds the batch counters of BatchNorm, which all these files have."""
    names = [name for name in state if name.endswith("running_mean")]
    return state | {n.replace("running_mean", "num_batches_tracked"): np.array(7) for n in names}


def resnet(num_classes=0, seed=0, blocks=(1, 2), **options):
    options = dict(bottleneck=True, width=8) | options
    return with_batch_counts(
        torch_reference.torch_resnet_state(
            blocks=blocks, num_classes=num_classes, seed=seed, **options
        )
    )


def mobilenet(num_classes=0):
    return with_batch_counts(
        torch_reference.torch_mobilenet_state(
            groups=GROUPS, stem=8, head=32, num_classes=num_classes
        )
    )


def to_timm_names(state):
    """Renames the arrays of a MobileNetV2; timm has them in the assert_same_arrays order."""
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
    return with_batch_counts(out) | {new: state[old] for new, old in more.items() if old in state}


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def sample_arrays(**shapes):
    """Samples arrays by name, where '__' stands for a dot; scales and variances are around 1."""
    out = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape) * 0.2
        positive = len(shape) == 1 and name.endswith(("weight", "var"))
        value = np.exp(noise) if positive else noise
        out[name.replace("__", ".")] = value.astype(np.float32)
    return out


def mlp(prefix, *widths, final=False):
    """Returns the state of a projection MLP under the names of LGSSL's code."""
    shapes, last = {}, len(widths) - 2
    for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        shapes[f"{prefix}__{3 * i}__weight"] = (fan_out, fan_in)
        if i < last or final:
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{prefix}__{3 * i + 1}__{name}"] = (fan_out,)
    return with_batch_counts(sample_arrays(**shapes))


def apply_mlp(state, prefix, x):
    """Computes the output of that MLP."""
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


def text_encoder(seed=5):
    """Returns the state of LGSSL's language backbone."""
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
    excluded = ("visual.", "logit_scale", "text_projection")
    return {name: value for name, value in state.items() if not name.startswith(excluded)}


def lightning(state, step=3):
    """Returns a checkpoint with the structure that PyTorch Lightning writes."""
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


def assert_close(actual, expected):
    assert np.abs(np.asarray(actual) - expected).max() < 2e-5 * np.abs(expected).max()


def features(module, **inputs):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda inputs: module.encode(inputs))(inputs)


def apply_head(module, head, x):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda x: module.heads[head](x, train=False))(x)


# ---- Backbones without heads


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """(file, run directory) of a backbone as LGSSL publishes it."""
    directory = tmp_path_factory.mktemp("backbone")
    source = save(directory / "lgsimclr.ckpt", resnet())
    return source, convert(directory / "run", source)


def test_published_backbone_is_converted_with_its_preprocessing(backbone):
    source, run = backbone
    assert_close(
        features(module_of(run, make_model), image=IMAGES)["image"],
        torch_reference.torch_resnet(resnet(), IMAGES),
    )
    cfg = RunDir(run, create=False).read_config()
    config.resolve(cfg)
    assert cfg.task == "guided" and not cfg.loss and set(cfg.model) == {"image"}
    image = cfg.model.image
    assert (image.name, image.blocks, image.width_multiplier) == ("resnet50", (1, 2), 1 / 8)
    assert (cfg.data.image.size, cfg.data.image.resize) == (224, "bicubic")
    assert cfg.data.image.square == "crop_resized"
    assert tuple(cfg.augment.image.mean) == IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert tuple(cfg.augment.image.std) == IMAGENET_STD == (0.229, 0.224, 0.225)
    assert json.loads((run / "run.json").read_text())["source"] == source
    report = read_report(run)
    assert set(report.targets) == set(resnet())
    counters = {name for name in resnet() if "num_batches" in name}
    unused = {key for key, target in report.targets.items() if "image/" not in target}
    assert unused == counters
    assert_mentions(report.summary.splitlines()[-1], len(counters))


def smooth_image(sizes):
    """Returns an image without high frequencies, so that resizing it is well conditioned."""
    rows, columns = (np.arange(size)[:, None] / size for size in sizes)
    waves = np.sin(9 * rows[:, None] * rng.uniform(1, 2, 3)) * np.cos(7 * columns[None])
    return 128 + 110 * waves


@pytest.mark.parametrize("which", ["file", "run"])
def test_images_are_preprocessed_as_in_lgssl(backbone, which):
    source = dict(zip(("file", "run"), backbone, strict=True))[which]
    model = mmjax.load(source, overrides=["--config.data.image.size=32"])
    assert model.modalities == ("image",)
    array = np.clip(smooth_image((50, 80)), 0, 255).astype(np.uint8)
    small = PIL.Image.fromarray(array).resize((51, 32), PIL.Image.Resampling.BICUBIC)
    middle = np.asarray(small)[:, 10:42] / 255
    middle = (middle - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = torch_reference.torch_resnet(resnet(), middle[None])[0]
    result = model.embed_image(array)
    assert result.shape == (WIDTH,) and result.dtype == np.float32
    # PIL rounds to integers between the two passes of its resampling.
    assert np.abs(result - expected).max() < 0.01 * np.abs(expected).max()
    with raises(UserError, "text", "image"):  # the modality it lacks, and those it has
        model.embed_text("a cat")


BASELINES = {
    "simclr": lambda state: lightning(
        below("encoder.", state)
        | below("projection.model.", sample_arrays(__0__weight=(9, WIDTH)))
        | sample_arrays(non_linear_evaluator__block_forward__0__weight=(4, 4))
    ),
    "simsiam": lambda state: dict(
        state_dict=below("module.encoder.", state)
        | sample_arrays(
            module__encoder__fc__0__weight=(9, WIDTH), module__encoder__fc__1__bias=(9,)
        )
        | sample_arrays(module__predictor__0__weight=(9, 9)),
        epoch=100,
        arch="resnet50",
        optimizer={"state": {0: {"momentum_buffer": np.ones(3, np.float32)}}, "param_groups": []},
    ),
    "swav": lambda state: (
        below("module.", state)
        | sample_arrays(
            module__projection_head__0__weight=(9, WIDTH), module__projection_head__1__bias=(9,)
        )
        | sample_arrays(module__prototypes__weight=(30, 9))
    ),
    "mocov3": lambda state: dict(
        state_dict=below("module.base_encoder.", state)
        | sample_arrays(module__base_encoder__fc__0__weight=(9, WIDTH))
        | below("module.momentum_encoder.", resnet(seed=9))
        | sample_arrays(module__predictor__0__weight=(9, 9)),
        epoch=100,
    ),
    "mocov2": lambda state: dict(
        state_dict=below("module.encoder_q.", state)
        | sample_arrays(
            module__encoder_q__fc__0__weight=(9, WIDTH), module__encoder_q__fc__2__bias=(4,)
        )
        | below("module.encoder_k.", resnet(seed=9, num_classes=4))
        | dict.fromkeys(("module.queue", "module.queue_ptr"), np.ones((4, 5), np.float32)),
        epoch=200,
        arch="resnet50",
    ),
    # VISSL: the backbone is `trunk`, and its moving average is part of the loss.
    "pirl": lambda state: dict(
        classy_state_dict=dict(
            base_model=dict(
                model=dict(
                    trunk=below("_feature_blocks.", state),
                    heads=sample_arrays(**{"0__clf__0__weight": (9, WIDTH)}),
                ),
                meters=dict(train_meters={}),
            ),
            loss=sample_arrays(memory__memory=(5, 4))
            | below("moco_encoder.trunk._feature_blocks.", resnet(seed=9)),
            optimizer=dict(optim=dict(state={0: {"momentum_buffer": np.ones(3, np.float32)}})),
        ),
        iteration=7,
    ),
    # pyVTAB: each name is preceded by `model.`; heads of other methods are kept.
    "pyvtab": lambda state: below(
        "model.",
        state
        | sample_arrays(
            fc__0__weight=(9, WIDTH),
            projection_head__0__weight=(9, WIDTH),
            prototypes__weight=(3, 9),
        ),
    ),
    "feature_extractor": lambda state: below(
        "feature_extractor.resnet.", state | sample_arrays(fc__weight=(10, WIDTH))
    ),
    "torchvision": lambda state: state | sample_arrays(fc__weight=(10, WIDTH), fc__bias=(10,)),
}


@pytest.mark.parametrize("name", BASELINES)
def test_backbones_of_published_baselines_are_found(tmp_path, name):
    source = save(tmp_path / f"{name}.pth", BASELINES[name](resnet()))
    plan = vision_plan.plan_conversion(source)
    assert not plan.mismatches and plan.step == (3 if name == "simclr" else 0)
    expected = converted_arrays(resnet(), tmp_path)
    assert plan.source_keys.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(plan.read(path), value)
    unused = set(plan.targets.values()) & {
        vision_load.HEAD,
        vision_load.AVERAGE,
        vision_load.NO_TEXTS,
    }
    has_average = name in ("mocov2", "mocov3", "pirl")
    assert unused == {vision_load.HEAD} | ({vision_load.AVERAGE} if has_average else set())
    assert vision_load.fits(source)


def test_the_dense_layer_of_a_moving_average_is_not_loaded(tmp_path):
    """MoCo v1 has the same layers in both encoders, of another width than a classifier."""
    state = below("module.encoder_q.", resnet(num_classes=4)) | below(
        "module.encoder_k.", resnet(num_classes=4, seed=9)
    )
    leaves, _ = load_params(save(tmp_path / "moco_v1.pth", dict(state_dict=state)))
    expected = resnet(num_classes=4)["fc.weight"].T
    np.testing.assert_array_equal(leaves["backbone/projection/kernel"], expected)
    values, report = start(dict(image=SMALL), str(tmp_path / "moco_v1.pth"))
    assert not (report.missing or report.unexpected or report.mismatched)
    np.testing.assert_array_equal(
        values["image/stem/conv/kernel"], resnet()["conv1.weight"].transpose(2, 3, 1, 0)
    )


def converted_arrays(state, directory):
    """Returns {path: array} of a plain state dict."""
    plan = vision_plan.plan_conversion(save(directory / "plain.pth", state))
    return {path: plan.read(path) for path in plan.source_keys}


@pytest.mark.parametrize("names", ["torchvision", "timm"])
def test_mobilenet_features(tmp_path, names):
    state = mobilenet(num_classes=5)
    source = save(tmp_path / "m.pth", state if names == "torchvision" else to_timm_names(state))
    run = convert(tmp_path / "run", source)
    strides = [s if j == 0 else 1 for _, _, n, s in GROUPS for j in range(n)]
    expected = torch_reference.torch_mobilenet(state, IMAGES, strides)
    assert_close(features(module_of(run, make_model), image=IMAGES)["image"], expected)
    image = RunDir(run, create=False).read_config().model.image
    assert image.name == "mobilenet_v2" and image.groups == GROUPS
    assert list(read_report(run).targets.values()).count(f"{vision_load.HEAD} float32 (5, 32)") == 1
    assert f"2 {vision_load.HEAD}" in read_report(run).summary


def test_legacy_pytorch_files_are_converted_alike(tmp_path):
    """Torchvision's published weights have the format of PyTorch before 1.6."""
    old = vision_plan.plan_conversion(save_legacy(tmp_path / "old.pth", resnet(num_classes=3)))
    new = vision_plan.plan_conversion(save(tmp_path / "new.pth", resnet(num_classes=3)))
    assert old.source_keys.keys() == new.source_keys.keys()
    for path in new.source_keys:
        np.testing.assert_array_equal(old.read(path), new.read(path))


# ---- Training checkpoints of LGSSL


def method_state(*parts):
    """Returns the state dict of an LGSSL model: a backbone and these parts."""
    state = below("visual_backbone.", resnet())
    for part in parts:
        state |= part
    return state


CLIP_PARTS = (
    below("language_backbone.", text_encoder()),
    sample_arrays(language_project__weight=(10, 64)),
    dict(clip_scale=np.array(2.7, np.float32)),
)
METHODS = {
    "simclr": (method_state(mlp("visual_project", WIDTH, 24, 24, 9)), dict(projection=(24, 24, 9))),
    "simsiam": (
        method_state(mlp("proj_mlp", WIDTH, 24, 24, 24, final=True), mlp("pred_mlp", 24, 8, 24)),
        dict(projection=(24, 24, 24), predictor=(8, 24)),
    ),
    "swav": (
        method_state(
            mlp("visual_project", WIDTH, 24, 9), sample_arrays(prototypes__weight=(30, 9))
        ),
        dict(projection=(24, 9)),
    ),
    "clip": (
        method_state(sample_arrays(visual_project__weight=(10, WIDTH)), *CLIP_PARTS),
        dict(clip=(10,), text=(10,)),
    ),
    "slip": (
        method_state(
            mlp("visual_project", WIDTH, 24, 24, 9),
            sample_arrays(clip_vis_project__weight=(10, WIDTH)),
            *CLIP_PARTS,
        ),
        dict(projection=(24, 24, 9), clip=(10,), text=(10,)),
    ),
    "lgslip": (
        method_state(mlp("visual_project", WIDTH, 24, 24, 10), *CLIP_PARTS),
        dict(projection=(24, 24, 10), text=(10,)),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_training_checkpoints_compute_features_and_embeddings(tmp_path, name):
    state, heads = METHODS[name]
    run = convert(tmp_path / "run", save(tmp_path / f"{name}.ckpt", lightning(state)))
    cfg, module = RunDir(run, create=False).read_config(), module_of(run, make_model)
    config.resolve(cfg)
    actual = config.plain(cfg.model.heads)
    assert {head: options["dims"] for head, options in actual.items()} == heads
    assert {h for h, options in actual.items() if options["final_norm"]} == (
        {"projection"} if name == "simsiam" else set()
    )
    pooled = torch_reference.torch_resnet(
        {n.removeprefix("visual_backbone."): x for n, x in state.items()}, IMAGES
    )
    assert_close(features(module, image=IMAGES)["image"], pooled)
    x = np.float32(pooled)
    if "projection" in heads:
        prefix = "proj_mlp" if name == "simsiam" else "visual_project"
        projected = apply_mlp(state, prefix, pooled)
        assert_close(apply_head(module, "projection", x), projected)
    if name == "simsiam":
        predicted = apply_mlp(state, "pred_mlp", projected)
        assert_close(apply_head(module, "predictor", np.float32(projected)), predicted)
    if "clip" in heads:
        names = dict(clip="visual_project.weight", slip="clip_vis_project.weight")
        assert_close(apply_head(module, "clip", x), pooled @ state[names[name]].T)
    if "text" in heads:
        tower = {n.removeprefix("language_backbone."): v for n, v in state.items()}
        tower["text_projection"] = np.eye(64)  # LGSSL's encoder has no projection
        text = torch_reference.open_clip_text(tower, IDS, num_heads=1, quick_gelu=True)
        assert_close(features(module, text=IDS)["text"], text)
        assert_close(
            apply_head(module, "text", np.float32(text)), text @ state["language_project.weight"].T
        )
        assert module.logit_scale[...] == np.float32(2.7)
        loss = dict(clip=dict(head="projection")) if name == "lgslip" else {}
        assert config.plain(cfg.loss) == loss
        assert (cfg.data.text.tokenizer, cfg.data.text.max_tokens) == ("clip", 9)
    if name == "swav":
        leaves, _ = load_params(str(run))
        np.testing.assert_array_equal(leaves["prototypes/kernel"], state["prototypes.weight"].T)
    report = read_report(run)
    assert "step 3" in report.summary.splitlines()[0]
    targets = report.targets
    assert_mentions(targets["hyper_parameters.name"], "'simclr' str ()")
    assert_mentions(targets["epoch"], "1 int ()")
    assert_mentions(targets["hyper_parameters.config"], "omegaconf.dictconfig.DictConfig")
    moments = targets["optimizer_states.0.state.0.exp_avg"]
    assert moments == f"{torch_source.OPTIMIZER} float32 (3,)"
    best = targets["callbacks.ModelCheckpoint.best_model_score"]
    assert best == f"{vision_load.OUTSIDE} float32 ()"
    assert {f"state_dict.{key}" for key in state} <= set(targets)


def test_text_encoders_other_than_clip_are_left_out(tmp_path):
    """LGSSL also trains on a frozen sentence encoder."""
    texts = sample_arrays(
        language_backbone__0__auto_model__embeddings__word_embeddings__weight=(9, 4),
        language_project__weight=(10, 4),
        visual_project__weight=(10, WIDTH),
    )
    state = method_state(texts, dict(clip_scale=np.array(2.7, np.float32)))
    run = convert(tmp_path / "run", save(tmp_path / "sbert.ckpt", lightning(state)))
    assert set(RunDir(run, create=False).read_config().model) == {"image", "heads"}
    report = read_report(run)
    assert f"3 {vision_load.NO_TEXTS}" in report.summary
    unused = [
        key for key, target in report.targets.items() if target.startswith(vision_load.NO_TEXTS)
    ]
    assert sorted(key.split(".")[1] for key in unused) == [
        *("clip_scale", "language_backbone", "language_project")
    ]


def test_images_and_texts_are_embedded_in_one_space(tmp_path):
    merges = tmp_path / "bpe_simple_vocab.txt"
    merges.write_text("#version\nt h\nth e</w>\n")
    state, _ = METHODS["lgslip"]
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


def test_images_are_embedded_by_a_model_trained_on_text_features(tmp_path):
    """Its text head has no tower below it, and images need none."""
    state, _ = METHODS["clip"]
    source = save(tmp_path / "clip.ckpt", lightning(state))
    leaves, _ = load_params(source)
    cfg = vision_config.config_of(source)
    cfg.model.text = cfg.data.text = None
    cfg.data.image.size = 32
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    result = mmjax.inference.Model(cfg, leaves, source).embed_image(image)
    x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    backbone = {n.removeprefix("visual_backbone."): v for n, v in state.items()}
    expected = torch_reference.torch_resnet(backbone, x[None])[0] @ state["visual_project.weight"].T
    np.testing.assert_allclose(result, expected / np.linalg.norm(expected), atol=1e-4)


# ---- Initialization from the files


def start(spec, source, **options):
    """Returns the values that towers take from a file, and the report."""
    model = ModelDef(lambda rngs: Holder(spec, rngs))
    target = init_from.target_of({"params": model.params, "extra": model.extra})
    return init_from.match(target, load_params(source)[0], **options)


class Holder(nnx.Module):
    """Towers by name."""

    def __init__(self, towers, rngs):
        for name, spec in towers.items():
            setattr(self, name, build_tower(spec, rngs=rngs))


SMALL = dict(name="resnet50", blocks=(1, 2), width_multiplier=0.125)


@pytest.mark.parametrize("tower", ["image", "touch"])
@pytest.mark.parametrize("projection", [0, 5])
def test_a_backbone_initializes_the_only_tower_that_fits(tmp_path, tower, projection):
    source = save(tmp_path / "r.pth", resnet(num_classes=5))
    values, report = start({tower: dict(SMALL, projection=projection)}, source)
    assert not (report.missing or report.unexpected or report.mismatched)
    expected = resnet(num_classes=5)["layer1.0.bn1.running_var"]
    np.testing.assert_array_equal(values[f"extra/{tower}/groups/0/0/first/norm/var"], expected)
    assert (f"{tower}/projection/kernel" in values) == bool(projection)


def vit(names="timm", num_classes=5, old=False):
    """Returns the state of a ViT that pools by its class token."""
    state = torch_reference.timm_vit_state(
        width=64, num_layers=2, image_size=24, patch_size=8, num_classes=num_classes
    )
    state = {name.replace("fc_norm", "norm"): x for name, x in state.items()}
    if names == "timm":
        return state
    new = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    parts = {
        "patch_embed.proj": "conv_proj",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.linear_1" if old else "mlp.0",
        "mlp.fc2": "mlp.linear_2" if old else "mlp.3",
        **{"norm1": "ln_1", "norm2": "ln_2", "blocks.": "encoder.layers.encoder_layer_"},
        **{"head.": "heads.head.", "norm.": "encoder.ln."},
    }
    out = {}
    for name, x in state.items():
        for theirs, part in parts.items():
            name = name.replace(theirs, part)
        out[new.get(name, name)] = x
    return out


@pytest.mark.parametrize(
    "names, prefix", [("timm", ""), ("timm", "model."), ("torchvision", ""), ("old", "encoder.")]
)
def test_vits_of_timm_and_torchvision_are_image_towers(tmp_path, names, prefix):
    state = vit("timm" if names == "timm" else "torchvision", old=names == "old")
    source = save(tmp_path / "vit.pth", below(prefix, state))
    plan = vision_plan.plan_conversion(source)
    assert not plan.mismatches and not plan.random_paths
    cfg = config.resolve(plan.cfg)
    assert (cfg.task, cfg.data["image"]["size"]) == ("guided", 24)
    assert cfg.model["image"]["pool"] == "class" and cfg.model["image"]["patch_size"] == 8
    assert list(plan.targets.values()).count(vision_load.HEAD) == 2
    model = mmjax.load(source)
    pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
    x = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])[None]
    np.testing.assert_allclose(
        model.embed_image(pixels), torch_reference.timm_vit_class(vit(), x, 1)[0], atol=2e-4
    )


def test_a_vit_initializes_the_tower_with_its_first_layer(tmp_path):
    source = save(tmp_path / "vit.pth", vit())
    options = dict(
        image_size=24, patch_size=8, width=64, num_layers=2, num_heads=1, mlp_dim=256, scan_unroll=1
    )
    towers = dict(
        image=dict(name="clip_vit_tiny", **options | dict(width=32)),
        touch=dict(name="image_vit_s16", **options),
    )
    values, report = start(towers, source)
    assert not report.unexpected and all(path.startswith("image/") for path in report.missing)
    np.testing.assert_array_equal(values["touch/class_token"], vit()["cls_token"][0, 0])


def test_init_map_chooses_between_two_towers_that_fit(tmp_path):
    source = save(tmp_path / "r.pth", resnet())
    towers = dict(image=SMALL, touch=SMALL)
    with raises(UserError, "config.init_map", "'backbone/'", "'touch/'", "'image/'"):
        start(towers, source)
    _, report = start(towers, source, names=(("backbone/", "touch/"),))
    assert not report.unexpected and all("image/" in path for path in report.missing)


def test_heads_of_a_training_checkpoint_are_loaded_too(tmp_path):
    source = save(tmp_path / "simclr.ckpt", lightning(METHODS["simclr"][0]))
    leaves, description = load_params(source)
    assert {"heads/projection/linear/2/kernel", "extra/heads/projection/norm/1/var"} <= set(leaves)
    assert source in description and "image/stem/conv/kernel" in leaves


# ---- Export to PyTorch's names


def assert_same_arrays(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            assert actual[name].dtype == value.dtype, name
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize(
    "make, suffix", [(resnet, ".pth"), (resnet, ".safetensors"), (mobilenet, ".pth")]
)
def test_export_after_conversion_is_lossless(tmp_path, make, suffix, capsys):
    source, out = save(tmp_path / "a.ckpt", make()), tmp_path / f"exported{suffix}"
    command = ["convert", str(convert(tmp_path / "run", source)), "--to", "torchvision"]
    assert cli.main([*command, "--out", str(out)]) == 0
    assert_same_arrays(torch_reader.tensors(out), make())
    loaded = dict(resnet="timm.create_model('NAME'", mobilenet="torchvision.models.mobilenet_v2(")
    assert loaded[make.__name__] in capsys.readouterr().out
    assert cli.main([*command, "--out", str(out)]) == 2
    assert_mentions(capsys.readouterr().err, f"--out {out}")
    assert_same_arrays(torch_reader.tensors(out), make())


@pytest.mark.parametrize("width, name", [(64, "resnet18"), (32, "NAME")])
def test_export_names_the_timm_model_by_depth_and_width(tmp_path, width, name, capsys):
    state = resnet(blocks=(2, 2, 2, 2), bottleneck=False, width=width)
    source, out = save(tmp_path / "a.pth", state), str(tmp_path / "b.pth")
    assert cli.main(["convert", source, "--to", "torchvision", "--out", out]) == 0
    assert f"timm.create_model('{name}', num_classes=0)" in capsys.readouterr().out


def test_a_file_is_exported_without_a_run_directory(tmp_path):
    source = save(tmp_path / "a.pth", below("encoder.", resnet(num_classes=3)))
    out = tmp_path / "b.safetensors"
    assert cli.main(["convert", source, "--to", "torchvision", "--out", str(out)]) == 0
    assert_same_arrays(safetensors.read(out), resnet(num_classes=3))


# ---- Errors

WRONG = {
    "unknown": (
        {"layer1.0.se.fc1.weight": np.ones((4, 4), np.float32)},
        (),
    ),
    "missing": (
        {"layer2.1.bn2.running_var": None},
        ("image/groups/1/1/second/norm/var", (16,)),
    ),
    "other shape": (
        {"layer1.0.conv2.weight": np.ones((8, 4, 3, 3), np.float32)},
        ("image/groups/0/0/second/conv/kernel", (3, 3, 4, 8), (3, 3, 8, 8)),
    ),
    "number of axes": (
        {"layer1.0.conv1.weight": np.ones((8, 3, 7), np.float32)},
        ((8, 3, 7), "4"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_fit_are_reported_and_can_be_allowed(tmp_path, case, capsys):
    changes, facts = WRONG[case]
    (key,) = changes
    state = {k: v for k, v in (resnet() | changes).items() if v is not None}
    source, run = save(tmp_path / "a.pth", state), str(tmp_path / "run")
    plan = vision_plan.plan_conversion(source)
    assert set(plan.mismatches) == {key}
    assert_mentions(plan.mismatches[key], *facts)
    with raises(UserError, source, key, plan.mismatches[key], "--allow"):
        plan.check()
    assert cli.main(["convert", source, "--inspect"]) == 1
    assert_mentions(capsys.readouterr().out, key, plan.mismatches[key])
    assert cli.main(["convert", source, "--out", run, "--allow", key]) == 0


def test_files_of_other_models_and_misplaced_flags_are_rejected(tmp_path, capsys):
    two = below("student.", resnet()) | below("teacher.", resnet())
    short = {n: x for n, x in mobilenet().items() if not n.startswith("features.17.")}
    stem = {n: x for n, x in resnet().items() if n != "conv1.weight"}
    plain = save(tmp_path / "plain.pth", resnet())
    for arguments, facts in (
        ([save(tmp_path / "a.pth", two)], ("a.pth", 2, "'student.'", "'teacher.'")),
        ([save(tmp_path / "b.pth", short)], ("MobileNetV2", 6, 7)),
        ([save(tmp_path / "c.pth", stem)], ("image/stem/conv/kernel",)),
        (
            [save(tmp_path / "d.pth", {"array_0": np.ones(3)})],
            ("d.pth", "TVL", "OpenCLIP", "array_0"),
        ),
        ([plain, "--quick-gelu"], ("--quick-gelu", "OpenCLIP")),
        ([plain, "--vocab", "x.gz"], ("--vocab", "text")),
    ):
        assert cli.main(["convert", *arguments, "--out", str(tmp_path / "run")]) == 2
        assert_mentions(capsys.readouterr().err, *facts)
    assert not (tmp_path / "run").exists()


def test_name_tables_are_one_to_one():
    for component, rules in vision_names.RULES.items():
        paths = [path for rule in rules for path in rule.paths]
        assert len(set(paths)) == len(paths), component
        assert len({rule.key for rule in rules}) == len(rules), component
