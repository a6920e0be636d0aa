"""Declarations of the end tasks that predict one class per example, from embeddings.

Names, training defaults and configurations are those of pyVTAB's all.yaml. `Pets` and `dtd` have
those of earlier revisions of that file, and end tasks that it never contained have those of their
family.
"""

from __future__ import annotations

from typing import Any

from mmjax.end_tasks.declaration import EndTask

_READERS = "mmjax.data.end_tasks"


def _classification(name: str, title: str, reader: str, **values: Any) -> EndTask:
    """Returns an end task with the defaults of pyVTAB's image-level semantic tasks."""
    values = {"semantic": True} | values
    return EndTask(name=name, title=title, reader=f"{_READERS}.{reader}", **values)


def _pair(name: str, title: str, reader: str) -> EndTask:
    """Returns an end task that predicts the motion of the camera between two images."""
    return _classification(name, title, reader, semantic=False, num_images=2, head="mlp")


IMAGE_LEVEL: tuple[EndTask, ...] = (
    _classification("Imagenet", "ImageNet Cls.", "class_directories:imagenet"),
    _classification(
        "Imagenetv2",
        "ImageNet v2 Cls.",
        "class_directories:imagenetv2",
        evaluation_only="Imagenet",
    ),
    _classification("Pets", "Pets Cls.", "class_directories:pets", epochs=500),
    _classification("CalTech-101", "CalTech Cls.", "class_directories:caltech_101", epochs=500),
    _classification("CIFAR-100", "CIFAR-100 Cls.", "cifar:cifar_100"),
    _classification("CIFAR-10", "CIFAR-10 Cls.", "cifar:cifar_10"),
    _classification("SUN397", "SUN Scene Cls.", "class_directories:sun397", epochs=250),
    _classification("Eurosat", "Eurosat Cls.", "class_directories:eurosat", epochs=200),
    _classification("dtd", "dtd Cls.", "class_directories:dtd"),
    _classification(
        "KineticsActionPrediction",
        "Kinetics Action Pred.",
        "kinetics:kinetics",
        num_images=6,
        head="mlp",
        configs={"adam-0.0003": dict(optimizer="adam", lr=3e-4)},
    ),
    _classification("CLEVERNumObjects", "CLEVR Count", "clevr:num_objects", semantic=False),
    _classification("CLEVERDist", "CLEVR Dist.", "clevr:distance", semantic=False),
    _classification("THORNumSteps", "THOR Num. Steps", "egomotion:thor_num_steps", semantic=False),
    _pair("THORActionPrediction", "THOR Egomotion", "egomotion:thor_action"),
    _pair("nuScenesActionPrediction", "nuScenes Egomotion", "egomotion:nuscenes_action"),
)
