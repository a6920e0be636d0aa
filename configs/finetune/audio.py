"""VATT's fine-tuning for audio events with several labels a clip, on your dataset.

    python -m mmjax.main --task=finetune --model_arch=wat_base --model_dir=runs/my_sounds \\
        --config.data.train=data/my_sounds --override_checkpoint=runs/bbs

The argument is the tower: wat_base (default), wat_medium or wat_large on waveforms; ut_base,
ut_medium or ut_large for a run of ut_fac; spt_base, spt_medium, spt_large, resnet2d_50 or
resnet2d_101 on log-mel spectrograms. Sound stored at 48 kHz gives VATT's windows: 153,600 samples,
every second one of 6.4 seconds. The values are those of VATT's published code; its batch size is
not published. Spectrograms are ours, since that code cannot run on them: 3.2 seconds (150 × 80, the
size its towers are made for), with SpecAugment. `audioset` is this recipe on AudioSet. With one
label a clip, set `--config.data.label.multi_label=False`.
"""

from mmjax.configs.finetune import _vatt
from mmjax.configs.pretrain._vatt import SPECTROGRAM


def get_config(arg: str = "wat_base"):
    """`arg`: an audio tower."""
    spectrogram = arg.startswith(("spt_", "resnet2d_"))
    windows = dict(num_samples=153_600, sample_rate=48_000.0, stride=1 if spectrogram else 2)
    data = dict(audio=windows, label=dict(multi_label=True))
    cfg = _vatt.settings("audio", arg, data, dict(num_clips=4))
    cfg.total_steps = 50_000
    cfg.augment = dict(mixup=5.0)
    if spectrogram:
        cfg.augment.spectrogram = SPECTROGRAM
        cfg.augment.spec_augment = dict(time_masks=1, frequency_masks=1)
    cfg.loss = dict(balance=True)
    return cfg
