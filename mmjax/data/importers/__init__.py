"""Importers of well-known datasets: official annotation files become a table for `mmjax build`.

To add one to the package, write a function that reads its files, and list an `Importer` below. An
importer outside the package is used as `mmjax import package.module:Name`.
"""

from __future__ import annotations

import dataclasses

from mmjax import registry
from mmjax.data.importers.base import Importer
from mmjax.data.importers.captioned import MSRVTT, YOUCOOK2
from mmjax.data.importers.captions import CAPTIONS
from mmjax.data.importers.coco import COCO
from mmjax.data.importers.folds import ESC50, HMDB51, UCF101
from mmjax.data.importers.howto100m import HOWTO100M
from mmjax.data.importers.imagenet import IMAGENET
from mmjax.data.importers.moments_in_time import MOMENTS_IN_TIME
from mmjax.data.importers.tvl import TVL
from mmjax.data.importers.voc import SBD, VOC
from mmjax.data.importers.youtube import AUDIOSET, KINETICS
from mmjax.errors import UserError

IMPORTERS = {
    importer.name: importer
    for importer in (
        HOWTO100M,
        AUDIOSET,
        *KINETICS,
        MOMENTS_IN_TIME,
        UCF101,
        HMDB51,
        ESC50,
        YOUCOOK2,
        MSRVTT,
        IMAGENET,
        TVL,
        CAPTIONS,
        VOC,
        SBD,
        COCO,
    )
}


def find(name: str) -> Importer:
    """Returns the importer of a dataset.

    Args:
      name: A key of `IMPORTERS`, or `package.module:Name` for an `Importer` or a class or function
        without arguments that returns one.

    Raises:
      UserError: The importer does not exist.
    """
    importer = registry.resolve("dataset", name, IMPORTERS)
    if not isinstance(importer, Importer) and callable(importer):
        importer = importer()
    if not isinstance(importer, Importer):
        raise UserError(
            f"dataset={name} is {type(importer).__name__}; expected a "
            "mmjax.data.importers.base.Importer."
        )
    if registry.is_reference(name):
        # A subclass may not accept all fields, so this is not `dataclasses.replace`.
        values = {
            field.name: getattr(importer, field.name) for field in dataclasses.fields(Importer)
        }
        importer = Importer(**{**values, "reference": name})
    return importer
