"""Every recipe builds its model on abstract shapes, and `--model_arch` selects the right recipe."""

import math

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from mmjax import config, evals, program, sharding, tasks, tree
from mmjax.configs.segment import ttdl as segment_ttdl
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from tests.messages import raises

RECIPES = sorted(
    (path.parent.name, path.stem)
    for path in config.RECIPES.glob("*/*.py")
    if not path.stem.startswith("_")
    and path.parent.name not in (config.EVALS, "probe")  # built from data and an encoder
)
ARGUMENTS = {  # in addition to the default
    ("pretrain", "demo"): ["ut_fac", "mmv_fac", "ut_fac,smoke"],
    ("pretrain", "clips"): ["text"],
    ("pretrain", "ut_fac"): ["large"],
    ("finetune", "demo"): ["ut_fac"],
    ("touch", "demo"): ["clip", "frozen"],
    ("touch", "pairs"): ["text", "image"],
    ("touch", "tvl"): ["base,background", "resnet18"],
    ("flair", "demo"): ["reference"],
    ("flair", "dm_vs_dt"): ["text_adapter"],
    ("guided", "demo"): ["simclr", "slip,smoke"],
    ("guided", "lgssl"): ["lgslip", "nnclr,exempt", "swav,fixed_blur", "declip", "slip"],
    ("guided", "pairs"): ["simclr", "lgsimsiam,resnet50"],
    ("segment", "demo"): ["rescale", "contrastive"],
    ("segment", "masks"): ["deeplabv3_resnet50", "segformer_mit_b0"],
    ("segment", "ttdl"): [*segment_ttdl.EXPERIMENTS[1:], "3.4,describer,decay_all"],
    ("finetune", "video"): ["vit_xlarge", "i3d", "ut_base"],
    ("finetune", "audio"): ["wat_large", "spt_base", "resnet2d_50"],
    ("finetune", "imagenet"): ["ut_medium"],
    ("finetune", "audioset"): ["ut_medium"],
}
# The parts that recipes of --task=flair train, if not all.
FLAIR_TRAINED = {
    "demo:reference": "concat_adapter",
    "gt_pr_vs_dt": "concat_adapter",
    "dm_vs_dt": "text_projection",
    "dm_vs_dt:text_adapter": "text_adapter",
}
CASES = [
    (task, f"{name}:{argument}" if argument else name)
    for task, name in RECIPES
    for argument in ["", *ARGUMENTS.get((task, name), [])]
]


def program_of(task, name, *overrides):
    cfg = config.resolve(config.load(task, name, overrides))
    mesh = AbstractMesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    data_spec = DataSpec.of_config(cfg, num_classes=10)
    return program.build_program(cfg, tasks.make_task(cfg, data_spec), mesh), data_spec


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_recipe_builds_its_model_and_optimizer(task, name):
    program, data_spec = program_of(task, name)
    cfg = config.load(task, name)
    evaluators = evals.make_evaluators(
        config.plain(cfg.evals),
        task=program.task,
        data_cfg=config.plain(cfg.data),
        mesh=program.mesh,
    )
    assert [evaluator.name for evaluator in evaluators] == list(cfg.evals)
    # Counting FLOPs applies every tower to the inputs of the recipe. Each trained kernel costs at
    # least three multiply-adds per weight and example: one forward, two backward.
    params = tree.flatten(program.task.model.params)
    trained = [p for p in params if p.endswith("kernel") and not program.frozen.get(p)]
    weights = sum(math.prod(params[path].shape) for path in trained)
    batch_size = next(iter(data_spec.batch.values())).shape[0]
    assert weights > 0 and program.task.flops(data_spec.batch) > 3 * 2 * batch_size * weights
    frozen = [path for path, is_frozen in program.frozen.items() if is_frozen]
    published = task == "pretrain" and name.partition(":")[0] in ("tx_fac", "ut_fac", "mmv_fac")
    if task == "touch" and ("tvl" in name or "frozen" in name):
        assert {path.split("/")[0] for path in frozen} == {"image", "text"}
    elif task == "flair" and name in FLAIR_TRAINED:
        assert params.keys() - frozen == {f"{FLAIR_TRAINED[name]}/kernel"}
    elif task == "segment" and name.startswith("ttdl:4"):
        assert frozen == ["concat_adapter/kernel"]
    else:
        assert frozen == (["text/word_embedding"] if published else [])


