"""The device mesh, sharding rules over the train state, and the memory table.

The same code runs on a laptop and on a pod: arrays are global, and XLA's partitioner (GSPMD)
distributes the computation. The mesh has three axes: `data` (replicates parameters), `fsdp` (shards
parameters and gathers them when used) and `tensor` (shards heads and hidden units). A batch is
sharded over `data` and `fsdp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax import tree
from mmjax.errors import UserError, choose, unknown

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# 'auto' replicates smaller leaves: sharding them saves nothing and costs a gather.
_MIN_SPLIT = 2**12

# Ordered (pattern, axes) rules. Axes apply to the last dimensions, so a leading scan axis is not
# sharded. 'auto' shards the largest dimension that `fsdp` divides. Paths of optimizer moments and
# averages end in the path of their parameter, so they are sharded like it.
PRESETS: dict[str, tuple[tuple[str, Any], ...]] = {
    "dp": ((r".*", ()),),
    "fsdp": ((r".*", "auto"),),
    "fsdp_tp": (
        (r"attention/(query|key|value)/kernel$", ("fsdp", "tensor")),
        (r"attention/(query|key|value)/bias$", ("tensor",)),
        (r"attention/out/kernel$", ("tensor", "fsdp")),
        (r"mlp/(wi|wi_gate|up|gate)/kernel$", ("fsdp", "tensor")),
        (r"mlp/(wi|wi_gate|up|gate)/bias$", ("tensor",)),
        (r"mlp/(wo|down)/kernel$", ("tensor", "fsdp")),
        (r".*", "auto"),
    ),
}


def make_mesh(
    *, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns the device mesh.

    Args:
      data: Size of the axis that replicates parameters. One of the axes may be -1, which is all
        remaining devices.
      fsdp: Size of the axis that shards parameters.
      tensor: Size of the axis that shards heads and hidden units.
      devices: Devices to use; None uses all.

    Raises:
      UserError: The product of the sizes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise UserError(
            f"config.mesh={sizes}: sizes must be at least 1; one of them may be -1 (all remaining "
            "devices)."
        )
    if free:
        if len(devices) % known:
            raise UserError(
                f"config.mesh={sizes}: the product {known} of the fixed sizes does not divide the "
                f"{len(devices)} available devices."
            )
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"config.mesh={sizes} needs {known} devices, but {len(devices)} are available. Set one "
            "size to -1 to use all of them."
        )
    shape = tuple(sizes[axis] for axis in AXES)
    return Mesh(_arrange(devices, shape), AXES, axis_types=(AxisType.Auto,) * 3)


def _arrange(devices: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the devices in the shape of a mesh, so that the last axes have the fastest links.

    `jax.make_mesh` refuses devices on several GPU hosts or TPU slices, and on most TPUs axes that
    take only a part of a dimension of the slice.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and devices[0].platform == "tpu":
        if shape[0] % slices:
            raise UserError(
                f"config.mesh.data={shape[0]} must be a multiple of the {slices} TPU slices, "
                "because only this axis can use the network between them."
            )
        within = (shape[0] // slices, *shape[1:])
        return mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def check_batch(
    batch_size: int, mesh: Mesh, num_parts: int = 1, *, key: str = "config.batch_size"
) -> None:
    """Raises UserError unless each part of a batch can be split evenly over the mesh.

    Args:
      batch_size: Global batch size.
      mesh: Mesh whose data and fsdp axes share a batch.
      num_parts: Number of parts that are computed one after the other.
      key: Full config key or flag of the batch size, for the error message.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = devices * num_parts
    if batch_size < 1 or batch_size % unit:
        parts = (
            f" × {num_parts} parts (config.accumulate_steps or config.updates_per_step)"
            if num_parts > 1
            else ""
        )
        raise UserError(
            f"{key}={batch_size} must be a positive multiple of {devices} devices{parts}. The "
            f"nearest valid size is {max(1, round(batch_size / unit)) * unit}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch over its leading dimension."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def make_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global batch [B, …] from the examples of this host (numpy, [B / hosts, …])."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }


def per_device(
    function: Callable[..., Any],
    batch_size: int,
    key_data: jax.Array | None,
    inputs: Sequence[jax.Array | None] = (),
    *,
    in_axes: Sequence[tuple[str | None, ...]] = (),
    out_axes: Sequence[tuple[str | None, ...]] = ((),),
) -> tuple[jax.Array, ...]:
    """Calls a function that XLA's partitioner cannot split on each device's examples.

    If the devices cannot share the batch evenly, every device computes all of it. `jax.vmap` makes
    one call for a larger batch with the first of the keys.

    Args:
      function: Called as `function(number of examples, data of a key, *inputs)`; returns a tuple
        of arrays [B, …].
      batch_size: B, the number of examples on all devices.
      key_data: Data of a random key, uint32 [2]; devices with different parts of the results get
        different ones. None for none.
      inputs: Arrays [B, …] or None.
      in_axes: Mesh axes of the dimensions of each input after the first.
      out_axes: The same for the results.
    """
    return _per_device(function, batch_size, in_axes, out_axes)(key_data, *inputs)


def _per_device(
    function: Callable[..., Any], batch_size: int, in_axes: Sequence, out_axes: Sequence
) -> Callable[..., tuple[jax.Array, ...]]:
    """Returns the function of `key_data` and `*inputs` of `per_device`."""
    mesh = jax.sharding.get_abstract_mesh()
    batch_axes = tuple(a for a in BATCH_AXES if a in mesh.auto_axes and mesh.shape[a] > 1)
    ways = math.prod(mesh.shape[axis] for axis in batch_axes)
    if batch_size % ways:
        batch_axes, ways = (), 1
    other_axes = dict.fromkeys(a for axes in out_axes for a in axes if a in mesh.auto_axes)

    def spec(axes):
        return PartitionSpec(batch_axes, *(a if a in other_axes else None for a in axes))

    def local(data, *inputs):
        if data is not None and (axes := (*batch_axes, *other_axes)):
            # Generators are made for keys that differ in any bit, so this needs no hash. Multiples
            # of the golden ratio are far from each other also if a kernel adds small numbers.
            data += jax.lax.axis_index(axes).astype(data.dtype) * np.uint32([0, 0x9E3779B9])
        return function(batch_size // ways, data, *inputs)

    @jax.custom_batching.custom_vmap
    def call(data, *inputs):
        if mesh.size == 1 or not mesh.auto_axes:
            return local(data, *inputs)
        return jax.shard_map(
            local,
            in_specs=(PartitionSpec(), *map(spec, in_axes)),
            out_specs=tuple(map(spec, out_axes)),
            check_vma=False,
        )(data, *inputs)

    @call.def_vmap
    def vmapped(size, in_batched, data, *inputs):
        def merge(x, batched):
            x = x if batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        data = data[0] if in_batched[0] else data
        merged = [
            None if x is None else merge(x, b) for x, b in zip(inputs, in_batched[1:], strict=True)
        ]
        outputs = _per_device(function, size * batch_size, in_axes, out_axes)(data, *merged)
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in outputs), (True,) * len(outputs)

    return call


def _auto(shape: tuple[int, ...], ways: int) -> tuple[Any, ...]:
    if math.prod(shape) < _MIN_SPLIT:
        return ()
    fitting = [i for i, size in enumerate(shape) if size % ways == 0]
    if not fitting:
        return ()
    best = max(fitting, key=lambda i: (shape[i], i))
    return tuple("fsdp" if i == best else None for i in range(len(shape)))


def state_shardings(
    state: Any, mesh: Mesh, *, preset: str = "dp", rules: Sequence[tuple[str, Any]] = ()
) -> Any:
    """Returns a tree of shardings like `state`; the first rule that matches a path applies.

    Args:
      state: The abstract train state (any tree of leaves with shapes).
      mesh: The mesh from `make_mesh`.
      preset: A name in `PRESETS`.
      rules: Ordered (pattern, axes) rules that precede the preset. Each must match a path.

    Raises:
      UserError: An unknown preset or axis, an unused rule, a dimension that its axis does not
        divide, or a parameter with fewer dimensions than axes.
    """
    leaves = tree.flatten(state)
    base = choose("config.sharding", preset, PRESETS)
    own = tree.first_match([r[0] for r in rules], list(leaves), what="config.sharding_rules")
    default = tree.first_match([r[0] for r in base], list(leaves), what=preset, every_pattern=False)

    def one(path: str, leaf: Any) -> NamedSharding:
        explicit = own[path] is not None
        axes = rules[own[path]][1] if explicit else base[default[path]][1]
        if axes == "auto":
            axes = _auto(leaf.shape, mesh.shape["fsdp"])
        if len(axes) > len(leaf.shape):
            if explicit and path.startswith("params/"):
                raise UserError(
                    f"config.sharding_rules: {path} of shape {tuple(leaf.shape)} has fewer "
                    f"dimensions than its rule has axes: {axes}."
                )
            axes = ()  # e.g. a scalar moment whose path ends like its parameter's
        axes = (None,) * (len(leaf.shape) - len(axes)) + tuple(axes)
        spec = []
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and axis not in AXES:
                raise unknown(f"axis of config.sharding_rules for {path}:", axis, AXES)
            if axis is not None and size % mesh.shape[axis]:
                if explicit:
                    raise UserError(
                        f"config.sharding_rules: {path} of shape {tuple(leaf.shape)} has a "
                        f"dimension of {size} that axis {axis!r} of size {mesh.shape[axis]} does "
                        "not divide."
                    )
                axis = None
            spec.append(axis)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return tree.map_named(one, state)


def shard_bytes(leaf: Any, sharding: NamedSharding) -> int:
    """Returns the bytes of a leaf on one device."""
    return math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def plan_table(state: Any, shardings: Any, *, full: bool = False) -> str:
    """Returns a table of elements and bytes by part of the state.

    Args:
      state: The abstract train state.
      shardings: The shardings of its leaves.
      full: Whether to list every parameter.
    """
    leaves, where = tree.flatten(state), tree.flatten(shardings)
    rows: dict[str, list[float]] = {}
    for path, leaf in leaves.items():
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        part = path.split("/")[0]
        row = rows.setdefault(part, [0, 0, 0])
        row[0] += math.prod(leaf.shape)
        row[1] += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        row[2] += shard_bytes(leaf, where[path])
    lines = [f"{'part':<10}{'elements':>16}{'MiB in total':>14}{'MiB/device':>14}"]
    for part, (elements, total, local) in rows.items():
        lines.append(f"{part:<10}{elements:>16,}{total / 2**20:>14.2f}{local / 2**20:>14.2f}")
    if full:
        width = max(len(path) for path in leaves if path.startswith("params/")) + 2
        lines.append("")
        for path, leaf in leaves.items():
            if path.startswith("params/"):
                spec = ", ".join(str(a) if a else "-" for a in where[path].spec) or "-"
                lines.append(f"{path:<{width}}{str(tuple(leaf.shape)):<24}{leaf.dtype}  [{spec}]")
    return "\n".join(lines)
