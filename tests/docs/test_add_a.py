"""Follows the pages `docs/add_a_*.md`: writes their files outside of mmjax and runs their commands.

Together they add a tower, a task, a loss, a loss term, an evaluator, a source, an importer, an end
task, a sentence encoder and a modality.
"""

import csv
import dataclasses
import json
import math
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mmjax.data.sources import registry as sources
from tests.docs import pages
from tests.e2e import program
from tests.messages import assert_mentions

PACKAGE = ("mmjax", "configs", "data", "tools")  # the directories that mmjax consists of


@dataclasses.dataclass(frozen=True)
class Followed:
    """A page whose commands were run: the directory they ran in, and the output of each."""

    path: pathlib.Path
    outputs: list[str]

    def metrics(self, run: str) -> dict[str, float]:
        """Returns all metrics of a run, the latest value of each."""
        merged: dict[str, float] = {}
        for line in program.metrics_of(self.path / "runs" / run):
            merged |= line
        return merged


@pytest.fixture
def follow(tmp_path, user_env):
    """Returns a function that writes the files of a page and runs its commands.

    `run` replaces how a program is run, by default as a fork.
    """

    def call(page: str, run=program.run) -> Followed:
        for block in pages.read_blocks(f"docs/{page}.md"):
            if block.language == "python" and block.file:
                file = tmp_path / block.file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.text)
        outputs = []
        for command in pages.commands(f"docs/{page}.md"):
            match command.words:
                case "python", "-m", module, *arguments:
                    pass
                case "mmjax", *arguments:
                    module = "mmjax.tools.cli"
                case "python", script:
                    subprocess.run([sys.executable, script], cwd=tmp_path, check=True)
                    continue
                case _:
                    subprocess.run(["bash", "-ec", command.text], cwd=tmp_path, check=True)
                    continue
            env = user_env(quick=True)
            done = run(arguments, tmp_path, env, module=module)
            assert done.status == 0, f"{command.where}: {command.text}\n{done.stdout}\n{done.log}"
            outputs.append(done.stdout + done.log)
        return Followed(tmp_path, outputs)

    return call


def assert_trained(metrics: dict[str, float]) -> None:
    """Asserts that a run did its two steps and that its loss is a positive number."""
    assert metrics["step"] == 2
    assert 0 < metrics["train/loss"] < math.inf


def test_add_a_tower(follow):
    page = follow("add_a_tower")
    metrics = page.metrics("finetune-demo-smoke")
    assert_trained(metrics)
    assert 0 <= metrics["shape/top1"] <= 1
    metrics = page.metrics("pretrain-demo-mmv_fac-smoke")
    assert_trained(metrics)
    run = json.loads((page.path / "runs/pretrain-demo-mmv_fac-smoke/config.json").read_text())
    assert run["model"]["video"] == {"name": "my_pkg.my_tower:MeanColor", "width": 64}


def test_add_a_task(follow):
    page = follow("add_a_task")
    metrics = page.metrics("rotation-my_recipe-smoke")
    assert_trained(metrics)
    assert metrics["train/top1"] * 8 == round(metrics["train/top1"] * 8)
    # Both the training run and the evaluation job compute the same features.
    assert_mentions(page.outputs[1], "knn", "image/top1")
    values = [
        line["knn/image/top1"]
        for line in program.metrics_of(page.path / "runs/rotation-my_recipe-smoke")
        if "knn/image/top1" in line
    ]
    assert len(set(values)) == 1
    assert_mentions(page.outputs[2], "128 examples", "8 devices")


def test_add_a_evaluator(follow):
    page = follow("add_a_evaluator")
    assert_mentions(page.outputs[0], "mine", "video/rank")
    assert_mentions(page.outputs[1], "mine", "video/rank")
    rank = page.metrics("ranked")["mine/video/rank"]
    assert 1 < rank < 33  # 32 examples


def test_add_a_loss(follow):
    page = follow("add_a_loss")
    metrics = page.metrics("pretrain-demo-mmv_fac-smoke")
    assert_trained(metrics)
    assert metrics["train/loss"] < 2 * (2 + 0.1)  # twice margin + the largest cosine distance
    metrics = page.metrics("guided-demo-simclr-smoke")
    assert_trained(metrics)
    assert metrics["train/loss_alignment"] == metrics["train/distance_alignment"]
    total = metrics["train/loss_simclr"] + 0.1 * metrics["train/loss_alignment"]
    assert metrics["train/loss"] == pytest.approx(total, rel=1e-5)


