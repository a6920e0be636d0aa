"""From the section `probe` to a training run: splits, steps, optimizers and evaluators."""

import re

import numpy as np
import pytest

from mmjax.benchmark import options as options_lib
from mmjax.benchmark import prepare as prepare_lib
from mmjax.benchmark.prepare import image_sizes, prepare, train_splits, updates_per_step
from mmjax.config import Config
from mmjax.errors import UserError
from tests.benchmark.images import ColorTrunk, color_encoder, write_classes
from tests.messages import raises

CONFIGS = (
    dict(name="adam-0.001", optimizer="adam", lr=0.001),
    dict(
        name="adam-0",
        optimizer="sgd",
        lr=0.1,
        scheduler=dict(type="StepLR", step_size=2, gamma=0.1),
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """21 training images of three classes, and 9 test images; features in a cache of the module."""
    root = tmp_path_factory.mktemp("data")
    write_classes(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(root / "cache"))
        yield root


def prepared(root, *, encoder=None, sections=None, **options):
    options = dict(end_task="Pets", root=str(root), batch_size=8, configs=CONFIGS) | options
    cfg = Config(task="probe", probe=options, **sections or {})
    return prepare(cfg, encoder=encoder or color_encoder(), progress=False)


def test_heads_are_selected_on_validation_examples_and_tested_once(root):
    cfg = prepared(root, epochs=10, evaluations=5)
    assert cfg.data["split"] == "train[:90%:stratified]"  # 19 examples in 3 updates of 8
    assert cfg.updates_per_step == 3 and cfg.batch_size == 3 * 3 * 8 and cfg.total_steps == 10
    end_task = cfg.data["end_task"]
    assert (end_task["seeds"], end_task["examples_per_update"]) == (3, 8)
    assert not end_task["drop_last"] and not end_task["paper"]
    evals = cfg.evals
    assert list(evals) == ["validation", "train", "test"]  # the best heads exist before the test
    assert evals["validation"]["split"] == "train[90%::stratified]"
    assert evals["validation"]["keep_best"] and evals["validation"]["every"] == 2
    for name, split in (("train", cfg.data["split"]), ("test", "test")):
        assert (evals[name]["split"], evals[name]["heads"]) == (split, "best")
        assert evals[name]["at"] == "final" and "every" not in evals[name]
    assert cfg.checkpoint["every"] == 2 and cfg.checkpoint["keep"] == 1


def test_the_paper_trains_on_all_examples_and_selects_on_test(root):
    cfg = prepared(root, epochs=10, evaluations=5, protocol="paper")
    assert cfg.data["split"] == "train" and cfg.data["train"].startswith("features:")
    assert cfg.updates_per_step == 2  # 21 examples in 2 updates of 8; 5 are dropped
    assert cfg.batch_size == 2 * 8 and cfg.total_steps == 10
    assert cfg.data["end_task"]["drop_last"] and cfg.data["end_task"]["paper"]
    assert sorted(cfg.evals) == ["test", "train"]
    test = cfg.evals["test"]
    assert (test["split"], test["every"], test["paper_batch"]) == ("test", 2, 8)
    assert "heads" not in test and "heads" not in cfg.evals["train"]


def test_schedules_count_the_updates_of_an_epoch(root):
    groups = prepared(root, epochs=4).optimizer["groups"]
    assert groups["adam-0_001"]["schedule"] == dict(name="constant", base=0.001)
    schedule = groups["adam-0"]["schedule"]
    assert (schedule["name"], schedule["steps_per_epoch"], schedule["step_size"]) == ("step", 3, 2)
    for name, group in groups.items():
        paths = [f"heads/{other}/linear/kernel" for other in groups]
        matching = [path for path in paths if re.search(group["pattern"], path)]
        assert matching == [f"heads/{name}/linear/kernel"]
    disabled = prepared(root, schedulers="disabled").optimizer["groups"]
    assert disabled["adam-0"]["schedule"]["disabled"] and not schedule["disabled"]


@pytest.mark.parametrize(
    ("epoch", "limit", "expected"),
    [
        (12, 256, 12),
        (12, 5, 4),
        (13, 5, 1),
        (13, 9, 9),
        (1, 256, 1),
        (512, 256, 256),
        (509, 256, 256),
    ],
)
def test_updates_per_step_divide_an_epoch_if_possible(epoch, limit, expected):
    assert updates_per_step(epoch, limit) == expected


def test_an_epoch_is_rounded_up_to_whole_steps(root, monkeypatch):
    monkeypatch.setattr(prepare_lib, "_MAX_UPDATES", 2)
    cfg = prepared(root, epochs=4)
    assert (cfg.updates_per_step, cfg.total_steps) == (1, 12)
    monkeypatch.setattr(prepare_lib, "_MAX_BYTES", 0)
    assert prepared(root, epochs=4, batch_size=2).updates_per_step == 1
    assert prepared(root, batch_size=100).data["end_task"]["examples_per_update"] == 19


def splits(**options):
    return train_splits(options_lib.parse(options))


def test_validation_examples_are_published_or_a_fraction_of_the_training_examples():
    assert splits(end_task="EgoHands") == ("train", "validation")
    assert splits(end_task="EgoHands", validation=0.2) == ("train[:80%]", "train[80%:]")
    assert splits(end_task="NYUDepth") == ("train[:90%]", "train[90%:]")
    assert splits(end_task="dtd", validation=0.25) == (
        "train[:75%:stratified]",
        "train[75%::stratified]",
    )
    assert splits(end_task="EgoHands", protocol="paper") == ("train", "")


def sizes(**options):
    return image_sizes(options_lib.parse(options), color_encoder())


def test_images_have_the_size_of_the_encoder_unless_one_is_set():
    assert sizes(end_task="Pets")["size"] == ColorTrunk.size
    assert sizes(end_task="Pets", size=64)["size"] == 64
    cityscapes = dict(end_task="CityscapesSemanticSegmentation")
    assert sizes(**cityscapes, size=64) == dict(size=64, train_size=(), test_size=())  # declared
    # Stand-ins are smaller than the data that sizes are declared for.
    for root in ("world", "world,train=50"):
        small = sizes(**cityscapes, size=64, root=root)
        assert small == dict(size=64, train_size=(64, 64), test_size=(64, 128))
    own = sizes(**cityscapes, root="world", train_size=(16, 32))
    assert own["train_size"] == (16, 32)


def test_other_sections_of_the_config_are_kept(root):
    sections = dict(
        data=dict(corrupt="skip", threads=1),
        evals=dict(mine=dict(type="end_task", split="test", at="final")),
        model=dict(head=dict(name="mlp", hidden=4)),
        checkpoint=dict(keep_every=7),
        seed=3,
    )
    cfg = prepared(root, sections=sections)
    assert cfg.data["corrupt"] == "skip" and cfg.data["threads"] == 1
    assert list(cfg.evals) == ["validation", "train", "test", "mine"]
    assert cfg.model == dict(head=dict(name="mlp", hidden=4), trunk=None)
    assert cfg.checkpoint["keep_every"] == 7 and cfg.seed == 3 and cfg.init_from == ""


class MapTrunk(ColorTrunk):
    """An encoder with the feature maps of a ResNet, which is not one."""

    size = 32

    def features(self):
        return ("embedding", "conv", "block1", "block2", "block3", "block4")


def test_pixelwise_end_tasks_run_the_frozen_encoder_in_each_step():
    cfg = prepared(
        "world,train=20", encoder=color_encoder(model=MapTrunk()), end_task="NYUWalkable", epochs=2
    )
    assert cfg.model["trunk"] == {"task": "colors"} and cfg.init_from == "colors:0"
    assert cfg.optimizer["frozen"] == ("^trunk/",)
    assert cfg.data["train"] == "end_task:NYUWalkable,root=world,train=20"
    assert cfg.data["label"] is None and cfg.data["end_task"]["seeds"] == 1
    assert (cfg.batch_size, cfg.updates_per_step, cfg.total_steps) == (8, 1, 2 * 3)  # 18 examples
    assert cfg.evals["train"]["limit"] == 16 * 8 and cfg.evals["test"]["batch_size"] == 8
    deeplab = prepared(
        "world,train=20",
        encoder=color_encoder(model=MapTrunk()),
        end_task="CityscapesSemanticSegmentation",
    )
    assert deeplab.model["head"]["name"] == "deeplab_plain"  # the encoder has no bottlenecks


def test_a_fine_tuned_encoder_has_the_optimizer_of_its_head(root):
    cfg = prepared(root, fine_tune=True, configs=CONFIGS[:1], epochs=2)
    (group,) = cfg.optimizer["groups"].values()
    assert "frozen" not in cfg.optimizer
    for path in ("trunk/image/kernel", "heads/adam-0_001/linear/kernel"):
        assert re.search(group["pattern"], path)
    assert cfg.init_from == "colors:0" and cfg.data["train"].startswith("end_task:Pets")
    random = color_encoder(source="random:resnet_demo")
    assert prepared(root, encoder=random, fine_tune=True, configs=CONFIGS[:1]).init_from == ""


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (dict(end_task="Imagenetv2"), ["Imagenetv2", "heads of Imagenet", "mmjax benchmark"]),
        (dict(end_task="NYUDepth"), ["unet", "embedding", "ResNet"]),
        (dict(end_task="KITTI"), ["siamese_unet", "embedding"]),
    ],
)
def test_what_cannot_be_trained_is_refused_before_data_are_read(tmp_path, options, facts):
    with raises(UserError, *facts) as error:
        prepared(tmp_path / "missing", **options)
    assert "missing" not in str(error.value)


def test_missing_data_and_encoders_are_named(tmp_path):
    with raises(UserError, tmp_path / "pets/train/*/*.jpg"):
        prepared(tmp_path)
    cfg = Config(task="probe", probe=dict(end_task="Pets"))
    with raises(UserError, "--override_checkpoint"):
        prepare(cfg)


def test_features_of_the_config_are_those_of_its_images(root):
    """The same table whatever is trained on it, another one for other sizes."""
    tables = [
        prepared(root, **options).data["train"]
        for options in (dict(), dict(epochs=3, seeds=1, batch_size=4), dict(size=4), dict(pca=2))
    ]
    assert tables[0] == tables[1] and len(set(tables)) == 3
    features = np.load(tables[0].removeprefix("features:") + "/train/embedding.npy")
    assert features.shape == (21, 1, 5)
