"""Pretrain four modalities together in miniature: video, audio, text and touch.

    python -m mmjax.main --task=pretrain --config=four_modalities

This is the tx_fac demo with an additional touch tower and a joint head, which compares any two
modalities. `config.loss.weights` selects the pairs to train and weights them:
`--config.loss.weights="{'video_touch': 1.0, 'touch_text': 0.5}"`.
"""

from mmjax import config
from mmjax.configs.pretrain import demo


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: 'smoke' for two steps on the tiny world (for tests).
    """
    smoke = "smoke" in config.variants(arg, "smoke")
    cfg = demo.get_config("smoke" if smoke else "")
    cfg.data.touch = dict(size=32)
    cfg.model.touch = dict(name="touch_tiny", num_layers=2)
    cfg.model.head = dict(name="joint", joint=128)
    cfg.loss.weights = dict(video_text=1.0, video_audio=1.0, video_touch=1.0, touch_text=1.0)
    clips = dict(data=cfg.data.train, batch_size=cfg.batch_size)
    cfg.evals = dict(
        retrieval=dict(type="retrieval", query=("text", "audio", "touch"), target="video", **clips),
        retrieval_touch=dict(type="retrieval", query="touch", target="text", **clips),
        probe=dict(type="linear_probe", feature=("video", "audio", "touch"), **clips),
    )
    return cfg
