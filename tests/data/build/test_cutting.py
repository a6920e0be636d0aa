"""Cutting of clips, and splits by file and by time."""

import numpy as np

from mmjax.data.build import cutting, manifest
from mmjax.errors import UserError
from tests.messages import raises


def test_cut_keeps_a_remainder_of_at_least_half_a_clip():
    def cut(duration, **options):
        clips = cutting.cut([manifest.Clip(path="f")], durations={"f": duration}, **options)
        return [(clip.split, clip.start, clip.end) for clip in clips]

    assert cut(7.6, clip_seconds=3) == [("train", 0, 3), ("train", 3, 6), ("train", 6, 7.6)]
    assert cut(7.4, clip_seconds=3) == [("train", 0, 3), ("train", 3, 6)]
    assert cut(1.0, clip_seconds=3) == [("train", 0, 1)]
    parts = [("train", 0.7), ("valid", 0.2), ("test", 0.1)]
    clips = cut(100, clip_seconds=5, by_time=parts)
    assert [sum(c[0] == name for c in clips) for name in ("train", "valid", "test")] == [14, 4, 2]
    assert max(end for split, _, end in clips if split == "train") == 70
    assert min(start for split, start, _ in clips if split == "test") == 90


def test_split_by_time_without_cutting_uses_the_middle_of_a_clip():
    clips = [manifest.Clip(path="f", start=k, end=k + 4, line=k + 2) for k in (0, 4, 5, 6)]
    parts = [("train", 0.7), ("test", 0.3)]
    result = cutting.cut(clips, durations={"f": 10}, clip_seconds=None, by_time=parts)
    assert [clip.split for clip in result] == ["train", "train", "test", "test"]
    assert [clip.start for clip in result] == [0, 4, 5, 6]
    with raises(UserError, "t.csv, line 9", "f.mp4", "--clip-seconds", "--split-by-file"):
        clip = manifest.Clip(path="f.mp4", line=9)
        cutting.cut([clip], durations={"f.mp4": 1}, clip_seconds=None, by_time=parts, table="t.csv")


def test_clips_of_unreadable_files_are_not_changed():
    clips = [manifest.Clip(path="unreadable"), manifest.Clip(path="f", start=7)]
    assert cutting.cut(clips, durations={"f": 5}, clip_seconds=1) == clips


def test_split_by_file_keeps_files_together_and_is_stable():
    clips = [manifest.Clip(path=f"{k % 200}.mp4", line=k) for k in range(400)]
    parts = [("train", 0.75), ("test", 0.25)]
    split = {c.path: c.split for c in cutting.split_by_file(clips, parts)}
    again = cutting.split_by_file([*clips[::-1], manifest.Clip(path="new.mp4")], parts)
    assert all(split.get(clip.path, clip.split) == clip.split for clip in again)
    assert 0.15 < np.mean([name == "test" for name in split.values()]) < 0.35
