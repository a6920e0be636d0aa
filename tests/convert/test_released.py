"""LGSSL's names: who gives one without its file is told where the file is to be had."""

import pathlib
import re

import pytest

import mmjax
from mmjax import config
from mmjax.convert import torch_files
from mmjax.convert.released import RELEASED
from mmjax.errors import UserError
from mmjax.tools import cli

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "convert.md"


def test_the_names_are_those_of_the_docs():
    table = DOCS.read_text().split("### LGSSL's released names")[1].split("\n## ")[0]
    cells = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in cells for cell in row[1:3] for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(RELEASED)
    assert len(named) == 27  # 26 files, of which lgsimclr has two names


@pytest.mark.parametrize("method", sorted(set(RELEASED.values())))
def test_how_they_were_trained_is_a_recipe(method):
    assert config.load("guided", f"lgssl:{method}", []).task == "guided"


def test_a_name_without_its_file(tmp_path, capsys):
    with pytest.raises(UserError, match=r"config=lgssl:declip .* links clip_baseline_nns\.ckpt"):
        mmjax.load("clip_baseline_nns")
    with pytest.raises(UserError, match=r"no such file\. LGSSL .* links lgsimclr\.ckpt"):
        mmjax.load(tmp_path / "lgsimclr_bs_512.ckpt")
    assert cli.main(["convert", "lgsimclr", "--out", str(tmp_path / "run")]) == 2
    assert "links lgsimclr.ckpt; give that file's path" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no such file\.$"):
        torch_files.open_file(tmp_path / "mine.ckpt")
