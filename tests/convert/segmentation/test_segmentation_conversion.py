"""Conversion of segmentation models of PyTorch libraries and of TTDL, and back."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from mmjax import config, init_from, tree
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert import source_config
from mmjax.convert.export import export
from mmjax.convert.load import load_params
from mmjax.convert.segmentation import adapter_names, names
from mmjax.convert.segmentation.plan import plan_conversion
from mmjax.errors import UserError
from mmjax.formats import safetensors, torch_reader
from mmjax.formats.name_rules import to_torch
from mmjax.models.segmentation.adapters import ADAPTERS, Adapter
from mmjax.models.segmentation.registry import MODELS, build_segmentation
from mmjax.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD
from mmjax.state import ModelDef
from mmjax.tasks.predict import make_predict_task
from mmjax.tools import cli
from tests.convert.runs import module_of, read_report
from tests.convert.torch_writer import save
from tests.messages import assert_mentions, raises
from tests.models.segmentation.published import image, torch_arrays, weights

_RESNET = dict(blocks=(1, 1, 1, 1), width_multiplier=1 / 8, num_classes=3)
# Small models with the names of the published ones, by family.
SMALL = {
    "lraspp_demo": dict(name="lraspp_demo", num_classes=5),
    "deeplabv3_resnet": dict(name="deeplabv3_resnet18", **_RESNET, width=16),
    "fpn_resnet": dict(name="fpn_resnet18", **_RESNET, pyramid_width=8, width=32),
    "segformer": dict(
        name="segformer_mit_b0",
        num_classes=3,
        widths=(8, 16, 40, 64),
        depths=(1, 2, 1, 1),
        width=16,
        mlp_ratio=2,
    ),
}


def model_of(**options):
    return ModelDef(lambda rngs: build_segmentation(**options, rngs=rngs))


def make_model(**options):
    return lambda rngs: build_segmentation(**options, rngs=rngs)


def state_of(family, adaptation=None, **options):
    """Returns a model and {PyTorch's name: array} of it, with counters of batches."""
    options = {**SMALL.get(family, {}), "adaptation": adaptation, **options}
    model, rules = model_of(**options), list(names.RULES[family])
    if adaptation is not None:
        name = adaptation if isinstance(adaptation, str) else adaptation["name"]
        name = adapter_names.MATRIX if name.startswith("contrastive") else name
        rules += adapter_names.rules_of(name)
    arrays = torch_arrays(model, rules)
    counters = [n.replace("running_mean", "num_batches_tracked") for n in arrays if "_mean" in n]
    return model, rules, arrays | dict.fromkeys(counters, np.array(7))


def convert(*arguments):
    return cli.main(["convert", *map(str, arguments)])


def assert_same_arrays(actual, expected):
    """Asserts that two files have the same names, shapes and bits, except for counters."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].shape == array.shape, name
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize("family", SMALL)
def test_a_model_is_converted_and_exported_bit_for_bit(family, tmp_path, capsys):
    model, rules, state = state_of(family)
    source = save(tmp_path / "model.pth", dict(state))
    assert convert(source, "--out", tmp_path / "run") == 0
    module = module_of(tmp_path / "run", make_model)
    params, extra = weights(model, rules)
    x = image(40)
    actual, expected = (
        jax.jit(lambda m, x: m(x))(each, x) for each in (module, model.bind(params, extra))
    )
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.ptp(b) > 0
    export(str(tmp_path / "run"), to="segmentation", out=str(tmp_path / "back.pth"))
    assert_same_arrays(torch_reader.tensors(tmp_path / "back.pth"), state)


@pytest.mark.parametrize("adaptation", ADAPTERS)
def test_adapters_are_converted_and_exported_bit_for_bit(adaptation, tmp_path):
    model, _, state = state_of("lraspp_demo", adaptation)
    source = str(tmp_path / "ttdl.safetensors")
    safetensors.write(source, state)
    plan = plan_conversion(source)
    assert not plan.mismatches and not plan.random_paths
    expected = adaptation
    if adaptation.startswith("contrastive"):  # the other two have the same arrays
        expected = (
            "contrastive_global" if adaptation == "contrastive_global" else "contrastive_diff"
        )
    assert config.plain(plan.cfg.model) == dict(
        name="lraspp_demo", num_classes=5, adaptation=expected
    )
    assert tree.flatten(plan.model.params).keys() == tree.flatten(model.params).keys()
    export(source, to="segmentation", out=str(tmp_path / "back.pth"))
    assert_same_arrays(torch_reader.tensors(tmp_path / "back.pth"), state)


def test_sizes_of_adapters_are_found(tmp_path):
    adaptation = dict(name="conv_attn_pool_by_text", width=24, num_heads=3)
    source = str(tmp_path / "ttdl.safetensors")
    safetensors.write(source, state_of("lraspp_demo", adaptation)[2])
    assert config.plain(plan_conversion(source, head_dim=8).cfg.model.adaptation) == adaptation
    with raises(UserError, "--head-dim", 24, 64):
        plan_conversion(source)


def test_a_square_matrix_is_noted_as_ambiguous(tmp_path):
    adaptation = dict(name="contrastive_diff", width=96)  # the width of the bottleneck
    source = str(tmp_path / "ttdl.safetensors")
    safetensors.write(source, state_of("lraspp_demo", adaptation)[2])
    plan = plan_conversion(source)
    assert config.plain(plan.cfg.model.adaptation) == dict(name="contrastive_global", width=96)
    assert_mentions(plan.notes, "contrastive_diff", "config.model.adaptation")


def test_a_checkpoint_of_ttdl_is_read(tmp_path):
    _, _, state = state_of("lraspp_demo", "GAP_linear")
    content = {
        "epoch": 3,
        "global_step": 552,
        "model_state_dict": {f"_orig_mod.{name}": x for name, x in state.items()},
        "optimizer_state_dict": {
            "state": {0: {"step": np.array(552.0), "exp_avg": np.ones(3, np.float32)}},
            "param_groups": [{"lr": 1e-4, "params": [0]}],
        },
    }
    source = save(tmp_path / "best.pth", content)
    assert convert(source, "--out", tmp_path / "run") == 0
    run, report = RunDir(tmp_path / "run", create=False), read_report(tmp_path / "run")
    cfg = run.read_config()
    config.resolve(cfg)
    assert cfg.task == "segment" and cfg.data.segmentation.size == 64
    assert config.plain(cfg.model) == dict(
        name="lraspp_demo", num_classes=5, adaptation="GAP_linear"
    )
    assert (tmp_path / "run/checkpoints/552").is_dir()
    name = "model_state_dict._orig_mod.bottleneck_adapter.linear.weight"
    assert report.targets[name] == "adapter/linear/kernel float32 (512, 96)"
    name = "optimizer_state_dict.state.0.exp_avg"
    assert report.targets[name].startswith("optimizer state")
    expected, _ = load_params(save(tmp_path / "plain.pth", dict(state)))
    actual, description = load_params(source)
    assert_mentions(description, "segmentation model", source)
    assert actual.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(actual[path], array)
    assert source_config.config_of([source]).model == cfg.model


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lraspp_demo"])
def test_published_models_have_only_their_name_and_classes(name, tmp_path, monkeypatch):
    """The arrays are views of a single zero: nothing of their size is stored or read."""
    family = next(f for f in ("lraspp", *names.RULES) if name.startswith(f))
    model = model_of(name=name)
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
    state = to_torch(zeros, names.RULES[family])
    monkeypatch.setattr(torch_reader, "entries", lambda source: state)
    plan = plan_conversion(name)
    assert config.plain(plan.cfg.model) == dict(name=name, num_classes=21)
    assert not plan.mismatches and not plan.random_paths
    assert plan.cfg.data.segmentation.size == plan.model.module.image_size


def test_the_auxiliary_head_is_optional(monkeypatch):
    model = model_of(name="deeplabv3_mobilenet_v3_large", aux_head=False)
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
    state = to_torch(zeros, names.RULES["deeplabv3_mobilenet"])
    monkeypatch.setattr(torch_reader, "entries", lambda source: state)
    plan = plan_conversion("deeplab.pth")
    assert plan.cfg.model.aux_head is False and not plan.mismatches


def test_the_task_of_a_converted_run_predicts_its_logits(tmp_path):
    model, _, state = state_of("lraspp_demo", "GAP_linear")
    source = save(tmp_path / "ttdl.pth", dict(state))
    assert convert(source, "--out", tmp_path / "run") == 0
    leaves, _ = load_params(str(tmp_path / "run"))
    cfg = config.resolve(source_config.config_of([str(tmp_path / "run")]))
    task = make_predict_task(cfg, leaves).task
    params, extra = init_from.fill(task, leaves, "the run")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 33, 3), np.uint8)
    logits = task.predict["logits"](params, extra, {"image": pixels})["logits"]
    x = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    expected = jax.jit(lambda x: model.bind(params, extra)(x).logits)(x.astype(np.float32))
    assert logits.shape == (2, 40, 33, 5)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def _state(model):
    """Returns a state of the model whose leaves are zeros."""
    zeros = lambda tree: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)  # noqa: E731
    return {"params": zeros(model.params), "extra": zeros(model.extra)}


def test_models_start_from_a_resnet_of_torchvision(tmp_path):
    model, _, state = state_of("deeplabv3_resnet")
    state = {n.removeprefix("encoder."): x for n, x in state.items() if n.startswith("encoder.")}
    state |= {"fc.weight": np.ones((10, 64), np.float32), "fc.bias": np.ones(10, np.float32)}
    leaves, _ = load_params(save(tmp_path / "resnet.pth", state))
    values, report = init_from.match(init_from.target_of(_state(model)), leaves)
    assert not report.unexpected and not report.mismatched
    assert {path.split("/")[0] for path in report.missing} == {"head", "extra"}
    assert all(path.startswith(("head/", "extra/head/")) for path in report.missing)
    np.testing.assert_array_equal(
        values["backbone/groups/3/0/second/conv/kernel"],
        state["layer4.0.conv2.weight"].transpose(2, 3, 1, 0),
    )


@pytest.mark.parametrize(
    "family, name, prefix, new, head",
    [
        ("lraspp", "lraspp_mobilenet_v3_large", "backbone.", "features.", "classifier.0.weight"),
        ("segformer", None, "encoder.", "", "head.weight"),
    ],
)
def test_models_start_from_backbones_of_imagenet_classifiers(
    family, name, prefix, new, head, tmp_path, monkeypatch
):
    options = dict(SMALL.get(family, {}), **(dict(name=name) if name else {}))
    model = model_of(**options)
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
    state = to_torch(zeros, names.RULES[family])
    state = {new + n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
    source = str(tmp_path / "backbone.safetensors")
    safetensors.write(source, state | {head: np.ones((10, 8), np.float32)})
    arrays, description = load_params(source)
    assert_mentions(description, "backbone", source)
    backbone = {path for path in arrays if path.removeprefix("extra/").startswith("backbone/")}
    assert backbone == set(arrays)
    _, report = init_from.match(init_from.target_of(_state(model)), arrays)
    assert not report.unexpected
    assert all(path.startswith(("head/", "extra/head/")) for path in report.missing)
    with raises(UserError, source, "only a backbone", "config.init_allow"):
        plan_conversion(source)


def test_export_prints_how_to_load_the_file(tmp_path):
    for family, facts in (
        ("deeplabv3_resnet", ("segmentation_models_pytorch.DeepLabV3('NAME'", "classes=3")),
        ("segformer", ("segmentation_models_pytorch.Segformer('mit_b0'", "classes=3")),
    ):
        source = str(tmp_path / f"{family}.safetensors")
        safetensors.write(source, state_of(family)[2])
        assert_mentions(
            export(source, to="segmentation", out=str(tmp_path / f"{family}.pth")), *facts
        )


def test_inspection_as_json_lists_components(tmp_path, capsys):
    source = str(tmp_path / "ttdl.safetensors")
    safetensors.write(source, state_of("lraspp_demo", "conv2_BN_GAP")[2])
    assert convert(source, "--inspect", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["components"] == {"segmentation": "lraspp_demo", "adapter": "conv2_BN_GAP"}
    assert values["mismatches"] == {} and values["unused_keys"].keys() == {"constant"}


def test_unknown_and_missing_arrays_are_reported(tmp_path):
    _, _, state = state_of("lraspp_demo")
    del state["classifier.scale.1.weight"]
    state["classifier.other.weight"] = np.ones((2, 2), np.float32)
    plan = plan_conversion(save(tmp_path / "model.pth", state))
    assert plan.mismatches.keys() == {"classifier.scale.1.weight", "classifier.other.weight"}
    with raises(UserError, *plan.mismatches, "--allow"):
        plan.check()


@pytest.mark.parametrize(
    "change, facts",
    [
        (
            lambda state: {f"{p}.{n}": x for p in ("student", "teacher") for n, x in state.items()},
            ("'student.'", "'teacher.'"),
        ),
        (
            lambda state: state | {"bottleneck_adapter.query": np.ones(3, np.float32)},
            ("bottleneck_adapter.", "query", "conv_attn_pool"),
        ),
    ],
)
def test_files_with_other_contents_are_refused(change, facts, tmp_path):
    source = save(tmp_path / "model.pth", change(state_of("lraspp_demo")[2]))
    with raises(UserError, source, *facts):
        plan_conversion(source)


def test_flags_of_text_towers_are_refused(tmp_path, capsys):
    source = save(tmp_path / "model.pth", dict(state_of("lraspp_demo")[2]))
    for flag in (("--vocab", "words.txt"), ("--quick-gelu",)):
        assert convert(source, "--inspect", *flag) == 2
        assert_mentions(capsys.readouterr().err, flag[0], source)


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(blocks=((3, 8, 8, False, False),), low=0, last=16), ("lraspp_demo", "blocks")),
        (dict(adaptation=f"{__name__}:Other"), ("adapter", "conv_attn_pool")),
    ],
)
def test_models_without_names_in_pytorch_are_not_exported(options, facts, tmp_path):
    from mmjax.convert.segmentation.export import rules_of

    model = model_of(name="lraspp_demo", **options)
    paths = tree.flatten(model.params) | tree.flatten(model.extra)
    with raises(UserError, *facts):
        rules_of(paths)


class Other(Adapter):
    """An adapter that TTDL does not have."""

    def __init__(self, *, rngs, **options):
        super().__init__(**options)
        self.scale = nnx.Param(jax.numpy.ones(self.bottleneck_width))
