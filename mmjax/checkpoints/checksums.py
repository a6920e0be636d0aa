"""Checksums of the arrays of a checkpoint, stored in the JSON of its step and compared on restore.

A checksum consists of two sums over the bits of an array, read as unsigned integers, modulo 2^32:
a plain sum, which detects every change of a single element, and one weighted by position. Sums do
not depend on the order of additions, so an array has the same checksum on any mesh, and no process
needs the shards of another. Host arrays are summed by NumPy, arrays of accelerators and of several
processes where they are.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import tree

CHECKSUMS = "checksums"  # keys in the JSON of a step
_DIGEST = "digest"
_FACTOR = 2654435761  # odd; spreads positions over 32 bits
_BLOCK = 1 << 16  # elements that NumPy sums at once, so that they stay in the cache
_WEIGHTS = (np.arange(_BLOCK, dtype=np.uint64) * _FACTOR + 1).astype(np.uint32)


class MismatchError(ValueError):
    """An array or the JSON of a checkpoint differs from what was saved."""


def of_arrays(state: Any) -> dict[str, str]:
    """Returns {path: checksum with shape and type} of the arrays of a state."""
    leaves = tree.flatten(state)
    return {
        path: f"{_describe(leaf.shape, leaf.dtype)} {plain:08x}{weighted:08x}"
        for (path, leaf), (plain, weighted) in zip(
            leaves.items(), _sums(list(leaves.values())), strict=True
        )
    }


def verify(state: Any, expected: Mapping[str, str]) -> None:
    """Raises MismatchError if an array of a restored state has another checksum than expected."""
    for path, checksum in of_arrays(state).items():
        if expected.get(path) != checksum:
            raise MismatchError(
                f"the array {path} differs from what was saved (checksum {checksum}, expected "
                f"{expected.get(path, 'none')})"
            )


def verify_shapes(
    shapes: Mapping[str, tuple[Sequence[int], Any]], expected: Mapping[str, str]
) -> None:
    """Raises MismatchError if the metadata of arrays differ from the arrays that were saved."""
    for path in {**shapes, **expected}:
        actual = _describe(*shapes[path]) if path in shapes else "none"
        saved = expected.get(path, "none").rpartition(" ")[0] or "none"
        if actual != saved:
            raise MismatchError(f"the metadata of {path} are {actual}; saved was {saved}")


def _describe(shape: Sequence[int], dtype: Any) -> str:
    return f"{np.dtype(dtype).name}{list(shape)}"


def sign(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JSON of a step with a checksum of itself."""
    return {**meta, _DIGEST: _digest(meta)}


def check_signed(meta: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON of a step without its checksum; that of earlier versions has none.

    Raises:
      MismatchError: It differs from what was saved.
    """
    rest = {name: value for name, value in meta.items() if name != _DIGEST}
    if (_DIGEST in meta or CHECKSUMS in meta) and meta.get(_DIGEST) != _digest(rest):
        raise MismatchError("the JSON of the step (meta/metadata) differs from what was saved")
    return rest


def _digest(meta: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(meta, sort_keys=True).encode()):08x}"


def fingerprint(state: dict) -> str:
    """Returns a hash of the paths and bits of all leaves; it does not depend on the mesh."""
    leaves = tree.flatten(state)
    digest = hashlib.sha256()
    for (path, leaf), both in zip(leaves.items(), _sums(list(leaves.values())), strict=True):
        digest.update(f"{path} {leaf.shape} {leaf.dtype} {both[0]} {both[1]}\n".encode())
    return digest.hexdigest()[:12]


def _sums(leaves: list[Any]) -> Iterable[tuple[int, int]]:
    """Returns both sums of each array."""
    on_host = [_on_host(leaf) for leaf in leaves]
    others = [leaf for leaf, host in zip(leaves, on_host, strict=True) if not host]
    compiled = iter(jax.device_get(_device_sums(others)) if others else ())
    for leaf, host in zip(leaves, on_host, strict=True):
        plain, weighted = _host_sums(np.asarray(leaf)) if host else next(compiled)
        yield int(plain), int(weighted)


def _on_host(leaf: Any) -> bool:
    """Returns whether NumPy can read an array without a copy between devices."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_replicated and all(d.platform == "cpu" for d in leaf.devices())


def _host_sums(x: np.ndarray) -> tuple[int, int]:
    flat = np.ascontiguousarray(x).reshape(-1)
    words = flat.view(np.dtype(f"u{min(x.dtype.itemsize, 4)}"))
    plain = weighted = 0
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK].astype(np.uint32, copy=False)
        total = int(block.sum(dtype=np.uint64))
        local = int((block * _WEIGHTS[: block.size]).sum(dtype=np.uint64))
        plain += total
        weighted += local + start * _FACTOR * total  # the weights of a block grow by its start
    return plain % 2**32, weighted % 2**32


@jax.jit
def _device_sums(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    return [_bit_sums(x) for x in leaves]


def _bit_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    dtype = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")  # two words of an 8-byte element
    bits = jax.lax.bitcast_convert_type(x, dtype).astype(jnp.uint32).reshape(-1)
    index = jax.lax.iota(jnp.uint32, bits.size)
    weighted = bits * (index * jnp.uint32(_FACTOR) + 1)
    return bits.sum(dtype=jnp.uint32), weighted.sum(dtype=jnp.uint32)
