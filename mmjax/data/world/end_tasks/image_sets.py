"""Stand-ins for datasets with one class per example."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax import files
from mmjax.data.world.attributes import MOTIONS, SHAPES, SIZES, TEXTURES
from mmjax.data.world.config import WorldConfig, attributes_of
from mmjax.data.world.drawing import FULL, draw, random_thing, scattered
from mmjax.data.world.end_tasks.settings import Settings, save
from mmjax.data.world.render import Trajectory, render_frames

_WARM, _COOL = ((230, 110, 30), (225, 40, 60)), ((40, 160, 60), (40, 90, 225))
ACTIONS = ("MoveAhead", "RotateLeft", "RotateRight", "LookUp", "LookDown")
_NUM_STEPS, _MAX_OBJECTS = 8, 6

Classes = Sequence[tuple[str, dict[str, Any]]]  # (name, attributes of the object)
Write = Callable[[str, Settings], None]

_BY_SHAPE: Classes = [(shape, dict(shape=shape)) for shape in SHAPES]
_BY_SHAPE_AND_TEXTURE: Classes = [
    (f"{texture}_{shape}", dict(shape=shape, texture=texture))
    for shape in SHAPES
    for texture in ("plain", "striped")
]
_BY_SHAPE_AND_SIZE: Classes = [
    (f"{size}_{shape}", dict(shape=shape, radius=SIZES[size] / 2))
    for shape in SHAPES
    for size in ("small", "large")
]


# Images in one directory per class ----------------------------------------------------------------


def _class_directories(
    name: str, classes: Classes, image: Callable, *, test: str = "test", suffix: str = "jpg"
) -> Write:
    def write(directory: str, settings: Settings) -> None:
        for split, parent in (("train", "train"), ("test", test)):
            for index in range(settings.count(split)):
                class_name, attributes = classes[index % len(classes)]
                pixels = image(settings.rng(f"{name}/{split}", index), settings.size, attributes)
                save(os.path.join(directory, parent, class_name, f"{index:05d}.{suffix}"), pixels)

    return write


def single(rng: np.random.Generator, size: int, attributes: dict[str, Any]) -> np.ndarray:
    """Returns an image of one object."""
    return draw(rng, size, [random_thing(rng, **attributes)])[0]


def _cluttered(rng: np.random.Generator, size: int, attributes: dict[str, Any]) -> np.ndarray:
    """Returns an image of an object and small ones, behind it."""
    small = [
        random_thing(rng, x=x, y=y, radius=r, texture="plain")
        for x, y, r in scattered(rng, 4, radius=(0.05, 0.09))
    ]
    return draw(rng, size, [*small, random_thing(rng, **attributes)])[0]


def _group(rng: np.random.Generator, size: int, attributes: dict[str, Any]) -> np.ndarray:
    """Returns an image of several objects that share some attributes."""
    places = scattered(rng, int(rng.integers(3, 6)), radius=(0.14, 0.19))
    things = [random_thing(rng, x=x, y=y, radius=r, **attributes) for x, y, r in places]
    return draw(rng, size, things)[0]


def _surface(rng: np.random.Generator, size: int, attributes: dict[str, Any]) -> np.ndarray:
    """Returns an image that is filled with a texture."""
    attributes = dict(attributes)
    if colors := attributes.pop("colors", None):
        attributes["color"] = tuple(colors[rng.integers(len(colors))] + rng.normal(0, 12, 3))
    radius = attributes.pop("radius", 0.5) * rng.uniform(0.9, 1.1)
    angle = rng.uniform(-0.4, 0.4)
    thing = random_thing(rng, shape=FULL, radius=radius, angle=angle, **attributes)
    return draw(rng, size, [thing])[0]


_LAND: Classes = [
    (f"{name}_{texture}", dict(texture=texture, colors=colors))
    for name, colors in (("warm", _WARM), ("cool", _COOL))
    for texture in TEXTURES
]
_TEXTURES: Classes = [
    (f"{scale}_{texture}", dict(texture=texture, radius=radius))
    for scale, radius in (("fine", 0.3), ("coarse", 0.7))
    for texture in TEXTURES[1:]
]


def _imagenetv2(directory: str, settings: Settings) -> None:
    """Writes directories that are named by the index of the sorted class name of ImageNet."""
    names = sorted(name for name, _ in _BY_SHAPE)
    for index in range(settings.test):
        label = index % len(names)
        pixels = single(settings.rng("imagenetv2", index), settings.size, {"shape": names[label]})
        save(os.path.join(directory, str(label), f"{index:05d}.jpeg"), pixels)


def _pets(directory: str, settings: Settings) -> None:
    """Writes images with trimaps: 1 for the object, 2 for the background, 3 between them."""
    for split in ("train", "test"):
        for index in range(settings.count(split)):
            breed, attributes = _BY_SHAPE_AND_TEXTURE[index % len(_BY_SHAPE_AND_TEXTURE)]
            rng, stem = settings.rng(f"pets/{split}", index), f"{breed}_{split}_{index:05d}"
            image, of = draw(rng, settings.size, [random_thing(rng, **attributes)])
            save(os.path.join(directory, split, breed, f"{stem}.jpg"), image)
            inside = of == 0
            padded = np.pad(inside, 1, mode="edge")
            shifted = [padded[1 + y :, 1 + x :] for y, x in ((-1, 0), (1, 0), (0, -1), (0, 1))]
            shifted = [part[: inside.shape[0], : inside.shape[1]] for part in shifted]
            border = np.any([part != inside for part in shifted], 0)
            trimap = np.where(border, 3, np.where(inside, 1, 2)).astype(np.uint8)
            save(os.path.join(directory, "annotations", "trimaps", f"{stem}.png"), trimap)


def _cifar(classes: Classes, names: dict[str, str], keys: tuple[str, str], meta: str) -> Write:
    """Returns a function that writes pickles in the layout of CIFAR."""

    def write(directory: str, settings: Settings) -> None:
        for split, file in names.items():
            count = settings.count(split)
            images = [
                single(settings.rng(f"{file}/{len(classes)}", n), 32, classes[n % len(classes)][1])
                for n in range(count)
            ]
            pixels = np.stack(images).transpose(0, 3, 1, 2).reshape(count, -1)
            labels = [index % len(classes) for index in range(count)]
            _dump(os.path.join(directory, file), {"data": pixels, keys[0]: labels})
        _dump(os.path.join(directory, meta), {keys[1]: [name for name, _ in classes]})

    return write


def _dump(path: str, content: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=2)


# Several images per example, and counts -----------------------------------------------------------


def _kinetics(directory: str, settings: Settings) -> None:
    """Writes six frames per clip of an object in motion."""
    cfg = WorldConfig(num_frames=6, frame_size=settings.size, fps=8.0)
    for split, parent in (("train", "train"), ("test", "validate")):
        annotations = {}
        for index in range(settings.count(split)):
            rng = settings.rng(f"kinetics400/{split}", index)
            attributes = attributes_of(settings.seed, split, index)
            attributes["motion"] = MOTIONS[index % len(MOTIONS)]
            trajectory = Trajectory(rng, attributes, rng.uniform(-0.12, 0.12))
            frames, _ = render_frames(rng, cfg, attributes, trajectory)
            clip = f"{index % 16:02x}{split}{index:05d}"
            annotations[clip] = {"annotations": {"label": attributes["motion"]}}
            for number, frame in enumerate(frames):
                save(os.path.join(directory, parent, clip[:2], f"{clip}_{number}.jpg"), frame)
        files.write_json(os.path.join(directory, "annotations", f"{parent}.json"), annotations)


def _clevr(directory: str, settings: Settings) -> None:
    """Writes images of one to six objects, with their positions on the floor."""
    for split, parent in (("train", "train"), ("test", "val")):
        scenes = []
        for index in range(settings.count(split)):
            rng = settings.rng(f"CLEVR/{split}", index)
            places = scattered(rng, 1 + index % _MAX_OBJECTS, radius=(0.09, 0.13))
            things = [random_thing(rng, x=x, y=y, radius=r) for x, y, r in places]
            name = f"CLEVR_{parent}_{index:06d}.png"
            image, _ = draw(rng, settings.size, things)
            save(os.path.join(directory, "images", parent, name), image)
            objects = [{"3d_coords": [8 * t.x, -8 * t.y, 0.35], "shape": t.shape} for t in things]
            scenes.append({"image_filename": name, "image_index": index, "objects": objects})
        path = os.path.join(directory, "scenes", f"CLEVR_{parent}_scenes.json")
        files.write_json(path, {"scenes": scenes}, indent=None)


def _thor_num_steps(directory: str, settings: Settings) -> None:
    """Writes images of an object whose size tells how many steps it is away."""
    for split, parent in (("train", "train"), ("test", "val")):
        lines = []
        for index in range(settings.count(split)):
            rng, steps = settings.rng(f"thor_num_steps/{split}", index), index % _NUM_STEPS
            radius = 0.44 * 0.78**steps * rng.uniform(0.96, 1.04)
            image = single(rng, settings.size, {"radius": radius})
            key = f"{parent}/FloorPlan{1 + index % 5}/{index:05d}"
            save(os.path.join(directory, f"{key}_rgb.jpg"), image)
            lines.append(f"{key} {steps}\n")
        files.write_text(os.path.join(directory, f"{parent}_labels.txt"), "".join(lines))


def _views(rng: np.random.Generator, size: int, action: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a view of some objects, and the view after an action of the camera."""
    margin = size // 4
    full = size + 2 * margin
    places = scattered(rng, 5, radius=(0.1, 0.16))
    scene, _ = draw(rng, full, [random_thing(rng, x=x, y=y, radius=r) for x, y, r in places])
    top, left = margin + rng.integers(-2, 3, 2)
    shift = round(size * rng.uniform(0.14, 0.22))
    direction = dict(RotateLeft=(0, -1), RotateRight=(0, 1), LookUp=(-1, 0), LookDown=(1, 0))
    first = scene[top : top + size, left : left + size]
    if action == "MoveAhead":
        image, cut = Image.fromarray(first), size * rng.uniform(0.1, 0.14)
        box = (cut, cut, size - cut, size - cut)
        return first, np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    y, x = direction.get(action, (0, 0))
    top, left = max(top + y * shift, 0), max(left + x * shift, 0)
    return first, scene[top : top + size, left : left + size]


