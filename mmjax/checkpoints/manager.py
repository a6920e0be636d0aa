"""Checkpoints of the train state; the one file that knows Orbax.

A checkpoint is `<run>/checkpoints/<step>/` with the state (`PyTreeSave`) and a small JSON beside
it. Saves are asynchronous and appear under their name only when complete, so a killed writer or a
full disk leaves the one before as the newest.

Parameters that are frozen are the same in every checkpoint of a run: they are saved once, in
`<run>/checkpoints/frozen-<hash of their bits>/`, which the JSON of each step names. Readers see one
state, wherever its parts are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mmjax import distributed, tree
from mmjax.errors import UserError
from mmjax.formats import published_checkpoints, tf_checkpoint, torch_reader

DIRECTORY = "checkpoints"
FROZEN = "frozen"  # in the JSON of a step, and how the folders' names begin
METADATA = "_CHECKPOINT_METADATA"

_Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # by path


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What a step holds: shapes of its own arrays and of the frozen ones, which are in a folder
    beside it (None: there are none), and its JSON."""

    own: _Shapes
    frozen: _Shapes
    directory: str | None
    meta: dict


def directory_of(run_dir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(run_dir).absolute() / DIRECTORY


def list_steps(run_dir: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints of a run, oldest first."""
    directory = directory_of(run_dir)
    if not directory.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in directory.iterdir()
        if entry.name.isdigit() and (entry / METADATA).exists()
    )


def find(source: str | os.PathLike) -> tuple[pathlib.Path, int]:
    """Run directory and step of `<run>` (its newest checkpoint) or `<run>/checkpoints/<step>`.

    Raises:
      UserError: there is no such checkpoint; those that are there are named.
    """
    if prefix := tf_checkpoint.find(source):
        raise UserError(
            f"{source} is a TensorFlow checkpoint. A training takes it as it is "
            "(--override_checkpoint, config.init_from); for anything else make a run directory of "
            f"it: mmjax convert {prefix} --out RUN"
        )
    if torch_reader.is_file(source):
        raise UserError(
            f"{source} is a file of PyTorch's. A training takes it as it is "
            "(--override_checkpoint, config.init_from), and so does mmjax.load; for anything else "
            f"make a run directory of it: mmjax convert {source} --out RUN"
        )
    path, wanted = pathlib.Path(source), None
    if path.name.isdigit() and path.parent.name == DIRECTORY:
        path, wanted = path.parent.parent, int(path.name)
    steps = list_steps(path)
    if not steps or (wanted is not None and wanted not in steps):
        there = f"it has the steps {steps}" if steps else "there is no complete checkpoint in it"
        raise UserError(
            f"{source}: not a run directory (or one of its steps, <run>/{DIRECTORY}/<step>): {there}."
            f"{published_checkpoints.hint(source)}"
        )
    return path, steps[-1] if wanted is None else wanted


class Checkpoints:
    """The checkpoints of one run.

    Args:
      run_dir: the run directory.
      every: save each time the step is a multiple of this.
      keep: how many of the newest stay.
      keep_every: besides, keep those whose step is a multiple of this (0: none).
      frozen: {path of a parameter: whether it is frozen}, of the trainer's; {}: none is.
      read_only: for readers beside a trainer: nothing is created or deleted.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        every: int = 1000,
        keep: int = 3,
        keep_every: int = 0,
        frozen: Mapping[str, bool] | None = None,
        read_only: bool = False,
    ):
        if every < 1 or keep < 1 or keep_every < 0:
            raise UserError(
                f"config.checkpoint: every={every} and keep={keep} must be at least 1, "
                f"keep_every={keep_every} at least 0."
            )
        self.run_dir = pathlib.Path(run_dir).absolute()
        self.every = every
        self._frozen = {f"params/{path}" for path, yes in (frozen or {}).items() if yes}
        self._frozen_name: str | None = None  # of the folder that has them, once it is known
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=0 if read_only else 1,
            max_to_keep=None if read_only else keep,
            keep_period=keep_every or None,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        # Named here, or a manager that has not saved yet cannot read the metadata of what is there.
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        with _quiet() if read_only else contextlib.nullcontext():  # it warns that it cannot write
            self._manager = ocp.CheckpointManager(
                directory_of(run_dir), item_handlers=handlers, options=options
            )

    def steps(self) -> list[int]:
        return list_steps(self.run_dir)

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def save(self, step: int, state: dict, meta: dict) -> None:
        """Starts an asynchronous save; a step that is already there is left alone.

        Raises:
          UserError: this or the previous save could not be written (disk full, no permission).
        """
        if step in self.steps():
            return
        try:
            if self._frozen:
                meta = {**meta, FROZEN: self._save_frozen(state)}
                state = _params_only(state, lambda path: path not in self._frozen)
            # Forced: after a return to an older step, that step's successors are saved again.
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(error) from error

    def _save_frozen(self, state: dict) -> str:
        """The folder that has the frozen parameters, which is written if it is not there."""
        if self._frozen_name is None:
            frozen = _params_only({"params": state["params"]}, lambda path: path in self._frozen)
            name = f"{FROZEN}-{fingerprint(frozen)}"
            if not (directory_of(self.run_dir) / name / METADATA).exists():
                with _frozen_reader() as checkpointer:
                    checkpointer.save(
                        directory_of(self.run_dir) / name,
                        args=ocp.args.PyTreeSave(frozen),
                        force=True,
                    )
            self._frozen_name = name
        return self._frozen_name

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> UserError:
        steps = self.steps()
        left = f"The checkpoint of step {steps[-1]} is intact." if steps else "There is none yet."
        return UserError(
            f"Could not write a checkpoint to {directory_of(self.run_dir)}: {error}. {left} Free some "
            "space (or give another --model_dir) and start again: the run resumes from it."
        )

    def restore(self, step: int, state: Any) -> tuple[dict, dict]:
        """The state and the JSON of a step.

        Args:
          step: of `steps()`.
          state: abstract state (`jax.ShapeDtypeStruct` with shardings); may hold some of the
            top-level parts only, then only these are read.

        Raises:
          UserError: the checkpoint belongs to another architecture; what differs is named.
        """
        there = self._contents(step)
        self._check_same(step, state, there.own | there.frozen)
        return self._restore(step, state, there, as_numpy=False), there.meta

    def _restore(self, step: int, state: Any, there: _Contents, *, as_numpy: bool) -> dict:
        """A state that is known to be there; arrays of the host need no shardings."""

        def args(item):
            how = ocp.checkpoint_utils.construct_restore_args(item)
            if as_numpy:
                how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            return ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)

        own = _params_only(state, lambda path: path not in there.frozen)
        found = dict(self._manager.restore(step, args=ocp.args.Composite(state=args(own))).state)
        parts = {"params": state["params"]} if "params" in state else {}
        if rest := _params_only(parts, lambda path: path in there.frozen):
            frozen = self._from_frozen(
                there.directory, lambda c, path: c.restore(path, args=args(rest))
            )
            leaves = tree.flatten(frozen["params"]) | tree.flatten(found.get("params", {}))
            found["params"] = tree.map_named(lambda path, _: leaves[path], state["params"])
        return found

    def restore_newest(self, state: Any) -> tuple[dict, dict, int] | None:
        """`(state, json, step)` of the newest checkpoint that can be read; None if there is none.

        One that is damaged is set aside as `<step>.damaged` (a reader leaves it alone), with a
        warning, and the one before is used.
        """
        for entry in directory_of(self.run_dir).glob("*"):
            if entry.name.isdigit() and not (entry / METADATA).exists():
                self._set_aside(int(entry.name), f"it has no {METADATA}")
        for step in reversed(self.steps()):
            try:
                return (*self.restore(step, state), step)
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001 - Orbax has no common type for damage
                self._set_aside(step, str(error))
        return None

    def _set_aside(self, step: int, why: str) -> None:
        why = why.splitlines()[0][:300] if why else "no reason given"
        logging.warning("Checkpoint %d of %s is damaged: %s", step, self.run_dir, why)
        if self._read_only:
            logging.warning("Passed over; trying the one before.")
            return
        if distributed.is_primary():
            path = directory_of(self.run_dir) / str(step)
            path.rename(_free_name(path.with_name(f"{step}.damaged")))
        distributed.barrier(f"set aside {step}")
        self._manager.reload()
        logging.warning("Set aside as %d.damaged; trying the one before.", step)

    def shapes(self, step: int) -> _Shapes:
        """{path: (shape, dtype)} of what a checkpoint holds."""
        there = self._contents(step)
        return there.own | there.frozen

    def _contents(self, step: int) -> _Contents:
        """What a step says of itself, without its arrays."""
        metadata = self._manager.item_metadata(step)["state"]
        if metadata is None:
            raise ValueError(f"the metadata of step {step} cannot be read")
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = dict(restored.meta or {})
        directory = meta.pop(FROZEN, None)
        frozen = {}
        if directory is not None:
            frozen = self._from_frozen(directory, lambda c, p: _shapes(c.metadata(p).item_metadata))
        return _Contents(own=_shapes(metadata), frozen=frozen, directory=directory, meta=meta)

    def _from_frozen(
        self, name: str, function: Callable[[ocp.Checkpointer, pathlib.Path], Any]
    ) -> Any:
        """`function` of a reader and the folder of frozen parameters.

        Raises:
          UserError: they are gone or damaged. Without them no step of the run is whole, so that
            none is set aside for it.
        """
        path = directory_of(self.run_dir) / name
        try:
            if not (path / METADATA).exists():
                raise FileNotFoundError(f"it has no {METADATA}")
            with _frozen_reader() as checkpointer:
                return function(checkpointer, path)
        except Exception as error:  # noqa: BLE001 - Orbax has no common type for damage
            why = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise UserError(
                f"{path}, which has the frozen parameters of this run's checkpoints, cannot be "
                f"read: {why}. Copy it there again; another run that froze the same has the same."
            ) from error

    def read(self, step: int, parts: Sequence[str]) -> dict:
        """Some parts of the state ('params', 'extra', …) as numpy arrays, on whatever devices."""
        there = self._contents(step)
        target = {
            path: jax.ShapeDtypeStruct(*shape)
            for path, shape in (there.own | there.frozen).items()
            if path.split("/")[0] in parts
        }
        found = self._restore(step, tree.unflatten(target), there, as_numpy=True)
        return {part: found.get(part, {}) for part in parts}

    def _check_same(self, step: int, state: Any, there: _Shapes) -> None:
        parts = set(state)
        wanted = {path: tuple(leaf.shape) for path, leaf in tree.flatten(state).items()}
        found = {path: s for path, (s, _) in there.items() if path.split("/")[0] in parts}
        lines = [f"  missing     {path} {wanted[path]}" for path in wanted if path not in found]
        lines += [f"  unexpected  {path} {found[path]}" for path in found if path not in wanted]
        lines += [
            f"  shape       {path}: here {wanted[path]}, in the checkpoint {found[path]}"
            for path in wanted
            if path in found and wanted[path] != found[path]
        ]
        if lines:
            more = f"\n  … and {len(lines) - 12} more" if len(lines) > 12 else ""
            raise UserError(
                f"The checkpoint of step {step} in {self.run_dir} is of another architecture or "
                f"optimizer:\n"
                + "\n".join(lines[:12])
                + more
                + "\nUse the run's own config, or another "
                "--model_dir with --config.init_from to take over the parameters that fit."
            )

    def close(self) -> None:
        """Waits for what is being saved, then lets go of the directory."""
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(error) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of libraries."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _frozen_reader() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _shapes(metadata: Any) -> _Shapes:
    leaves = tree.flatten(getattr(metadata, "tree", metadata))
    return {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves.items()}


