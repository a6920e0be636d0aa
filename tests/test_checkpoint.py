"""Checkpoints: the same bits on any mesh, and what is left after damage, a crash or a full disk."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys

import fakes
import jax
import numpy as np
import pytest

from mmjax import checkpoint, sharding, snapshot, tree
from mmjax.checkpoint import Checkpoints
from mmjax.errors import UserError

# What Orbax leaves behind when a read or write fails: coroutines that nobody waits for.
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
    """A state that can be told from those of other steps."""
    return dict(state, step=state["step"] * 0 + step)


def steps_in(run):
    """What stands in the folder, apart from the frozen parameters."""
    return sorted(
        path.name
        for path in checkpoint.folder_of(run).iterdir()
        if not path.name.startswith("frozen-")
    )


@contextlib.contextmanager
def opened(path, **options):
    saved = Checkpoints(path, **options)
    yield saved
    saved.close()


@pytest.fixture(scope="module")
def finished(trainer, state, tmp_path_factory):
    """A run with checkpoints 3 and 4, one tower frozen; to be copied, not changed."""
    path = tmp_path_factory.mktemp("finished")
    with opened(path, frozen=trainer.frozen) as saved:
        for step in (3, 4):
            saved.save(step, at(state, step), {"step": step, "examples": 16 * step})
    return path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


# ---- bit for bit


def test_restored_bit_for_bit(finished, trainer, state):
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
def test_restored_onto_another_mesh_and_back(axes, preset, finished, trainer, state, tmp_path):
    mesh = sharding.make_mesh(**axes)
    other = fakes.Trainer(fakes.Contrast(), mesh, ema_decay=0.9, frozen=["^right/"], preset=preset)
    with opened(finished) as saved:
        spread = saved.restore_newest(other.abstract)[0]
    assert fakes.equal(spread, at(state, 4))
    for leaf, wanted in zip(jax.tree.leaves(spread), jax.tree.leaves(other.shardings), strict=True):
        assert leaf.sharding == wanted
    with opened(tmp_path) as saved:
        saved.save(4, spread, {})
        saved.wait()
        assert fakes.equal(saved.restore_newest(trainer.abstract)[0], at(state, 4))


def test_a_restored_run_goes_on_as_if_never_stopped(trainer, tmp_path):
    half, _ = trainer.run(2)
    whole, losses = trainer.run(2, state=half, first=2)
    with opened(tmp_path) as saved:
        saved.save(2, half, {})
        saved.wait()
        restored = saved.restore_newest(trainer.abstract)[0]
    again, same = trainer.run(2, state=restored, first=2)
    assert same == losses and fakes.equal(again, whole)


def test_parts_are_read_without_devices_or_a_template(finished, state):
    with opened(finished, read_only=True) as saved:
        parts = saved.read(4, ["params", "ema", "none"])
        shapes = saved.shapes(4)
    assert parts["none"] == {}
    for part in ("params", "ema"):
        wanted = {p: np.asarray(leaf) for p, leaf in tree.flatten(state[part]).items()}
        found = tree.flatten(parts[part])
        assert found.keys() == wanted.keys()
        for path, value in wanted.items():
            assert type(found[path]) is np.ndarray and np.array_equal(found[path], value)
    assert shapes["opt/0/mu/left/mlp/wi/kernel"] == ((fakes.IN, fakes.HIDDEN), np.float32)
    assert shapes["step"] == ((), np.int32)


def test_some_parts_alone_can_be_restored(finished, trainer, state):
    wanted = {name: trainer.abstract[name] for name in ("params", "extra")}
    with opened(finished, read_only=True) as saved:
        restored, _ = saved.restore(4, wanted)
    assert fakes.equal(restored, {name: state[name] for name in wanted})


# ---- frozen parameters


def size_of(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_frozen_parameters_are_saved_once(finished, trainer, state, tmp_path):
    with opened(tmp_path) as saved:  # the same state with everything in every step
        saved.save(3, at(state, 3), {})
    folder = checkpoint.folder_of(finished)
    (once,) = folder.glob("frozen-*")
    frozen = state["params"]["right"]["mlp"]["wi"]["kernel"].nbytes
    assert size_of(once) > 0.8 * frozen  # compressed
    with_them = size_of(checkpoint.folder_of(tmp_path) / "3")
    assert size_of(folder / "3") < with_them - 0.8 * frozen
    assert json.loads((folder / "3/meta/metadata").read_text())["frozen"] == once.name


def test_other_frozen_values_are_saved_beside_the_old_ones(run, trainer, state):
    changed = jax.tree.map(lambda x: x, state)
    kernel = changed["params"]["right"]["mlp"]["wi"]["kernel"]
    changed["params"]["right"]["mlp"]["wi"]["kernel"] = kernel.at[0, 0].add(1e-3)
    with opened(run, frozen=trainer.frozen) as saved:
        saved.save(5, at(changed, 5), {})
    with opened(run) as saved:
        assert len(list(checkpoint.folder_of(run).glob("frozen-*"))) == 2
        assert fakes.equal(saved.restore(5, trainer.abstract)[0], at(changed, 5))
        assert fakes.equal(saved.restore(4, trainer.abstract)[0], at(state, 4))


@pytest.mark.parametrize("before, after", [(True, False), (False, True)])
def test_a_run_may_be_frozen_or_thawed_on_the_way(before, after, trainer, state, tmp_path):
    for step, frozen in ((1, before), (2, after)):
        with opened(tmp_path, frozen=trainer.frozen if frozen else None) as saved:
            saved.save(step, at(state, step), {})
    with opened(tmp_path) as saved:
        for step in (1, 2):
            assert fakes.equal(saved.restore(step, trainer.abstract)[0], at(state, step))


@pytest.mark.parametrize("lost", [True, False])
def test_frozen_parameters_that_are_lost_or_damaged_are_named(lost, run, trainer):
    (once,) = checkpoint.folder_of(run).glob("frozen-*")
    if lost:
        shutil.rmtree(once)
    else:
        path = largest(once)
        os.truncate(path, path.stat().st_size // 2)
    with opened(run) as saved, pytest.raises(UserError, match=f"{once.name}.*Copy it there"):
        saved.restore_newest(trainer.abstract)
    assert steps_in(run) == ["3", "4"]  # nothing is set aside: the steps are sound


def test_the_hash_of_frozen_parameters_is_the_same_on_any_mesh(finished, trainer):
    with opened(finished, read_only=True) as saved:
        params = saved.restore(4, trainer.abstract)[0]["params"]
    mesh = sharding.make_mesh(data=1, fsdp=8)
    where = sharding.state_shardings({"params": params}, mesh, preset="fsdp")
    spread = jax.device_put({"params": params}, where)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread))
    assert checkpoint.fingerprint(spread) == checkpoint.fingerprint({"params": params})


# ---- what is kept


def test_the_newest_and_the_milestones_are_kept(state, tmp_path):
    with opened(tmp_path, every=2, keep=2, keep_every=4) as saved:
        assert [step for step in range(1, 9) if saved.due(step)] == [2, 4, 6, 8]
        for step in range(2, 13, 2):
            saved.save(step, at(state, step), {})
        saved.wait()
        assert saved.steps() == [4, 8, 10, 12]
        assert checkpoint.list_steps(tmp_path) == [4, 8, 10, 12]


def test_no_checkpoint_yet(trainer, tmp_path):
    assert checkpoint.list_steps(tmp_path) == []
    with opened(tmp_path) as saved:
        assert saved.steps() == [] and saved.restore_newest(trainer.abstract) is None


@pytest.mark.parametrize("options", [dict(every=0), dict(keep=0), dict(keep_every=-1)])
def test_policies_that_make_no_sense(options, tmp_path):
    with pytest.raises(UserError, match="config.checkpoint"):
        Checkpoints(tmp_path, **options)


# ---- crash and damage


def test_a_save_that_was_cut_short_is_not_there(run, trainer, state):
    """A process that dies in a save leaves a folder of another name, or without its last file."""
    folder = run / "checkpoints"
    shutil.copytree(folder / "4", folder / "5.orbax-checkpoint-tmp")
    shutil.copytree(folder / "4", folder / "6")
    (folder / "6" / "_CHECKPOINT_METADATA").unlink()
    assert checkpoint.list_steps(run) == [3, 4]
    with opened(run) as saved:
        restored, _, step = saved.restore_newest(trainer.abstract)
        assert step == 4 and fakes.equal(restored, at(state, 4))
        for step in (5, 6):  # and their names are free
            saved.save(step, at(state, step), {})
        saved.wait()
        assert saved.steps() == [4, 5, 6]
        assert fakes.equal(saved.restore_newest(trainer.abstract)[0], at(state, 6))


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    path = largest(folder / "state")
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "data truncated": truncate,
    "data gone": lambda folder: [
        shutil.rmtree(p) for p in (folder / "state").iterdir() if p.is_dir()
    ],
    "index is garbage": lambda folder: (folder / "state/manifest.ocdbt").write_bytes(b"?" * 50),
    "metadata is garbage": lambda folder: (folder / "state/_METADATA").write_bytes(b"\x00\xff{"),
    "metadata gone": lambda folder: (folder / "state/_METADATA").unlink(),
    "state gone": lambda folder: shutil.rmtree(folder / "state"),
    "json is garbage": lambda folder: (folder / "meta/metadata").write_text("{"),
    "json gone": lambda folder: shutil.rmtree(folder / "meta"),
    "empty": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.fixture
def log():
    """What is logged, as text."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("absl").addHandler(handler)
    yield lines
    logging.getLogger("absl").removeHandler(handler)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(kind, run, trainer, state, log):
    DAMAGE[kind](run / "checkpoints" / "4")
    with opened(run) as saved:
        restored, meta, step = saved.restore_newest(trainer.abstract)
        assert (step, meta["step"]) == (3, 3) and fakes.equal(restored, at(state, 3))
        assert any("Checkpoint 4 of" in line and "damaged" in line for line in log)
        assert (run / "checkpoints" / "4.damaged").is_dir()
        # The run saves that step again and resumes from it.
        saved.save(4, at(state, 4), {"step": 4})
        saved.wait()
        assert saved.steps() == [3, 4]
        assert saved.restore_newest(trainer.abstract)[2] == 4


