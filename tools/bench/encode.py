"""The encoding of images for `--task=probe`, compared with the bare forward pass of the encoder."""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import TYPE_CHECKING, Any

from mmjax.tools.bench.common import call_for, medians

if TYPE_CHECKING:  # imports JAX
    from mmjax.config import Config


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures images per second of both, on the test split of the end task of a recipe.

    Encoding reads, decodes and resizes the images, and writes the features. The forward pass
    encodes one batch in host memory repeatedly.
    """
    import numpy as np

    from mmjax.benchmark import encode, options, prepare
    from mmjax.benchmark.image_encoder import open_encoder
    from mmjax.data.pipeline import loader

    probe = options.parse(cfg.probe)
    encoder = open_encoder(cfg.init_from, seed=cfg.seed)
    section = prepare.data_section(cfg, probe, encoder)
    how = encode.EncodeOptions(batch_size=probe.eval_batch_size or 64, progress=False)
    data = loader.make_eval_data(section, split="test", batch_size=how.batch_size)
    function = encode.encoder_function(encoder)
    batch = next(iter(data.iterate()))
    np.asarray(function(batch))  # compiles

    def encoding() -> None:
        with tempfile.TemporaryDirectory() as directory:
            encode.write_arrays(os.path.join(directory, "table"), function, {"test": data}, how)

    def forward() -> None:
        np.asarray(function(batch))

    def measure() -> dict[str, float]:
        result = {}
        sizes = {"encoding": data.num_examples, "forward": how.batch_size}
        for name, call in (("encoding", encoding), ("forward", forward)):
            calls, seconds, _ = call_for(args.seconds, call)
            result[f"{name}_images_per_second"] = calls * sizes[name] / seconds
        return result

    result = medians([measure() for _ in range(args.repeats)])
    ratio = result["encoding_images_per_second"] / result["forward_images_per_second"]
    return {"examples": data.num_examples, **result, "encoding_over_forward": ratio}
