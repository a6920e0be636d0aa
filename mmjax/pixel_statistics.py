"""Means and standard deviations of pixels in [0, 1] with which images are normalized."""

from __future__ import annotations

from typing import NamedTuple


class Channels(NamedTuple):
    """One value per color channel."""

    red: float
    green: float
    blue: float


CLIP_MEAN = Channels(0.48145466, 0.4578275, 0.40821073)
CLIP_STD = Channels(0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = Channels(0.485, 0.456, 0.406)
IMAGENET_STD = Channels(0.229, 0.224, 0.225)
# Statistics of TVL's touch images, without and with subtraction of the background.
TACTILE_MEAN = Channels(0.29174602047139075, 0.2971325588927249, 0.2910404549605639)
TACTILE_STD = Channels(0.18764469044810236, 0.19467651810273057, 0.21871583397361818)
SUBTRACTED_MEAN = Channels(-0.00809318389762342, -0.01887447008747725, -0.018430588238856332)
SUBTRACTED_STD = Channels(0.04535400223885517, 0.044029170444552575, 0.05332520729596308)
