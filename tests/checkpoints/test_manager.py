"""Checkpoints: bit-exact restore on any mesh, and recovery from damage, crashes and full disks."""

import contextlib
import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import sharding, tree
from mmjax.checkpoints.best import Best
from mmjax.checkpoints.checksums import fingerprint
from mmjax.checkpoints.find import checkpoints_dir, find, list_steps
from mmjax.checkpoints.manager import Checkpoints, DamagedError
from mmjax.checkpoints.snapshot import snapshot
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises

# Orbax leaves unawaited coroutines behind when a read or write fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def trainer():
    return fakes.Trainer(fakes.Contrast(), ema_decay=0.9, frozen=["^right/"])


@pytest.fixture(scope="module")
def state(trainer):
    return trainer.run(2)[0]


def at(state, step):
    """Returns a copy of the state that is marked with its step."""
    return dict(state, step=state["step"] * 0 + step)


def steps_in(run):
    """Returns the entries of the checkpoint directory, without frozen parameters."""
    return sorted(
        path.name for path in checkpoints_dir(run).iterdir() if not path.name.startswith("frozen-")
    )


@contextlib.contextmanager
def opened(path, **options):
    saved = Checkpoints(path, **options)
    yield saved
    saved.close()


@pytest.fixture(scope="module")
def finished(trainer, state, tmp_path_factory):
    """A run with checkpoints 3 and 4 and one frozen tower. Copy it before changing it."""
    path = tmp_path_factory.mktemp("finished")
    with opened(path, frozen=trainer.frozen) as saved:
        for step in (3, 4):
            saved.save(step, at(state, step), {"step": step, "examples": 16 * step})
    return path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


# ---- bit-exact restore


def test_restore_is_bit_exact(finished, trainer, state):
    with opened(finished) as saved:
        restored, meta, step = saved.restore_newest(trainer.abstract)
        older, older_meta = saved.restore(3, trainer.abstract)
    assert (step, meta) == (4, {"step": 4, "examples": 64})
    assert older_meta == {"step": 3, "examples": 48}
    assert fakes.equal(restored, at(state, 4)) and fakes.equal(older, at(state, 3))
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "axes, preset",
    [(dict(data=8), "dp"), (dict(data=1, fsdp=8), "fsdp"), (dict(data=2, tensor=4), "fsdp_tp")],
)
def test_restore_onto_another_mesh_and_back_is_bit_exact(
    axes, preset, finished, trainer, state, tmp_path
):
    mesh = sharding.make_mesh(**axes)
    other = fakes.Trainer(fakes.Contrast(), mesh, ema_decay=0.9, frozen=["^right/"], preset=preset)
    with opened(finished) as saved:
        sharded = saved.restore_newest(other.abstract)[0]
    assert fakes.equal(sharded, at(state, 4))
    expected = jax.tree.leaves(other.shardings)
    for leaf, sharding_ in zip(jax.tree.leaves(sharded), expected, strict=True):
        assert leaf.sharding == sharding_
    with opened(tmp_path) as saved:
        saved.save(4, sharded, {})
        saved.wait()
        assert fakes.equal(saved.restore_newest(trainer.abstract)[0], at(state, 4))


def test_resumed_training_is_bit_exact(trainer, tmp_path):
    half, _ = trainer.run(2)
    expected, expected_losses = trainer.run(2, state=half, first=2)
    with opened(tmp_path) as saved:
        saved.save(2, half, {})
        saved.wait()
        restored = saved.restore_newest(trainer.abstract)[0]
    result, losses = trainer.run(2, state=restored, first=2)
    assert losses == expected_losses and fakes.equal(result, expected)


def test_parts_are_read_as_numpy_without_a_template(finished, state):
    with opened(finished, read_only=True) as saved:
        parts = saved.read(4, ["params", "ema", "none"])
        shapes = saved.shapes(4)
    assert parts["none"] == {}
    for part in ("params", "ema"):
        expected = {p: np.asarray(leaf) for p, leaf in tree.flatten(state[part]).items()}
        result = tree.flatten(parts[part])
        assert result.keys() == expected.keys()
        for path, value in expected.items():
            assert type(result[path]) is np.ndarray and np.array_equal(result[path], value)
    assert shapes["opt/0/mu/left/mlp/wi/kernel"] == ((fakes.IN, fakes.HIDDEN), np.float32)
    assert shapes["step"] == ((), np.int32)


