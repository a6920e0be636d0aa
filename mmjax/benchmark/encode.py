"""Encodes the images of an end task once, into a feature table that all its heads are trained on.

Tables are kept in the cache directory, under a hash of everything that determines them: the weights
and the config of the encoder, the files of the data, and the options.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from mmjax import cache, files, sharding
from mmjax.benchmark.image_encoder import ImageEncoder
from mmjax.errors import UserError
from mmjax.evals.features import cache as feature_cache
from mmjax.preprocess import color
from mmjax.preprocess.example_random import example_keys

SPLITS = ("train", "test")
_PCA_EXAMPLES = 50_000  # that principal components are computed from
_BLOCK = 8192  # examples that are projected at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How the images of an end task are encoded.

    Attributes:
      batch_size: Number of examples that are encoded at once.
      repeats: Variants of each training example, with random colors; 1 encodes the images as they
        are.
      pca: Number of principal components to keep, computed from the training split; 0 keeps the
        features.
      progress: Whether to show a progress bar.

    Raises:
      UserError: A value out of range.
    """

    batch_size: int = 64
    repeats: int = 1
    pca: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("repeats", 1), ("pca", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}; got {getattr(self, name)}.")


def encode(
    encoder: ImageEncoder,
    data_cfg: Mapping[str, Any],
    *,
    splits: Sequence[str] = SPLITS,
    options: EncodeOptions = EncodeOptions(),
) -> str:
    """Returns the directory of a feature table, and computes it if it does not exist.

    Args:
      encoder: The encoder.
      data_cfg: The section `data`: an end task, and the specification of its data in `train`.
      splits: Splits to encode. With `options.pca`, the first one must be the training split.
      options: See `EncodeOptions`.

    Raises:
      UserError: The data cannot be read, or an example has no label.
    """
    from mmjax.data.pipeline import loader, precomputed_features

    opened = {
        split: loader.make_eval_data(data_cfg, split=split, batch_size=options.batch_size)
        for split in splits
    }
    directory = _directory(encoder, data_cfg, opened, options)
    with cache.locked(f"{directory}.lock"):
        if (directory / precomputed_features.FILE).exists():
            logging.info("Using the features in %s.", directory)
            return str(directory)
        started = time.monotonic()
        with files.atomic_path(directory) as partial:
            counts = write_arrays(partial, encoder_function(encoder), opened, options)
            info = next(iter(opened.values())).info
            precomputed_features.write_description(
                partial,
                dataset=info.name,
                num_examples=counts,
                num_classes=info.num_classes,
                class_names=info.class_names,
                made={"of": encoder.source, "weights": encoder.fingerprint},
            )
    seconds, total = time.monotonic() - started, sum(counts.values())
    logging.info(
        "Encoded %d examples of %s in %.1f s (%.3g per second). Features: %s",
        *(total, data_cfg["train"], seconds, total / seconds, directory),
    )
    return str(directory)


def _directory(
    encoder: ImageEncoder,
    data_cfg: Mapping[str, Any],
    opened: Mapping[str, Any],
    options: EncodeOptions,
) -> pathlib.Path:
    """Returns the directory of a table in the cache."""
    used = {key: value for key, value in dataclasses.asdict(options).items() if key in _IDENTITY}
    key = {
        "table": 1,
        "weights": encoder.fingerprint,
        "encoder": encoder.section,
        "data": {
            split: feature_cache.data_identity(data, data_cfg["train"], data_cfg)
            for split, data in opened.items()
        },
        "options": used,
    }
    name = next(iter(opened.values())).info.name
    return feature_cache.path_of(key, name).with_suffix("")


_IDENTITY = ("repeats", "pca")


def write_arrays(
    directory: str | os.PathLike,
    function: Callable[..., jax.Array],
    opened: Mapping[str, Any],
    options: EncodeOptions,
) -> dict[str, int]:
    """Writes the features and labels of splits.

    Args:
      directory: Directory of the feature table.
      function: See `encoder_function`.
      opened: {split: evaluation data}. With `options.pca`, the first one is the training split.
      options: See `EncodeOptions`.

    Returns:
      {split: number of examples}.

    Raises:
      UserError: An example cannot be read, has no label, or its features are not finite.
    """
    from mmjax.data.pipeline import feature_table, precomputed_features

    counts, project = {}, None
    for split, data in opened.items():
        os.makedirs(os.path.join(directory, split))
        path = precomputed_features.features_path(directory, split, feature_table.FEATURES)
        repeats = options.repeats if split == "train" else 1
        features, labels = _encode_split(path, data, function, split, repeats, options.progress)
        if options.pca:
            project = project or fit_pca(features, options.pca)
            features = _projected(path, features, project)
        np.save(precomputed_features.features_path(directory, split, feature_table.LABEL), labels)
        counts[split] = len(labels)
    return counts


