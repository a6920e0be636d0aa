"""Helpers of the tests of the importers: files in official formats, and empty media."""

import csv
import json
from pathlib import Path

from mmjax.tools import cli, manifest


class Folder:
    """Annotations, media and tables of one made dataset, below a folder of the test."""

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
        """Imports; returns the exit status."""
        places = ["--annotations", self.annotations, "--media", self.media, "--out"]
        arguments = [*places, self.root / "made" / out, "--quiet", *options]
        return cli.main(["import", dataset, *map(str, arguments)])

    def table(self, dataset: str, *options: str) -> list[dict]:
        """Imports everything, though media may be missing; the rows of the table."""
        assert self.run(dataset, "--max-missing-fraction", "1", *options) == 0
        lines = (self.root / "made" / "clips.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def lines(self, name: str) -> list[str]:
        """Of a file beside the table; [] if there is none."""
        path = self.root / "made" / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def clips(self, table: str = "clips.jsonl") -> list[manifest.Clip]:
        """The table as `mmjax build` reads it."""
        return manifest.read_table(str(self.root / "made" / table))

    def cells(self, table: str) -> list[list[str]]:
        with open(self.root / "made" / table, newline="", encoding="utf-8") as file:
            return list(csv.reader(file, delimiter="\t" if table.endswith(".tsv") else ","))
