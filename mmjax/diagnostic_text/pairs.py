"""Pairs of an image and a class that a text describes, and their selection from a batch.

Images and masks are resized to the side of the text models first: masks by nearest neighbor with
source index floor(i * size_in / size_out), images bilinearly with antialiasing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from mmjax.errors import UserError

BACKGROUND = 0  # class index


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One class of one image, with its true and its predicted mask.

    Attributes:
      key: `<image id>-<class index>`.
      class_name: Name of the class, as texts spell it.
      scene: The image, uint8 [S, S, 3].
      truth: True mask of the class, bool [S, S]. The background includes void pixels.
      prediction: Predicted mask of the class, bool [S, S].
      void: Pixels without a true class, bool [S, S]; None if all have one.
      image_index: Index of the image in its batch.
      class_index: Index of the class.
    """

    key: str
    class_name: str
    scene: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    void: np.ndarray | None = None
    image_index: int = 0
    class_index: int = 0


def split_key(key: str) -> tuple[str, int]:
    """Returns `(image id, class index)` of a pair's key. The id may contain hyphens.

    Raises:
      UserError: The key has another form.
    """
    image_id, hyphen, index = key.rpartition("-")
    if not hyphen or not index.isdecimal():
        raise UserError(f"{key!r} is not the key of a pair; expected <image id>-<class index>.")
    return image_id, int(index)


def stable_seed(*parts: object) -> int:
    """Returns a seed that is the same in every process, from any values with a stable `str`."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Returns a mask [H, W] at [size, size], with source indices floor(i * H / size)."""
    rows, columns = (np.arange(size) * length // size for length in mask.shape)
    return mask[rows[:, None], columns]


def resize_scene(scene: np.ndarray, size: int) -> np.ndarray:
    """Returns a uint8 image [H, W, 3] at [size, size, 3], bilinear with antialiasing."""
    if scene.shape[:2] == (size, size):
        return scene
    return np.asarray(Image.fromarray(scene).resize((size, size), Image.Resampling.BILINEAR))


def select_classes(
    truth: Iterable[int],
    prediction: Iterable[int],
    *,
    predicted_limit: int | None,
    rng: np.random.Generator,
) -> list[int]:
    """Returns the classes of an image to describe, sorted (TTDL, section 6.1).

    The background is included only if there is no other class.

    Args:
      truth: Classes of the true mask.
      prediction: Classes of the predicted mask.
      predicted_limit: How many predicted classes to keep, chosen at random without the background
        if there are more. 0 describes only true classes, None all predicted ones.
      rng: Random generator of the choice.
    """
    predicted = sorted(set(prediction))
    if predicted_limit is not None and len(predicted) > predicted_limit:
        if predicted != [BACKGROUND]:
            predicted = [index for index in predicted if index != BACKGROUND]
        if len(predicted) > predicted_limit:
            predicted = rng.choice(predicted, predicted_limit, replace=False).tolist()
    classes = set(truth) | set(predicted)
    return sorted(classes - {BACKGROUND}) or [BACKGROUND]


def select_pairs(
    image_ids: Sequence[str],
    scenes: np.ndarray,
    truths: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    *,
    size: int = 224,
    void: int | None = None,
    predicted_limit: int | None = 0,
    seed: Sequence[int] = (0,),
) -> list[Pair]:
    """Returns the pairs of a batch, in the order of images and classes.

    Args:
      image_ids: Ids of the images, length B.
      scenes: Images, uint8 [B, H, W, 3].
      truths: True classes, int [B, H, W].
      predictions: Predicted classes, int [B, H, W].
      class_names: Names by class index; the first is the background.
      size: Side of the pairs in pixels.
      void: Label of pixels without a true class. They count as background.
      predicted_limit: See `select_classes`.
      seed: Integers that make random choices reproducible, for example the run's seed and step.

    Raises:
      UserError: A mask has a label that is neither a class nor void.
    """
    pairs = []
    for index, image_id in enumerate(image_ids):
        labels, prediction = (resize_mask(masks[index], size) for masks in (truths, predictions))
        void_mask = None if void is None else labels == void
        truth = labels if void_mask is None else np.where(void_mask, BACKGROUND, labels)
        present, predicted = (np.unique(mask).tolist() for mask in (truth, prediction))
        _check_labels(image_id, [*present, *predicted], class_names, void)
        rng = np.random.default_rng([*seed, stable_seed(image_id)])
        classes = select_classes(present, predicted, predicted_limit=predicted_limit, rng=rng)
        scene = resize_scene(scenes[index], size)
        pairs += [
            Pair(
                key=f"{image_id}-{class_index}",
                class_name=class_names[class_index],
                scene=scene,
                truth=truth == class_index,
                prediction=prediction == class_index,
                void=void_mask,
                image_index=index,
                class_index=class_index,
            )
            for class_index in classes
        ]
    return pairs


def _check_labels(
    image_id: str, labels: Sequence[int], class_names: Sequence[str], void: int | None
) -> None:
    wrong = [label for label in labels if not 0 <= label < len(class_names)]
    if wrong:
        expected = f"0 to {len(class_names) - 1}" + (f" or {void} (void)" if void else "")
        raise UserError(
            f"Image {image_id}: a mask has label {wrong[0]}; expected {expected}. Correct the "
            "mask, or add the class to the list of classes."
        )
