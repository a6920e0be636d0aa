"""FLAIR fine-tuned on images of mask differences and their descriptions, TTDL's experiment 1.

    mmjax build --csv differences.csv --out datasets/mask_differences --size 520
    python -m mmjax.main --task=flair --config=dm_vs_dt \
        --override_checkpoint=flair-cc3m-recap.pt \
        --config.data.text.vocab=bpe_simple_vocab_16e6.txt.gz

An image (column path) shows a scene with the pixels in white where the predicted mask of a class
differs from the true one; the caption describes the difference. Only the projection of texts is
trained, a matrix of 512 × 512; `--config=dm_vs_dt:text_adapter` trains a new one after it, as older
runs of TTDL did. It needs FLAIR's weights and CLIP's vocabulary (see docs/flair.md).

The settings are TTDL's: AdamW, 16 epochs of batches of 128, cosine schedule. We have not reproduced
its results, because we had no access to its data or weights.
"""

from mmjax import config
from mmjax.models.flair import IMAGE_TOWER, TEXT_TOWER
from mmjax.published.flair import flair_config


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: 'text_adapter' to train this adapter instead of the projection of texts.
    """
    words = config.variants(arg, "text_adapter")
    cfg = flair_config()
    cfg.model = dict(image=IMAGE_TOWER, text=TEXT_TOWER, dtype="bfloat16")
    if words:
        cfg.model.adapters = ("text_adapter",)
        cfg.optimizer.frozen += ("^text_projection/",)
        cfg.init_allow = ("^text_adapter/",)  # FLAIR does not have it
    return cfg
