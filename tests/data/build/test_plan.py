"""The plan that is stored in a dataset while it is built."""

import json

import pytest

from mmjax.data.build import plan
from mmjax.data.build.manifest import Clip
from mmjax.data.build.options import BuildOptions
from mmjax.errors import UserError
from tests.messages import raises


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "a.mp4").touch()
    clips = [Clip(path="a.mp4", split=split, line=k) for k, split in enumerate("abbab", 2)]
    options = BuildOptions(clips_per_shard=2)
    out = tmp_path / "ds"
    return out, plan.prepare(
        str(out), clips, options, media_root=str(tmp_path), table="t.csv", progress=False
    )


def test_stored_plan_is_read_back_and_has_shards_per_split(prepared):
    out, expected = prepared
    assert plan.load_plan(str(out)) == expected
    assert [(shard.split, [clip.line for clip in shard.clips]) for shard in expected.shards()] == [
        ("a", [2, 5]),
        ("b", [3, 4]),
        ("b", [6]),
    ]


def test_plan_of_another_version_is_refused(prepared, tmp_path):
    out, _ = prepared
    path = out / plan.WORK_DIR / "plan.json"
    contents = json.loads(path.read_text())
    contents["options"]["folder_fps"] = contents["options"].pop("frame_dir_fps")
    path.write_text(json.dumps(contents))
    with raises(UserError, path, "version", "folder_fps", "--overwrite"):
        plan.load_plan(str(out))
    with raises(UserError, tmp_path, "mmjax build"):
        plan.load_plan(str(tmp_path))
