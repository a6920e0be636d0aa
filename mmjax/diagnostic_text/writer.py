"""The interface of all sources of diagnostic text, and the built-in ones by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import config, registry
from mmjax.diagnostic_text.pairs import Pair
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Text:
    """The text of a pair.

    Attributes:
      key: Key of the pair.
      text: The text, stripped and not empty.
    """

    key: str
    text: str


@dataclasses.dataclass(frozen=True)
class Failure:
    """A pair that got no text. It has no part in the loss.

    Attributes:
      key: Key of the pair.
      reason: Short name for counting: 'timeout', 'connection', 'status', 'malformed', 'empty',
        'class' or 'language'.
      message: What happened, for the log.
    """

    key: str
    reason: str
    message: str


class FailureLimitError(UserError):
    """Too many pairs in a row got no text. Training saves a checkpoint and stops."""


class Writer:
    """Writes diagnostic texts. `write` may be called from several threads at the same time."""

    def prepare(self) -> None:
        """Checks before training that texts can be written.

        Raises:
          UserError: They cannot, for example because a server is unreachable.
        """

    def write(self, pairs: Sequence[Pair]) -> list[Text | Failure]:
        """Returns the result of each pair, in the order of `pairs`.

        Raises:
          FailureLimitError: Too many pairs in a row have failed.
        """
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """Returns metrics since the last call, for the log; {} if there are none."""
        return {}

    def close(self) -> None:
        """Releases connections and threads."""


WRITERS: dict[str, Any] = {
    "describer": "mmjax.diagnostic_text.describer:DescriberWriter",
    "templates": "mmjax.diagnostic_text.templates:TemplateWriter",
    "vlm": "mmjax.diagnostic_text.vlm.writer:VlmWriter",
}


def build(name: str, options: Mapping[str, Any], where: str) -> Writer:
    """Returns a writer.

    Args:
      name: A key of `WRITERS`, or `package.module:Name` of your own subclass of `Writer`.
      options: Its section of the config, without the name.
      where: Key of the section, for error messages, for example 'text.writer'.

    Raises:
      UserError: Unknown name or key, or a value of the wrong type.
    """
    cls = registry.resolve(f"config.{where}.name", name, WRITERS)
    return cls(**config.keywords(cls, options, where, owner=name))
