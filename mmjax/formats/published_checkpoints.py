"""Names of published checkpoints, so that errors about missing files can say where to get them.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248, and its code (github.com/mbanani/lgssl). The README of the code links the files.
"""

from __future__ import annotations

import os
import pathlib

# {name: argument of the recipe lgssl that trains with the same method}
PUBLISHED = {
    **{name: name for name in ("lgsimclr", "lgsimsiam", "lgslip")},
    **{f"lgsimclr_bs_{size}": "lgsimclr" for size in (256, 512, 1024, 2048)},
    **{f"simclr_bs_{size}": "simclr" for size in (256, 1024, 2048)},
    **{f"visual_baseline_{name}": name for name in ("simclr", "simsiam", "nnclr")},
    "clip_baseline": "clip",
    "clip_baseline_nns": "declip",
    "clip_baseline_sbert_as_text_enc": "clip_sbert",
    "slip_baseline": "slip",
    **{
        f"redcaps_subsample_{scope}": "lgsimclr" for scope in ("subreddit", "year", "subreddityear")
    },
    **{
        f"sample_space_{encoder}": "lgsimclr"
        for encoder in (
            *("lang_clip_vitb32", "lang_fasttext_bow", "lang_minilm", "lang_our_clip"),
            *("vis_clip", "vis_imagenet", "vis_simclr"),
        )
    },
}


def hint(source: str | os.PathLike) -> str:
    """Returns where to download a published file, for the end of an error message.

    Returns:
      A sentence that starts with a space; '' if no published checkpoint has the file's name.
    """
    name = pathlib.PurePath(source).name.removesuffix(".ckpt")
    if name not in PUBLISHED:
        return ""
    file = "lgsimclr" if name == "lgsimclr_bs_512" else name
    return (
        f" LGSSL published a ResNet-50 with this name, trained as in --config=lgssl:"
        f"{PUBLISHED[name]}. Download {file}.ckpt from the links in the README of "
        "github.com/mbanani/lgssl, and pass its path."
    )
