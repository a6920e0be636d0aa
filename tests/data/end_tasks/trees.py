"""Small datasets in the layouts of pyVTAB, written with Pillow."""

import json
import pickle
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (8, 6)  # width, height


def image(path, gray=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (gray,) * 3).save(path)


def target(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)


def mask(path, value, dtype=np.uint8, size=SIZE):
    target(path, np.full(size[::-1], value, dtype))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def flow_png(path, x, y, valid):
    """Writes constant flow as KITTI does: a 16-bit RGB PNG, which Pillow cannot write."""
    width, height = SIZE
    pixel = struct.pack(">HHH", int(64 * x + 2**15), int(64 * y + 2**15), 0)
    rows = [bytearray(b"\0" + pixel * width) for _ in range(height)]
    for row in range(height):
        for column in range(width):
            if valid[row, column]:
                rows[row][1 + 6 * column + 4 : 1 + 6 * column + 6] = b"\0\1"

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b""))


def classes(root, name, suffix="jpg", test="test"):
    """Writes the classes a and b, and a training class c that the test split lacks."""
    for path, gray in (("train/a/1", 10), ("train/b/1", 20), ("train/c/1", 30)):
        image(root / name / f"{path}.{suffix}", gray)
    image(root / name / test / "b" / f"1.{suffix}", 25)


def image_sets(root):
    for name in ("pets", "caltech-101", "SUN397", "eurosat", "dtd"):
        classes(root, name)
    classes(root, "imagenet", "JPEG", "val")
    for label in (0, 2, 10):
        image(root / "imagenetv2" / str(label) / "x.jpeg", label)
    for directory, key, names, meta in (
        ("cifar-100-python", "fine_labels", ("train", "test"), "meta"),
        ("cifar-10-batches-py", "labels", ("data_batch_1", "test_batch"), "batches.meta"),
    ):
        (root / directory).mkdir(parents=True)
        for count, name in zip((3, 2), names, strict=True):
            pixels = np.arange(count * 3072).reshape(count, 3072).astype(np.uint8)
            content = {"coarse_labels": [9] * count, key: [2, 0, 1][:count], "data": pixels}
            (root / directory / name).write_bytes(pickle.dumps(content, protocol=2))
        names = {"fine_label_names": ["x", "y", "z"], "label_names": ["x", "y", "z"]}
        (root / directory / meta).write_bytes(pickle.dumps(names, protocol=2))


def frames_and_pairs(root):
    for parent, clips in (("train", {"ab_c": "run", "abd": "sit"}), ("validate", {"xy": "sit"})):
        path = root / "kinetics400"
        entries = {clip: {"annotations": {"label": label}} for clip, label in clips.items()}
        text(path / "annotations" / f"{parent}.json", entries | {"q1": entries[min(clips)]})
        for clip in clips:
            for number in range(4, 13):  # more than six frames, and numbers of two digits
                image(path / parent / clip[:2] / f"{clip}_{number}.jpg", 10 * number)
        image(path / parent / "q1" / "q1_0.jpg")  # too few frames
    for parent in ("train", "val"):
        scenes = []
        for number, coords in enumerate(([[1, 2, 2], [0, 0, 1.2]], [[3, 0, 4]])):
            name = f"CLEVR_{parent}_{number:06d}.png"
            image(root / "CLEVR" / "images" / parent / name, number)
            objects = [{"3d_coords": xyz} for xyz in coords]
            scenes.append({"image_filename": name, "objects": objects})
        text(root / f"CLEVR/scenes/CLEVR_{parent}_scenes.json", {"scenes": scenes[::-1]})
        for stem in (f"{parent}/Floor 1/0", f"{parent}/Floor 1/1"):
            image(root / "thor_num_steps" / f"{stem}_rgb.jpg")
            for name in "ab":
                image(
                    root / "thor_action_prediction" / f"{stem}_rgb_{name}.jpg", 50 * (name == "b")
                )
        lines = f"{parent}/Floor 1/1 4\n\n{parent}/Floor 1/0 1\n"
        text(root / f"thor_num_steps/{parent}_labels.txt", lines)
        lines = f"{parent}/Floor 1/1 LookDown\n{parent}/Floor 1/0 RotateLeft\n"
        text(root / f"thor_action_prediction/{parent}_labels.txt", lines)
    for split, labels in (("train", ["left", "ahead"]), ("test", ["left"])):
        entries = [
            {"img_a": f"s/{split}{n}a.jpg", "img_b": f"s/{split}{n}b.jpg", "label": label}
            for n, label in enumerate(labels)
        ]
        text(root / f"nuScenes/nuScenes_{split}.json", entries)
        for entry in entries:
            image(root / "nuScenes" / entry["img_a"], 1)
            image(root / "nuScenes" / entry["img_b"], 99)


def dense_sets(root):
    half = np.repeat([[True] * 4 + [False] * 4], 6, 0)
    for split, val in (("train", "val"), ("test", "val")):
        name = "train" if split == "train" else val
        left = root / "cityscapes/leftImg8bit" / name / "ulm"
        image(left / "ulm_0_leftImg8bit.png", 50)
        labels = np.where(half, 26, 4).astype(np.uint8)
        target(root / "cityscapes/gtFine" / name / "ulm/ulm_0_gtFine_labelIds.png", labels)
        target(root / "cityscapes/gtFine" / name / "ulm/ulm_0_gtFine_color.png", labels)
        image(root / f"coco/{name}2017/1.jpg")
        mask(root / f"coco/annotations/panoptic_labels_{name}2017/1.png", 200 * (name == "val"))
        nyu = root / "nyu" / split
        image(nyu / "images/rgb_1.png")
        target(nyu / "depths/depth_1.tiff", np.where(half, 2.5, 0).astype(np.float32))
        mask(nyu / "walkable/1.png", 7)
        thor = root / "thor_depth_prediction" / split / "F1"
        image(thor / "0_rgb.jpg")
        mask(thor / "0_depth.jpg", 128)
        taskonomy = root / "taskonomy" / split
        image(taskonomy / "rgb/b1/point_0_domain_rgb.png", 124)
        depth = np.where(half, 500, 65535).astype(np.uint16)
        target(taskonomy / "depth_zbuffer/b1/point_0_domain_depth_zbuffer.png", depth)
        target(taskonomy / "edges/b1/point_0_domain_edge_texture.png", depth)
    for name in ("train/a/1", "train/b/1", "train/c/1", "test/b/1"):
        path = root / "pets" / f"{name}.jpg"
        path.rename(path.with_name(f"{name.replace('/', '_')}.jpg"))
        trimap = np.array([[1, 1, 2, 2, 3, 3, 2, 2]] * 6, np.uint8)
        target(root / "pets/annotations/trimaps" / f"{name.replace('/', '_')}.png", trimap)
    for video in range(48):
        image(root / f"egohands/images/v{video:02d}/frame_1.jpg", video)
        mask(root / f"egohands/labels/v{video:02d}/frame_1.png", video % 5)
    for number in range(10):
        stem = f"{number:06d}"
        for frame in (10, 11):
            image(root / f"KITTI/training/image_2/{stem}_{frame}.png", frame)
        colors = np.where(half[..., None], np.uint8([255, 0, 100]), 0).astype(np.uint8)
        target(root / f"KITTI/training/viz_flow_occ/{stem}_10.png", colors)
        flow_png(root / f"KITTI/training/flow_occ/{stem}_10.png", 3.5, -2, half)


def write_all(root):
    """Writes all datasets below a directory."""
    image_sets(root)
    frames_and_pairs(root)
    dense_sets(root)
    return root
