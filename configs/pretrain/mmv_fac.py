"""MMV: convolutional towers on video and spectrograms, linear text (not released by VATT).

    python -m mmjax.main --task=pretrain --model_arch=mmv_fac --model_dir=runs/mmv \\
        --config.init_from=words.npz --config.data.text.vocab=howto100m_en.txt

Data and word vectors as for `tx_fac`. The argument is the video tower: i3d (default, as VATT's code
has it), tsm (the MMV paper's temporal shift ResNet-50) or tsm_x2 (of twice the width). Sound is a
log-mel spectrogram of 150 × 80 for a ResNet-50. BatchNorm is over the whole batch.
"""

from mmjax.configs.pretrain import _vatt


def get_config(arg: str = "i3d"):
    """`arg`: 'i3d', 'tsm' or 'tsm_x2'."""
    cfg = _vatt.settings(dict(name="mmv_fac", size=arg, remat="full"))
    cfg.augment.spectrogram = _vatt.SPECTROGRAM
    return cfg
