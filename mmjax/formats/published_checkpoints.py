"""The names under which LGSSL's backbones are published, for who asks for one that is not there.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248, and its published code (github.com/mbanani/lgssl), whose README links the files.
"""

from __future__ import annotations

import os
import pathlib

# {name: the argument of --config=lgssl that has its method}
RELEASED = {
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
    """Where a file of this name is to be had, as a sentence with a space in front; '' if it is none
    of these names."""
    name = pathlib.PurePath(source).name.removesuffix(".ckpt")
    if name not in RELEASED:
        return ""
    file = "lgsimclr" if name == "lgsimclr_bs_512" else name
    return (
        f" LGSSL publishes a ResNet-50 of this name (--config=lgssl:{RELEASED[name]} is how it was "
        f"trained): its README, github.com/mbanani/lgssl, links {file}.ckpt; give that file's path."
    )
