"""Declarations of the end tasks that predict maps, from feature maps.

Names, training defaults and configurations are those of pyVTAB's all.yaml; the names of two of its
configurations differ from their learning rates. End tasks that it never contained have the defaults
of their family.
"""

from __future__ import annotations

from typing import Any

from mmjax.end_tasks.declaration import EndTask, Framing

_READERS = "mmjax.data.end_tasks"
_ADAM_1E4 = {"adam-0.0001": dict(optimizer="adam", lr=1e-4)}
_ADAM_3E4 = {"adam-0.0003": dict(optimizer="adam", lr=3e-4)}
_KITTI_SIZE = (376, 1242)
_CITYSCAPES_CONFIG = dict(optimizer="adam", lr=3e-4, scheduler=dict(type="Poly", exponent=0.9))


def _pixelwise(name: str, title: str, reader: str, **values: Any) -> EndTask:
    """Returns an end task with the defaults of pyVTAB's pixelwise tasks."""
    defaults = dict(semantic=True, batch_size=16, encode_once=False, head="unet", configs=_ADAM_1E4)
    return EndTask(name=name, title=title, reader=f"{_READERS}.{reader}", **(defaults | values))


def _segmentation(name: str, title: str, reader: str, **values: Any) -> EndTask:
    """Returns an end task that predicts one class per pixel."""
    values = dict(target="classes", metric="miou", paper_metric="paper_iou") | values
    return _pixelwise(name, title, reader, **values)


def _binary(name: str, title: str, reader: str, **values: Any) -> EndTask:
    """Returns an end task that predicts one binary map."""
    values = dict(
        target="binary",
        num_outputs=1,
        color_jitter=True,
        loss=dict(name="binary_cross_entropy"),
        metric="binary_iou",
        paper_metric="paper_binary_iou",
    ) | dict(values)
    return _pixelwise(name, title, reader, **values)


def _regression(name: str, title: str, reader: str, **values: Any) -> EndTask:
    """Returns an end task that predicts real-valued maps."""
    values = dict(
        semantic=False,
        target="values",
        num_outputs=1,
        loss=dict(name="l1"),
        metric="l1",
        higher_is_better=False,
        epochs=50,
    ) | dict(values)
    return _pixelwise(name, title, reader, **values)


def _kitti(name: str, title: str, reader: str, **values: Any) -> EndTask:
    """Returns an end task that predicts the motion between two frames."""
    values = dict(
        num_images=2,
        train_framing=Framing(type="crop"),
        test_framing=Framing(type="whole", size=_KITTI_SIZE),
        head="siamese_unet",
        epochs=250,
        configs=_ADAM_3E4,
    ) | dict(values)
    return _regression(name, title, reader, **values)


PIXELWISE: tuple[EndTask, ...] = (
    _segmentation(
        "CityscapesSemanticSegmentation",
        "Cityscapes Seg.",
        "segmentation:cityscapes",
        num_outputs=20,
        train_framing=Framing(type="scaled_crop", size=(450, 450)),
        test_framing=Framing(type="whole", size=(1024, 2048)),
        target_format="cityscapes",
        head="deeplab",
        configs={"adam-0.0001": _CITYSCAPES_CONFIG},
    ),
    _segmentation(
        "EgoHands",
        "EgoHands Seg.",
        "segmentation:egohands",
        num_outputs=5,
        train_framing=Framing(type="crop", size=(513, 513), max_draws=11),
        test_framing=Framing(type="whole", size=(720, 1280)),
        target_format="egohands",
        head="deeplab",
        loss=dict(name="cross_entropy", class_weights=(0.1, 1.0, 1.0, 1.0, 1.0)),
        validation_split="validation",
        epochs=25,
        configs=_ADAM_3E4,
    ),
    _segmentation(
        "COCODetection",
        "COCO Seg.",
        "segmentation:coco",
        num_outputs=201,
        target_format="coco",
    ),
    _binary("Pets-Detection", "Pets Instance Seg.", "segmentation:pets", target_format="trimap"),
    _binary(
        "NYUWalkable",
        "NYU Walkable",
        "indoor:nyu_walkable",
        semantic=False,
        target_format="nonzero",
        epochs=250,
    ),
    _regression(
        "NYUDepth",
        "NYU Depth",
        "indoor:nyu_depth",
        target_format="depth",
        depth=(1.0, 0.0),
        color_jitter=True,
        epochs=250,
        configs=_ADAM_3E4,
    ),
    _regression(
        "THORDepth",
        "THOR Depth",
        "indoor:thor_depth",
        target_format="thor_depth",
        depth=(0.25, 0.5),
        color_jitter=True,
        configs={"adam-0.0001-l1": dict(optimizer="adam", lr=3e-4)},
    ),
    _regression(
        "TaskonomyDepth",
        "Taskonomy Depth",
        "indoor:taskonomy_depth",
        target_format="taskonomy_depth",
        depth=(1.0, 0.0),
        color_jitter=True,
    ),
    _regression(
        "TaskonomyEdges",
        "Taskonomy Edges",
        "indoor:taskonomy_edges",
        target_format="taskonomy_edges",
        loss=dict(name="weighted_l1"),
    ),
    _regression(
        "TaskonomyInpainting",
        "Taskonomy Inpainting",
        "indoor:taskonomy_rgb",
        num_outputs=3,
        target_format="inpainting",
    ),
    _kitti(
        "KITTI",
        "KITTI Opt. Flow",
        "kitti:colored_flow",
        target_format="flow_luminance",
        metric="within",
        paper_metric="paper_within",
        higher_is_better=True,
    ),
    _kitti(
        "KITTIFlow",
        "KITTI True Flow",
        "kitti:flow",
        num_outputs=2,
        target_format="flow",
        metric="epe",
    ),
)
