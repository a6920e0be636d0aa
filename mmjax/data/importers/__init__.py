"""Well-known datasets: from their official annotation files to a table that `mmjax build` takes.

Adding one means a function that reads its files and an `Importer` in the list below.
"""

from mmjax.data.importers.captioned import MSRVTT, YOUCOOK2
from mmjax.data.importers.captions import CAPTIONS
from mmjax.data.importers.folds import ESC50, HMDB51, UCF101
from mmjax.data.importers.howto100m import HOWTO100M
from mmjax.data.importers.imagenet import IMAGENET
from mmjax.data.importers.moments_in_time import MOMENTS_IN_TIME
from mmjax.data.importers.tvl import TVL
from mmjax.data.importers.youtube import AUDIOSET, KINETICS

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
    )
}
