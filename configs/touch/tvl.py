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
from mmjax.preprocess.image import (
    CLIP_MEAN,
    CLIP_STD,
    SUBTRACTED_MEAN,
    SUBTRACTED_STD,
    TACTILE_MEAN,
    TACTILE_STD,
)

_TOUCH = dict(
    tiny="vit_tiny_patch16_224",
    small="vit_small_patch16_224",
    base="vit_base_patch16_224",
    resnet18="resnet18",
)
# Training images per epoch of the published recipe: 90 % of the 43,339 pairs outside the test set,
# and images without contact, a tenth as many as there are human-collected pairs.
_EPOCH = 42_500


def get_config(arg: str = "tiny"):
    """Returns the config.

    Args:
      arg: 'tiny', 'small', 'base' or 'resnet18'; optionally ',background'.
    """
    words = config.variants(arg, *_TOUCH, "background")
    subtracts = "background" in words
    size = config.only(words, tuple(_TOUCH), "tiny", what="size")
    cfg = config.base()
    cfg.task = "touch"
    cfg.batch_size = 256
    cfg.total_examples = 200 * _EPOCH
    cfg.log_every = 50
    cfg.data = dict(
        train="datasets/tvl",
        split="train",
        image=dict(size=224),
        touch=dict(
            size=224,
            square="pad",
            quarter_turns=1,
            background="recording" if subtracts else "",
            antialias=not subtracts,  # TVL resizes differences as tensors, without antialiasing
        ),
        text=dict(tokenizer="clip", max_tokens=77, candidates=1, keywords=dict()),
    )
    frozen = dict(param_dtype="bfloat16")
    cfg.model = dict(
        touch=_TOUCH[size],
        image=dict(name="clip_vit_l14", **frozen),
        text=dict(name="clip_text_l14", **frozen),
        dtype="bfloat16",
    )
    cfg.augment = dict(image=_image(), touch=_subtracted_touch() if subtracts else _touch())
    cfg.loss = dict(name="info_nce", mean_over="pairs", max_logit_scale=0.0)
    cfg.optimizer = dict(
        name="adamw",
        b2=0.95,
        weight_decay=0.05,
        weight_decay_exclude=("bias$", "scale$"),
        frozen=("^image/", "^text/"),
        schedule=dict(
            name="cosine",
            base=1.5e-4 if size in ("small", "base") else 3e-4,
            per_examples=256,
            warmup_examples=10 * _EPOCH,
        ),
    )
    cfg.init_allow = ("^touch/", "^heads/", "^logit_", "^extra/")  # not in OpenCLIP's files
    cfg.checkpoint = dict(every=1000, keep=2, best="valid/touch_text@0.9/top1")
    published = dict(type="semantic_retrieval", batch_size=64)
    cfg.evals = dict(
        valid=dict(published, split="valid", thresholds=(0.9,), every=1000),
        test=dict(published, split="test", trials=10),
        affinity=dict(type="affinity", threshold=0.636, split="test", batch_size=64),
    )
    return cfg


def _image() -> dict:
    return dict(
        mean=CLIP_MEAN,
        std=CLIP_STD,
        horizontal_flip=0.5,
        color_jitter=dict(
            probability=0.8, brightness=(0.8, 1.1), contrast=(0.7, 1.3), saturation=(0.8, 1.2)
        ),
        grayscale=0.2,
        blur=dict(probability=0.5, kernel_size=9, sigma=(0.5, 1.0)),
    )


def _touch() -> dict:
    return dict(
        mean=TACTILE_MEAN,
        std=TACTILE_STD,
        horizontal_flip=0.5,
        vertical_flip=0.5,
        color_jitter=dict(
            probability=0.8,
            brightness=(0.9, 1.1),
            contrast=(0.9, 1.1),
            saturation=(0.8, 1.2),
            hue=(-0.05, 0.05),
        ),
        quarter_turn=0.5,
    )


def _subtracted_touch() -> dict:
    return dict(
        subtract_background=True,
        mean=SUBTRACTED_MEAN,
        std=SUBTRACTED_STD,
        horizontal_flip=0.5,
        quarter_turn=0.5,
    )
