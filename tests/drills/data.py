"""Datasets: shards, indexes, descriptions, tables and annotation files."""

import json
import tempfile

import numpy as np

from tests.drills.kinds import Refused, kind

ROWS = [
    {
        "path": f"{i}.jpg",
        "caption": f"a red circle {i}",
        "label": f"class {i % 2}",
        "split": "train",
    }
    for i in range(6)
]


@kind({"dataset.json": "JSON has no checksum", "vocab.txt": "text has no checksum"})
def shards(directory):
    from mmjax.data.sources import captions, registry
    from mmjax.data.storage import schema
    from tests.data import toy_clips

    toy_clips.build(directory, 5)

    def read(where):
        source = registry.open_source(str(where), split="train")
        examples = [
            schema.decode(source.fetch(i), where=source.where(i))
            for i in range(source.num_examples)
        ]
        texts = captions.read_captions(source, range(source.num_examples))
        return examples, texts, source.labels(), source.info

    return read


@kind({"dataset.json": "JSON has no checksum", "vocab.txt": "text has no checksum"})
def validated_shards(directory):
    """Damage must be reported by `mmjax validate`, not only refused."""
    from mmjax.data.build import validate
    from tests.data import toy_clips

    toy_clips.build(directory, 4, shards=1)

    def read(where):
        result = validate.validate(str(where), workers=1, progress=False)
        if result.num_errors:
            raise Refused("reported")
        return validate.as_json(result)

    return read


@kind({"*": "records of a valid CRC"})
def records(directory):
    """Records whose CRC is right: somebody wrote them so."""
    from mmjax.data.build import validate
    from mmjax.data.storage import schema
    from tests.data import toy_clips

    payload = schema.encode(toy_clips.example(3))
    (directory / "record.bin").write_bytes(payload)

    def read(where):
        if not (where / "record.bin").is_file():
            raise Refused("no record")
        data = (where / "record.bin").read_bytes()
        with tempfile.TemporaryDirectory() as toy:
            toy_clips.build(toy, 1, shards=1, payload=lambda number: data)
            result = validate.validate(toy, workers=1, progress=False)
        return validate.as_json(result), schema.decode(data, where="record.bin")

    return read


def table(name, suffix, write, uncovered):
    def make(directory):
        from mmjax.data.build import manifest
        from mmjax.data.storage import tables

        file = f"t.{suffix}"
        write(directory / file)

        def read(where):
            rows = list(tables.rows(str(where / file)))
            return rows, manifest.read_table(str(where / file))

        return read

    make.__name__ = name
    return kind(uncovered)(make)


def _separated(delimiter):
    def write(path):
        lines = [delimiter.join(ROWS[0]), *(delimiter.join(row.values()) for row in ROWS)]
        path.write_text("\n".join(lines) + "\n")

    return write


def _parquet(path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)


TEXT = {"*": "text has no checksum"}
table("csv", "csv", _separated(","), TEXT)
table("tsv", "tsv", _separated("\t"), TEXT)
table("jsonl", "jsonl", lambda p: p.write_text("\n".join(map(json.dumps, ROWS)) + "\n"), TEXT)
table("parquet", "parquet", _parquet, {"*": "Parquet's metadata have no checksum"})


@kind(TEXT)
def caption_files(directory):
    from mmjax.data.importers import caption_files

    (directory / "d").mkdir()
    image = b"not read"
    for i in range(3):
        (directory / "d" / f"{i}.jpg").write_bytes(image)
        (directory / "d" / f"{i}.json").write_text(json.dumps({"caption": f"a cat {i}"}))
    (directory / "d" / "1.txt").write_text("a dog\na cat\n")

    def read(where):
        directories = caption_files.find_directories(str(where), "train")
        return [caption_files.read_directory(each) for each in directories]

    return read


@kind({"*": "JSON has no checksum"})
def annotations(directory):
    from mmjax.data.importers import annotations

    content = {"database": {"a": {"segment": [1, 2], "label": "x"}}, "version": "1"}
    (directory / "a.json").write_text(json.dumps(content))
    (directory / "t.csv").write_text("id,start,end\nv1,0.5,2\nv2,3,4.5\n")

    def read(where):
        table = annotations.read_table(str(where / "t.csv"), "id", "start", "end")
        rows = [
            annotations.parse_interval(row["start"], row["end"], "t.csv", line)
            for line, row in table
        ]
        whole = list(annotations.iterate_json(str(where / "a.json")))
        return annotations.read_json(str(where / "a.json"), "database"), rows, whole

    return read


@kind({"*": "JSON has no checksum"})
def list_of_pairs(directory):
    from mmjax.data.pairs import lists

    names = [("d", str(i)) for i in range(6)]
    entries = [[["d", str(i)], ["d", str((i + 1) % 6)], 0.5, 1.2] for i in range(6)]
    (directory / "pairs.json").write_text(json.dumps(entries))

    def read(where):
        entries = lists.read_list(str(where / "pairs.json"))
        return lists.from_list(entries, names, where="pairs.json")

    return read


@kind({"*": "text has no checksum"})
def class_names(directory):
    from mmjax.data.build import build

    (directory / "classes.txt").write_text("cat\ndog\n")
    return lambda where: build._read_classes(str(where / "classes.txt"), "--classes")


@kind({"*.csv": "text has no checksum", "*.jpg": "JPEG has no checksum"})
def image_sets(directory):
    import PIL.Image

    from mmjax.data.sources import registry
    from mmjax.data.storage import record_images, schema

    rng = np.random.default_rng(0)
    lines = ["path,label"]
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (directory / "images" / split / name).mkdir(parents=True)
            path = directory / "images" / split / name / "a.png"
            PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
            lines.append(f"images/{split}/{name}/a.png,{name}")
    (directory / "set.csv").write_text("\n".join(lines) + "\n")

    def read(where):
        sources = [
            registry.open_source(f"images:{where / 'images'}", split="train"),
            registry.open_source(f"csv:{where / 'set.csv'}", split="train"),
        ]

        def pixels(payload):
            (image,) = schema.decode(payload).frames
            return record_images.decode(image, "a.png")

        return [
            (pixels(source.fetch(i)), source.labels(), source.info.class_names)
            for source in sources
            for i in range(source.num_examples)
        ]

    return read
