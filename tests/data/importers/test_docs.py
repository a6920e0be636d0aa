"""Every command of docs/datasets runs as printed, on small files in the official formats."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import scipy.io
from PIL import Image

from mmjax.data.importers import IMPORTERS
from mmjax.data.importers.coco import VOC_NAMES
from mmjax.data.importers.voc import CLASSES
from mmjax.data.storage import dataset
from mmjax.tools import cli
from tests.data import films
from tests.data.importers import synthetic_tvl

PAGES = Path(__file__).parents[3] / "docs" / "datasets"


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def write_media(path, seed):
    """Writes an image, an audio file or a video; gray level and pitch depend on the seed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    audio = films.tone(200 + 20 * seed, seconds=1, sample_rate=16_000)[None]
    if path.endswith(".wav"):
        return films.write_film(path, waveform=audio, audio_codec="pcm_s16le")
    image = np.full((48, 64, 3), 20 + 9 * seed, np.uint8)
    if path.endswith(".JPEG"):
        return Image.fromarray(image).save(path)
    if path.endswith(".avi"):
        return films.write_film(path, frames=[image] * 5, fps=25, video_codec="mpeg4")
    return films.write_film(path, frames=[image] * 25, fps=25, waveform=audio)


def howto100m():
    entry = {"start": [0, 0.5], "end": [0.2, 0.7], "text": ["cut an onion", "fry it"]}
    write("howto100m/raw_caption.json", json.dumps({"a": entry, "b": entry}))
    write("howto100m/HowTo100M_v1.csv", "video_id,task_id\na,1\nb,1\n")
    for index, video in enumerate("ab"):
        write_media(f"howto100m/videos/{video}.mp4", index)
    return {"datasets/howto100m": {"train": 4}, "datasets/howto100m_all": {"train": 4}}


def audioset():
    classes = 'index,mid,display_name\n0,/m/1,Speech\n1,/m/2,"Music, loud"\n'
    write("audioset/annotations/class_labels_indices.csv", classes)
    for index, name in enumerate(("balanced_train", "unbalanced_train", "eval")):
        text = f'# a\n# b\n# c\nv{index}, 0.000, 10.000, "/m/1,/m/2"\n'
        write(f"audioset/annotations/{name}_segments.csv", text)
        write_media(f"audioset/videos/v{index}.mp4", index)
    sizes = {"train": 2, "balanced_train": 1, "unbalanced_train": 1, "test": 1, "eval": 1}
    return {"datasets/audioset": sizes}


def kinetics():
    for name in ("kinetics400", "kinetics600", "kinetics700"):
        for index, split in enumerate(("train", "val")):
            text = (
                f"label,youtube_id,time_start,time_end,split\nair drumming,v{index},1,11,{split}\n"
            )
            write(f"{name}/annotations/{split}.csv", text)
            write_media(f"{name}/videos/{split}/air drumming/v{index}_000001_000011.mp4", index)
    return {"datasets/kinetics400": {"train": 1, "test": 1, "validation": 1}}


def moments_in_time():
    root = "Moments_in_Time_Raw"
    write(f"{root}/moments_categories.txt", "clapping,0\n")
    for index, split in enumerate(("training", "validation")):
        write(f"{root}/{split}Set.csv", f"clapping/v{index}.mp4,clapping,3,0\n")
        write_media(f"{root}/{split}/clapping/v{index}.mp4", index)
    return {"datasets/moments_in_time": {"train": 1, "test": 1, "validation": 1}}


def ucf101():
    write("ucfTrainTestlist/classInd.txt", "1 Archery\n")
    clips = [f"Archery/v_Archery_g0{k}_c01.avi" for k in (1, 2, 3)]
    for k, clip in enumerate(clips):
        write(f"ucfTrainTestlist/testlist0{k + 1}.txt", clip)
        rest = "".join(f"{other} 1\n" for other in clips if other != clip)
        write(f"ucfTrainTestlist/trainlist0{k + 1}.txt", rest)
        write_media(f"UCF-101/{clip}", k)
    return {
        "datasets/ucf101": {f"{s}{k}": n for s, n in (("train", 2), ("test", 1)) for k in (1, 2, 3)}
    }


def hmdb51():
    for split in (1, 2):
        text = "a_clap_0.avi 1 \n" + f"b#1_clap_0.avi {split}\n"
        write(f"testTrainMulti_7030_splits/clap_test_split{split}.txt", text)
    write_media("hmdb51/clap/a_clap_0.avi", 1)
    write_media("hmdb51/clap/b#1_clap_0.avi", 2)
    return {"datasets/hmdb51": {"train1": 2, "train2": 1, "test2": 1}}


def esc50():
    text = "filename,fold,target,category,esc10,src_file,take\n"
    for fold in range(1, 6):
        text += f"{fold}-1-A-0.wav,{fold},0,dog,True,1,A\n"
        write_media(f"ESC-50-master/audio/{fold}-1-A-0.wav", fold)
    write("ESC-50-master/meta/esc50.csv", text)
    sizes = {f"{s}{k}": n for s, n in (("train", 4), ("test", 1)) for k in range(1, 6)}
    return {"datasets/esc50": sizes}


def youcook2():
    database = {}
    for index, subset in enumerate(("training", "validation")):
        step = {"segment": [0, 1], "id": 0, "sentence": "cut it | fry it"}
        database[f"v{index}"] = {"subset": subset, "recipe_type": "1", "annotations": [step]}
        write_media(f"youcook2/raw_videos/{subset}/1/v{index}.mp4", index)
    text = json.dumps({"database": database})
    write("youcook2/youcookii_annotations_trainval.json", text)
    return {"datasets/youcook2": {"train": 1, "test": 1, "validation": 1}}


