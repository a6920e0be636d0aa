"""FLAIR fine-tuned on pairs of true and predicted masks and their texts, TTDL's experiment 2.

    mmjax build --csv pairs.csv --out datasets/mask_pairs --size 520
    python -m mmjax.main --task=flair --config=gt_pr_vs_dt \
        --override_checkpoint=flair-cc3m-recap.pt \
        --config.data.text.vocab=bpe_simple_vocab_16e6.txt.gz

The column path names directories of two images: the scene with the true mask of a class in white,
then with the predicted one. The caption describes how the masks differ. Only `concat_adapter` is
trained, a matrix of 1024 × 512 that fuses the embeddings of both images, pooled and token by token.
It needs FLAIR's weights and CLIP's vocabulary (see docs/flair.md).

The settings are TTDL's, except that all images have 520 pixels before they are resized to 224. We
have not reproduced its results, because we had no access to its data or weights.
"""

from mmjax import config
from mmjax.models.flair import IMAGE_TOWER, TEXT_TOWER
from mmjax.published.flair import flair_config


def get_config(arg: str = ""):
    """Returns the config; it takes no argument."""
    config.variants(arg)
    cfg = flair_config(reference=True)
    adapters = ("concat_adapter",)
    cfg.model = dict(image=IMAGE_TOWER, text=TEXT_TOWER, adapters=adapters, dtype="bfloat16")
    return cfg
