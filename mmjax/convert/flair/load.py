"""Reads FLAIR's published checkpoints and those of TTDL's fine-tuning.

FLAIR (Xiao et al. 2024, arXiv 2412.03561) publishes `flair-cc3m-recap.pt` and others: state dicts,
possibly in an entry `state_dict` and with the prefix `module.`. TTDL's files have the entry
`model_state_dict` with the prefix `_orig_mod.`, and may contain adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from absl import logging

from mmjax.convert import torch_source
from mmjax.convert.clip import names as clip_names
from mmjax.convert.flair import names as flair_names
from mmjax.convert.torch_source import UNKNOWN, NamingScheme, TorchSource
from mmjax.errors import UserError
from mmjax.formats import torch_reader
from mmjax.formats.name_rules import Leaf, prefixes, with_prefix

NO_BIAS = "logit_bias is missing and set to 0: FLAIR's code does the same."


def find_scheme(names: Sequence[str]) -> NamingScheme | None:
    """Returns the naming scheme of a file with arrays of these names; None if it is not FLAIR's.

    Raises:
      UserError: The file contains several models.
    """
    roots = prefixes(names, flair_names.KEY)
    if not roots:
        return None
    if len(roots) > 1:
        raise UserError(
            f"the file contains {len(roots)} models, with the prefixes "
            f"{' and '.join(map(repr, roots))}. Save only one of them in a file."
        )

    def unused_reason(name: str) -> str:
        if name.rsplit(".", 1)[-1] in clip_names.CONSTANTS:
            return "constant"
        return UNKNOWN if name.startswith(roots[0]) else "unknown, outside the model"

    return NamingScheme(
        components={"flair": "flair"},
        rules=with_prefix(flair_names.RULES, key=roots[0]),
        unused_reason=unused_reason,
    )


def fits(source: str) -> bool:
    """Returns whether a PyTorch file contains FLAIR.

    Raises:
      UserError: The file cannot be read.
    """
    return bool(prefixes(torch_reader.tensors(source), flair_names.KEY))


def read(source: str) -> TorchSource:
    """Returns the entries of one file.

    Raises:
      UserError: The file cannot be read or does not contain FLAIR.
    """
    file = torch_source.read_file(source, find_scheme, expected="the names of FLAIR.")
    if "logit_bias" not in file.leaves:
        (rule,) = (rule for rule in file.rules if rule.paths == ("logit_bias",))
        file.entries[rule.key] = np.zeros((), np.float32)
        file.leaves["logit_bias"] = Leaf("logit_bias", (rule.key,), False, (), rule, 0)
        file.added[rule.key] = NO_BIAS
    return file


def load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of a file for `mmjax.convert.load.load_params`.

    Returns:
      `(arrays, description)`: {path: array}, and a description for the log.

    Raises:
      UserError: The file cannot be read, does not contain FLAIR, or is incomplete.
    """
    file = read(source)
    for note in file.added.values():
        logging.info("%s: %s", source, note)
    return file.params(source), f"FLAIR of {source}"
