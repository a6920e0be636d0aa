"""The config of any trained model: of a run directory, or inferred from published files."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from mmjax.checkpoints.find import find
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert.clip import infer_config as clip_config
from mmjax.convert.flair import infer_config as flair_config
from mmjax.convert.flair import load as flair_load
from mmjax.convert.segmentation import infer_config as segmentation_infer
from mmjax.convert.segmentation import load as segmentation_load
from mmjax.convert.vision import infer_config as vision_config
from mmjax.convert.vision import load as vision_load
from mmjax.formats import torch_reader


def config_of(sources: Sequence[str]) -> ml_collections.ConfigDict:
    """Returns the config of a run directory, or the config inferred from published files.

    Args:
      sources: See `mmjax.convert.load.load_params`.

    Raises:
      UserError: A source does not exist or cannot be read, or its model is not known.
    """
    if len(sources) == 1 and not torch_reader.is_file(sources[0]):
        run, _ = find(sources[0])
        return RunDir(run, create=False).read_config()
    readers = (
        (flair_load, flair_config),
        (segmentation_load, segmentation_infer),
        (vision_load, vision_config),
    )
    for reader, infer in readers:
        if len(sources) == 1 and reader.fits(sources[0]):
            return infer.config_of(sources[0])
    return clip_config.config_of(sources)