def _params_only(state: Mapping[str, Any], wanted: Callable[[str], bool]) -> dict:
    """The state with those of its parameters whose path is wanted; without `params` if none is."""
    leaves = {
        path: leaf
        for path, leaf in tree.flatten(state.get("params", {})).items()
        if wanted(f"params/{path}")
    }
    rest = {name: part for name, part in state.items() if name != "params"}
    return rest | ({"params": tree.unflatten(leaves)} if leaves else {})


def fingerprint(state: dict) -> str:
    """A hash of the names and bits of all leaves, the same on any mesh."""
    leaves = tree.flatten(state)
    sums = jax.device_get(
        jax.jit(lambda leaves: [_bit_sums(x) for x in leaves])(list(leaves.values()))
    )
    digest = hashlib.sha256()
    for (path, leaf), both in zip(leaves.items(), sums, strict=True):
        digest.update(f"{path} {leaf.shape} {leaf.dtype} {both[0]} {both[1]}\n".encode())
    return digest.hexdigest()[:12]


def _bit_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums of the bits as numbers, modulo 2^32: one plain, one by place. Integers add up to
    the same in any order, so a sharded array has the sums of a whole one."""
    kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, bits.size)
    return bits.sum(dtype=jnp.uint32), (bits * (place * jnp.uint32(2654435761) + 1)).sum(
        dtype=jnp.uint32
    )


def _free_name(path: pathlib.Path) -> pathlib.Path:
    number, candidate = 0, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate
