"""Measures what checksums add to saving and restoring a checkpoint.

python -m tests.drills.checksum_cost --mib 512
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp

from mmjax import sharding
from mmjax.checkpoints import checksums
from mmjax.checkpoints.manager import Checkpoints

ARRAY_MIB = 16


def measure(state: dict, directory: pathlib.Path) -> dict[str, float]:
    """Returns the seconds of a save, of the part that blocks training, and of a restore."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    saved = Checkpoints(directory)
    start = time.monotonic()
    saved.save(1, state, {})
    blocked = time.monotonic() - start
    saved.wait()
    save = time.monotonic() - start
    start = time.monotonic()
    jax.block_until_ready(saved.restore(1, abstract)[0])
    restore = time.monotonic() - start
    saved.close()
    return {"save": save, "save, blocking training": blocked, "restore": restore}


def without_checksums() -> mock._patch:
    """Returns a context in which `Checkpoints` computes no checksums."""
    return mock.patch.multiple(
        checksums,
        of_arrays=lambda state: {},
        verify=lambda state, expected: None,
        verify_shapes=lambda shapes, expected: None,
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    count = max(1, args.mib // ARRAY_MIB)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as directory:
        keys = jax.random.split(jax.random.key(0), count)
        arrays = {
            f"a{i}": jax.random.normal(key, (ARRAY_MIB << 8, 1024)) for i, key in enumerate(keys)
        }
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        state = {"params": jax.device_put(arrays, where), "step": jnp.int32(1)}
        jax.block_until_ready(checksums.of_arrays(state))  # compiles
        seconds: dict[tuple[str, bool], list[float]] = {}
        for repeat in range(2 * args.repeats):
            checked = repeat % 2 == 0
            target = pathlib.Path(directory, str(repeat))
            if checked:
                measured = measure(state, target)
            else:
                with without_checksums():
                    measured = measure(state, target)
            for name, value in measured.items():
                seconds.setdefault((name, checked), []).append(value)
    print(f"{count * ARRAY_MIB} MiB on {jax.devices()[0].device_kind}, median of {args.repeats}")
    for name in measured:
        plain, checked = (statistics.median(seconds[name, c]) for c in (False, True))
        rate = count * ARRAY_MIB * 2**20 / 1e6
        print(
            f"{name}: {rate / plain:.0f} MB/s without, {rate / checked:.0f} MB/s with checksums "
            f"(time x {checked / plain:.2f})"
        )


if __name__ == "__main__":
    main()
