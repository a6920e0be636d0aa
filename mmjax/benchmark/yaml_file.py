"""A safe YAML reader that knows the line of every key and refuses duplicate keys.

Only plain values are read: a file cannot create Python objects. Unlike YAML 1.1, `1e-4` is a number
here.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from mmjax import files
from mmjax.benchmark import checks
from mmjax.errors import UserError

_MERGE = "tag:yaml.org,2002:merge"
_EXPONENT = re.compile(r"[-+]?\d[\d_]*(?:\.\d*)?[eE][-+]?\d+")


class Section(dict[Any, Any]):
    """A mapping of a YAML file.

    Attributes:
      path: The file.
      lines: {key: line from 1}.
    """

    path: str
    lines: dict[Any, int]

    def where(self, key: Any) -> str:
        """Returns the file and the line of a key, for error messages."""
        return f"{self.path}, line {self.lines[key]}"


class _Loader(yaml.SafeLoader):
    path = ""

    def construct_section(self, node: yaml.MappingNode) -> Section:
        """Returns the keys and values of a mapping; those that `<<` merges can be replaced."""
        self._check_keys(node)
        self.flatten_mapping(node)
        # Own keys follow those that are merged and replace them. Without this, merges of merges
        # grow exponentially.
        node.value = list({(key.tag, key.value): (key, item) for key, item in node.value}.values())
        section = Section()
        section.path, section.lines = self.path, {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node)
            section[key] = self.construct_object(value_node, deep=True)
            section.lines[key] = key_node.start_mark.line + 1
        return section

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Raises UserError if a key of a mapping is not a scalar, or occurs twice."""
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self.path}, line {line}: a list or a mapping is used as a key.")
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node)
            if key in lines:
                raise UserError(
                    f"{self.path}, line {line}: duplicate key {key!r}; it is already in line "
                    f"{lines[key]}. Rename or remove one of them."
                )
            lines[key] = line


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _Loader.construct_section)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read(path: str | os.PathLike) -> Section:
    """Returns the mapping in a YAML file; its sections are `Section`s.

    Raises:
      UserError: The file does not exist, is not YAML or not a mapping, has a duplicate key, or is
        nested too deeply.
    """
    loader = _Loader(_checked_text(path))
    loader.path = os.fspath(path)
    try:
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{at}: not valid YAML: {error.problem or error.context}.") from error
    except (ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid YAML: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: the YAML is nested too deeply.") from error
    finally:
        loader.dispose()
    if not isinstance(value, Section):
        shown = "nothing" if value is None else checks.shown(value)
        raise UserError(f"{path} must contain a mapping of names; it contains {shown}.")
    return value


def _checked_text(path: str | os.PathLike) -> str:
    """Returns the text of a file without characters that YAML forbids."""
    text = files.read_text(path)
    if match := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise UserError(f"{path}, line {line}: not valid YAML: control character {match[0]!r}.")
    return text
