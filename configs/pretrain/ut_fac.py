"""VATT's modality-agnostic pretraining: one encoder for video, audio and text (ut_fac_medium).

    python -m mmjax.main --task=pretrain --model_arch=ut_fac --model_dir=runs/ut_medium \\
        --config.init_from=words.npz --config.data.text.vocab=howto100m_en.txt

The data and word vectors are those of `tx_fac`. The argument is the size of the encoder: base,
medium (default, the released one) or large.
"""

from mmjax.configs.pretrain import _vatt


def get_config(arg: str = "medium"):
    """Returns the config.

    Args:
      arg: 'base', 'medium' or 'large'.
    """
    model = dict(name="ut_fac", size=arg, remat="dots")
    return _vatt.settings(model, sharding="fsdp" if arg == "large" else "dp")
