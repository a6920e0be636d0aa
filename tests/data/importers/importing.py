"""Helpers for the importer tests: files in official formats, empty media, report lines."""

import csv
import json
import re
from pathlib import Path

from mmjax.data.build import manifest
from mmjax.tools import cli


def assert_line_mentions(text: str, *facts: object) -> None:
    """Asserts that one line of the text mentions every fact; an int must be a number of its own."""

    def mentions(line: str, fact: object) -> bool:
        if isinstance(fact, int):
            return re.search(rf"(?:^|[\s(:=]){fact}(?=[\s,:;)]|\.?$|\.\s)", line) is not None
        return str(fact) in line

    lines = text.splitlines()
    assert any(all(mentions(line, fact) for fact in facts) for line in lines), (
        f"no line mentions {facts}:\n{text}"
    )


class Workspace:
    """Annotations, media and tables of one synthetic dataset, below the directory of the test."""

    def __init__(self, root: Path):
        self.root, self.annotations, self.media = root, root / "annotations", root / "media"
        self.annotations.mkdir()
        self.media.mkdir()

    def annotate(self, name: str, text: str) -> None:
        path = self.annotations / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def touch(self, *names: str) -> None:
        for name in names:
            path = self.media / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def run(self, dataset: str, *options: str, out: str = "clips.jsonl") -> int:
        """Runs the import and returns its exit status."""
        paths = ["--annotations", self.annotations, "--media", self.media, "--out"]
        arguments = [*paths, self.root / "made" / out, "--quiet", *options]
        return cli.main(["import", dataset, *map(str, arguments)])

    def table(self, dataset: str, *options: str) -> list[dict]:
        """Imports with any number of missing media and returns the rows of the table."""
        assert self.run(dataset, "--max-missing-fraction", "1", *options) == 0
        lines = (self.root / "made" / "clips.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def lines(self, name: str) -> list[str]:
        """Returns the lines of a file next to the table, or [] if it does not exist."""
        path = self.root / "made" / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def clips(self, table: str = "clips.jsonl") -> list[manifest.Clip]:
        """Returns the table as `mmjax build` reads it."""
        return manifest.read_table(str(self.root / "made" / table))

    def cells(self, table: str) -> list[list[str]]:
        with open(self.root / "made" / table, newline="", encoding="utf-8") as file:
            return list(csv.reader(file, delimiter="\t" if table.endswith(".tsv") else ","))