def test_restore_reads_only_the_requested_parts(finished, trainer, state):
    abstract = {name: trainer.abstract[name] for name in ("params", "extra")}
    with opened(finished, read_only=True) as saved:
        restored, _ = saved.restore(4, abstract)
    assert fakes.equal(restored, {name: state[name] for name in abstract})


# ---- frozen parameters


def size_of(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_frozen_parameters_are_saved_once(finished, trainer, state, tmp_path):
    with opened(tmp_path) as saved:  # the same state, with frozen parameters in every step
        saved.save(3, at(state, 3), {})
    directory = checkpoints_dir(finished)
    (frozen_dir,) = directory.glob("frozen-*")
    frozen_bytes = state["params"]["right"]["mlp"]["wi"]["kernel"].nbytes
    assert size_of(frozen_dir) > 0.8 * frozen_bytes  # compressed
    complete_bytes = size_of(checkpoints_dir(tmp_path) / "3")
    assert size_of(directory / "3") < complete_bytes - 0.8 * frozen_bytes
    assert json.loads((directory / "3/meta/metadata").read_text())["frozen"] == frozen_dir.name


def test_changed_frozen_values_do_not_overwrite_the_old_ones(run, trainer, state):
    changed = jax.tree.map(lambda x: x, state)
    kernel = changed["params"]["right"]["mlp"]["wi"]["kernel"]
    changed["params"]["right"]["mlp"]["wi"]["kernel"] = kernel.at[0, 0].add(1e-3)
    with opened(run, frozen=trainer.frozen) as saved:
        saved.save(5, at(changed, 5), {})
    with opened(run) as saved:
        assert len(list(checkpoints_dir(run).glob("frozen-*"))) == 2
        assert fakes.equal(saved.restore(5, trainer.abstract)[0], at(changed, 5))
        assert fakes.equal(saved.restore(4, trainer.abstract)[0], at(state, 4))


@pytest.mark.parametrize("before, after", [(True, False), (False, True)])
def test_parameters_can_be_frozen_or_unfrozen_between_checkpoints(
    before, after, trainer, state, tmp_path
):
    for step, frozen in ((1, before), (2, after)):
        with opened(tmp_path, frozen=trainer.frozen if frozen else None) as saved:
            saved.save(step, at(state, step), {})
    with opened(tmp_path) as saved:
        for step in (1, 2):
            assert fakes.equal(saved.restore(step, trainer.abstract)[0], at(state, step))


@pytest.mark.parametrize("lost", [True, False])
def test_missing_or_damaged_frozen_parameters_are_an_error(lost, run, trainer):
    (frozen_dir,) = checkpoints_dir(run).glob("frozen-*")
    if lost:
        shutil.rmtree(frozen_dir)
    else:
        path = largest(frozen_dir)
        os.truncate(path, path.stat().st_size // 2)
    facts = [frozen_dir, *(["_CHECKPOINT_METADATA"] if lost else [])]
    with opened(run) as saved, raises(UserError, *facts):
        saved.restore_newest(trainer.abstract)
    assert steps_in(run) == ["3", "4"]  # the steps are intact and are not set aside


def test_fingerprint_of_parameters_does_not_depend_on_the_mesh(finished, trainer):
    with opened(finished, read_only=True) as saved:
        params = saved.restore(4, trainer.abstract)[0]["params"]
    mesh = sharding.make_mesh(data=1, fsdp=8)
    where = sharding.state_shardings({"params": params}, mesh, preset="fsdp")
    sharded = jax.device_put({"params": params}, where)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded))
    assert fingerprint(sharded) == fingerprint({"params": params})


# ---- retention


def test_keep_and_keep_every_select_the_retained_steps(state, tmp_path):
    with opened(tmp_path, every=2, keep=2, keep_every=4) as saved:
        assert [step for step in range(1, 9) if saved.due(step)] == [2, 4, 6, 8]
        for step in range(2, 13, 2):
            saved.save(step, at(state, step), {})
        saved.wait()
        assert saved.steps() == [4, 8, 10, 12]
        assert list_steps(tmp_path) == [4, 8, 10, 12]


