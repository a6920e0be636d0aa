"""Runs the Python blocks and commands of `docs/inference.md` on small runs and videos."""

import ast

import numpy as np
import pytest

from mmjax import config
from mmjax.tools import cli
from tests.data import films
from tests.docs import pages
from tests.saved_runs import save_run

PAGE = "docs/inference.md"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The working directory with the runs and videos that the page names."""
    for task in ("pretrain", "finetune"):
        run = tmp_path / "runs" / f"{task}-demo"
        run.mkdir(parents=True)
        save_run(config.load(task, "demo:smoke"), run)
    for index, name in enumerate(("star", "ring")):
        frames = [np.full((48, 64, 3), 20 * k + 50 * index, np.uint8) for k in range(8)]
        tone = films.tone(300 + 200 * index, seconds=0.8, sample_rate=16_000)[None]
        films.write_film(tmp_path / f"{name}.mp4", frames=frames, fps=10, waveform=tone)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_and_commands_run(directory, capsys):
    namespace = {}
    for block in pages.read_blocks(PAGE):
        if block.language == "python":
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert namespace["video"].shape == namespace["text"].shape == (2, 128)
    np.testing.assert_allclose(np.linalg.norm(namespace["video"], axis=1), 1, rtol=1e-5)
    assert namespace["pooled"].ndim == 1
    commented = [
        line
        for block in pages.read_blocks(PAGE)
        for line in block.text.splitlines()
        if line.startswith("print(") and ")  # " in line and block.language == "python"
    ]
    for line in commented:  # the printed values that the page shows
        comment = line.partition(")  # ")[2]
        if comment.startswith(("(", "{")):
            assert str(ast.literal_eval(comment)) in printed, comment
    for command in pages.commands(PAGE):
        program, *arguments = command.words
        assert program == "mmjax" and cli.main([*arguments, "--quiet"]) == 0
    for modality in ("video", "audio"):
        assert np.load(f"features/world/train/{modality}.npy").ndim == 2
