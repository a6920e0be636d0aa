"""PASCAL VOC, SBD and COCO: from files in the official formats to stored masks."""

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from mmjax.data.importers import coco, painting, voc
from mmjax.data.storage import dataset, schema
from mmjax.errors import UserError
from mmjax.monitor.class_colors import voc_palette
from mmjax.tools import cli
from tests.data.importers.importing import Workspace, assert_line_mentions
from tests.messages import assert_mentions, raises

SIZE = (50, 30)  # width, height


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def mask_of(seed):
    """A class map of blocks of the classes of PASCAL VOC."""
    blocks = np.random.default_rng(seed).integers(0, 21, (3, 5), np.uint8)
    return blocks.repeat(10, 0).repeat(10, 1)


def write_image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 80, 70)).save(path)


def write_palette(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    image.save(path)


def write_lists(directory, **lists):
    directory.mkdir(parents=True, exist_ok=True)
    for name, ids in lists.items():
        (directory / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


def run(workspace, name, *options, annotations=()):
    """Imports and builds; returns the status, and {file name: class map} of each split."""
    out, built = workspace.root / "made" / "t.jsonl", workspace.root / "ds"
    paths = ["--annotations", *annotations] if annotations else []
    arguments = [*paths, "--media", workspace.media, "--out", out, "--quiet", *options]
    status = cli.main(["import", name, *map(str, arguments)])
    if status != 0:
        return status, {}
    arguments = ["--csv", out, "--media-root", workspace.media, "--out", built, "--size", "0"]
    arguments += ["--mask-classes", out.parent / "mask_classes.txt", "--workers", "1", "--quiet"]
    assert cli.main(["build", *map(str, arguments), "--overwrite"]) == 0
    directory = dataset.DatasetDir(built)
    result = {}
    for split in directory.info.split_sizes():
        records = directory.split(split)
        examples = [schema.decode(records.read(k)) for k in range(len(records))]
        result[split] = {e.filename: schema.decode_mask(e.masks[0]) for e in examples}
    return directory.info, result


def make_voc(root):
    masks = {}
    for seed, name in enumerate(("2007_000033", "2007_000032", "2007_000042")):
        masks[name] = mask_of(seed)
        masks[name][0] = 255
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_palette(root / "SegmentationClass" / f"{name}.png", masks[name])
    write_lists(
        root / "ImageSets" / "Segmentation",
        train=["2007_000033", "2007_000032"],
        val=["2007_000042"],
        trainval=["2007_000033", "2007_000032", "2007_000042"],
    )
    return masks


@pytest.mark.parametrize("parent", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_from_its_lists_and_palette_images(workspace, parent, capsys):
    masks = make_voc(workspace.media / parent)
    info, splits = run(workspace, "voc")
    out = capsys.readouterr().out
    assert_line_mentions(out, "3 examples", "train 2", "test 1", "21 classes", "mask_classes.txt")
    assert_line_mentions(out, "mmjax build", "--mask-classes", "datasets/voc", "--size 0")
    assert info.mask_classes == list(voc.CLASSES) and info.mask_classes[20] == "tvmonitor"
    assert set(splits) == {"train", "test", "validation"}
    names = [name.rpartition("/")[2] for name in splits["train"]]
    assert names == ["2007_000032.jpg", "2007_000033.jpg"]  # sorted by name
    for split in splits.values():
        for path, stored in split.items():
            assert np.array_equal(stored, masks[path.rpartition("/")[2].removesuffix(".jpg")])
    assert info.statistics["ignored_mask_pixels"] == 3 * 50


def test_images_and_masks_that_voc_lacks_are_reported(workspace, capsys):
    make_voc(workspace.media)
    (workspace.media / "JPEGImages/2007_000032.jpg").unlink()
    (workspace.media / "SegmentationClass/2007_000042.png").unlink()
    status, _ = run(workspace, "voc")
    out = capsys.readouterr().out
    assert status == 1  # more images are missing than allowed
    assert_line_mentions(out, "images without a mask: 1", "2007_000042.png")
    assert workspace.lines("missing.txt") == ["JPEGImages/2007_000032.jpg"]


def test_voc_problems_name_the_file(workspace, capsys):
    assert run(workspace, "voc")[0] == 2
    assert_mentions(capsys.readouterr().err, workspace.media, "VOCdevkit/VOC2012")
    make_voc(workspace.media)
    lists = workspace.media / "ImageSets/Segmentation"
    write_lists(lists, val=["2007_000042", "2007_000033"])
    assert run(workspace, "voc")[0] == 2
    assert_mentions(capsys.readouterr().err, "val.txt, line 2", "2007_000033", "train.txt, line 1")
    (lists / "val.txt").unlink()
    assert run(workspace, "voc")[0] == 2
    assert_mentions(capsys.readouterr().err, "val.txt")


def make_sbd(root):
    masks = {}
    for seed, name in enumerate(("2008_000003", "2008_000002", "2008_000009")):
        masks[name] = mask_of(seed)
        write_image(root / "img" / f"{name}.jpg")
        (root / "cls").mkdir(exist_ok=True)
        content = {
            "Segmentation": masks[name],
            "Boundaries": np.zeros((20, 1)),
            "CategoriesPresent": 3,
        }
        scipy.io.savemat(root / "cls" / f"{name}.mat", {"GTcls": content})
    write_lists(root, train=["2008_000003", "2008_000002"], val=["2008_000009"])
    return masks


@pytest.mark.parametrize("parent", ["", "dataset", "benchmark_RELEASE/dataset"])
def test_sbd_from_matlab_files(workspace, parent):
    masks = make_sbd(workspace.media / parent)
    info, splits = run(workspace, "sbd")
    assert info.mask_classes == list(voc.CLASSES)
    assert sorted(len(split) for split in splits.values()) == [1, 1, 2]
    for split in splits.values():
        for path, stored in split.items():
            assert np.array_equal(stored, masks[path.rpartition("/")[2].removesuffix(".jpg")])
    # A person can look at the masks: they have the colors of PASCAL VOC.
    painted = Image.open(workspace.root / "made/masks/sbd/2008_000002.png")
    assert painted.mode == "P"
    assert np.array_equal(np.asarray(painted.convert("RGB")), voc_palette()[masks["2008_000002"]])


def test_sbd_without_the_validation_images_of_voc(workspace, tmp_path, capsys):
    make_sbd(workspace.media)
    (tmp_path / "voc_val.txt").write_text("2007_000001\n2008_000003\n")
    exclude = ["--exclude", tmp_path / "voc_val.txt", "--split", "train"]
    _, splits = run(workspace, "sbd", *exclude)
    assert set(splits) == {"train"}
    assert set(splits["train"]) == {"img/2008_000002.jpg", "img/2008_000009.jpg"}
    assert_line_mentions(capsys.readouterr().out, "--exclude: 1", "2008_000003")


@pytest.mark.parametrize(
    "content, facts",
    [
        (b"no MATLAB file, but some text of a sufficient length for a header " * 4, ("MATLAB",)),
        ({"other": 1}, ("GTcls",)),
        ({"GTcls": {"Segmentation": np.full((3, 4), 21, np.uint8)}}, ("[3, 4]", "20")),
        ({"GTcls": {"Segmentation": np.zeros((3, 4))}}, ("float64",)),
    ],
    ids=["text", "other variables", "other classes", "floats"],
)
def test_damaged_files_of_sbd_are_named(tmp_path, content, facts):
    path = tmp_path / "2008_000002.mat"
    path.write_bytes(content) if isinstance(content, bytes) else scipy.io.savemat(path, content)
    with raises(UserError, path, *facts):
        voc.read_sbd_mask(str(path))


# COCO's category id of each class of PASCAL VOC.
VOC_TO_COCO = (*(5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72),)
COCO_NAMES = {
    **{1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train"},
    **{9: "boat", 10: "traffic light", 16: "bird", 17: "cat", 18: "dog", 19: "horse"},
    **{20: "sheep", 21: "cow", 44: "bottle", 62: "chair", 63: "couch", 64: "potted plant"},
    **{67: "dining table", 72: "tv", 90: "toothbrush"},
}


def square(left, top, side):
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_coco(path, images, annotations, names=COCO_NAMES):
    """Writes a JSON file; `annotations` are (image id, category id, segmentation)."""
    content = {
        "images": [
            {"id": k, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
            for k, name in images.items()
        ],
        # In another order than that of the ids.
        "categories": [{"id": k, "name": names[k]} for k in sorted(names, key=str)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "segmentation": s, "iscrowd": 0}
            for n, (i, c, s) in enumerate(annotations)
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def instances(workspace):
    """The training and validation files of COCO, with three images."""
    for name in ("train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg"):
        write_image(workspace.media / name)
    crowd = {"size": [30, 50], "counts": [0, 300, 1200]}  # the first ten columns
    train = write_coco(
        workspace.annotations / "instances_train2017.json",
        {7: "a.jpg", 8: "b.jpg"},
        [
            (7, 90, square(0, 0, 10)),
            (7, 1, square(20, 5, 10)),
            (7, 72, square(25, 5, 10)),
            (8, 10, crowd),
        ],
    )
    val = write_coco(
        workspace.annotations / "instances_val2017.json", {9: "c.jpg"}, [(9, 5, square(2, 2, 5))]
    )
    return train, val


def test_coco_is_painted_in_the_order_of_its_annotations(workspace, instances):
    info, splits = run(workspace, "coco", annotations=instances)
    assert info.mask_classes == ["background", *COCO_NAMES.values()]
    assert set(splits) == {"train", "test", "validation"}
    number = {name: info.mask_classes.index(name) for name in info.mask_classes}
    expected = np.zeros((30, 50), np.uint8)
    expected[:10, :10] = number["toothbrush"]
    expected[5:15, 20:30] = number["person"]
    expected[5:15, 25:35] = number["tv"]
    assert np.array_equal(splits["train"]["train2017/a.jpg"], expected)
    assert set(np.unique(splits["train"]["train2017/b.jpg"][:, :10])) == {number["traffic light"]}
    assert splits["test"]["val2017/c.jpg"][3, 3] == number["airplane"]


def test_only_the_classes_of_voc_with_its_numbers(workspace, instances, capsys):
    info, splits = run(workspace, "coco", "--only-voc", annotations=instances)
    assert info.mask_classes == list(voc.CLASSES)
    stored = splits["train"]["train2017/a.jpg"]
    assert set(np.unique(stored)) == {
        0,
        voc.CLASSES.index("person"),
        voc.CLASSES.index("tvmonitor"),
    }
    assert set(splits["train"]) == {"train2017/a.jpg"}
    assert_line_mentions(capsys.readouterr().out, "without any of the classes: 1", "b.jpg")


def test_every_class_of_voc_has_its_category():
    for index, category in enumerate(VOC_TO_COCO, 1):
        name = COCO_NAMES[category]
        assert coco.VOC_NAMES.get(name, name) == voc.CLASSES[index]


def test_classes_can_be_selected_and_ordered_by_name(workspace, instances, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("background\ntv\nperson\n")
    info, splits = run(workspace, "coco", "--classes", classes, annotations=instances[:1])
    assert info.mask_classes == ["background", "tv", "person"]
    stored = splits["train"]["train2017/a.jpg"]
    assert stored[6, 21] == 2 and stored[6, 26] == 1 and stored[0, 0] == 0
    for text, facts in (("tv\n", ("background",)), ("background\ntvs\n", ("'tvs'", "'tv'"))):
        classes.write_text(text)
        assert run(workspace, "coco", "--classes", classes, annotations=instances)[0] == 2
        assert_mentions(capsys.readouterr().err, "--classes", *facts)
    both = ["--classes", classes, "--only-voc"]
    assert run(workspace, "coco", *both, annotations=instances)[0] == 2
    assert_mentions(capsys.readouterr().err, "--classes", "--only-voc")


def test_a_json_file_of_your_own_with_paths_of_another_machine(workspace, tmp_path):
    write_image(workspace.media / "images" / "x.jpg")
    names = {3: "crack", 1: "rust"}
    path = write_coco(
        tmp_path / "labels.json", {"a": "/home/me/x.jpg"}, [("a", 3, square(0, 0, 9))], names
    )
    info, splits = run(workspace, "coco", "--split", "test", annotations=[path])
    assert info.mask_classes == ["background", "rust", "crack"]
    assert splits["test"]["images/x.jpg"][0, 0] == 2


def test_files_with_other_categories_are_refused(workspace, instances, capsys):
    write_coco(instances[1], {9: "c.jpg"}, [], {1: "person"})
    assert run(workspace, "coco", annotations=instances)[0] == 2
    assert_mentions(capsys.readouterr().err, "instances_val2017.json", "categories", "--classes")
    assert run(workspace, "coco", "--only-voc", annotations=instances[1:])[0] == 2
    assert_mentions(capsys.readouterr().err, "--only-voc", "bicycle")


def test_missing_images_are_reported(workspace, instances):
    (workspace.media / "train2017/a.jpg").unlink()
    assert run(workspace, "coco", annotations=instances)[0] == 1
    assert workspace.lines("missing.txt") == ["a.jpg"]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "b/../../a.jpg"])
def test_masks_stay_in_their_directory(name):
    with raises(UserError, name):
        painting.mask_path("masks", name)
