"""Tests of rendering: what frames, audio and touch images reveal about the attributes."""

import itertools

import numpy as np
import pytest

from mmjax.data.world import render
from mmjax.data.world.attributes import COLORS, MOTIONS, SHAPES, SIZES
from mmjax.data.world.config import WorldConfig, attributes_of
from mmjax.data.world.scene import make_scene

CFG = WorldConfig()


def scenes(split, count, cfg=CFG):
    return [make_scene(cfg, split, index) for index in range(count)]


def _angle(one, other):
    return np.arccos(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_frames_agree_with_mask_depth_and_color():
    """Frames have the object's color inside the mask and are dark outside it."""
    cfg = WorldConfig(frame_size=64, dense=True)
    for scene in scenes("train", 60, cfg):
        mask = scene.mask > 0
        assert (scene.mask[mask] == 1 + SHAPES.index(scene.attributes["shape"])).all()
        mean = scene.frames[mask].mean(0)
        nearest = min(
            COLORS,
            key=lambda name: _angle(np.array(COLORS[name], float), mean),
        )
        assert nearest == scene.attributes["color"], mean
        assert scene.frames[~mask].mean() < 0.6 * scene.frames[mask].max(-1).mean()
        assert (scene.depth[mask] < 1.5).all() and (scene.depth[~mask] == 2).all()


def test_diameter_of_resting_circles_is_the_size_attribute():
    cfg = WorldConfig(frame_size=64, dense=True)
    checked = set()
    for index in range(402):
        attributes = attributes_of(0, "train", index)
        if (attributes["shape"], attributes["motion"]) != ("circle", "resting"):
            continue
        mask = make_scene(cfg, "train", index).mask[0] > 0
        diameter = np.ptp(np.nonzero(mask)[0]) + 1
        expected = 0.95 * SIZES[attributes["size"]]
        assert abs(diameter / 64 / expected - 1) < 0.1, (index, diameter)
        checked.add(attributes["size"])
    assert checked == set(SIZES)


@pytest.mark.parametrize("motion", MOTIONS)
def test_flow_maps_the_object_to_the_next_frame(motion):
    """A pixel of the object, moved by its flow, is inside the object one frame later."""
    cfg = WorldConfig(frame_size=96, dense=True)
    index = next(
        i
        for i in itertools.count()
        if (a := attributes_of(0, "train", i))["motion"] == motion
        and a["size"] == "large"
        and a["shape"] in ("square", "cross")
    )
    scene = make_scene(cfg, "train", index)
    moved = np.abs(scene.flow).max()
    assert moved == 0 if motion == "resting" else moved > 3
    hits = total = stays = 0
    for t in range(cfg.num_frames - 1):
        y, x = np.nonzero(scene.mask[t])
        to_x = np.round(x + scene.flow[t, y, x, 0]).astype(int)
        to_y = np.round(y + scene.flow[t, y, x, 1]).astype(int)
        inside = (to_x >= 0) & (to_x < 96) & (to_y >= 0) & (to_y < 96)
        hits += (scene.mask[t + 1][to_y[inside], to_x[inside]] > 0).sum()
        stays += (scene.mask[t + 1][y[inside], x[inside]] > 0).sum()
        total += inside.sum()
    assert hits / total > 0.93
    assert motion in ("resting", "pulsing") or hits > stays


def test_audio_encodes_color_size_and_shape():
    """The loudest tone gives the color, the pitch the size, and the harmonics the shape."""
    for scene in scenes("train", 40, WorldConfig(num_frames=16, noise=0.0)):
        attributes = scene.attributes
        spectrum = np.abs(np.fft.rfft(scene.waveform * np.hanning(scene.waveform.size)))
        hertz = np.fft.rfftfreq(scene.waveform.size, 1 / 8000)

        def level(low, high, spectrum=spectrum, hertz=hertz):
            return spectrum[(hertz >= low) & (hertz <= high)].max()

        tones = [2050 + 200 * step for step in range(8)]
        loudest = max(range(8), key=lambda step: level(tones[step] - 30, tones[step] + 30))
        assert tuple(COLORS)[loudest] == attributes["color"]
        pitch = {"small": 400, "medium": 260, "large": 170}[attributes["size"]]
        harmonics = [level(0.97 * pitch * h, 1.03 * pitch * h) for h in (1, 2, 3, 4)]
        audible = tuple(int(value > 0.4 * max(harmonics)) for value in harmonics)
        assert audible == render.HARMONICS[attributes["shape"]], attributes


def test_audio_is_in_phase_with_the_motion():
    """A bouncing object is loudest near its lowest point, a pulsing one when it is largest."""
    cfg = WorldConfig(num_frames=32, fps=40.0, noise=0.0, frame_size=48, dense=True)
    checked = 0
    for index in range(60):
        scene = make_scene(cfg, "train", index)
        motion = scene.attributes["motion"]
        if motion not in ("bouncing", "pulsing"):
            continue
        band = np.abs(np.fft.rfftfreq(scene.waveform.size, 1 / cfg.sample_rate)) < 1900
        tones = np.fft.irfft(np.fft.rfft(scene.waveform) * band, scene.waveform.size)
        loudness = np.sqrt((tones.reshape(32, -1) ** 2).mean(1))
        if motion == "pulsing":
            assert np.corrcoef(loudness, (scene.mask > 0).sum((1, 2)))[0, 1] > 0.8
        else:
            y = np.arange(48)[:, None]
            height = [-(y * (m > 0)).sum() / (m > 0).sum() for m in scene.mask]
            assert (
                abs(np.argmin(height[2:-2]) + 2 - np.arange(32))[np.argsort(-loudness)[:6]].min()
                <= 2
            )
        checked += 1
    assert checked > 10


def test_attributes_of_held_out_clips_can_be_predicted_from_audio_and_touch():
    """Support vector machines on spectra and pixels, trained on `train`, evaluated on `test`."""
    from sklearn.svm import SVC

    def spectrum(scene):
        windows = np.lib.stride_tricks.sliding_window_view(scene.waveform, 256)[::128]
        levels = np.log(1e-3 + np.abs(np.fft.rfft(windows * np.hanning(256))))
        loudness = np.log(1e-2 + np.abs(windows).mean(1))
        rhythm = np.abs(np.fft.rfft(loudness - loudness.mean()))
        return np.concatenate([levels.mean(0), levels.max(0), levels.std(0), rhythm])

    train, test = scenes("train", 600), scenes("test", 150)
    modalities = {
        "audio": (spectrum, {"shape": 0.7, "color": 0.9, "size": 0.9, "motion": 0.8}),
        "touch": (lambda scene: scene.touch.ravel() / 255.0, {"shape": 0.8, "size": 0.9}),
    }
    for modality, (features, thresholds) in modalities.items():
        x, y = (np.stack([features(scene) for scene in part]) for part in (train, test))
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        for name, threshold in thresholds.items():
            model = SVC(C=10.0)
            model.fit((x - mean) / deviation, [scene.attributes[name] for scene in train])
            labels = [scene.attributes[name] for scene in test]
            accuracy = model.score((y - mean) / deviation, labels)
            assert accuracy > threshold, (modality, name, accuracy)
