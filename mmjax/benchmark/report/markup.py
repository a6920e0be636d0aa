"""HTML and SVG elements from values of any origin: text and attributes are always escaped."""

from __future__ import annotations

import html
import re
from typing import Any

from mmjax.plain_text import plain

_NO_XML = re.compile("[\ufffe\uffff]")  # characters that XML forbids and `plain` keeps
_EMPTY = ("meta", "wbr")  # HTML elements without an end tag


class Markup(str):
    """Text that is HTML or SVG already."""


def escaped(value: Any) -> Markup:
    """Returns a value as text for HTML and SVG; `Markup` is returned unchanged."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_NO_XML.sub("\ufffd", plain(str(value)))))


def element(tag: str, *content: Any, **attributes: Any) -> Markup:
    """Returns an element.

    Args:
      tag: Its name.
      *content: What it contains. All that is not `Markup` is escaped.
      **attributes: Its attributes; those that are None are omitted. `class_` becomes `class`, and
        other underscores become hyphens. Floating-point numbers are rounded to 0.01.
    """
    parts = [
        f' {name.rstrip("_").replace("_", "-")}="{escaped(_rounded(value))}"'
        for name, value in attributes.items()
        if value is not None
    ]
    start = f"<{tag}{''.join(parts)}>"
    return Markup(start if tag in _EMPTY else f"{start}{joined(*content)}</{tag}>")


def joined(*content: Any) -> Markup:
    """Returns values one after the other as markup."""
    return Markup("".join(map(escaped, content)))


def breakable(text: str) -> Markup:
    """Returns a name that can be broken into lines at punctuation and between its words."""
    parts = re.split(r"(?<=[_/-])|(?<=[a-z0-9]{3})(?=[A-Z])", text)
    return Markup(element("wbr").join(map(escaped, parts)))


def _rounded(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
