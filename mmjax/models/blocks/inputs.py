"""The error for inputs that do not fit a tower."""

from __future__ import annotations

from mmjax.errors import UserError


class InputError(UserError):
    """The shape of an input does not fit the tower.

    The message says what the tower expects. `mmjax.models.multi_tower` adds the config keys of the
    tower and of the data.
    """
