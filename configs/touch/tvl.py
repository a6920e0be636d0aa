"""TVL's touch encoder, aligned with the frozen towers of OpenCLIP ViT-L-14 (DataComp-XL).

    mmjax import tvl --media DATASETS_DIR --out tvl/tvl.jsonl --no-contact 0.1
    python -m mmjax.main --task=touch --config=tvl --override_checkpoint=open_clip_model.safetensors

The first command prints the `mmjax build` command that makes datasets/tvl (see
docs/datasets/tvl.md). The second needs OpenCLIP's weights
(laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K) and vocabulary (see docs/convert.md).
`--config=tvl:small`, `tvl:base` and `tvl:resnet18` are the other published sizes;
`tvl:tiny,background` subtracts the image of the untouched sensor.

TVL reports 36.2 % top-1 touch-language accuracy at threshold 0.636 and 78.1 % touch-vision accuracy
on its 402 test examples for this size (small: 36.8 and 77.5, base: 30.9 and 81.2). We have not
reproduced these results, because we had no access to its data or weights.
"""

from mmjax import config
from mmjax.pixel_statistics import SUBTRACTED_MEAN, SUBTRACTED_STD
from mmjax.published.tvl import tvl_config

_TOUCH = dict(
    tiny="vit_tiny_patch16_224",
    small="vit_small_patch16_224",
    base="vit_base_patch16_224",
    resnet18="resnet18",
)


def get_config(arg: str = "tiny"):
    """Returns the config.

    Args:
      arg: 'tiny', 'small', 'base' or 'resnet18'; optionally ',background'.
    """
    words = config.variants(arg, *_TOUCH, "background")
    subtracts = "background" in words
    size = config.only(words, tuple(_TOUCH), "tiny", what="size")
    cfg = tvl_config(base_learning_rate=1.5e-4 if size in ("small", "base") else 3e-4)
    if subtracts:
        cfg.data.touch.background = "recording"
        cfg.data.touch.antialias = False  # TVL resizes differences as tensors, without antialiasing
        cfg.augment.touch = _subtracted_touch()
    frozen = dict(param_dtype="bfloat16")
    cfg.model = dict(
        touch=_TOUCH[size],
        image=dict(name="clip_vit_l14", **frozen),
        text=dict(name="clip_text_l14", **frozen),
        dtype="bfloat16",
    )
    return cfg


def _subtracted_touch() -> dict:
    return dict(
        subtract_background=True,
        mean=SUBTRACTED_MEAN,
        std=SUBTRACTED_STD,
        horizontal_flip=0.5,
        quarter_turn=0.5,
    )
