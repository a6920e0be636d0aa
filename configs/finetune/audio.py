"""VATT's fine-tuning for audio events with several labels per clip, on your dataset.

    python -m mmjax.main --task=finetune --model_arch=wat_base --model_dir=runs/my_audio \\
        --config.data.train=datasets/my_audio --override_checkpoint=runs/bbs

The argument is the tower: wat_base (default), wat_medium or wat_large for waveforms; ut_base,
ut_medium or ut_large for a run of ut_fac; spt_base, spt_medium, spt_large, resnet2d_50 or
resnet2d_101 for log-mel spectrograms. Store audio at 48 kHz to get VATT's windows: every second
sample of 6.4 seconds, 153,600 samples. The values are those of VATT's published code; its batch
size is not published. The spectrogram settings are ours, because that code cannot run them: 3.2
seconds (150 × 80, the input size of its towers), with SpecAugment. The recipe `audioset` is this
one on AudioSet. For a single label per clip, set `--config.data.label.multi_label=False`.
"""

from mmjax.configs.finetune import _vatt
from mmjax.published.vatt import SPECTROGRAM


def get_config(arg: str = "wat_base"):
    """Returns the config.

    Args:
      arg: An audio tower.
    """
    cfg = _vatt.settings("audio", arg)
    if arg.startswith(("spt_", "resnet2d_")):  # spectrograms
        cfg.data.audio.stride = 1
        cfg.augment.spectrogram = SPECTROGRAM
        cfg.augment.spec_augment = dict(time_masks=1, frequency_masks=1)
    return cfg
