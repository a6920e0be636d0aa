"""The methods of LGSSL as config sections: views, heads and loss terms.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248, and its published code's configs.
"""

from __future__ import annotations

from mmjax.errors import UserError
from mmjax.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD

METHODS = (
    *("lgsimclr", "lgsimsiam", "lgslip"),  # positives are selected by captions
    *("simclr", "simsiam", "nnclr", "swav", "clip", "clip_sbert", "declip", "slip"),
)
_GLOBAL, _STRONG = (0.5, 1.0), (0.2, 1.0)  # areas of random crops


def method(
    name: str,
    *,
    hidden: int = 2048,
    out: int = 128,
    bottleneck: int = 512,
    space: int = 512,
    bank_size: int = 16384,
    prototypes: int = 3000,
    queue_length: int = 7680,
    queue_start: int = 37500,
    freeze_prototypes: int = 2503,
    blur_kernel: int = 15,
    fixed_blur: bool = False,
) -> dict:
    """Returns the config sections of a method.

    Args:
      name: One of `METHODS`.
      hidden: Width of the hidden layers of heads.
      out: Width of the embeddings of SimCLR and SwAV; NNCLR has twice as many.
      bottleneck: Hidden width of SimSiam's predictor.
      space: Width of the common space of images and text.
      bank_size, prototypes, queue_length, queue_start, freeze_prototypes: See
        `mmjax.tasks.guided_terms`.
      blur_kernel: Size in pixels.
      fixed_blur: Use the blur of kornia up to 0.6.9: standard deviations 0.1 (vertical) and 2.

    Returns:
      A dict of `crops`, `augment`, `heads`, `prototypes`, `loss`, `pairs` (whether positives come
      from other images) and `text` ('tower', 'features' or None).
    """
    if name not in METHODS:
        raise UserError(f"Unknown method {name!r}. Choose from: {', '.join(METHODS)}.")
    guided = name.startswith("lg")
    mild = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    strong = dict(mild, **_strong_augmentation(blur_kernel, fixed_blur))
    two = dict(crops=(_GLOBAL, _GLOBAL), augment=mild)
    if not guided:
        two = dict(crops=(_STRONG, _STRONG), augment=strong)
    of_text = dict(clip=dict(dims=(space,)), text=dict(dims=(space,)))
    parts: dict = dict(pairs=guided, text=None, prototypes=0)
    projection = dict(dims=(hidden, hidden, out))
    base = name.removeprefix("lg")
    if base == "simclr":
        parts |= dict(two, heads=dict(projection=projection), loss=dict(simclr=dict()))
    elif base == "simsiam":
        heads = dict(
            projection=dict(dims=(hidden, hidden, hidden), final_norm=True),
            predictor=dict(dims=(bottleneck, hidden)),
        )
        parts |= dict(two, heads=heads, loss=dict(simsiam=dict()))
    elif base == "nnclr":
        heads = dict(
            projection=dict(dims=(hidden, hidden, 2 * out)),
            predictor=dict(dims=(2 * hidden, 2 * out)),
        )
        parts |= dict(two, heads=heads, loss=dict(nnclr=dict(bank_size=bank_size)))
    elif base == "swav":
        loss = dict(
            queue_length=queue_length,
            queue_start=queue_start,
            freeze_prototypes=freeze_prototypes,
        )
        heads = dict(projection=dict(dims=(hidden, out)))
        parts |= dict(two, heads=heads, prototypes=prototypes, loss=dict(swav=loss))
    elif name == "slip":
        parts |= dict(
            crops=(_STRONG, _STRONG, _GLOBAL),
            augment=(strong, strong, mild),
            heads=dict(projection=projection, **of_text),
            loss=dict(simclr=dict(), clip=dict(view=2)),
            text="tower",
        )
    elif name == "lgslip":
        parts |= dict(
            two,
            heads=dict(projection=dict(dims=(hidden, hidden, space)), text=of_text["text"]),
            loss=dict(simclr=dict(), clip=dict(head="projection")),
            text="tower",
        )
    else:
        loss = dict(clip=dict())
        if name == "declip":
            loss = dict(clip=dict(weight=0.8), clip_neighbors=dict(weight=0.2))
            loss["clip_neighbors"]["bank_size"] = bank_size
        parts |= dict(
            crops=(_GLOBAL,),
            augment=mild,
            heads=of_text,
            loss=loss,
            text="features" if name == "clip_sbert" else "tower",
        )
    return parts


def _strong_augmentation(blur_kernel: int, fixed_blur: bool) -> dict:
    """Returns the options of `augment` that SimCLR adds to the normalization."""
    blur = dict(sigma_yx=(0.1, 2.0)) if fixed_blur else dict(sigma=(0.1, 2.0))
    return dict(
        horizontal_flip=0.5,
        grayscale=0.2,
        color_jitter=dict(
            probability=0.8,
            brightness=(0.6, 1.4),
            contrast=(0.6, 1.4),
            saturation=(0.6, 1.4),
            hue=(-0.1, 0.1),
            order="batch",
        ),
        blur=dict(probability=0.5, kernel_size=blur_kernel, **blur),
    )
