"""The tables of `docs/end_tasks.md` against the declarations, the readers and TFDS's splits."""

import dataclasses
import re

from mmjax.data.pipeline.end_task import EndTaskOptions
from mmjax.data.sources import end_task_datasets, layouts
from mmjax.end_tasks.registry import ALIASES, END_TASKS, PAPER
from tests.docs.pages import REPOSITORY

TEXT = (REPOSITORY / "docs/end_tasks.md").read_text()


def table(heading, first="name"):
    """Returns the rows of the table of a section whose first column is named `first`."""
    section = re.split(r"\n#+ ", TEXT)
    (section,) = (part for part in section if part.startswith(f"{heading}\n"))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.split(f"| {first} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    ]
    return rows


def test_end_tasks_are_declared_as_documented():
    rows = table("The end tasks")
    assert [row[0].strip("`") for row in rows[: len(PAPER)]] == [
        name for name in (row[0].strip("`") for row in rows) if name in PAPER
    ]
    documented = {row[0].strip("`"): row[1:] for row in rows}
    assert documented.keys() == END_TASKS.keys()
    for name, (title, _, images, head, loss, metric) in documented.items():
        task = END_TASKS[name]
        declared = (task.title, str(task.num_images), task.head, task.loss["name"], task.metric)
        assert tuple(c.strip("`") for c in (title, images, head, loss, metric)) == declared
    assert all(f"`{alias}`" in TEXT for alias in ALIASES)


def test_files_of_all_readers_are_documented():
    rows = {
        name: row[1]
        for row in table("Directory layout", "end tasks")
        for name in re.findall(r"`([^`]+)`", row[0])
    }
    assert rows.keys() == END_TASKS.keys()
    for name, cell in rows.items():
        documented = re.findall(r"`([^`\s]+)`", cell)
        if other := re.search("as `(.*?)`", cell):
            documented += re.findall(r"`([^`\s]+)`", rows[other[1]])
        splits = layouts.reader_of(END_TASKS[name]).files
        for pattern in {pattern for patterns in splits.values() for pattern in patterns}:
            if "and `test`" in cell or "and `val`" in cell or "and `val2017`" in cell:
                pattern = re.sub(r"/(test|val)/", "/train/", pattern).replace(
                    "val2017", "train2017"
                )
            known = (layouts._expand(pattern)[0], pattern)
            assert set(known) & set(documented), (name, pattern)


def test_splits_of_tfds_are_documented():
    rows = {
        row[0].strip("`"): [c.strip("`") for c in row[1:]]
        for row in table("Datasets in other formats", "end task")
    }
    expected = {name: list(values) for name, values in end_task_datasets._TFDS.items()}
    expected["Imagenetv2"][1] = ""  # is not trained on
    assert rows == expected


def test_options_are_documented():
    keys = {
        key for row in table("Images and targets", "key") for key in re.findall(r"`(\w+)`", row[0])
    }
    of_tables = {"seeds", "examples_per_update", "drop_last"}  # only of feature tables
    assert keys == {field.name for field in dataclasses.fields(EndTaskOptions)} - of_tables