def test_a_reader_leaves_a_damaged_checkpoint_where_it_is(run, trainer):
    truncate(run / "checkpoints" / "4")
    with opened(run, read_only=True) as saved:
        assert saved.restore_newest(trainer.abstract)[2] == 3
    assert steps_in(run) == ["3", "4"]


def test_damaged_twice_and_all_damaged(run, trainer, state):
    with opened(run) as saved:
        truncate(run / "checkpoints" / "4")
        assert saved.restore_newest(trainer.abstract)[2] == 3
        saved.save(4, at(state, 4), {})
        saved.wait()
        truncate(run / "checkpoints" / "4")
        truncate(run / "checkpoints" / "3")
        assert saved.restore_newest(trainer.abstract) is None
    assert steps_in(run) == ["3.damaged", "4.damaged", "4.damaged1"]


def test_another_architecture_is_named_and_nothing_is_set_aside(run, trainer):
    leaves = tree.flatten(trainer.abstract)
    path = "params/head/mlp/wo/kernel"
    leaves[path] = jax.ShapeDtypeStruct((7, 9), np.float32, sharding=leaves[path].sharding)
    leaves["params/tail/bias"] = leaves.pop("params/left/mlp/wi/kernel")
    with opened(run) as saved, pytest.raises(UserError) as error:
        saved.restore_newest(tree.unflatten(leaves))
    message = str(error.value)
    assert "step 4" in message and str(run) in message and "init_from" in message
    assert f"{path}: here (7, 9), in the checkpoint (128, 64)" in message
    assert "missing     params/tail/bias (64, 128)" in message
    assert "unexpected  params/left/mlp/wi/kernel (64, 128)" in message
    assert steps_in(run) == ["3", "4"]