def _thor_action(directory: str, settings: Settings) -> None:
    """Writes pairs of views with the action between them."""
    for split, parent in (("train", "train"), ("test", "val")):
        lines = []
        for index in range(settings.count(split)):
            action = ACTIONS[index % len(ACTIONS)]
            rng = settings.rng(f"thor_action_prediction/{split}", index)
            stem = f"{parent}/FloorPlan{1 + index % 5}/{index:05d}"
            for name, view in zip("ab", _views(rng, settings.size, action), strict=True):
                save(os.path.join(directory, f"{stem}_rgb_{name}.jpg"), view)
            lines.append(f"{stem} {action}\n")
        files.write_text(os.path.join(directory, f"{parent}_labels.txt"), "".join(lines))


_MOTIONS = {"forward": "MoveAhead", "left": "RotateLeft", "right": "RotateRight", "stop": ""}


def _nuscenes(directory: str, settings: Settings) -> None:
    """Writes pairs of views with the motion between them."""
    for split in ("train", "test"):
        entries = []
        for index in range(settings.count(split)):
            label = list(_MOTIONS)[index % len(_MOTIONS)]
            rng, entry = settings.rng(f"nuScenes/{split}", index), {"label": label}
            views = _views(rng, settings.size, _MOTIONS[label])
            for name, view in zip("ab", views, strict=True):
                entry[f"img_{name}"] = f"samples/CAM_FRONT/{split}_{index:05d}_{name}.jpg"
                save(os.path.join(directory, entry[f"img_{name}"]), view)
            entries.append(entry)
        files.write_json(os.path.join(directory, f"nuScenes_{split}.json"), entries)


_CIFAR_100 = ({"train": "train", "test": "test"}, ("fine_labels", "fine_label_names"), "meta")
_CIFAR_10 = (
    {"train": "data_batch_1", "test": "test_batch"},
    ("labels", "label_names"),
    "batches.meta",
)
IMAGE_SETS: dict[str, Write] = {
    "imagenet": _class_directories("imagenet", _BY_SHAPE, single, test="val", suffix="JPEG"),
    "imagenetv2": _imagenetv2,
    "pets": _pets,
    "caltech-101": _class_directories("caltech-101", _BY_SHAPE, _cluttered),
    "SUN397": _class_directories("SUN397", _BY_SHAPE, _group),
    "eurosat": _class_directories("eurosat", _LAND, _surface),
    "dtd": _class_directories("dtd", _TEXTURES, _surface),
    "cifar-100": _cifar(_BY_SHAPE_AND_SIZE, *_CIFAR_100),
    "cifar-10": _cifar(_BY_SHAPE, *_CIFAR_10),
    "kinetics400": _kinetics,
    "CLEVR": _clevr,
    "thor_num_steps": _thor_num_steps,
    "thor_action_prediction": _thor_action,
    "nuScenes": _nuscenes,
}
