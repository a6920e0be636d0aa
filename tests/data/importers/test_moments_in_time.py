"""Importer of Moments in Time, on small files in the official formats."""

import pytest

from tests.data.importers.importing import Workspace
from tests.messages import assert_mentions


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def test_table_and_errors(workspace, capsys):
    workspace.annotate("moments_categories.txt", "clapping,1\nadult+female+singing,0\n")
    workspace.annotate("trainingSet.csv", "clapping/yt-a_1.mp4,clapping,3,0\n")
    workspace.annotate(
        "validationSet.csv", "adult+female+singing/0-4-5.mp4,adult+female+singing,3,1\n"
    )
    workspace.touch("training/clapping/yt-a_1.mp4", "validation/adult+female+singing/0-4-5.mp4")
    assert workspace.table("moments_in_time") == [
        {"path": "training/clapping/yt-a_1.mp4", "label": ["clapping"], "split": "train"},
        {
            "path": "validation/adult+female+singing/0-4-5.mp4",
            "label": ["adult+female+singing"],
            "split": "validation+test",
        },
    ]
    assert workspace.lines("classes.txt") == ["adult+female+singing", "clapping"]
    workspace.annotate("trainingSet.csv", "clapping/a.mp4\n")
    assert workspace.run("moments_in_time") == 2
    facts = (workspace.annotations / "trainingSet.csv", "line 1", "'clapping/a.mp4'")
    assert_mentions(capsys.readouterr().err, *facts)
    workspace.annotate("moments_categories.txt", "clapping,one\n")
    assert workspace.run("moments_in_time") == 2
    facts = (workspace.annotations / "moments_categories.txt", "line 1", "'clapping,one'")
    assert_mentions(capsys.readouterr().err, *facts)