# ---- a full disk

_FULL_DISK = """
import resource, sys, fakes
from mmjax.checkpoint import Checkpoints
from mmjax.errors import UserError

state = fakes.Trainer(fakes.Contrast(), ema_decay=0.9, frozen=["^right/"]).init()
saved = Checkpoints(sys.argv[1], keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file can grow beyond this
try:
    saved.save(5, state, {})
    {noticed_in}
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("noticed_in", ["saved.wait()", "saved.close()"])
def test_a_full_disk_leaves_the_checkpoint_before(noticed_in, run, state, trainer, user_env):
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK.replace("{noticed_in}", noticed_in), str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=120,
        env=user_env(quick=True, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert f"Could not write a checkpoint to {run}" in done.stdout
    assert "checkpoint of step 4 is intact" in done.stdout and "Free some space" in done.stdout
    with opened(run, keep=1) as saved:
        restored, _, step = saved.restore_newest(trainer.abstract)
        assert step == 4 and fakes.equal(restored, at(state, 4))
        saved.save(5, at(state, 5), {})
        saved.wait()
        assert steps_in(run) == ["5"]


# ---- snapshots


def test_a_snapshot_outlives_what_it_was_taken_of(run, trainer, state, tmp_path):
    assert snapshot.snapshot(run, 4, tmp_path / "snapshot")
    shutil.rmtree(run / "checkpoints")
    with opened(tmp_path / "snapshot", read_only=True) as saved:
        assert saved.steps() == [4]
        assert fakes.equal(saved.restore(4, trainer.abstract)[0], at(state, 4))


def test_a_snapshot_can_be_taken_again_and_on_another_disk(run, trainer, tmp_path, monkeypatch):
    def another_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_disk)
    (tmp_path / "s/checkpoints/4.partial").mkdir(parents=True)  # of one that was killed
    for _ in range(2):
        assert snapshot.snapshot(run, 4, tmp_path / "s")
    truncate(run / "checkpoints" / "4")
    with opened(tmp_path / "s", read_only=True) as saved:
        assert saved.restore_newest(trainer.abstract)[2] == 4


@pytest.mark.parametrize("moment", ["before", "within", "between"])
def test_a_snapshot_of_what_vanishes_is_none(moment, run, tmp_path, monkeypatch):
    source = run / "checkpoints" / "4"
    links, link = [], os.link

    def deleting(a, b):
        links.append(a)
        if len(links) == 3:
            if moment == "within":
                shutil.rmtree(source)
            else:  # the deleter is ahead of us, and our listing of that folder finds nothing
                shutil.rmtree(source / "state" / "d", ignore_errors=True)
                shutil.rmtree(source / "meta", ignore_errors=True)
        link(a, b)

    if moment == "before":
        shutil.rmtree(source)
    else:
        monkeypatch.setattr(os, "link", deleting)
    assert not snapshot.snapshot(run, 4, tmp_path / "s")
    assert moment == "before" or len(links) >= 3
    folder = tmp_path / "s" / "checkpoints"
    assert not folder.exists() or os.listdir(folder) == []


def test_a_snapshot_that_cannot_be_written(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left"):
        snapshot.snapshot(run, 4, tmp_path / "s")
    assert os.listdir(tmp_path / "s" / "checkpoints") == []


def test_metadata_is_plain_json(finished):
    text = (finished / "checkpoints/4/meta/metadata").read_text()
    meta = json.loads(text)
    assert meta.pop("frozen").startswith("frozen-") and meta == {"step": 4, "examples": 64}


# ---- the best


@pytest.fixture
def best_of(run):
    (run / "config.json").write_text("{}")

    def make(**options):
        section = dict(best="touch/top1", every=5) | options
        kept = snapshot.Best.from_config(run, section, {"touch": {}, "other": {}, "off": None})
        assert section == {"every": 5}  # what is left is for `Checkpoints`
        return kept

    return make


def test_the_best_survives_a_resume_and_reads_like_a_run(run, best_of, trainer, state):
    first = best_of()
    assert first.improved_by({"touch/top1": 0.5, "touch/loss": 1.0})
    first.keep(3, {"touch/top1": 0.5})
    again = best_of()  # another process
    assert not again.improved_by({"touch/top1": 0.4})
    assert not again.improved_by({"other/top1": 0.9}) and not again.improved_by({})
    assert not again.improved_by({"touch/top1": float("nan")})
    assert again.improved_by({"touch/top1": 0.5})  # of equal ones the later
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


def test_the_smallest_can_be_the_best(best_of):
    best_of(best_of="min").keep(3, {"touch/top1": 0.5})
    assert best_of(best_of="min").improved_by({"touch/top1": 0.4})
    assert not best_of(best_of="min").improved_by({"touch/top1": 0.6})


def test_mistakes_in_what_is_best(run, best_of, log):
    with pytest.raises(UserError, match="'toch'.*Did you mean 'touch'"):
        best_of(best="toch/top1")
    with pytest.raises(UserError, match="'off'"):
        best_of(best="off/top1")
    with pytest.raises(UserError, match="best_of"):
        best_of(best_of="most")
    assert not best_of(best="touch/top5").improved_by({"touch/top1": 0.5})
    assert "touch/top5: the evaluator has no such metric. It has: touch/top1" in " ".join(log)
    assert not best_of(best="").improved_by({"touch/top1": 0.5})
    best_of().keep(77, {"touch/top1": 0.5})
    assert (
        "was deleted before it could be kept" in " ".join(log)
        and not (run / "best/best.json").exists()
    )


def test_a_file_of_pytorch_is_told_from_a_run_directory(tmp_path):
    (tmp_path / "encoder.pth").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(UserError, match="is a file of PyTorch's.*mmjax convert .*encoder.pth"):
        checkpoint.find(tmp_path / "encoder.pth")