def test_a_new_run_has_no_checkpoints(trainer, tmp_path):
    assert list_steps(tmp_path) == []
    with opened(tmp_path) as saved:
        assert saved.steps() == [] and saved.restore_newest(trainer.abstract) is None


@pytest.mark.parametrize(
    ("options", "fact"),
    [(dict(every=0), "every=0"), (dict(keep=0), "keep=0"), (dict(keep_every=-1), "keep_every=-1")],
)
def test_invalid_retention_options_are_an_error(options, fact, tmp_path):
    with raises(UserError, "config.checkpoint", fact):
        Checkpoints(tmp_path, **options)


# ---- crash and damage


def test_an_incomplete_save_is_ignored(run, trainer, state):
    """A process that dies in a save leaves a temporary directory, or one without its last file."""
    directory = run / "checkpoints"
    shutil.copytree(directory / "4", directory / "5.orbax-checkpoint-tmp")
    shutil.copytree(directory / "4", directory / "6")
    (directory / "6" / "_CHECKPOINT_METADATA").unlink()
    assert list_steps(run) == [3, 4]
    with opened(run) as saved:
        restored, _, step = saved.restore_newest(trainer.abstract)
        assert step == 4 and fakes.equal(restored, at(state, 4))
        for step in (5, 6):  # their names can be used again
            saved.save(step, at(state, step), {})
        saved.wait()
        assert saved.steps() == [4, 5, 6]
        assert fakes.equal(saved.restore_newest(trainer.abstract)[0], at(state, 6))


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(directory):
    path = largest(directory / "state")
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "data truncated": truncate,
    "data gone": lambda directory: [
        shutil.rmtree(p) for p in (directory / "state").iterdir() if p.is_dir()
    ],
    "index is garbage": lambda directory: (directory / "state/manifest.ocdbt").write_bytes(
        b"?" * 50
    ),
    "metadata is garbage": lambda directory: (directory / "state/_METADATA").write_bytes(
        b"\x00\xff{"
    ),
    "metadata gone": lambda directory: (directory / "state/_METADATA").unlink(),
    "state gone": lambda directory: shutil.rmtree(directory / "state"),
    "json is garbage": lambda directory: (directory / "meta/metadata").write_text("{"),
    "json gone": lambda directory: shutil.rmtree(directory / "meta"),
    "empty": lambda directory: [shutil.rmtree(directory), directory.mkdir()],
}


