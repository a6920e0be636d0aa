"""Fills the cache of masks before training: the command `mmjax prefill`.

Training that starts with the cache (`config.text.cache.path`) writes texts first for the pairs
whose predicted mask has changed most since. Without it, all pairs are new in the first epoch.
"""

from __future__ import annotations

from mmjax.diagnostic_text.mask_cache import MaskCache
from mmjax.text_stage.predicted_pairs import PredictedPairs


def prefill(pairs: PredictedPairs, out: str, *, progress: bool = True) -> str:
    """Writes the predicted masks of all pairs, without texts, replacing an earlier cache.

    Args:
      pairs: The model and the dataset.
      out: Directory of the cache to write.
      progress: Whether to show a progress bar.

    Returns:
      A description of the result, with the options to train with it.

    Raises:
      UserError: An example cannot be used.
    """
    cache = MaskCache(pairs.options.size)
    for batch in pairs.batches(progress=progress):
        for pair in batch:
            cache.set(pair.key, pair.prediction, "")
    cache.save(out)
    lines = [
        f"{out}: masks of {len(cache)} pairs of {pairs.data}/{pairs.split} "
        f"({cache.nbytes() / 1e6:.1f} MB)."
    ]
    if pairs.without_mask:
        lines.append(f"{pairs.without_mask} examples have no image or no mask.")
    lines += [
        "To train with it, add",
        f"  --config.text.cache.path={out} --config.text.size={cache.size}",
    ]
    return "\n".join(lines)
