"""A procedural audio-visual world: short scenes seen, heard, described and touched.

A scene is one object on a dark background. Five attributes make it up: a shape, a color, a size, a
texture and a motion; everything else (phase, place, background, loudness, wording, noise) varies at
random. Each attribute shows in several modalities:

  attribute  seen                 heard                                        felt
  shape      outline              timbre: which harmonics sound                outline
  size       45 to 80 % of frame  pitch: 400, 260 or 170 Hz                    extent
  motion     trajectory           envelope, in phase with the trajectory       -
  color     hue                  a steady overtone between 2.0 and 3.5 kHz    -
  texture    pattern              -                                            relief

Color would be silent in nature. It is audible here so that held-out clips can be told apart by
ear: with shape, size and motion alone there are 144 sounds, with color 1152.

Splits are disjoint in what is combined, not only in examples: of the 1152 combinations of shape,
color, size and motion, `test` has 240 and `valid` 96 that no training example shows, chosen by a
hash of their names. Every value of every attribute occurs in each split. Within a split no
combination comes twice before all have come once, so the first 240 test clips are all different, to
the eye, to the ear, and in their captions.

`mmjax.data.world.objects` shows the same shapes and colors in single images, some of them in
evaluation alone.

Everything is a pure function of (config, split, index).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import time
import zlib

import numpy as np

from mmjax import cache
from mmjax.data.storage import dataset, image_files, schema, tfrecord
from mmjax.data.world import render
from mmjax.data.world.captions import caption, vocabulary
from mmjax.data.world.config import HELD_OUT, WorldConfig, attributes_of
from mmjax.data.world.objects import ObjectsConfig
from mmjax.data.world.render import ATTRIBUTES, COLORS, MOTIONS, SHAPES, SIZES
from mmjax.errors import UserError, choose
from mmjax.modalities import STORED

__all__ = [
    "ATTRIBUTES",
    "COLORS",
    "HELD_OUT",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "WORLDS",
    "ObjectsConfig",
    "Scene",
    "WorldConfig",
    "attributes_of",
    "build_world",
    "ensure_world",
    "example",
    "parse_spec",
    "scene",
]

_SHARD = 256  # examples
_VERSION = 2  # part of the cache's name: raise it when the same config gives other data


WORLDS = {
    "demo": (WorldConfig(), {"train": 3000, "test": 200}),
    "tiny": (WorldConfig(num_frames=4), {"train": 64, "test": 32}),
    "objects": (ObjectsConfig(), {"train": 3000, "novel_train": 800, "novel_test": 400}),
    "objects_tiny": (ObjectsConfig(), {"train": 64, "novel_train": 96, "novel_test": 48}),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """One clip of the world.

    Attributes:
      attributes: {'shape': 'star', …}.
      frames: uint8 [T, H, W, 3].
      waveform: float32 [S], S = 0 in a world without sound.
      captions: the first needs no other to be complete in `test` and `valid`.
      labels: class numbers.
      touch: uint8 [h, w, 3], or None.
      mask: uint8 [T, H, W], 0 = background, 1 + number of the shape, or None.
      depth: float32 [T, H, W] in metres, or None.
      flow: float32 [T, H, W, 2], pixels (x right, y down) to the next frame, or None.
    """

    attributes: dict[str, str]
    frames: np.ndarray
    waveform: np.ndarray
    captions: list[str]
    labels: list[int]
    touch: np.ndarray | None
    mask: np.ndarray | None = None
    depth: np.ndarray | None = None
    flow: np.ndarray | None = None


def scene(cfg: WorldConfig, split: str, index: int, *, dense: bool | None = None) -> Scene:
    """The scene of an index, which may be any number from 0.

    Args:
      cfg: of the world.
      split: one of the config's: 'train', 'valid', 'test'.
      index: in the split.
      dense: make mask, depth and flow; by default as the config says.
    """
    attributes = cfg.attributes(split, index)
    rng = np.random.default_rng([cfg.seed, zlib.crc32(split.encode()), index])
    # Clips begin near the same point of a cycle: less variety to learn than with any phase.
    phase = rng.uniform(-0.12, 0.12)
    trajectory = render.Trajectory(rng, attributes, phase)
    frames, geometry = render.look(rng, cfg, attributes, trajectory)
    waveform = np.zeros(0, np.float32)
    if not cfg.SILENT:
        waveform = render.sound(rng, cfg, attributes, phase)
    touch = render.touch(rng, cfg.touch_size, attributes) if cfg.touch_size else None
    captions = [
        caption(rng, attributes, complete=split != "train", still=cfg.STILL)
        for _ in range(cfg.num_captions)
    ]
    values = cfg.class_names
    extra = {}
    if cfg.dense if dense is None else dense:
        extra = render.dense(cfg, attributes, trajectory, geometry)
    return Scene(
        attributes=attributes,
        frames=frames,
        waveform=waveform,
        captions=captions,
        labels=[values.index(name) for name in cfg.names_of(attributes)],
        touch=touch,
        **extra,
    )


# On disk ----------------------------------------------------------------------------------------


def example(cfg: WorldConfig, split: str, index: int) -> tuple[schema.Example, Scene]:
    """The scene as it is stored, and as it was made."""
    made = scene(cfg, split, index)
    names = cfg.class_names
    stored = schema.Example(
        frames=[image_files.encode_jpeg(frame, quality=90) for frame in made.frames],
        waveform=made.waveform if made.waveform.size else None,
        captions=made.captions,
        labels=made.labels,
        label_texts=[names[label] for label in made.labels],
        end_us=round(1e6 * cfg.num_frames / cfg.fps),
        filename=f"world/{split}/{index}",
        frame_rate=cfg.fps,
        sample_rate=0.0 if cfg.SILENT else cfg.sample_rate,
        touch=[] if made.touch is None else [image_files.encode_jpeg(made.touch, quality=90)],
    )
    if made.mask is not None:
        stored.masks = [schema.encode_mask(mask) for mask in made.mask]
        stored.depth = [schema.encode_depth(depth) for depth in made.depth]
        stored.flow = [schema.encode_flow(flow) for flow in made.flow]
    return stored, made


def build_world(
    path: str | os.PathLike, cfg: WorldConfig, splits: dict[str, int], *, workers: int = 1
) -> dataset.DatasetInfo:
    """Writes the world as a dataset folder: shards, indexes, vocab.txt, and at last dataset.json.

    Args:
      path: the folder; shards in it are replaced.
      cfg: of the world.
      splits: {'train': number of examples, …}.
      workers: processes; one is right below ten thousand clips, as a process starts in seconds.
    """
    path = os.fspath(path)
    os.makedirs(path, exist_ok=True)
    jobs, infos = [], {}
    for split, count in splits.items():
        cfg.check_split(split)  # before anything is written
        if count < 1:
            raise UserError(f"world: {split}={count} must be at least 1.")
        shards = -(-count // _SHARD)
        names = [dataset.shard_name(split, shard, shards) for shard in range(shards)]
        infos[split] = dataset.SplitInfo(num_examples=count, shards=names)
        bounds = [count * shard // shards for shard in range(shards + 1)]
        jobs += [
            (os.path.join(path, name), cfg, split, first, last)
            for name, first, last in zip(names, bounds, bounds[1:], strict=False)
        ]
    if workers > 1:
        # Not forked: TensorFlow's and JAX's threads do not survive it.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            sums = list(pool.map(_write_shard, jobs))
    else:
        sums = [_write_shard(job) for job in jobs]
    with open(os.path.join(path, "vocab.txt"), "w") as file:
        file.write(
            "\n".join(["<pad>", "<unk>", "<bos>", "<eos>", *vocabulary(still=cfg.STILL)]) + "\n"
        )
    clips, *color, power = np.sum(sums, axis=0).tolist()
    absent = set() if cfg.dense else {"mask", "depth", "flow"}
    absent |= {"audio"} if cfg.SILENT else set()
    absent |= set() if cfg.touch_size else {"touch"}
    absent |= set() if cfg.num_captions else {"text"}
    info = dataset.DatasetInfo(
        name=cfg.NAME,
        description=cfg.DESCRIPTION,
        splits=infos,
        modalities=tuple(name for name in STORED if name not in absent),
        num_classes=len(cfg.class_names),
        class_names=cfg.class_names,
        multi_label=cfg.label == "all",
        num_frames=cfg.num_frames,
        frame_size=(cfg.frame_size, cfg.frame_size),
        fps=cfg.fps,
        num_samples=0 if cfg.SILENT else cfg.samples,
        sample_rate=0.0 if cfg.SILENT else cfg.sample_rate,
        vocabulary="vocab.txt",
        statistics={
            "rgb_mean": [round(value / clips, 5) for value in color],
            "waveform_rms": round((power / clips) ** 0.5, 5),
        },
        source={"generator": "mmjax.data.world.build", "version": _VERSION}
        | dataclasses.asdict(cfg),
    )
    info.save(path)
    return info


def _write_shard(job: tuple[str, WorldConfig, str, int, int]) -> np.ndarray:
    """Writes examples [first, last); returns sums: clips, mean RGB (of 1), mean power."""
    path, cfg, split, first, last = job
    sums = np.zeros(5)
    with tfrecord.ShardWriter(path) as writer:
        for index in range(first, last):
            stored, made = example(cfg, split, index)
            writer.write(schema.encode(stored))
            power = np.mean(made.waveform**2) if made.waveform.size else 0.0
            sums += [1, *made.frames.mean((0, 1, 2)) / 255, power]
    return sums


def parse_spec(spec: str) -> tuple[str, WorldConfig, dict[str, int]]:
    """(name, config, splits) of `world`, `world:tiny` or `world:demo,label=motion,train=500`.

    After the name, any field of `WorldConfig` and the sizes of splits may be set.

    Raises:
      UserError: an unknown name or field, or a value of the wrong type.
    """
    head, _, rest = spec.partition(":")
    if head != "world":
        raise UserError(f"{spec!r} does not begin with 'world'.")
    name, *settings = rest.split(",") if rest else ["demo"]
    cfg, splits = choose("world", name or "demo", WORLDS)
    splits, changes = dict(splits), {}
    types = {field.name: type(getattr(cfg, field.name)) for field in dataclasses.fields(cfg)}
    types |= dict.fromkeys(cfg.SPLITS, int)
    for setting in settings:
        key, _, value = setting.partition("=")
        kind = choose(f"setting in {spec!r}", key, types)
        try:
            value = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UserError(f"{spec!r}: {key} needs a value of type {kind.__name__}.") from None
        (changes if hasattr(cfg, key) else splits)[key] = value
    return name or "demo", dataclasses.replace(cfg, **changes), splits


def ensure_world(spec: str = "world", *, cache_dir: str | None = None, workers: int = 1) -> str:
    """The folder of a world, written if it is not there yet.

    Any number of processes may ask at once: one writes, the others wait. The folder gets its name
    when it is complete, so nobody sees a part of it.

    Args:
      spec: see `parse_spec`.
      cache_dir: by default `mmjax.cache.cache_dir()`.
      workers: see `build_world`.

    Raises:
      UserError: a bad spec, or a cache folder that cannot be written.
    """
    name, cfg, splits = parse_spec(spec)
    identity = json.dumps([_VERSION, dataclasses.asdict(cfg), splits], sort_keys=True)
    directory = cache_dir or cache.cache_dir()
    path = os.path.join(
        directory, f"world-{name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    )
    if _is_complete(path):
        return path
    try:
        with cache.locked(f"{path}.lock"):
            if not _is_complete(path):
                _write_whole(path, cfg, splits, workers)
    except OSError as error:
        raise UserError(
            f"Cannot write the built-in world to {path}: {error}. Set MMJAX_CACHE to a folder "
            "with room that you can write to."
        ) from error
    return path


def _write_whole(path: str, cfg: WorldConfig, splits: dict[str, int], workers: int) -> None:
    temporary = f"{path}.part"
    for leftover in (temporary, path):  # of a process that was killed, or a cache half cleared
        shutil.rmtree(leftover, ignore_errors=True)
    start = time.perf_counter()
    build_world(temporary, cfg, splits, workers=workers)
    os.rename(temporary, path)
    what = " + ".join(f"{count} {split}" for split, count in splits.items())
    print(f"world: wrote {what} clips to {path} in {time.perf_counter() - start:.1f} s", flush=True)


def _is_complete(path: str) -> bool:
    if not os.path.exists(os.path.join(path, dataset.FILE)):
        return False
    shards = [s for split in dataset.DatasetInfo.load(path).splits.values() for s in split.shards]
    return all(os.path.exists(os.path.join(path, shard)) for shard in shards)
