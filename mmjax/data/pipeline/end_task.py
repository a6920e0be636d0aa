"""End tasks: the section `data.end_task` and its functions of the input pipeline.

Everything geometric happens here, with Pillow; color changes are made on the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.end_tasks.framing import NUM_DRAWS, Framer
from mmjax.data.end_tasks.targets import find_format
from mmjax.data.pipeline.common import Context, check_positive, first_present
from mmjax.data.pipeline.phases import Features, Pipeline, seed_of
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.end_tasks.declaration import EndTask
from mmjax.end_tasks.registry import find
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndTaskOptions:
    """The section `data.end_task`: the images and the label or target of an end task.

    Attributes:
      name: Name of the end task; see `mmjax.end_tasks.registry`.
      size: Height and width in pixels of images for which the end task declares no size.
      train_size: (height, width) of training examples; () for the declared or the above size.
      test_size: (height, width) of validation and test examples; () as for `train_size`.
      paper: Whether images and targets are those of pyVTAB; see docs/end_tasks.md.
      seeds: Number of heads per training configuration.
      examples_per_update: Examples per update and head; 0 for the batch size. Only used with a
        feature table; see `mmjax.data.pipeline.feature_table`.
      drop_last: Whether a feature table is read without the last incomplete batch of each epoch.
    """

    name: str = ""
    size: int = 224
    train_size: tuple[int, ...] = ()
    test_size: tuple[int, ...] = ()
    paper: bool = False
    seeds: int = 1
    examples_per_update: int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        check_positive("end_task", self, "size", "seeds")
        for key in ("train_size", "test_size"):
            if (value := getattr(self, key)) and (len(value) != 2 or min(value) < 1):
                raise UserError(
                    f"data.end_task.{key}={value} must be (height, width) in pixels, or () for the "
                    "declared size."
                )
        if not self.name:
            raise UserError("data.end_task.name is not set. Set it to the name of an end task.")
        find(self.name)

    @property
    def task(self) -> EndTask:
        """The declaration of the end task."""
        return find(self.name)

    def framer(self, *, train: bool) -> Framer:
        """Returns what makes training examples, or validation and test examples."""
        task = self.task
        framing, own = (
            (task.train_framing, self.train_size) if train else (task.test_framing, self.test_size)
        )
        return Framer(
            framing=framing,
            size=tuple(own or framing.size or (self.size, self.size)),
            format=find_format(task.target_format) if task.pixelwise else None,
            paper=self.paper,
        )

    def shapes(self, *, train: bool) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns {field: (shape of one example, dtype)}."""
        task, size = self.task, self.framer(train=train).size
        image = ((task.num_images, *size, 3), "uint8")
        if not task.pixelwise:
            return {"image": image, "label": ((), "int32")}
        if task.target == "classes":
            return {"image": image, "target": ((*size, 1), "int32")}
        return {"image": image, "target": ((*size, task.num_outputs), "float32")}


def count_outputs(options: EndTaskOptions, infos: Sequence[DatasetInfo]) -> int:
    """Returns the number of outputs of a head: of classes, or of maps.

    Args:
      options: The section `data.end_task`.
      infos: Description of the dataset of each source.

    Raises:
      UserError: The end task does not declare it, and the datasets do not agree on one.
    """
    if declared := options.task.num_outputs:
        return declared
    counts = {info.num_classes for info in infos}
    if len(counts) != 1 or counts == {0}:
        listed = ", ".join(f"{info.name}: {info.num_classes or 'unknown'}" for info in infos)
        raise UserError(
            f"data.end_task.name={options.name} takes the number of classes from the datasets in "
            f"data.train, but they do not agree on one ({listed}). Use one dataset with classes."
        )
    return counts.pop()


def add_end_task(pipeline: Pipeline, options: EndTaskOptions, context: Context) -> None:
    """Adds the batch fields `image`, uint8 [T, H, W, 3], and `label` or `target`.

    `label` is int32 [], -1 for an unlabeled example. `target` is int32 [H, W, 1] with -1 for
    ignored pixels for classes, and otherwise float32 [H, W, K] with NaN for ignored pixels.

    Functions: parse 'end_task', and preprocess 'end_task'.
    """
    task, framer = options.task, options.framer(train=context.train)
    shapes = options.shapes(train=context.train)
    images_key, target_key = schema.FRAMES[0], schema.TARGET[0]
    pipeline.sequence(images_key, tf.string)
    if task.pixelwise:
        pipeline.sequence(target_key, tf.string)
    else:
        for key in schema.LABELS:
            pipeline.context(key, tf.int64)

    def parse(features: Features) -> Features:
        features = features | {"_images": features[f"_sequence/{images_key}"].flat_values}
        if task.pixelwise:
            return features | {"_target": features[f"_sequence/{target_key}"].flat_values}
        if "label" in features:  # of the section `data.label`
            return features
        labels = first_present(*(features[f"_context/{key}"] for key in schema.LABELS))
        tf.debugging.Assert(
            tf.reduce_all((labels >= 0) & (labels < context.num_classes)),
            [
                f"the label of {task.name} is",
                labels,
                f"but the training split has {context.num_classes} classes, numbered from 0. "
                "Correct the labels, or add training examples of this class",
            ],
        )
        return features | {"label": tf.cast(tf.concat([labels, [-1]], 0)[0], tf.int32)}

    def make(images: np.ndarray, target: np.ndarray, draws: np.ndarray):
        if len(images) != task.num_images:
            raise UserError(
                f"it has {len(images)} images, but {task.name} takes {task.num_images}. Use the "
                f"source end_task:{task.name}"
            )
        example = framer.decode(images.tolist(), target[0] if len(target) else None)
        framed, values = framer.frame(example, draws)
        return framed, np.zeros((), np.int32) if values is None else values

    def preprocess(features: Features) -> Features:
        seed = seed_of(features, "end_task")
        draws = tf.random.stateless_uniform([NUM_DRAWS], seed, dtype=tf.float64)
        target = features["_target"] if task.pixelwise else tf.zeros([0], tf.string)
        dtype = tf.as_dtype(shapes["target" if task.pixelwise else "label"][1])
        image, values = tf.numpy_function(
            make, [features["_images"], target, draws], [tf.uint8, dtype], stateful=False
        )
        features = features | {"image": tf.ensure_shape(image, shapes["image"][0])}
        if task.pixelwise:
            features["target"] = tf.ensure_shape(values, shapes["target"][0])
        return features

    pipeline.add("parse", "end_task", parse)
    pipeline.add("preprocess", "end_task", preprocess)
