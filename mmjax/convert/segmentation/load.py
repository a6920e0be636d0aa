"""Reads segmentation models: torchvision's, segmentation_models_pytorch's, and TTDL's checkpoints.

TTDL (Training Vision Tasks Using Diagnostic Text Description Loss) saves models of both libraries,
with a bottleneck adapter, in the entry `model_state_dict` of a file, possibly with the prefix
`_orig_mod.`. Backbones of ImageNet classifiers, which have no head, can initialize models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.convert import torch_source
from mmjax.convert.segmentation import adapter_names, names
from mmjax.convert.torch_source import UNKNOWN, NamingScheme, TorchSource
from mmjax.convert.vision.names import COUNTER
from mmjax.errors import UserError
from mmjax.formats import torch_reader
from mmjax.formats.name_rules import prefixes, with_prefix

MODEL, ADAPTER = "segmentation", "adapter"  # components
CLASSIFIER = "classifier"  # reason why an entry is unused
# The head of an ImageNet classifier.
_CLASSIFIERS = ("classifier.", "head.", "fc.")


def _roots(file_names: Sequence[str]) -> dict[str, str]:
    """Returns {prefix: family} of the models in a file with arrays of these names."""
    every = set(file_names)
    roots: dict[str, str] = {}
    for family, key in names.KEYS.items():
        for root in prefixes(file_names, key):
            # torchvision's DeepLabv3 on a ResNet has the same head, but another dilation.
            if family == "deeplabv3_mobilenet" and f"{root}backbone.0.0.weight" not in every:
                continue
            # A SegFormer contains a mix transformer.
            if not any(root.startswith(other) for other in roots):
                roots[root] = family
    return roots


def find_scheme(file_names: Sequence[str]) -> NamingScheme | None:
    """Returns the naming scheme of a file with arrays of these names.

    Returns:
      None if the file has no segmentation model, and no backbone that only these have.

    Raises:
      UserError: The file has several models, or an adapter that is not TTDL's.
    """
    roots = _roots(file_names)
    if not roots:
        return None
    if len(roots) > 1:
        raise UserError(
            f"the file contains {len(roots)} models, with the prefixes "
            f"{' and '.join(map(repr, roots))}. Save only one of them in a file."
        )
    ((root, family),) = roots.items()
    own = [name.removeprefix(root) for name in file_names if name.startswith(root)]
    components = {MODEL: family}
    if family in names.BACKBONES:
        rules = list(names.BACKBONES[family])
    else:
        if family == "lraspp" and names.DEMO_KEY in own:
            components[MODEL] = "lraspp_demo"
        rules = list(names.RULES[components[MODEL]])
        if adapter := adapter_names.by_names(own):
            components[ADAPTER] = adapter
            rules += adapter_names.rules_of(adapter)

    def unused_reason(name: str) -> str:
        if name.endswith(COUNTER):
            return "constant"
        if family in names.BACKBONES and name.removeprefix(root).startswith(_CLASSIFIERS):
            return CLASSIFIER
        return UNKNOWN if name.startswith(root) else "unknown, outside the model"

    return NamingScheme(components, with_prefix(rules, key=root), unused_reason)


def fits(source: str) -> bool:
    """Returns whether a PyTorch file contains such a model.

    Raises:
      UserError: The file cannot be read.
    """
    return bool(_roots(list(torch_reader.tensors(source))))


def read(source: str) -> TorchSource:
    """Returns the entries of one file.

    Raises:
      UserError: The file cannot be read or contains no such model.
    """
    return torch_source.read_file(
        source,
        find_scheme,
        expected="the names of LRASPP or DeepLabv3 of torchvision, or of DeepLabV3, FPN or "
        "Segformer of segmentation_models_pytorch.",
    )


def load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of a file for `mmjax.convert.load.load_params`.

    Returns:
      `(arrays, description)`: {path: array}, and a description for the log.

    Raises:
      UserError: The file cannot be read, contains no such model, or is incomplete.
    """
    file = read(source)
    what = "backbone" if file.components[MODEL] in names.BACKBONES else "segmentation model"
    return file.params(source), f"the {what} of {source}"