def encoder_function(encoder: ImageEncoder) -> Callable[..., jax.Array]:
    """Returns the compiled function (batch, key or None) -> float16 [B, T · D].

    The key draws random colors.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices())
    state = jax.device_put((encoder.params, encoder.extra), sharding.replicated(mesh))

    @jax.jit
    def run(state, batch, key):
        images = batch["image"]
        if key is not None:
            images = color.jitter_frames(example_keys(key, batch, len(images)), images)
        features = encoder.trunk.embedding(*state, images)
        return features.reshape(len(features), -1).astype(jnp.float16)

    def function(batch, key=None):
        with jax.set_mesh(mesh):
            return run(state, sharding.make_global(batch, mesh), key)

    return function


def _encode_split(
    path: str,
    data: Any,
    function: Callable[..., jax.Array],
    split: str,
    repeats: int,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the features of a split; returns `(features [N, R, D], labels int32 [N])`."""
    from mmjax.data.pipeline import precomputed_features

    labels, features = np.full(data.num_examples, -1, np.int32), None
    valid = np.zeros(data.num_examples, bool)
    for repeat in range(repeats):
        key = jax.random.key(repeat) if repeats > 1 else None
        title = f"{split} {repeat + 1}/{repeats}" if repeats > 1 else split
        bar = tqdm(total=data.num_examples, desc=title, disable=not progress)
        for batch, output in _overlapped(data, function, key):
            keep = batch["mask"] > 0
            ids = batch["example_id"][keep]
            if features is None:
                shape = (data.num_examples, repeats, output.shape[-1])
                features = precomputed_features.create_array(path, shape, "float16")
            values = np.asarray(output)[keep]
            _check_finite(values, ids, data)
            features[ids, repeat] = values
            labels[ids], valid[ids] = batch["label"][keep], True
            bar.update(len(ids))
        bar.close()
    unlabeled = np.flatnonzero(valid & (labels < 0))
    if len(unlabeled):
        where = data.sources[0].where(int(unlabeled[0]))
        raise UserError(f"{where} has no label ({len(unlabeled)} examples of {split} have none).")
    if not valid.all():  # corrupt records, which data.corrupt='skip' allows
        features, labels = features[valid], labels[valid]
        np.save(path, features)
    return features, labels


def _check_finite(values: np.ndarray, ids: np.ndarray, data: Any) -> None:
    bad = ids[~np.isfinite(values).all(axis=1)]
    if len(bad):
        raise UserError(
            f"The embedding of {data.sources[0].where(int(bad[0]))} is not finite in float16. "
            "Check the weights of the encoder."
        )


def _overlapped(
    data: Any, function: Callable[..., jax.Array], key: jax.Array | None
) -> Iterator[tuple[dict, jax.Array]]:
    """Yields batches and their features; the device is one batch ahead."""
    previous = None
    for batch in data.iterate():
        fields = {name: batch[name] for name in ("image", "example_id")}
        current = batch, function(fields, key)
        if previous is not None:
            yield previous
        previous = current
    if previous is not None:
        yield previous


def fit_pca(features: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [D] and the first principal components [D, size] of features [N, R, D].

    They are computed from the first variant of at most 50,000 examples.

    Raises:
      UserError: There are fewer examples or features than components.
    """
    step = -(-len(features) // _PCA_EXAMPLES)
    x = np.asarray(features[::step, 0], np.float32)
    if size > min(x.shape):
        raise UserError(
            f"pca={size} must be at most {min(x.shape)}: there are {x.shape[0]} examples with "
            f"{x.shape[1]} features."
        )
    from sklearn.decomposition import PCA

    fitted = PCA(size, random_state=0).fit(x)
    return fitted.mean_, fitted.components_.T


def _projected(
    path: str, features: np.ndarray, project: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Replaces the features in a file by their principal components."""
    from mmjax.data.pipeline import precomputed_features

    mean, components = project
    with files.atomic_path(path) as partial:
        shape = (*features.shape[:2], components.shape[1])
        result = precomputed_features.create_array(partial, shape, "float16")
        for start in range(0, len(features), _BLOCK):
            block = np.asarray(features[start : start + _BLOCK], np.float32)
            result[start : start + _BLOCK] = (block - mean) @ components
        result.flush()
    return result