@pytest.fixture
def log():
    """The list of logged messages."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("absl").addHandler(handler)
    yield lines
    logging.getLogger("absl").removeHandler(handler)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_restored(
    damage, run, trainer, state, log
):
    DAMAGE[damage](run / "checkpoints" / "4")
    with opened(run) as saved:
        restored, meta, step = saved.restore_newest(trainer.abstract)
        assert (step, meta["step"]) == (3, 3) and fakes.equal(restored, at(state, 3))
        assert_mentions(log, run, "4.damaged")
        assert (run / "checkpoints" / "4.damaged").is_dir()
        # The run can save that step again and resume from it.
        saved.save(4, at(state, 4), {"step": 4})
        saved.wait()
        assert saved.steps() == [3, 4]
        assert saved.restore_newest(trainer.abstract)[2] == 4


def flip(path, rng):
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_never_changes_a_restored_state(seed, run, trainer, state, tmp_path):
    """Either the checkpoint is restored as it was saved, or the previous one is."""
    rng, detected = random.Random(seed), 0
    names = sorted(
        path.relative_to(run) for path in (run / "checkpoints/4").rglob("*") if path.is_file()
    )
    large = sorted(names, key=lambda name: (run / name).stat().st_size)[-3:]
    for name in (*rng.choices(names, k=5), *large):
        copy = shutil.copytree(run, tmp_path / "copy")
        flip(copy / name, rng)
        with opened(copy) as saved:
            restored, meta, step = saved.restore_newest(trainer.abstract)
        assert fakes.equal(restored, at(state, step)) and meta["step"] == step, name
        detected += step == 3
        shutil.rmtree(copy)
    assert detected >= 2


def test_a_flipped_bit_of_frozen_parameters_is_an_error(run, trainer):
    (frozen_dir,) = checkpoints_dir(run).glob("frozen-*")
    (path,) = [p for p in frozen_dir.glob("ocdbt.process_0/d/*") if p.stat().st_size > 10_000]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with opened(run) as saved, raises(UserError, frozen_dir):
        saved.restore_newest(trainer.abstract)
    assert steps_in(run) == ["3", "4"]


def test_a_damaged_checkpoint_that_was_requested_is_an_error(run, trainer):
    path = run / "checkpoints/4/meta/metadata"
    path.write_text(path.read_text().replace('"examples": 64', '"examples": 65'))
    with opened(run, read_only=True) as saved:
        for read in (
            lambda: saved.restore(4, trainer.abstract),
            lambda: saved.read(4, ["params"]),
            lambda: saved.shapes(4),
        ):
            with raises(DamagedError, run / "checkpoints/4", "[3]"):
                read()


def test_checkpoints_without_checksums_are_read(run, trainer, state):
    """Earlier versions stored none."""
    for step in (3, 4):
        path = run / f"checkpoints/{step}/meta/metadata"
        meta = json.loads(path.read_text())
        del meta["checksums"], meta["digest"]
        path.write_text(json.dumps(meta))
    with opened(run) as saved:
        restored, meta, step = saved.restore_newest(trainer.abstract)
    assert step == 4 and fakes.equal(restored, at(state, 4)) and meta["examples"] == 64


def test_a_checkpoint_is_restored_as_another_data_type(run, trainer, state):
    leaves = tree.flatten(trainer.abstract)
    path = "params/head/mlp/wo/kernel"
    leaves[path] = jax.ShapeDtypeStruct(
        leaves[path].shape, jnp.bfloat16, sharding=leaves[path].sharding
    )
    abstract = tree.map_named(lambda name, _: leaves[name], trainer.abstract)
    with opened(run) as saved:
        restored = tree.flatten(saved.restore_newest(abstract)[0])
    expected = tree.flatten(state)[path].astype(jnp.bfloat16)
    assert restored[path].dtype == jnp.bfloat16 and np.array_equal(restored[path], expected)


METADATA_DAMAGE = {
    "empty": lambda path: path.write_text(""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "list": lambda path: path.write_text("[]"),
    "number": lambda path: path.write_text("3"),
    "wrong types": lambda path: path.write_text(
        '{"item_handlers": 3, "init_timestamp_nsecs": "x", "metrics": [], "custom_metadata": 1}'
    ),
    "directory": lambda path: [path.unlink(), path.mkdir()],
}


@pytest.mark.parametrize("damage", METADATA_DAMAGE)
def test_damaged_metadata_of_a_step_do_not_stop_a_run(damage, run, trainer, state):
    """The arrays are intact, so using the step or setting it aside are both correct."""
    METADATA_DAMAGE[damage](run / "checkpoints/4/_CHECKPOINT_METADATA")
    with opened(run) as saved:
        restored, _, step = saved.restore_newest(trainer.abstract)
    assert fakes.equal(restored, at(state, step))


@pytest.mark.parametrize("part", ["4", "4/state/d", "4/meta/metadata", "", "frozen"])
def test_what_cannot_be_opened_is_an_error_and_is_not_renamed(part, run, trainer, unprivileged):
    """It may be intact, and an older state must not be used silently."""
    directory = run / "checkpoints"
    if part == "frozen":
        part = next(directory.glob("frozen-*")).name
    path = directory / part
    before, mode = steps_in(run), path.stat().st_mode
    path.chmod(0)
    try:
        with unprivileged(), raises(UserError, path, os.strerror(errno.EACCES), "chmod"):
            with opened(run) as saved:
                saved.restore_newest(trainer.abstract)
    finally:
        path.chmod(mode)
    assert steps_in(run) == before
    with opened(run) as saved:
        assert saved.restore_newest(trainer.abstract)[2] == 4


def test_read_only_access_does_not_move_damaged_checkpoints(run, trainer):
    truncate(run / "checkpoints" / "4")
    with opened(run, read_only=True) as saved:
        assert saved.restore_newest(trainer.abstract)[2] == 3
    assert steps_in(run) == ["3", "4"]


def test_repeatedly_damaged_steps_are_all_set_aside(run, trainer, state):
    with opened(run) as saved:
        truncate(run / "checkpoints" / "4")
        assert saved.restore_newest(trainer.abstract)[2] == 3
        saved.save(4, at(state, 4), {})
        saved.wait()
        truncate(run / "checkpoints" / "4")
        truncate(run / "checkpoints" / "3")
        assert saved.restore_newest(trainer.abstract) is None
    assert steps_in(run) == ["3.damaged", "4.damaged", "4.damaged1"]


def test_a_different_architecture_is_an_error_and_sets_nothing_aside(run, trainer):
    leaves = tree.flatten(trainer.abstract)
    path = "params/head/mlp/wo/kernel"
    leaves[path] = jax.ShapeDtypeStruct((7, 9), np.float32, sharding=leaves[path].sharding)
    leaves["params/tail/bias"] = leaves.pop("params/left/mlp/wi/kernel")
    facts = [
        *(run, "step 4", "config.init_from"),
        *(path, "(7, 9)", "(128, 64)"),
        *("params/tail/bias (64, 128)", "params/left/mlp/wi/kernel (64, 128)"),
    ]
    with opened(run) as saved, raises(UserError, *facts) as error:
        saved.restore_newest(tree.unflatten(leaves))
    (tail,) = [line for line in str(error.value).splitlines() if "params/tail/bias" in line]
    (left,) = [line for line in str(error.value).splitlines() if "params/left/mlp" in line]
    assert_mentions(tail, "missing")
    assert_mentions(left, "unexpected")
    assert steps_in(run) == ["3", "4"]


# ---- a full disk

_FULL_DISK = """
import resource, sys, fakes
from mmjax.checkpoints.manager import Checkpoints
from mmjax.errors import UserError