def msrvtt():
    indexed = list(enumerate(("train", "validate", "test", "test")))
    videos = [{"video_id": f"video{k}", "split": split} for k, split in indexed]
    sentences = [{"video_id": f"video{k}", "caption": f"a {k}"} for k, _ in indexed]
    text = json.dumps({"videos": videos, "sentences": sentences})
    write("msrvtt/annotations/MSRVTT_data.json", text)
    pairs = "key,vid_key,video_id,sentence\nret0,msr3,video3,a man\n"
    write("msrvtt/annotations/MSRVTT_JSFUSION_test.csv", pairs)
    for k, _ in indexed:
        write_media(f"msrvtt/videos/video{k}.mp4", k)
    return {"datasets/msrvtt": {"train": 3, "train7k": 2, "test": 1}}


def imagenet():
    write("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\n")
    name = "ILSVRC2012_val_00000001"
    write("LOC_val_solution.csv", f"ImageId,PredictionString\n{name},n01440764 1 2 3 4 \n")
    write_media("ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_1.JPEG", 1)
    write_media(f"ILSVRC/Data/CLS-LOC/val/{name}.JPEG", 2)
    return {"datasets/imagenet": {"train": 1, "test": 1, "validation": 1}}


def tvl():
    synthetic_tvl.make_ssvtp(Path("tvl"), train=20, test=2)
    swapped, sizes = ("data1/0-0.5",), ((320, 240), synthetic_tvl.DIGIT)
    synthetic_tvl.make_hct(Path("tvl"), train=10, test=1, sizes=sizes, swapped=swapped)
    return {"datasets/tvl": {"train": 18 + 27 + 2, "valid": 2 + 3, "test": 2 + 3}}


def captions():
    for index, directory in enumerate(("crochet_2017_000001", "itookapicture_2020_000002")):
        for instance in ("a", "b"):
            write_media(f"redcaps/{directory}/{instance}.JPEG", index)
            write(f"redcaps/{directory}/{instance}.json", json.dumps({"caption": f"a {index}"}))
    write_media("cc3m/0/1.JPEG", 1)
    rows = {"path": ["0/1.JPEG"], "alt_text": ["a man | a dog"], "label": [3]}
    pyarrow.parquet.write_table(pyarrow.table(rows), "cc3m/train.parquet")
    return {"datasets/redcaps": {"train": 4}, "datasets/cc3m": {"train": 1}}


def segmentation():
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 15
    root = "VOCdevkit/VOC2012"
    for index, (split, name) in enumerate((("train", "a"), ("val", "b"))):
        write(f"{root}/ImageSets/Segmentation/{split}.txt", name)
        write_media(f"{root}/JPEGImages/{name}.JPEG", index)
        Path(f"{root}/JPEGImages/{name}.JPEG").rename(f"{root}/JPEGImages/{name}.jpg")
        Path(f"{root}/SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(mask).save(f"{root}/SegmentationClass/{name}.png")
    sbd = "benchmark_RELEASE/dataset"
    for index, (split, names) in enumerate((("train", "ab"), ("val", "c"))):
        write(f"{sbd}/{split}.txt", "".join(f"{name}\n" for name in names))
        for name in names:
            write_media(f"{sbd}/img/{name}.JPEG", index)
            Path(f"{sbd}/img/{name}.JPEG").rename(f"{sbd}/img/{name}.jpg")
            Path(f"{sbd}/cls").mkdir(exist_ok=True)
            scipy.io.savemat(f"{sbd}/cls/{name}.mat", {"GTcls": {"Segmentation": mask}})
    names = [coco for coco in VOC_NAMES] + [n for n in CLASSES[1:] if n not in VOC_NAMES.values()]
    for index, name in enumerate(("train2017", "val2017")):
        write_media(f"coco/{name}/{index}.JPEG", index)
        polygon = [[5, 5, 30, 5, 30, 30]]
        annotation = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": polygon}
        image = {"id": 1, "file_name": f"{index}.JPEG", "width": 64, "height": 48}
        categories = [{"id": k, "name": n} for k, n in enumerate(names)]
        content = {"images": [image], "annotations": [annotation], "categories": categories}
        write(f"annotations/instances_{name}.json", json.dumps(content))
    sizes = {"train": 1, "test": 1, "validation": 1}
    return {"datasets/voc": sizes, "datasets/sbd": {"train": 1}, "datasets/coco_voc": sizes}


MAKE = (howto100m, audioset, kinetics, moments_in_time, imagenet, tvl, captions, segmentation)
MAKE = {make.__name__: make for make in (*MAKE, ucf101, hmdb51, esc50, youcook2, msrvtt)}


def test_index_lists_every_dataset_and_every_page():
    index = (PAGES / "README.md").read_text()
    assert all(f"`{name}`" in index for name in IMPORTERS)
    pages = set(re.findall(r"\]\((\w+)\.md\)", index))
    assert pages == {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(MAKE)


@pytest.mark.parametrize("page", MAKE)
def test_commands_of_every_page_run_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = MAKE[page]()
    text = (PAGES / f"{page}.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    assert lines
    for line in lines:
        program, command, *rest = shlex.split(line)
        if program == "python":
            continue  # tests/test_docs.py checks these
        if program != "mmjax":
            subprocess.run(["bash", "-c", line], check=True)
            continue
        quiet = {"import": ["--quiet"], "build": ["--quiet", "--workers", "1"]}
        assert cli.main([command, *rest, *quiet.get(command, [])]) == 0, line
    for directory, sizes in expected.items():
        actual = dataset.DatasetDir(directory).info.split_sizes()
        assert {split: actual.get(split) for split in sizes} == sizes
