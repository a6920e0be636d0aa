"""Results of encoders on end tasks with known ranks and correlations."""

from __future__ import annotations

import numpy as np

from mmjax.benchmark.results import Result
from mmjax.end_tasks.declaration import EndTask

# name, title, metric, whether semantic and pixelwise, whether larger is better
_TASKS = (
    ("Imagenet", "ImageNet Cls.", "top1", True, False, True),
    ("Pets", "Pets Cls.", "top1", True, False, True),
    ("CalTech-101", "CalTech Cls.", "top1", True, False, True),
    ("CIFAR-100", "CIFAR-100 Cls.", "top1", True, False, True),
    ("SUN397", "SUN Scene Cls.", "top1", True, False, True),
    ("Eurosat", "Eurosat Cls.", "top1", True, False, True),
    ("dtd", "dtd Cls.", "top1", True, False, True),
    ("KineticsActionPrediction", "Kinetics Action Pred.", "top1", True, False, True),
    ("CLEVERNumObjects", "CLEVR Count", "top1", False, False, True),
    ("THORNumSteps", "THOR Num. Steps", "top1", False, False, True),
    ("THORActionPrediction", "THOR Egomotion", "top1", False, False, True),
    ("nuScenesActionPrediction", "nuScenes Egomotion", "top1", False, False, True),
    ("CityscapesSemanticSegmentation", "Cityscapes Seg.", "miou", True, True, True),
    ("Pets-Detection", "Pets Instance Seg.", "iou", True, True, True),
    ("EgoHands", "EgoHands Seg.", "miou", True, True, True),
    ("THORDepth", "THOR Depth", "l1", False, True, False),
    ("TaskonomyDepth", "Taskonomy Depth", "l1", False, True, False),
    ("NYUDepth", "NYU Depth", "l1", False, True, False),
    ("NYUWalkable", "NYU Walkable", "iou", False, True, True),
    ("KITTI", "KITTI Opt. Flow", "within_0.05", False, True, True),
)
TASKS = {
    name: EndTask(
        name=name,
        title=title,
        reader="",
        semantic=semantic,
        target="values" if pixelwise else "label",
        metric=metric,
        higher_is_better=higher,
        encode_once=not pixelwise,
        batch_size=16 if pixelwise else 32,
    )
    for name, title, metric, semantic, pixelwise, higher in _TASKS
}
TASKS["Imagenetv2"] = EndTask(
    name="Imagenetv2", title="ImageNet v2", reader="", semantic=True, evaluation_only="Imagenet"
)
ENCODERS = (
    *("Supervised", "Random", "SWAV_800", "MoCov2_800", "MoCov1_200", "PIRL_800", "SimCLR_1000"),
    *(
        f"{method}{rest}"
        for method in ("MoCov2", "SWAV")
        for rest in (
            *("_200", "Combination", "Taskonomy", "Kinetics", "Places", "HalfImagenet"),
            *("LogImagenet", "UnbalancedImagenet", "QuarterImagenet", "_100", "_50"),
            "HalfImagenet_100",
        )
    ),
)[:30]


def make(**values):
    """A result with defaults for all fields that are not given."""
    fields = dict(
        experiment="mine",
        run="Pets",
        end_task="Pets",
        config_name="adam-0.0001",
        config=dict(optimizer="adam", lr=1e-4),
        metric="top1",
        higher_is_better=True,
        train_loss=0.5,
        train_accuracy=0.9,
        test_loss=0.7,
        test_accuracy=0.8,
        validation_accuracy=0.81,
        best_epoch=3,
        epochs=4,
        seconds=12.5,
        cell_hash="abc",
        version="0.2.0",
    )
    return Result(**(fields | values))


def scores(num_encoders=30, num_tasks=20):
    """Scores [E, T], larger is better: the first encoder is the best one on every end task.

    Image-level end tasks have the order of the encoders, with noise; pixelwise ones a second
    order that does not depend on it.
    """
    rng = np.random.default_rng(0)
    image = np.linspace(1, 0, num_encoders)
    pixel = rng.permuted(image)
    pixel[0], pixel[pixel.argmax()] = pixel.max(), pixel[0]
    columns = [pixel if one[4] else image for one in _TASKS[:num_tasks]]
    result = np.stack(columns, axis=1) + rng.normal(0, 0.05, (num_encoders, num_tasks))
    result[0] = result.max(axis=0) + 0.1
    return result


def results(num_encoders=30, num_tasks=20, *, seeds=3, names=ENCODERS):
    """Results whose scores are `scores`; depth is an error, of which lower is better."""
    values, rng = scores(num_encoders, num_tasks), np.random.default_rng(1)
    found = []
    for row, encoder in enumerate(names[:num_encoders]):
        for column, (name, _, metric, _, pixelwise, higher) in enumerate(_TASKS[:num_tasks]):
            value = 0.3 + 0.5 * values[row, column]
            value = value if higher else 1.2 - value
            samples = value + 0.004 * rng.normal(size=seeds)
            samples += value - samples.mean()
            found.append(
                make(
                    experiment=encoder,
                    run=name,
                    end_task=name,
                    metric=metric,
                    higher_is_better=higher,
                    test_accuracy=float(samples.mean()),
                    validation_accuracy=float(value),
                    seeds=tuple(range(seeds)),
                    test_values=tuple(map(float, samples)),
                    ci95=0.01 if seeds > 1 else None,
                    metrics={metric: float(value), "loss": 0.7},
                    seconds=60.0 * (8 if pixelwise else 1),
                )
            )
    return found
