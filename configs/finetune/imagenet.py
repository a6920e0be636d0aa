"""ImageNet images for a video tower: each is a film of four equal frames.

    python -m mmjax.main --task=finetune --config=imagenet:vit_base \\
        --model_dir=runs/imagenet --override_checkpoint=runs/bbs

The paper states 78.7 % top-1 for ViT-Base from its pretraining and 64.7 % from scratch, with
settings that are not published; these are those of video. The table of temporal positions is
resampled to the one patch that four frames make, and no token is dropped. The dataset:
docs/datasets.
"""

from mmjax import config
from mmjax.configs.finetune import video
from mmjax.errors import UserError


def get_config(arg: str = "vit_base"):
    """`arg`: a vit_* or ut_* tower."""
    if not arg.startswith(("vit_", "ut_")):
        raise UserError(f"{arg} takes no images; the towers of this recipe are vit_* and ut_*.")
    cfg = video.get_config(arg)
    cfg.data.train = "data/imagenet"
    cfg.data.video.num_frames = 1
    cfg.data.video.stride = 1
    cfg.augment.repeat_frames = 4
    config.apply(cfg, ["--config.model.backbone.keep_tokens=1.0"])
    cfg.evals.test.views = dict(video=dict(num_clips=1, multi_crop=False))
    return cfg
