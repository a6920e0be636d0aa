"""MMV: convolutional towers for video and spectrograms, linear text (not released by VATT).

    python -m mmjax.main --task=pretrain --model_arch=mmv_fac --model_dir=runs/mmv \\
        --config.init_from=words.npz --config.data.text.vocab=howto100m_en.txt

The data and word vectors are those of `tx_fac`. The argument selects the video tower: i3d (default,
as in VATT's code), tsm (the temporal shift ResNet-50 of the MMV paper) or tsm_x2 (twice the width).
The audio tower is a ResNet-50 on log-mel spectrograms of 150 × 80. BatchNorm uses the statistics of
the whole batch.
"""

from mmjax.configs.pretrain import _vatt
from mmjax.published.vatt import SPECTROGRAM


def get_config(arg: str = "i3d"):
    """Returns the config.

    Args:
      arg: 'i3d', 'tsm' or 'tsm_x2'.
    """
    cfg = _vatt.settings(dict(name="mmv_fac", size=arg, remat="full"))
    cfg.augment.spectrogram = SPECTROGRAM
    return cfg
