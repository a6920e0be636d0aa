"""Stand-ins for datasets with a target for each pixel."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from mmjax.data.storage import schema
from mmjax.data.world.attributes import SHAPES
from mmjax.data.world.drawing import draw, random_thing, scattered
from mmjax.data.world.end_tasks.settings import Settings, save

_NUM_VIDEOS, _TEST_VIDEOS = 48, 8  # of EgoHands
_TEST_VIDEO_INDICES = (0, 10, 12, 19, 30, 33, 37, 43)
_SKIN = (225, 170, 135)
_WALL = 3.0  # distance of the background in meters
_FAR_RADIUS = 0.3  # radius of an object at a distance of one meter
# Labels of Cityscapes: sky, building and road of the background, and the shapes on them. The ring
# is not labeled.
_SKY, _BUILDING, _ROAD, _UNLABELED = 23, 11, 7, 0
_STREET_LABELS = dict(zip(SHAPES, (24, 26, 21, 20, 17, _UNLABELED, 33, 19), strict=True))
_STREET_COLORS = {_SKY: (110, 150, 190), _BUILDING: (90, 70, 60), _ROAD: (60, 58, 62)}
_BACKGROUND_LABEL = 100  # of COCO


def _objects(rng: np.random.Generator, count: int, *, width: float = 1.0, radius=(0.12, 0.26)):
    return [
        random_thing(rng, x=x, y=y, radius=r)
        for x, y, r in scattered(rng, count, width=width, radius=radius)
    ]


def _labels(things, index: np.ndarray, table: dict[str, int], background) -> np.ndarray:
    """Returns the label of each pixel: that of the shape of its object, or of the background."""
    by_object = np.array([table[thing.shape] for thing in things] + [0])
    return np.where(index >= 0, by_object[index], background).astype(np.uint8)


def _cityscapes(directory: str, settings: Settings) -> None:
    """Writes street scenes of twice the width."""
    height, width = settings.size, 2 * settings.size
    for split, parent in (("train", "train"), ("test", "val")):
        for index in range(settings.count(split)):
            rng = settings.rng(f"cityscapes/{split}", index)
            horizon, roofs = rng.uniform(0.45, 0.6), rng.uniform(0.15, 0.35)
            rows = (np.arange(height) + 0.5) / height
            band = np.where(rows < roofs, _SKY, np.where(rows < horizon, _BUILDING, _ROAD))
            ground = np.repeat(band[:, None], width, 1)
            colors = np.zeros((height, width, 3))
            for label, color in _STREET_COLORS.items():
                colors[ground == label] = np.array(color) + rng.normal(0, 10, 3)
            colors += rng.normal(0, 6, colors.shape)
            things = _objects(rng, 5, width=2.0, radius=(0.12, 0.2))
            image, of = draw(rng, height, things, width=width, background=colors)
            city, stem = f"city{index % 3}", f"city{index % 3}_{index:06d}_000019"
            path = os.path.join(directory, "leftImg8bit", parent, city)
            save(os.path.join(path, f"{stem}_leftImg8bit.png"), image)
            path = os.path.join(directory, "gtFine", parent, city)
            labels = _labels(things, of, _STREET_LABELS, ground)
            save(os.path.join(path, f"{stem}_gtFine_labelIds.png"), labels)


def _egohands(directory: str, settings: Settings) -> None:
    """Writes 48 videos of hands: other people's come from above, one's own from below."""
    train_frames = -(-settings.train // (_NUM_VIDEOS - _TEST_VIDEOS - 4))
    test_frames = -(-settings.test // _TEST_VIDEOS)
    for video in range(_NUM_VIDEOS):
        name = f"CARDS_{video:02d}"
        for frame in range(test_frames if video in _TEST_VIDEO_INDICES else train_frames):
            rng = settings.rng(f"egohands/{video}", frame)
            hands, labels = [], []
            for label, (y, x) in enumerate(((-1, 1), (-1, -1), (1, -1), (1, 1)), 1):
                if rng.random() < 0.75:
                    y, x = (side * rng.uniform(0.2, 0.3) for side in (y, x))
                    color = tuple(np.array(_SKIN) * rng.uniform(0.7, 1.1))
                    shape = "heart" if label in (1, 3) else "star"
                    hands.append(
                        random_thing(
                            rng, shape=shape, x=x, y=y, radius=rng.uniform(0.14, 0.2), color=color
                        )
                    )
                    labels.append(label)
            image, of = draw(rng, settings.size, hands)
            mask = np.array([*labels, 0], np.uint8)[of]
            for part, pixels, suffix in (("images", image, "jpg"), ("labels", mask, "png")):
                save(os.path.join(directory, part, name, f"frame_{frame:04d}.{suffix}"), pixels)


def _coco(directory: str, settings: Settings) -> None:
    """Writes images with the class of each object, and rings without a label."""
    table = {shape: 0 if shape == "ring" else 1 + 20 * n for n, shape in enumerate(SHAPES)}
    for split, year in (("train", "train2017"), ("test", "val2017")):
        for index in range(settings.count(split)):
            rng = settings.rng(f"coco/{split}", index)
            things = _objects(rng, 3)
            image, of = draw(rng, settings.size, things)
            save(os.path.join(directory, year, f"{index:012d}.jpg"), image)
            labels = _labels(things, of, table, _BACKGROUND_LABEL)
            path = os.path.join(directory, "annotations", f"panoptic_labels_{year}")
            save(os.path.join(path, f"{index:012d}.png"), labels)


def _depth_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns an image, the depth of each pixel in meters, and its object.

    Larger objects are nearer; the wall is behind all of them.
    """
    things = _objects(rng, 3)
    image, of = draw(rng, size, things)
    by_object = np.array([_FAR_RADIUS / thing.radius for thing in things] + [_WALL], np.float32)
    return image, by_object[of], of


