"""Opens zip archives from others (.npz, .pth) with bounds on what is unpacked.

A few kilobytes can declare terabytes. Sizes are checked before a member is unpacked, and a member
that no caller asks for is never unpacked. The CRC of a member is checked when it is read to its
end.
"""

from __future__ import annotations

import os
import zipfile
from typing import IO

from mmjax import limits
from mmjax.errors import UserError


class ZipMembers:
    """The members of a zip archive. Use it as a context manager, or call `close`.

    Args:
      path: The archive.

    Attributes:
      path: The archive.
      names: Names of the members.

    Raises:
      UserError: The file is not a zip archive, or is truncated.
      OSError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged directory can raise anything
            raise UserError(
                f"the file is damaged or truncated ({error}). Copy it again."
            ) from error
        self.names = self._zip.namelist()
        self._size = os.path.getsize(path)
        self._kept: dict[str, int] = {}  # {name: size in bytes}

    def __enter__(self) -> ZipMembers:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def info(self, name: str) -> zipfile.ZipInfo:
        """Returns the entry of a member.

        Raises:
          UserError: There is no such member.
        """
        try:
            return self._zip.getinfo(name)
        except KeyError:
            raise UserError(
                f"the member {name} is missing. The file is damaged; copy it again."
            ) from None

    def check_names(self) -> None:
        """Raises an exception if a member is called otherwise in the directory of the archive.

        The directory has no checksum. A damaged name in it would hide a member.
        """
        for name in self.names:
            self._zip.open(name).close()

    def open(self, name: str, *, keep: bool = True) -> IO[bytes]:
        """Opens a member for reading; it ends after the size that it declares.

        Args:
          name: The member.
          keep: Whether the content is kept in memory, with that of the members opened before.

        Raises:
          UserError: There is no such member, or what is kept is larger than the bounds allow.
          Exception: The member is damaged; reading may raise, too.
        """
        sizes = self._kept | {name: self.info(name).file_size}
        limits.check_unpacked(
            sum(sizes.values()), self._size, f"{self.path}: with {name}, it unpacks to"
        )
        self._kept = sizes if keep else self._kept
        return self._zip.open(name)
