"""Saving and restoring the train state. Only this file uses Orbax.

A checkpoint is `<run>/checkpoints/<step>/` with the state (`PyTreeSave`) and a small JSON file.
Saves are asynchronous, and a checkpoint gets its name only when it is complete, so after a killed
writer or a full disk the previous checkpoint is the newest.

Frozen parameters are the same in every checkpoint of a run. They are saved once, in
`<run>/checkpoints/frozen-<hash of their bits>/`, and the JSON of each step names that directory.
Restoring merges both parts.

The JSON of a step holds a checksum of every array and of itself. Restoring compares them, so that a
damaged checkpoint is never used silently.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mmjax import distributed, files, tree
from mmjax.checkpoints import checksums
from mmjax.checkpoints.find import METADATA, checkpoints_dir, list_steps, unreadable
from mmjax.errors import UserError

FROZEN = "frozen"  # key in the JSON of a step, and prefix of directory names


class DamagedError(UserError):
    """A checkpoint that can be opened but is not what was saved.

    Args:
      run_dir: The run directory.
      step: Step of the checkpoint.
      reason: What is wrong.
    """

    def __init__(self, run_dir: str | os.PathLike, step: int, reason: str):
        others = [other for other in list_steps(run_dir) if other != step]
        advice = f"Use another step of this run ({others}), or restore" if others else "Restore"
        path = checkpoints_dir(run_dir) / str(step)
        super().__init__(f"{path} is damaged: {reason}. {advice} it from a backup.")


Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # by path


@dataclasses.dataclass(frozen=True)
class _Contents:
    """Description of a checkpoint without its arrays.

    Attributes:
      own: Shapes of the arrays in the directory of the step.
      frozen: Shapes of the frozen parameters, which are in another directory.
      frozen_dir: Name of that directory; None without frozen parameters.
      meta: The JSON of the step.
      checksums: {path: checksum} of all arrays; None in checkpoints of earlier versions.
    """

    own: Shapes
    frozen: Shapes
    frozen_dir: str | None
    meta: dict
    checksums: dict[str, str] | None

    @property
    def shapes(self) -> Shapes:
        return self.own | self.frozen


class Checkpoints:
    """The checkpoints of one run.

    Args:
      run_dir: The run directory.
      every: Steps between checkpoints.
      keep: Number of newest checkpoints to keep.
      keep_every: Checkpoints at multiples of this step are kept as well; 0 keeps none.
      frozen: {path of a parameter: whether it is frozen}; None if none is.
      read_only: Creates and deletes nothing, for readers of a run in training.
      original: The run directory that `run_dir` is a copy of, which messages name instead.

    Raises:
      UserError: An option is out of range.
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
        original: str | os.PathLike | None = None,
    ):
        if every < 1 or keep < 1 or keep_every < 0:
            raise UserError(
                f"config.checkpoint.every={every} and config.checkpoint.keep={keep} must be at "
                f"least 1, and config.checkpoint.keep_every={keep_every} at least 0."
            )
        self.run_dir = pathlib.Path(run_dir).absolute()
        self._named = self.run_dir if original is None else original
        self.every = every
        self._frozen = {f"params/{path}" for path, yes in (frozen or {}).items() if yes}
        self._frozen_dir: str | None = None  # name of their directory once they are saved
        self._frozen_sums: dict[str, str] = {}
        self._saving: int | None = None  # step of the last save, which may be in progress
        self._read_only = read_only
        list_steps(run_dir)  # names a directory that cannot be opened
        if not read_only and distributed.is_primary():
            # Orbax would do this in the background, and delete what is being saved meanwhile.
            for unfinished in checkpoints_dir(run_dir).glob("*.orbax-checkpoint-tmp*"):
                files.remove(unfinished)
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=0 if read_only else 1,
            max_to_keep=None if read_only else keep,
            keep_period=keep_every or None,
            create=not read_only,
            read_only=read_only,
            lightweight_initialize=True,  # reads no metadata, which may be damaged
            # Otherwise threads wait for minutes, also at the end of the process, for directories
            # that could not be created.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        # Without explicit handlers, a manager that has not saved anything cannot read metadata.
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        with _quiet() if read_only else contextlib.nullcontext():  # it warns that it is read-only
            self._manager = ocp.CheckpointManager(
                checkpoints_dir(run_dir), item_handlers=handlers, options=options
            )

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        return list_steps(self.run_dir)

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint is to be saved at this step."""
        return step % self.every == 0

    def save(self, step: int, state: dict, meta: dict) -> None:
        """Starts an asynchronous save. Does nothing if the step exists.

        Args:
          step: Number of completed updates.
          state: The train state.
          meta: JSON-serializable values to store with it.

        Raises:
          UserError: This or the previous save failed (disk full, no permission).
        """
        if step == self._saving or step in self.steps():
            return
        try:
            if self._frozen:
                meta = {**meta, FROZEN: self._save_frozen(state)}
                state = _params_only(state, lambda path: path not in self._frozen)
            sums = checksums.of_arrays(state) | self._frozen_sums
            meta = checksums.sign({**meta, checksums.CHECKSUMS: sums})
            # Forced, because after a return to an older step later steps are saved again.
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )
            self._saving = step
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(error) from error

    def _save_frozen(self, state: dict) -> str:
        """Returns the name of the directory of frozen parameters; writes it if needed."""
        if self._frozen_dir is None:
            frozen = _params_only({"params": state["params"]}, lambda path: path in self._frozen)
            name = f"{FROZEN}-{checksums.fingerprint(frozen)}"
            if not (checkpoints_dir(self.run_dir) / name / METADATA).exists():
                with _frozen_reader() as checkpointer:
                    checkpointer.save(
                        checkpoints_dir(self.run_dir) / name,
                        args=ocp.args.PyTreeSave(frozen),
                        force=True,
                    )
            self._frozen_dir, self._frozen_sums = name, checksums.of_arrays(frozen)
        return self._frozen_dir

    def wait(self) -> None:
        """Waits until pending saves are on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> UserError:
        steps = self.steps()
        previous = f"The checkpoint of step {steps[-1]} is intact." if steps else ""
        return UserError(
            f"Cannot write a checkpoint to {checkpoints_dir(self.run_dir)}: {error}. {previous} "
            "Free disk space or pass another --model_dir, then run the same command to resume."
        )

    def restore(self, step: int, state: Any) -> tuple[dict, dict]:
        """Returns the state and the JSON of a step.

        Args:
          step: A step of `steps()`.
          state: Abstract state (`jax.ShapeDtypeStruct` with shardings). Only the top-level parts
            that it has are read.

        Raises:
          DamagedError: It differs from what was saved.
          UserError: The checkpoint is of another architecture; the message lists differences. Or
            it cannot be opened.
        """
        with self._reading(step):
            contents = self._contents(step)
            self._check_same(step, state, contents.shapes)
            return self._restore(step, state, contents, as_numpy=False), contents.meta

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Converts errors of Orbax, which have no common type."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001
            path = checkpoints_dir(self.run_dir) / str(step)
            if (cause := unreadable(path)) is not None:
                raise cause from error
            raise DamagedError(self._named, step, _first_line(error)) from error

    def _restore(self, step: int, state: Any, contents: _Contents, *, as_numpy: bool) -> dict:
        """Returns a state that the checkpoint contains; NumPy arrays need no shardings."""

        def args(item):
            how = ocp.checkpoint_utils.construct_restore_args(item)
            if as_numpy:
                how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            return ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)

        def from_frozen(reader, path):
            part = reader.restore(path, args=args(rest))
            if contents.checksums is not None:
                checksums.verify(part, contents.checksums)
            return part

        stored = tree.map_named(lambda path, leaf: _with_type(leaf, contents.shapes[path]), state)
        own = _params_only(stored, lambda path: path not in contents.frozen)
        restored = dict(self._manager.restore(step, args=ocp.args.Composite(state=args(own))).state)
        if contents.checksums is not None:
            checksums.verify(restored, contents.checksums)
        parts = {"params": stored["params"]} if "params" in stored else {}
        if rest := _params_only(parts, lambda path: path in contents.frozen):
            frozen = self._from_frozen(contents.frozen_dir, from_frozen)
            leaves = tree.flatten(frozen["params"]) | tree.flatten(restored.get("params", {}))
            restored["params"] = tree.map_named(lambda path, _: leaves[path], state["params"])
        types = {path: leaf.dtype for path, leaf in tree.flatten(state).items()}
        return tree.map_named(
            lambda path, x: x if x.dtype == types[path] else x.astype(types[path]), restored
        )

    def restore_newest(self, state: Any) -> tuple[dict, dict, int] | None:
        """Returns `(state, JSON, step)` of the newest intact checkpoint, or None without one.

        A damaged checkpoint is renamed to `<step>.damaged` with a warning, and the previous one is
        used. A read-only instance renames nothing.
        """
        for entry in checkpoints_dir(self.run_dir).glob("*"):
            if entry.name.isdigit() and not (entry / METADATA).is_file():
                self._set_aside(int(entry.name), f"{entry / METADATA} is missing")
        for step in reversed(self.steps()):
            try:
                return (*self.restore(step, state), step)
            except DamagedError as error:
                self._set_aside(step, str(error))
        return None

    def _set_aside(self, step: int, why: str) -> None:
        logging.warning("Checkpoint %d of %s is damaged: %s", step, self.run_dir, why)
        self._saving = None
        if self._read_only:
            logging.warning("Trying the previous checkpoint.")
            return
        if distributed.is_primary():
            path = checkpoints_dir(self.run_dir) / str(step)
            path.rename(_free_name(path.with_name(f"{step}.damaged")))
        distributed.barrier(f"set aside {step}")
        self._manager.reload()
        logging.warning("Renamed it to %d.damaged. Trying the previous checkpoint.", step)

    def shapes(self, step: int) -> Shapes:
        """Returns {path: (shape, dtype)} of the arrays of a checkpoint.

        Raises:
          DamagedError: It differs from what was saved.
          UserError: It cannot be opened.
        """
        with self._reading(step):
            return self._contents(step).shapes

    def _contents(self, step: int) -> _Contents:
        """Reads the description of a checkpoint."""
        metadata = self._manager.item_metadata(step)["state"]
        if metadata is None:
            raise ValueError(f"the metadata of step {step} cannot be read")
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = checksums.check_signed(dict(restored.meta or {}))
        sums = meta.pop(checksums.CHECKSUMS, None)
        frozen_dir = meta.pop(FROZEN, None)
        frozen = {}
        if frozen_dir is not None:
            frozen = self._from_frozen(
                frozen_dir, lambda c, path: _shapes(c.metadata(path).item_metadata)
            )
        own = _shapes(metadata)
        if sums is not None:
            checksums.verify_shapes(own | frozen, sums)
        return _Contents(own=own, frozen=frozen, frozen_dir=frozen_dir, meta=meta, checksums=sums)

    def _from_frozen(
        self, name: str, function: Callable[[ocp.Checkpointer, pathlib.Path], Any]
    ) -> Any:
        """Returns `function(reader, directory of frozen parameters)`.

        Raises:
          UserError: They are missing or damaged. Every checkpoint of the run needs them, so none
            is renamed as damaged.
        """
        path = checkpoints_dir(self.run_dir) / name
        try:
            if not (path / METADATA).is_file():
                raise FileNotFoundError(f"{METADATA} is missing")
            with _frozen_reader() as checkpointer:
                return function(checkpointer, path)
        except Exception as error:  # noqa: BLE001 - Orbax has no common type for damage
            raise unreadable(path) or UserError(
                f"Cannot read {path}: {_first_line(error)}. It contains the frozen parameters of "
                "all checkpoints of this run. Restore it from a backup, or copy it from another "
                "run with the same frozen parameters."
            ) from error

    def read(self, step: int, parts: Sequence[str]) -> dict:
        """Returns top-level parts of the state ('params', 'extra', …) as NumPy arrays.

        Raises:
          DamagedError: The checkpoint differs from what was saved.
          UserError: It cannot be opened.
        """
        with self._reading(step):
            contents = self._contents(step)
            target = {
                path: jax.ShapeDtypeStruct(*shape)
                for path, shape in contents.shapes.items()
                if path.split("/")[0] in parts
            }
            restored = self._restore(step, tree.unflatten(target), contents, as_numpy=True)
        return {part: restored.get(part, {}) for part in parts}

    def _check_same(self, step: int, state: Any, shapes: Shapes) -> None:
        parts = set(state)
        expected = {path: tuple(leaf.shape) for path, leaf in tree.flatten(state).items()}
        actual = {path: s for path, (s, _) in shapes.items() if path.split("/")[0] in parts}
        lines = [
            f"  missing     {path} {expected[path]}" for path in expected if path not in actual
        ]
        lines += [f"  unexpected  {path} {actual[path]}" for path in actual if path not in expected]
        lines += [
            f"  shape       {path}: model {expected[path]}, checkpoint {actual[path]}"
            for path in expected
            if path in actual and expected[path] != actual[path]
        ]
        if lines:
            more = f"\n  … and {len(lines) - 12} more" if len(lines) > 12 else ""
            raise UserError(
                f"The checkpoint of step {step} in {self._named} has another architecture or "
                "optimizer than this config:\n"
                + "\n".join(lines[:12])
                + more
                + "\nUse the config of that run. To reuse the matching parameters, pass another "
                "--model_dir and --config.init_from."
            )

    def close(self) -> None:
        """Waits for pending saves and closes the directory."""
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(error) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings of libraries."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _frozen_reader() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _shapes(metadata: Any) -> Shapes:
    leaves = tree.flatten(getattr(metadata, "tree", metadata))
    return {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves.items()}


def _params_only(state: Mapping[str, Any], select: Callable[[str], bool]) -> dict:
    """Returns the state with only the selected parameters; without `params` if none is."""
    leaves = {
        path: leaf
        for path, leaf in tree.flatten(state.get("params", {})).items()
        if select(f"params/{path}")
    }
    rest = {name: part for name, part in state.items() if name != "params"}
    return rest | ({"params": tree.unflatten(leaves)} if leaves else {})


def _with_type(leaf: Any, stored: tuple[tuple[int, ...], np.dtype]) -> jax.ShapeDtypeStruct:
    """Returns an abstract leaf with the type in the checkpoint, on which its checksum is based."""
    return jax.ShapeDtypeStruct(leaf.shape, stored[1], sharding=getattr(leaf, "sharding", None))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _free_name(path: pathlib.Path) -> pathlib.Path:
    suffix, candidate = 0, path
    while candidate.exists():
        suffix += 1
        candidate = path.with_name(f"{path.name}{suffix}")
    return candidate