def _nyu(directory: str, settings: Settings) -> None:
    """Writes images with depth, and the part of the lower half that no object covers."""
    for split in ("train", "test"):
        for index in range(settings.count(split)):
            rng = settings.rng(f"nyu/{split}", index)
            image, depth, of = _depth_scene(rng, settings.size)
            walkable = np.where(of < 0, 255, 0).astype(np.uint8)
            walkable[: settings.size // 2] = 0
            depth[:2] = 0  # unknown, as at the edges of the sensor
            for part, pixels, suffix in (
                ("images", image, "png"),
                ("depths", depth, "tiff"),
                ("walkable", walkable, "png"),
            ):
                save(os.path.join(directory, split, part, f"{index:05d}.{suffix}"), pixels)


def _thor_depth(directory: str, settings: Settings) -> None:
    """Writes images with 8-bit depth."""
    for split in ("train", "test"):
        for index in range(settings.count(split)):
            rng = settings.rng(f"thor_depth_prediction/{split}", index)
            image, depth, _ = _depth_scene(rng, settings.size)
            path = os.path.join(directory, split, f"FloorPlan{1 + index % 5}", f"{index:05d}")
            save(f"{path}_rgb.jpg", image)
            save(f"{path}_depth.jpg", np.round(255 * depth / _WALL).astype(np.uint8))


def _taskonomy(directory: str, settings: Settings) -> None:
    """Writes images with 16-bit depth, whose unit is 1/512 m, and 16-bit edges."""
    for split in ("train", "test"):
        for index in range(settings.count(split)):
            rng = settings.rng(f"taskonomy/{split}", index)
            image, meters, of = _depth_scene(rng, settings.size)
            depth = np.round(512 * meters).astype(np.uint16)
            depth[-1, :4] = 65_535  # unknown
            edges = np.zeros(of.shape, np.uint16)
            edges[:-1] += (20_000 * (of[1:] != of[:-1])).astype(np.uint16)
            edges[:, :-1] += (20_000 * (of[:, 1:] != of[:, :-1])).astype(np.uint16)
            stem = f"point_{index}_view_0_domain"
            for part, name, pixels in (
                ("rgb", "rgb", image),
                ("depth_zbuffer", "depth_zbuffer", depth),
                ("edges", "edge_texture", edges),
            ):
                path = os.path.join(directory, split, part, f"building{index % 3}")
                save(os.path.join(path, f"{stem}_{name}.png"), pixels)


def _kitti(directory: str, settings: Settings) -> None:
    """Writes pairs of frames of three times the width, whose objects move, with their flow.

    Every fourth row of the flow is unknown. The last tenth of the pairs is the test split.
    """
    height, width = settings.size, 3 * settings.size
    path = os.path.join(directory, "training")
    for index in range(-(-settings.train * 10 // 9)):
        rng = settings.rng("KITTI", index)
        things = _objects(rng, 5, width=3.0, radius=(0.14, 0.24))
        motion = rng.uniform(-0.08, 0.08, (len(things), 2))
        moved = [
            dataclasses.replace(thing, x=thing.x + dx, y=thing.y + dy)
            for thing, (dx, dy) in zip(things, motion, strict=True)
        ]
        background = rng.uniform(20, 60, 3) + rng.normal(0, 5, (height, width, 3))
        for number, objects in ((10, things), (11, moved)):
            image, index_map = draw(rng, height, objects, width=width, background=background)
            save(os.path.join(path, "image_2", f"{index:06d}_{number}.png"), image)
            if number == 10:
                flow = np.append(height * motion, [[0, 0]], 0)[index_map]
        known = np.repeat(np.arange(height) % 4 > 0, width).reshape(height, width)
        name = f"{index:06d}_10.png"
        save(os.path.join(path, "viz_flow_occ", name), _colored(flow, known, 0.1 * height))
        os.makedirs(os.path.join(path, "flow_occ"), exist_ok=True)
        with open(os.path.join(path, "flow_occ", name), "wb") as file:
            file.write(schema.encode_flow(flow, valid=known))


def _colored(flow: np.ndarray, known: np.ndarray, longest: float) -> np.ndarray:
    """Returns a flow as colors, uint8 [H, W, 3]: direction is hue, length is saturation."""
    hue = (np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi)) % 1
    length = np.clip(np.hypot(flow[..., 0], flow[..., 1]) / longest, 0, 1)
    hsv = np.stack([hue, length, np.ones_like(hue)], -1)
    colors = np.asarray(Image.fromarray((255 * hsv).astype(np.uint8), "HSV").convert("RGB"))
    return np.where(known[..., None], colors, 0).astype(np.uint8)


DENSE_SETS: dict[str, Callable[[str, Settings], None]] = {
    "cityscapes": _cityscapes,
    "egohands": _egohands,
    "coco": _coco,
    "nyu": _nyu,
    "thor_depth_prediction": _thor_depth,
    "taskonomy": _taskonomy,
    "KITTI": _kitti,
}
