"""The function `predict["maps"]` of tasks with image towers: feature maps for heads on pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from mmjax.errors import UserError
from mmjax.modalities import IMAGES
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef


def predict_maps(model: ModelDef, inputs: Inputs) -> dict[str, Callable[..., Any]]:
    """Returns {'maps': function}, or {} if no image tower of the model has feature maps.

    The function takes `(params, extra, batch)` with images [B, V, H, W, 3] and returns {name: [B,
    V, h, w, C]} in the tower's dtype. The first modality of the batch with feature maps is used,
    in the order of `IMAGES`. Images may have another size than in training.

    Args:
      model: The model, a `MultiTower`.
      inputs: Normalization of the task.
    """
    modalities = [name for name in IMAGES if name in model.module.map_modalities()]

    def maps(params: dict, extra: dict, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        modality = next((name for name in modalities if name in batch), None)
        if modality is None:
            raise UserError(
                f"The batch has no images for the towers with feature maps: {', '.join(modalities)}"
                f". Its fields are {', '.join(batch)}."
            )
        module = model.bind(params, extra)
        return inputs.each_view(lambda x: module.feature_maps(modality, x), batch, modality)

    return {"maps": maps} if modalities else {}
