"""A small made dataset in the layout of TVL."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CAMERA, DIGIT = (64, 48), (24, 32)  # width, height
WORDS = ("smooth", "rough", "soft, bumpy", "hard, cool, flat", "grainy, gritty")


def picture(path: Path, size, seed: int, *, camera: bool = True) -> None:
    """Noise for a camera; for touch a slope of grey that hardly changes, darker to the right."""
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
    """ssvtp: pairs 0 … of train, then of test."""
    folder = root / "ssvtp"
    header = "url,tactile,caption\n"
    tables = {"train": header, "test": header}
    for number in range(train + test):
        picture(folder / f"images_rgb/image_{number}_rgb.jpg", CAMERA, number)
        picture(folder / f"images_tac/image_{number}_tac.jpg", DIGIT, number, camera=False)
        words = WORDS[number % len(WORDS)]
        write(folder / f"text/labels_{number}.txt", f"{words}\nanother line\n")
        row = f'images_rgb/image_{number}_rgb.jpg,images_tac/image_{number}_tac.jpg,"{words}"\n'
        tables["train" if number < train else "test"] += row
    for name, text in tables.items():
        write(folder / f"{name}.csv", text)


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
    """hct: two recordings per part. `swapped` names recordings as 'data1/0-1.5'."""
    for number, part in enumerate(parts):
        folder = root / "hct" / part
        picture(folder / "digit_background.png", sizes[1], 0, camera=False)
        header = "url,tactile,tactile_background,caption\n"
        tables = {"train": header, "test": header}
        lists = {
            name: {"vision": [], "tactile": [], "background": []}
            for name in ("contact", "not_contact")
        }
        for k in range(train + test + no_contact):
            recording = f"{k % 2}-{number}.5"
            turned = f"{part}/{recording}" in swapped
            for camera, name in ((not turned, "vision"), (turned, "tactile")):
                path = folder / recording / name / f"{k}-0.02.jpg"
                picture(path, sizes[0 if camera else 1], 1000 * number + k, camera=camera)
            pair = [f"{recording}/{name}/{k}-0.02.jpg" for name in ("vision", "tactile")]
            # Of the first recording, a picture without contact; of the second, one not there.
            first = train + test + (train + test) % 2
            empty = f"{recording}/tactile/{first if k % 2 == 0 else 999}-0.02.jpg"
            in_contact = k < train + test
            for name, value in zip(
                ("vision", "tactile", "background"), (*pair, empty), strict=True
            ):
                lists["contact" if in_contact else "not_contact"][name].append(value)
            if in_contact:
                row = f'{",".join((*pair, empty))},"{WORDS[k % len(WORDS)]}"\n'
                tables["train" if k < train else "test"] += row
        for name, text in tables.items():
            write(folder / f"{name}.csv", text)
        for name, columns in lists.items():
            write(folder / f"{name}.json", json.dumps(columns))