def test_add_a_dataset(follow):
    page = follow("add_a_dataset")
    metrics = page.metrics("gratings")
    assert_trained(metrics)
    assert metrics["shape/top1_chance"] == 0.25
    with open(page.path / "birds/birds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("a1.wav", "robin", "train"),
        ("a2.wav", "wren", "train"),
        ("a3.wav", "robin", "test"),
    ]
    assert_mentions(page.outputs[1], "excluded classes", "a4", "mmjax build", "--sample-rate 16000")


def test_add_a_end_task(follow):
    page = follow("add_a_end_task")
    metrics = page.metrics("leaves")
    assert metrics["step"] == 3  # 36 training images in batches of 16
    assert 0 <= metrics["test/adam-0_001/binary_iou"] < 1
    assert 0 < metrics["test/adam-0_001/loss"] < math.log(2)
    shutil.copytree(page.path / "datasets/leaves/train/images", page.path / "mushrooms/train/a")
    shutil.copytree(page.path / "datasets/leaves/test/images", page.path / "mushrooms/test/a")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(page.path))
        spec = f"end_task:my_pkg.my_classes:MUSHROOMS,root={page.path}"
        assert sources.open_source(spec, split="test").labels().tolist() == [0] * 10
        (page.path / "birds.csv").write_text(
            "path,label,split\n"
            "mushrooms/train/a/0.jpg,robin,train\n"
            "mushrooms/train/a/1.jpg,wren,train\n"
            "mushrooms/test/a/0.jpg,wren,test\n"
        )
        spec = f"end_task:my_pkg.my_table:BIRDS,root={page.path}"
        assert sources.open_source(spec, split="test").labels().tolist() == [1]
    for name in ("my_pkg.my_classes", "my_pkg.my_table", "my_pkg"):
        sys.modules.pop(name)


def test_add_a_sentence_encoder(follow):
    page = follow("add_a_sentence_encoder")
    vectors = np.load(page.path / "features/tiny/train/text.npy")
    assert vectors.shape[0] == 64 and vectors.shape[-1] == 64
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-2)


def apply_diff(root: pathlib.Path, block: pages.Block) -> None:
    """Applies a diff without line numbers; its lines must occur exactly once in the file."""
    header, _, *lines = block.text.splitlines()
    path = root / header.removeprefix("--- ")
    text = path.read_text()
    for hunk in "\n".join(lines).split("\n@@\n"):
        pairs = [(line[:1], line[1:]) for line in hunk.splitlines()]
        old = "".join(f"{line}\n" for sign, line in pairs if sign != "+")
        new = "".join(f"{line}\n" for sign, line in pairs if sign != "-")
        where = f"{block.page}:{block.line}"
        assert text.count(old) == 1, f"{where}: {header} has {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


def test_add_a_modality(follow, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PACKAGE:
        shutil.copytree(pages.REPOSITORY / name, tmp_path / name, ignore=ignored)
    for block in pages.read_blocks("docs/add_a_modality.md"):
        if block.language == "diff":
            apply_diff(tmp_path, block)

    def run(arguments, directory, env, *, module):
        # The changed copy of mmjax needs a process of its own.
        env["PYTHONPATH"] = str(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=directory,
            env=env,
            capture_output=True,
            text=True,
        )
        return program.Finished(done.returncode, done.stdout, done.stderr)

    page = follow("add_a_modality", run=run)
    metrics = page.metrics("depth")
    assert_trained(metrics)
    assert 0 <= metrics["shape/top1"] <= 1
    code = """if True:
        import numpy as np
        from mmjax.data.storage import schema
        samples = np.arange(6, dtype=np.float32).reshape(2, 3)
        example = schema.decode(schema.encode(schema.Example(acceleration=samples)))
        assert example.modalities == ("imu",), example.modalities
        np.testing.assert_array_equal(example.acceleration, samples)
        assert schema.decode(schema.encode(schema.Example())).acceleration is None
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