state = fakes.Trainer(fakes.Contrast(), ema_decay=0.9, frozen=["^right/"]).init()
saved = Checkpoints(sys.argv[1], keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # maximum file size
try:
    saved.save(5, state, {})
    {noticed_in}
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("noticed_in", ["saved.wait()", "saved.close()"])
def test_a_full_disk_keeps_the_previous_checkpoint(noticed_in, run, state, trainer, user_env):
    process = subprocess.run(
        [sys.executable, "-c", _FULL_DISK.replace("{noticed_in}", noticed_in), str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=120,
        env=user_env(quick=True, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert_mentions(process.stdout, run / "checkpoints", "step 4", "--model_dir")
    with opened(run, keep=1) as saved:
        restored, _, step = saved.restore_newest(trainer.abstract)
        assert step == 4 and fakes.equal(restored, at(state, 4))
        saved.save(5, at(state, 5), {})
        saved.wait()
        assert steps_in(run) == ["5"]


# ---- snapshots


def test_a_snapshot_survives_deletion_of_its_source(run, trainer, state, tmp_path):
    assert snapshot(run, 4, tmp_path / "snapshot")
    shutil.rmtree(run / "checkpoints")
    with opened(tmp_path / "snapshot", read_only=True) as saved:
        assert saved.steps() == [4]
        assert fakes.equal(saved.restore(4, trainer.abstract)[0], at(state, 4))


def test_a_snapshot_can_be_repeated_and_copied_to_another_disk(run, trainer, tmp_path, monkeypatch):
    def another_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_disk)
    (tmp_path / "s/checkpoints/4.partial").mkdir(parents=True)  # left by a killed process
    for _ in range(2):
        assert snapshot(run, 4, tmp_path / "s")
    truncate(run / "checkpoints" / "4")
    with opened(tmp_path / "s", read_only=True) as saved:
        assert saved.restore_newest(trainer.abstract)[2] == 4


@pytest.mark.parametrize("moment", ["before", "within", "between"])
def test_a_snapshot_of_a_deleted_checkpoint_is_refused_and_cleaned_up(
    moment, run, tmp_path, monkeypatch
):
    source = run / "checkpoints" / "4"
    links, link = [], os.link

    def deleting(a, b):
        links.append(a)
        if len(links) == 3:
            if moment == "within":
                shutil.rmtree(source)
            else:  # deleted before the snapshot lists these directories
                shutil.rmtree(source / "state" / "d", ignore_errors=True)
                shutil.rmtree(source / "meta", ignore_errors=True)
        link(a, b)

    if moment == "before":
        shutil.rmtree(source)
    else:
        monkeypatch.setattr(os, "link", deleting)
    assert not snapshot(run, 4, tmp_path / "s")
    assert moment == "before" or len(links) >= 3
    directory = tmp_path / "s" / "checkpoints"
    assert not directory.exists() or os.listdir(directory) == []


def test_a_snapshot_on_a_full_disk_is_an_error(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with raises(UserError, run / "checkpoints/4", tmp_path / "s/checkpoints/4", "Errno 28"):
        snapshot(run, 4, tmp_path / "s")
    assert os.listdir(tmp_path / "s" / "checkpoints") == []


def test_metadata_is_plain_json(finished):
    text = (finished / "checkpoints/4/meta/metadata").read_text()
    meta = json.loads(text)
    assert "params/left/mlp/wi/kernel" in meta.pop("checksums") and meta.pop("digest")
    assert meta.pop("frozen").startswith("frozen-") and meta == {"step": 4, "examples": 64}


# ---- the best checkpoint


@pytest.fixture
def best_of(run):
    (run / "config.json").write_text("{}")

    def make(**options):
        section = dict(best="touch/top1", every=5) | options
        kept = Best.from_config(run, section, {"touch": {}, "other": {}, "off": None})
        assert section == {"every": 5}  # the remaining keys are those of `Checkpoints`
        return kept

    return make


def test_the_best_checkpoint_survives_a_resume_and_reads_like_a_run(run, best_of, trainer, state):
    first = best_of()
    assert first.improved_by({"touch/top1": 0.5, "touch/loss": 1.0})
    first.keep(3, {"touch/top1": 0.5})
    again = best_of()  # another process
    assert not again.improved_by({"touch/top1": 0.4})
    assert not again.improved_by({"other/top1": 0.9}) and not again.improved_by({})
    assert not again.improved_by({"touch/top1": float("nan")})
    assert again.improved_by({"touch/top1": 0.5})  # a tie goes to the later step
    again.keep(4, {"touch/top1": 0.5})
    assert steps_in(run / "best") == ["4"]
    assert json.loads((run / "best/best.json").read_text()) == {
        "metric": "touch/top1",
        "value": 0.5,
        "step": 4,
    }
    assert (run / "best/config.json").is_file()
    shutil.rmtree(run / "checkpoints")
    with opened(run / "best", read_only=True) as saved:
        assert fakes.equal(saved.restore_newest(trainer.abstract)[0], at(state, 4))


def test_best_of_min_prefers_smaller_values(best_of):
    best_of(best_of="min").keep(3, {"touch/top1": 0.5})
    assert best_of(best_of="min").improved_by({"touch/top1": 0.4})
    assert not best_of(best_of="min").improved_by({"touch/top1": 0.6})


def test_invalid_options_of_the_best_checkpoint_are_reported(run, best_of, log):
    with raises(UserError, "config.checkpoint.best", "'toch'", "'touch'", "other, touch"):
        best_of(best="toch/top1")
    with raises(UserError, "config.checkpoint.best", "'off'", "other, touch"):
        best_of(best="off/top1")
    with raises(UserError, "config.checkpoint.best_of", "'most'", "max, min"):
        best_of(best_of="most")
    assert not best_of(best="touch/top5").improved_by({"touch/top1": 0.5})
    assert_mentions(log, "config.checkpoint.best", "touch/top5", "touch/top1")
    log.clear()
    assert not best_of(best="").improved_by({"touch/top1": 0.5})
    best_of().keep(77, {"touch/top1": 0.5})
    assert_mentions(log, "step 77", "config.checkpoint.keep")
    assert not (run / "best/best.json").exists()


def test_a_pytorch_file_is_an_error_that_quotes_the_convert_command(tmp_path):
    (tmp_path / "encoder.pth").write_bytes(b"PK\x03\x04" + bytes(60))
    path = tmp_path / "encoder.pth"
    with raises(UserError, "PyTorch", f"mmjax convert {path} --out", "config.init_from"):
        find(path)
