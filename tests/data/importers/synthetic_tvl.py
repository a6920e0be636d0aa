"""A small synthetic dataset in the directory layout of TVL."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CAMERA, DIGIT = (64, 48), (24, 32)  # width, height
CAPTIONS = ("smooth", "rough", "soft, bumpy", "hard, cool, flat", "grainy, gritty")


def write_image(path: Path, size, seed: int, *, camera: bool = True) -> None:
    """Writes noise for a camera; for touch, an almost constant gray slope, darker to the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    rng = np.random.default_rng(seed)
    if camera:
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize(size))
    else:
        slope = 120 - 60 * np.linspace(0, 1, width)[None, :, None]
        image = (slope + rng.integers(0, 6, (height, 1, 3))).astype(np.uint8)
    Image.fromarray(image).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_ssvtp(root: Path, *, train: int = 20, test: int = 4) -> None:
    """Writes the subset ssvtp: the pairs of train, then those of test, numbered from 0."""
    directory = root / "ssvtp"
    header = "url,tactile,caption\n"
    tables = {"train": header, "test": header}
    for index in range(train + test):
        write_image(directory / f"images_rgb/image_{index}_rgb.jpg", CAMERA, index)
        write_image(directory / f"images_tac/image_{index}_tac.jpg", DIGIT, index, camera=False)
        caption = CAPTIONS[index % len(CAPTIONS)]
        write(directory / f"text/labels_{index}.txt", f"{caption}\nanother line\n")
        row = f'images_rgb/image_{index}_rgb.jpg,images_tac/image_{index}_tac.jpg,"{caption}"\n'
        tables["train" if index < train else "test"] += row
    for name, text in tables.items():
        write(directory / f"{name}.csv", text)


def make_hct(
    root: Path,
    *,
    parts=("data1", "data2", "data3"),
    train: int = 20,
    test: int = 2,
    no_contact: int = 10,
    sizes=(CAMERA, DIGIT),
    swapped=(),
) -> None:
    """Writes the subset hct: two recordings per part. `swapped` names recordings: 'data1/0-1.5'."""
    for part_index, part in enumerate(parts):
        directory = root / "hct" / part
        write_image(directory / "digit_background.png", sizes[1], 0, camera=False)
        header = "url,tactile,tactile_background,caption\n"
        tables = {"train": header, "test": header}
        lists = {
            name: {"vision": [], "tactile": [], "background": []}
            for name in ("contact", "not_contact")
        }
        for k in range(train + test + no_contact):
            recording = f"{k % 2}-{part_index}.5"
            is_swapped = f"{part}/{recording}" in swapped
            for camera, name in ((not is_swapped, "vision"), (is_swapped, "tactile")):
                path = directory / recording / name / f"{k}-0.02.jpg"
                write_image(path, sizes[0 if camera else 1], 1000 * part_index + k, camera=camera)
            pair = [f"{recording}/{name}/{k}-0.02.jpg" for name in ("vision", "tactile")]
            # The first recording lists an existing image without contact, the second a missing one.
            first = train + test + (train + test) % 2
            empty = f"{recording}/tactile/{first if k % 2 == 0 else 999}-0.02.jpg"
            in_contact = k < train + test
            for name, value in zip(
                ("vision", "tactile", "background"), (*pair, empty), strict=True
            ):
                lists["contact" if in_contact else "not_contact"][name].append(value)
            if in_contact:
                row = f'{",".join((*pair, empty))},"{CAPTIONS[k % len(CAPTIONS)]}"\n'
                tables["train" if k < train else "test"] += row
        for name, text in tables.items():
            write(directory / f"{name}.csv", text)
        for name, columns in lists.items():
            write(directory / f"{name}.json", json.dumps(columns))