@pytest.mark.parametrize("arch", config.ARCHITECTURES["finetune"])
def test_an_architecture_selects_the_backbone(arch):
    cfg = config.load("finetune", config.choose_recipe("finetune", None, arch.upper()))
    backbone = config.plain(cfg.model.backbone)
    assert (backbone if isinstance(backbone, str) else backbone["name"]) == arch


@pytest.mark.parametrize(
    ("task", "recipe", "arch", "expected"),
    [
        ("pretrain", None, None, "demo"),
        ("pretrain", "clips:text", None, "clips:text"),
        ("pretrain", None, "Tx_FAC", "tx_fac"),
        ("pretrain", "tx_fac:bbs", "tx_fac", "tx_fac:bbs"),
        ("pretrain", "demo", "ut_fac", "demo:ut_fac"),
        ("finetune", None, "wat_base", "audio:wat_base"),
        ("finetune", "kinetics600", "VIT_LARGE", "kinetics600:vit_large"),
    ],
)
def test_an_architecture_selects_a_recipe(task, recipe, arch, expected):
    assert config.choose_recipe(task, recipe, arch) == expected


@pytest.mark.parametrize(
    ("recipe", "dropout"),
    [
        ("kinetics400:vit_medium", 0.5),
        ("kinetics400:ut_medium", 0.5),
        ("audioset:wat_base", 0.0),
        ("audioset:ut_medium", 0.0),
    ],
)
def test_classifier_dropout_equals_the_published_value(recipe, dropout):
    program, _ = program_of("finetune", recipe)
    assert program.task.model.module.dropout_rate == dropout


@pytest.mark.parametrize(
    ("recipe", "facts"),
    [
        ("kinetics400:wat_base", ("wat_base", "video", "vit_tiny, vit_small, vit_base")),
        ("audioset:vit_base", ("vit_base", "audio", "wat_tiny, wat_small, wat_base")),
        ("imagenet:i3d", ("i3d", "vit_*", "ut_*")),
        ("kinetics600:vit_bas", ("'vit_bas'", "'vit_base'", "i3d, i3d_tiny")),
        ("clips:vit_base", ("recipe", "'vit_base'")),
    ],
)
def test_an_invalid_tower_of_a_recipe_is_an_error(recipe, facts):
    with raises(UserError, *facts):
        config.load("finetune", recipe)


@pytest.mark.parametrize(
    ("task", "recipe", "arch", "facts"),
    [
        (
            *("finetune", None, "ut_fac"),
            ("--model_arch=ut_fac", "--task=pretrain", "finetune", "vit_base, vit_medium"),
        ),
        (
            *("pretrain", None, "vit_base"),
            ("--model_arch=vit_base", "--task=finetune", "pretrain", "tx_fac, ut_fac, mmv_fac"),
        ),
        ("pretrain", None, "tx_fax", ("--model_arch", "'tx_fax'", "'tx_fac'", "mmv_fac")),
        (
            *("finetune", "video:vit_base", "vit_large"),
            ("--config=video:vit_base", "--model_arch=vit_large"),
        ),
    ],
)
def test_an_invalid_architecture_is_an_error_with_the_valid_names(task, recipe, arch, facts):
    with raises(UserError, *facts):
        config.choose_recipe(task, recipe, arch)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("demo:smok", ("'smok'", "'smoke'", "mmv_fac, smoke, tx_fac, ut_fac")),
        ("demo:ut_fac,mmv_fac", ("recipe", "mmv_fac, ut_fac")),
        ("clips:txt", ("'txt'", "'text'")),
        ("tx_fac:b", ("tx_fac", "'b'", "bbs, lbs, mbs, tiny")),
    ],
)
def test_an_invalid_argument_of_a_recipe_is_an_error(name, facts):
    with raises(UserError, *facts):
        program_of("pretrain", name)


def test_an_image_is_repeated_to_one_patch_of_four_frames():
    program, data_spec = program_of("finetune", "imagenet")
    assert data_spec.batch["video"].shape == (64, 1, 224, 224, 3)
    batch = {
        "video": jax.ShapeDtypeStruct((2, 1, 1, 224, 224, 3), "uint8"),
        "label": jax.ShapeDtypeStruct((2,), "int32"),
    }
    task = program.task
    out = jax.eval_shape(task.predict["logits"], task.model.params, task.model.extra, batch)
    assert out["logits"].shape == (2, 10)
    tokens = jax.eval_shape(
        lambda params, x: task.model.bind(params, task.model.extra).run({"video": x}, None)[1],
        task.model.params,
        jax.ShapeDtypeStruct((2, 4, 224, 224, 3), "float32"),
    )
    assert tokens["video"].shape == (2, math.prod((1, 14, 14)), 768)
