"""Plans the conversion of segmentation models."""

from __future__ import annotations

from mmjax import config
from mmjax.convert.plan import ConversionPlan
from mmjax.convert.segmentation import infer_config as segmentation_infer
from mmjax.convert.segmentation import load as segmentation_load
from mmjax.convert.torch_plan import plan_torch
from mmjax.errors import UserError
from mmjax.models.segmentation.registry import build_segmentation
from mmjax.state import ModelDef


def plan_conversion(
    source: str, *, head_dim: int | None = None, vocab: str | None = None
) -> ConversionPlan:
    """Returns the plan for one file.

    Args:
      source: The file.
      head_dim: Width of an attention head; None for that of the published models.
      vocab: A vocabulary, which these models do not have.

    Raises:
      UserError: The file cannot be read or contains no such model, a size is undetermined, or
        `vocab` is not None.
    """
    if vocab:
        raise UserError(f"--vocab {vocab}: {source} has no text tower. Remove --vocab.")
    file = segmentation_load.read(source)
    cfg, notes = segmentation_infer.make_config(file, name=source, head_dim=head_dim)
    options = config.resolve(cfg).model
    return plan_torch(
        file,
        name=source,
        cfg=cfg,
        model=ModelDef(lambda rngs: build_segmentation(**options, rngs=rngs)),
        notes=notes,
    )
