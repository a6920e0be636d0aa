"""Names of LGSSL's published backbones: errors about missing files say where to download them."""

import pathlib
import re

import pytest

import mmjax
from mmjax import config
from mmjax.errors import UserError
from mmjax.formats import torch_reader
from mmjax.formats.published_checkpoints import PUBLISHED
from mmjax.tools import cli
from tests.messages import assert_mentions, raises

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "convert.md"


def test_names_match_the_docs():
    table = DOCS.read_text().split("### LGSSL's released names")[1].split("\n## ")[0]
    cells = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    names = {name for row in cells for cell in row[1:3] for name in re.findall(r"`(\w+)`", cell)}
    assert names == set(PUBLISHED)
    assert len(names) == 27  # 26 files; lgsimclr has two names


@pytest.mark.parametrize("method", sorted(set(PUBLISHED.values())))
def test_each_training_method_is_a_recipe(method):
    assert config.load("guided", f"lgssl:{method}", []).task == "guided"


def test_a_published_name_without_its_file_names_the_download(tmp_path, capsys):
    readme = "github.com/mbanani/lgssl"
    with raises(UserError, "--config=lgssl:declip", readme, "clip_baseline_nns.ckpt"):
        mmjax.load("clip_baseline_nns")
    path = tmp_path / "lgsimclr_bs_512.ckpt"
    with raises(UserError, path, "--config=lgssl:lgsimclr", readme, "lgsimclr.ckpt"):
        mmjax.load(path)
    assert cli.main(["convert", "lgsimclr", "--out", str(tmp_path / "run")]) == 2
    assert_mentions(capsys.readouterr().err, readme, "lgsimclr.ckpt")
    with raises(UserError, tmp_path / "mine.ckpt") as info:
        torch_reader.open_file(tmp_path / "mine.ckpt")
    assert "lgssl" not in str(info.value)
