"""Exact nearest neighbors of features, on any number of devices, larger than memory.

    prepared = neighbors.prepare(features)
    result = neighbors.nearest(prepared, k=5)

`mmjax neighbors` applies it to the features of a dataset (`search_dataset.py`).
"""

from mmjax.neighbors.cost import Cost, estimate_cost
from mmjax.neighbors.prepared_features import PreparedFeatures, prepare, unit_vectors
from mmjax.neighbors.search import SearchResult, mutual, nearest
from mmjax.neighbors.settings import Settings, choose_settings
from mmjax.neighbors.tile_search import count_products

__all__ = [
    "Cost",
    "PreparedFeatures",
    "SearchResult",
    "Settings",
    "choose_settings",
    "count_products",
    "estimate_cost",
    "mutual",
    "nearest",
    "prepare",
    "unit_vectors",
]
