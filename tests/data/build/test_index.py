"""`mmjax index` writes indexes and dataset.json next to shards."""

from mmjax.data.storage import dataset, schema, tfrecord
from mmjax.tools import cli
from tests.messages import assert_mentions


def write(directory, count):
    """Writes a shard of examples with captions and labels; returns the directory."""
    examples = [schema.Example(captions=[f"caption {k}"], labels=[k]) for k in range(count)]
    tfrecord.write_shard(
        directory / dataset.shard_name("train", 0, 1), map(schema.encode, examples)
    )
    return str(directory)


def test_index_writes_dataset_json_and_keeps_edited_fields(tmp_path):
    path = write(tmp_path, count=6)
    index = tmp_path / (dataset.shard_name("train", 0, 1) + ".idx")
    index.unlink()
    assert cli.main(["index", path]) == 0
    info = dataset.DatasetInfo.load(path)
    assert index.exists() and info.splits["train"].num_examples == 6
    assert info.modalities == ("text", "label")
    info.num_classes = 17
    info.save(path)
    write(tmp_path, count=4)  # the shard is replaced
    assert cli.main(["index", path]) == 0
    info = dataset.DatasetInfo.load(path)
    assert (info.splits["train"].num_examples, info.num_classes) == (4, 17)


def test_invalid_dataset_json_is_replaced_and_kept_as_old(tmp_path, caplog):
    path = write(tmp_path, count=2)
    (tmp_path / "dataset.json").write_text("{")
    assert cli.main(["index", path]) == 0
    assert dataset.DatasetInfo.load(path).splits["train"].num_examples == 2
    assert (tmp_path / "dataset.json.old").read_text() == "{"
    assert_mentions(caplog.text, tmp_path / "dataset.json")


def write_classes(directory, **splits):
    """Writes shards as DMVR's script does: class numbers and names; returns the directory."""
    for split, classes in splits.items():
        examples = [
            schema.Example(captions=["x"], labels=[number], label_texts=[name])
            for name, number in classes
        ]
        tfrecord.write_shard(
            directory / dataset.shard_name(split, 0, 1), map(schema.encode, examples)
        )
    return str(directory)


def test_index_finds_the_classes_of_the_records(tmp_path, caplog):
    """Two classes may share a name."""
    classes = [("run", 1), ("crane", 0), ("crane", 2)]
    path = write_classes(tmp_path, train=classes, test=classes[:2])
    assert cli.main(["index", path]) == 0
    info = dataset.DatasetInfo.load(path)
    assert (info.num_classes, info.class_names) == (3, ["crane", "run", "crane"])
    assert not caplog.text


def test_index_reports_class_names_with_other_numbers_in_another_split(tmp_path, caplog):
    path = write_classes(tmp_path, train=[("run", 0), ("walk", 1)], test=[("run", 1), ("walk", 0)])
    assert cli.main(["index", path]) == 0
    info = dataset.DatasetInfo.load(path)
    assert (info.num_classes, info.class_names) == (2, [])
    assert_mentions(caplog.text, path, "'run' is 1 in test; 0 in train", "generate_from_file.py")


def test_index_names_no_classes_if_a_number_is_missing(tmp_path, caplog):
    path = write_classes(tmp_path, train=[("run", 0), ("walk", 2)])
    assert cli.main(["index", path]) == 0
    info = dataset.DatasetInfo.load(path)
    assert (info.num_classes, info.class_names) == (3, [])
    assert_mentions(caplog.text, path, "class_names")
