"""A procedural audio-visual world: short scenes with video, audio, captions and touch images.

A scene shows one object on a dark background. It has five attributes: a shape, a color, a size, a
texture and a motion. Everything else (phase, position, background, loudness, wording, noise) is
random. Each attribute is visible, audible or palpable in several modalities:

  attribute  video                audio                                        touch
  shape      outline              timbre: which harmonics are present          outline
  size       45 to 80 % of frame  pitch: 400, 260 or 170 Hz                    extent
  motion     trajectory           envelope, in phase with the trajectory       -
  color      hue                  a steady overtone between 2.0 and 3.5 kHz    -
  texture    pattern              -                                            relief

Colors are audible so that held-out clips can be distinguished by audio: shape, size and motion have
only 144 combinations; with color there are 1152.

Splits are disjoint in combinations, not only in examples. Of the 1152 combinations of shape, color,
size and motion, `test` has 240 and `valid` 96 that are in no training example, chosen by a hash of
their names. Every value of every attribute occurs in each split. Within a split, no combination
is repeated before all have occurred, so the first 240 test clips all differ, in video, audio and
captions.

`mmjax.data.world.objects` has single images of the same shapes and colors, some of them only for
evaluation. `mmjax.data.world.scenes` has images of several objects with segmentation masks.

This module writes worlds as dataset directories, in the cache directory when a recipe reads one.
The scenes are defined by `mmjax.data.world.scene`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import time

import numpy as np

from mmjax import cache, files
from mmjax.data.storage import dataset, image_files, schema, tfrecord
from mmjax.data.text import word_vocab
from mmjax.data.world import scenes
from mmjax.data.world.captions import vocabulary
from mmjax.data.world.config import WorldConfig
from mmjax.data.world.objects import ObjectsConfig
from mmjax.data.world.scene import Scene, make_scene
from mmjax.data.world.scenes import ScenesConfig
from mmjax.errors import UserError, choose
from mmjax.modalities import STORED

_EXAMPLES_PER_SHARD = 256
_VERSION = 2  # part of the cache path: increase it when the same config gives other data
_JPEG_QUALITY = 90
_VOCAB_FILE = "vocab.txt"

WORLDS = {
    "demo": (WorldConfig(), {"train": 3000, "test": 200}),
    "tiny": (WorldConfig(num_frames=4), {"train": 64, "test": 32}),
    "objects": (ObjectsConfig(), {"train": 3000, "novel_train": 800, "novel_test": 400}),
    "objects_tiny": (ObjectsConfig(), {"train": 64, "novel_train": 96, "novel_test": 48}),
    "scenes": (ScenesConfig(), {"train": 2000, "test": 200}),
    "scenes_tiny": (ScenesConfig(frame_size=48), {"train": 64, "test": 24}),
}


def make_example(cfg: WorldConfig, split: str, index: int) -> tuple[schema.Example, Scene]:
    """Returns a scene as an example to store, and the scene itself; see `make_scene`."""
    make = scenes.make_scene if isinstance(cfg, ScenesConfig) else make_scene
    scene = make(cfg, split, index)
    names = cfg.class_names
    jpegs = [image_files.encode_jpeg(frame, quality=_JPEG_QUALITY) for frame in scene.frames]
    touch = [] if scene.touch is None else [scene.touch]
    example = schema.Example(
        frames=jpegs,
        waveform=scene.waveform if scene.waveform.size else None,
        captions=scene.captions,
        labels=scene.labels,
        label_texts=[names[label] for label in scene.labels],
        end_us=round(1e6 * cfg.num_frames / cfg.fps),
        filename=f"world/{split}/{index}",
        frame_rate=cfg.fps,
        sample_rate=0.0 if cfg.SILENT else cfg.sample_rate,
        touch=[image_files.encode_jpeg(image, quality=_JPEG_QUALITY) for image in touch],
    )
    if scene.mask is not None:
        example.masks = [schema.encode_mask(mask) for mask in scene.mask]
    if scene.depth is not None:
        example.depth = [schema.encode_depth(depth) for depth in scene.depth]
        example.flow = [schema.encode_flow(flow) for flow in scene.flow]
    return example, scene


def build_world(
    path: str | os.PathLike, cfg: WorldConfig, splits: dict[str, int], *, workers: int = 1
) -> dataset.DatasetInfo:
    """Writes a world as a dataset directory: shards, indexes, vocabulary, and finally dataset.json.

    Args:
      path: The dataset directory. Existing shards in it are replaced.
      cfg: Config of the world.
      splits: {'train': number of examples, …}.
      workers: Number of processes. Below ten thousand clips, one is fastest, because a process
        takes seconds to start.

    Returns:
      The description of the dataset.

    Raises:
      UserError: A split does not exist or has no examples.
    """
    path = os.fspath(path)
    for split, count in splits.items():  # before anything is written
        cfg.check_split(split)
        if count < 1:
            raise UserError(f"world: {split}={count} must be at least 1.")
    os.makedirs(path, exist_ok=True)
    jobs, split_infos = [], {}
    for split, count in splits.items():
        num_shards = -(-count // _EXAMPLES_PER_SHARD)
        names = [dataset.shard_name(split, shard, num_shards) for shard in range(num_shards)]
        split_infos[split] = dataset.SplitInfo(num_examples=count, shards=names)
        bounds = [count * shard // num_shards for shard in range(num_shards + 1)]
        jobs += [
            (os.path.join(path, name), cfg, split, first, last)
            for name, first, last in zip(names, bounds, bounds[1:], strict=False)
        ]
    if workers > 1:
        # Not forked, because the threads of TensorFlow and JAX do not survive it.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            sums = list(pool.map(_write_shard, jobs))
    else:
        sums = [_write_shard(job) for job in jobs]
    # The order of the special tokens is part of the published data.
    words = ["<pad>", "<unk>", "<bos>", "<eos>", *vocabulary(still=cfg.STILL)]
    word_vocab.write_word_vocab(os.path.join(path, _VOCAB_FILE), words)
    info = _describe(cfg, split_infos, np.sum(sums, axis=0))
    info.save(path)
    return info


def _describe(
    cfg: WorldConfig, splits: dict[str, dataset.SplitInfo], sums: np.ndarray
) -> dataset.DatasetInfo:
    """Returns the description of a world; `sums` are those of `_write_shard`."""
    clips, *color, power = sums.tolist()
    absent = set() if cfg.dense else {"mask", "depth", "flow"}
    absent |= {"depth", "flow"} if cfg.ONLY_MASKS else set()
    absent |= set() if cfg.class_names else {"label"}
    absent |= {"audio"} if cfg.SILENT else set()
    absent |= set() if cfg.touch_size else {"touch"}
    absent |= set() if cfg.num_captions else {"text"}
    return dataset.DatasetInfo(
        name=cfg.NAME,
        description=cfg.DESCRIPTION,
        splits=splits,
        modalities=tuple(name for name in STORED if name not in absent),
        num_classes=len(cfg.class_names),
        class_names=cfg.class_names,
        multi_label=cfg.label == "all",
        mask_classes=cfg.mask_classes,
        num_frames=cfg.num_frames,
        frame_size=None if cfg.ONLY_MASKS else (cfg.frame_size, cfg.frame_size),
        fps=cfg.fps,
        num_samples=0 if cfg.SILENT else cfg.waveform_length,
        sample_rate=0.0 if cfg.SILENT else cfg.sample_rate,
        vocabulary=_VOCAB_FILE,
        statistics={
            "rgb_mean": [round(value / clips, 5) for value in color],
            "waveform_rms": round((power / clips) ** 0.5, 5),
        },
        source={"generator": "mmjax.data.world.build", "version": _VERSION}
        | dataclasses.asdict(cfg),
    )


def _write_shard(job: tuple[str, WorldConfig, str, int, int]) -> np.ndarray:
    """Writes examples [first, last); returns sums: clips, mean RGB in [0, 1], mean power."""
    path, cfg, split, first, last = job
    sums = np.zeros(5)
    with tfrecord.ShardWriter(path) as writer:
        for index in range(first, last):
            example, scene = make_example(cfg, split, index)
            writer.write(schema.encode(example))
            power = np.mean(scene.waveform**2) if scene.waveform.size else 0.0
            sums += [1, *scene.frames.mean((0, 1, 2)) / 255, power]
    return sums


def parse_spec(spec: str) -> tuple[str, WorldConfig, dict[str, int]]:
    """Returns the name, the config and the sizes of splits that a spec describes.

    Args:
      spec: 'world', 'world:tiny', or a name with any fields of `WorldConfig` and sizes of splits:
        'world:demo,label=motion,train=500'.

    Raises:
      UserError: The name or a field is unknown, or a value has the wrong type.
    """
    prefix, _, rest = spec.partition(":")
    if prefix != "world":
        raise UserError(f"The name of a world must start with 'world'; got {spec!r}.")
    name, *settings = rest.split(",") if rest else ["demo"]
    cfg, splits = choose("world", name or "demo", WORLDS)
    splits, changes = dict(splits), {}
    types = {field.name: type(getattr(cfg, field.name)) for field in dataclasses.fields(cfg)}
    types |= {split: int for split in cfg.SPLITS}
    for setting in settings:
        key, _, text = setting.partition("=")
        expected = choose(f"setting in {spec!r}:", key, types)
        try:
            boolean = expected is bool
            value = {"true": True, "false": False}[text.lower()] if boolean else expected(text)
        except (ValueError, KeyError):
            raise UserError(
                f"{spec!r}: {key} must be of type {expected.__name__}; got {text!r}."
            ) from None
        (changes if hasattr(cfg, key) else splits)[key] = value
    return name or "demo", dataclasses.replace(cfg, **changes), splits


def ensure_world(spec: str = "world", *, cache_dir: str | None = None, workers: int = 1) -> str:
    """Returns the dataset directory of a world, and writes it first if it does not exist.

    Several processes may call this at once: one writes and the others wait. The directory
    gets its final name when it is complete.

    Args:
      spec: See `parse_spec`.
      cache_dir: Parent directory; `mmjax.cache.cache_dir()` by default.
      workers: See `build_world`.

    Raises:
      UserError: The spec is invalid, or the cache directory is not writable.
    """
    name, cfg, splits = parse_spec(spec)
    identity = [_VERSION, dataclasses.asdict(cfg), splits]
    # Earlier descriptions of worlds with masks lack the classes of the masks.
    identity = json.dumps(identity + [cfg.mask_classes] * cfg.dense, sort_keys=True)
    directory = cache_dir or cache.cache_dir()
    path = os.path.join(
        directory, f"world-{name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    )
    if _is_complete(path):
        return path
    try:
        with cache.locked(f"{path}.lock"):
            if not _is_complete(path):
                _replace_world(path, cfg, splits, workers)
    except OSError as error:
        raise UserError(
            f"Cannot write the built-in world to {path}: {error}. Set MMJAX_CACHE to a writable "
            "directory with free space."
        ) from error
    return path


def _replace_world(path: str, cfg: WorldConfig, splits: dict[str, int], workers: int) -> None:
    files.remove(path)  # incomplete
    for leftover in files.leftovers(path):  # of killed processes
        files.remove(leftover)
    start = time.perf_counter()
    with files.atomic_path(path) as partial:
        build_world(partial, cfg, splits, workers=workers)
    sizes = " + ".join(f"{count} {split}" for split, count in splits.items())
    print(
        f"world: wrote {sizes} clips to {path} in {time.perf_counter() - start:.1f} s", flush=True
    )


def _is_complete(path: str) -> bool:
    if not os.path.exists(os.path.join(path, dataset.FILE)):
        return False
    shards = [s for split in dataset.DatasetInfo.load(path).splits.values() for s in split.shards]
    return all(os.path.exists(os.path.join(path, shard)) for shard in shards)
