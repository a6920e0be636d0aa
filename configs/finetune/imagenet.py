"""ImageNet for a video tower: each image is a clip of four identical frames.

    python -m mmjax.main --task=finetune --config=imagenet:vit_base \\
        --model_dir=runs/imagenet --override_checkpoint=runs/bbs

The paper reports 78.7 % top-1 for ViT-Base from its pretraining and 64.7 % from scratch, with
settings that are not published; this recipe uses the video settings. We have not trained it. The
temporal position embeddings are resampled to one patch, because four frames make one patch, and no
tokens are dropped. See docs/datasets for the dataset.
"""

from mmjax import config
from mmjax.configs.finetune import video
from mmjax.errors import UserError


def get_config(arg: str = "vit_base"):
    """Returns the config.

    Args:
      arg: A vit_* or ut_* tower.
    """
    if not arg.startswith(("vit_", "ut_")):
        raise UserError(f"{arg} does not accept images. Choose a vit_* or ut_* tower.")
    cfg = video.get_config(arg)
    cfg.data.train = "datasets/imagenet"
    cfg.data.video.num_frames = 1
    cfg.data.video.stride = 1
    cfg.augment.repeat_frames = 4
    config.apply(cfg, ["--config.model.backbone.keep_tokens=1.0"])
    cfg.evals.test.views = dict(video=dict(num_clips=1, multi_crop=False))
    return cfg
