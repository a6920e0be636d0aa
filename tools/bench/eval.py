"""Feature extraction, and the fit of a linear probe on the features."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from mmjax.errors import UserError
from mmjax.tools.bench.common import Setup, medians

if TYPE_CHECKING:  # imports JAX
    from mmjax.config import Config


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures examples per second of feature extraction, and the time to fit a linear probe."""
    from mmjax.evals.features.store import FeatureStore
    from mmjax.evals.probes.classifiers import fit_logistic

    modality = next((m for m in ("video", "audio", "touch") if cfg.data.get(m) is not None), None)
    if modality is None:
        raise UserError(
            "mmjax bench eval needs a recipe with config.data.video, audio or touch. Choose "
            "another recipe with --config."
        )
    setup = Setup(cfg)
    predict = setup.program.task.predict
    store = FeatureStore(task=setup.program.task, data_cfg=cfg.data, mesh=setup.mesh)
    request = store.request(
        (modality,),
        predict="features" if "features" in predict else next(iter(predict)),
        split=cfg.data.get("split", "train"),
        batch_size=cfg.batch_size,
    )
    first = store.get(setup.state, request)  # includes compilation
    measurements = []
    for _ in range(args.repeats):
        store.clear()
        features = store.get(setup.state, request)
        x, labels = features.labeled(modality)
        start = time.perf_counter()
        fit_logistic(x, labels, num_classes=int(labels.max()) + 1)
        measurements.append(
            {
                "examples_per_second": len(features) / features.seconds,
                "probe_seconds": time.perf_counter() - start,
            }
        )
    return medians(measurements) | {
        "examples": len(features),
        "feature": [modality, list(x.shape)],
        "first_extraction_seconds": first.seconds,
    }
