"""The declarations of end tasks, against the tables of pyVTAB."""

import pytest

from mmjax import registry as references
from mmjax.data.end_tasks import targets
from mmjax.end_tasks.declaration import EndTask
from mmjax.end_tasks.registry import ALIASES, END_TASKS, PAPER, find
from mmjax.errors import UserError
from mmjax.evals.end_task_metrics import HIGHER_IS_BETTER
from mmjax.losses.end_task import LOSSES
from mmjax.models.decoders.registry import HEADS
from tests.messages import raises

# Epochs, batch size and learning rate of all.yaml.
TRAINING = {
    "Imagenet": (100, 32, 1e-4),
    "SUN397": (250, 32, 1e-4),
    "CIFAR-100": (100, 32, 1e-4),
    "CalTech-101": (500, 32, 1e-4),
    "Eurosat": (200, 32, 1e-4),
    "Pets": (500, 32, 1e-4),
    "dtd": (100, 32, 1e-4),
    "KineticsActionPrediction": (100, 32, 3e-4),
    "nuScenesActionPrediction": (100, 32, 1e-4),
    "CLEVERNumObjects": (100, 32, 1e-4),
    "THORNumSteps": (100, 32, 1e-4),
    "THORActionPrediction": (100, 32, 1e-4),
    "THORDepth": (50, 16, 3e-4),
    "NYUDepth": (250, 16, 3e-4),
    "NYUWalkable": (250, 16, 1e-4),
    "TaskonomyDepth": (50, 16, 1e-4),
    "KITTI": (250, 16, 3e-4),
    "EgoHands": (25, 16, 3e-4),
    "CityscapesSemanticSegmentation": (100, 16, 3e-4),
    "Pets-Detection": (100, 16, 1e-4),
}


def test_training_defaults_are_those_of_the_paper():
    assert set(TRAINING) == set(PAPER) and len(PAPER) == 20
    for name, (epochs, batch_size, lr) in TRAINING.items():
        task = END_TASKS[name]
        (options,) = task.configs.values()
        assert (task.epochs, task.batch_size, options["lr"]) == (epochs, batch_size, lr), name
        assert task.encode_once != task.pixelwise
    assert list(END_TASKS["THORDepth"].configs) == ["adam-0.0001-l1"]
    (poly,) = END_TASKS["CityscapesSemanticSegmentation"].configs.values()
    assert poly["scheduler"] == dict(type="Poly", exponent=0.9)


def test_nine_tasks_are_semantic_on_images_and_three_on_pixels():
    structural = {name for name in PAPER if not END_TASKS[name].semantic}
    pixelwise = {name for name in PAPER if END_TASKS[name].pixelwise}
    assert len(pixelwise) == 8 and len(structural - pixelwise) == 4
    assert len(structural & pixelwise) == 5
    assert {t.num_images for t in END_TASKS.values()} == {1, 2, 6}


# {(head, loss, metric of the paper, number of images, target): end tasks}.
FAMILIES = {
    ("linear", "cross_entropy", "top1", 1, "label"): (
        *("Imagenet", "Imagenetv2", "Pets", "CalTech-101", "CIFAR-100", "CIFAR-10", "Eurosat"),
        *("dtd", "SUN397", "CLEVERNumObjects", "CLEVERDist", "THORNumSteps"),
    ),
    ("mlp", "cross_entropy", "top1", 2, "label"): (
        *("THORActionPrediction", "nuScenesActionPrediction"),
    ),
    ("mlp", "cross_entropy", "top1", 6, "label"): ("KineticsActionPrediction",),
    ("deeplab", "cross_entropy", "paper_iou", 1, "classes"): (
        *("CityscapesSemanticSegmentation", "EgoHands"),
    ),
    ("unet", "cross_entropy", "paper_iou", 1, "classes"): ("COCODetection",),
    ("unet", "binary_cross_entropy", "paper_binary_iou", 1, "binary"): (
        *("Pets-Detection", "NYUWalkable"),
    ),
    ("unet", "l1", "l1", 1, "values"): (
        *("THORDepth", "NYUDepth", "TaskonomyDepth", "TaskonomyInpainting"),
    ),
    ("unet", "weighted_l1", "l1", 1, "values"): ("TaskonomyEdges",),
    ("siamese_unet", "l1", "paper_within", 2, "values"): ("KITTI",),
    ("siamese_unet", "l1", "epe", 2, "values"): ("KITTIFlow",),
}


def test_families_share_head_loss_and_metric():
    families = {}
    for task in END_TASKS.values():
        metric = task.paper_metric or task.metric
        key = (task.head, task.loss["name"], metric, task.num_images, task.target)
        families.setdefault(key, set()).add(task.name)
    assert families == {key: set(names) for key, names in FAMILIES.items()}


def test_details_of_pyvtab():
    assert END_TASKS["EgoHands"].loss["class_weights"] == (0.1, 1, 1, 1, 1)
    assert END_TASKS["EgoHands"].num_outputs == 5 and END_TASKS["COCODetection"].num_outputs == 201
    assert END_TASKS["CityscapesSemanticSegmentation"].num_outputs == 20
    assert END_TASKS["TaskonomyInpainting"].num_outputs == 3
    assert {t.name for t in END_TASKS.values() if t.evaluation_only} == {"Imagenetv2"}
    assert END_TASKS["Imagenetv2"].evaluation_only == "Imagenet"
    lower = {t.name for t in END_TASKS.values() if not t.higher_is_better}
    assert lower == {
        *("TaskonomyInpainting", "TaskonomyEdges", "NYUDepth", "THORDepth", "TaskonomyDepth"),
        "KITTIFlow",
    }
    jittered = {t.name for t in END_TASKS.values() if t.color_jitter}
    assert jittered == {
        *("Pets-Detection", "NYUDepth", "NYUWalkable", "THORDepth", "TaskonomyDepth"),
    }


@pytest.mark.parametrize("name", END_TASKS)
def test_declarations_name_what_exists(name):
    task = END_TASKS[name]
    assert callable(references.resolve("reader", task.reader, {}))
    assert task.head in HEADS and task.loss["name"] in LOSSES
    for metric in filter(None, (task.metric, task.paper_metric)):
        assert HIGHER_IS_BETTER[metric] == task.higher_is_better
    if task.pixelwise:
        targets.find_format(task.target_format)
        assert task.num_outputs
    else:
        assert not task.target_format


def test_end_tasks_are_found_by_name_alias_and_reference():
    assert {find(alias).name for alias in ALIASES} == {"CLEVERNumObjects", "CLEVERDist"}
    assert find("tests.end_tasks.test_registry:OWN") is OWN
    with raises(UserError, "NYUDpeth", "NYUDepth", "package.module:Name"):
        find("NYUDpeth")
    with raises(UserError, "EndTask", "dict"):
        find("tests.end_tasks.test_registry:TRAINING")


OWN = EndTask(name="own", title="Own", reader="tests.end_tasks:none", semantic=True)
