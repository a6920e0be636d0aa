"""YAML files of benchmarks: the shipped ones parse, and mistakes are named with their line."""

import pytest
import yaml

from mmjax.benchmark import experiments, named_files, names, runs, yaml_file
from mmjax.errors import UserError
from tests.messages import raises

RUN = """
Pets:
  task: Pets
  training_configs:
    adam: {optimizer: adam, lr: 1e-4}
    sgd: {optimizer: sgd, lr: 0.01, momentum: 0.9, scheduler: {type: StepLR, step_size: 50, gamma: 0.1}}
  num_epochs: 3
  batch_size: 8
  pre_encode: false
"""  # noqa: E501


def write(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return path


def test_a_run_is_read(tmp_path):
    (run,) = runs.load(write(tmp_path, RUN))
    assert (run.name, run.end_task, run.epochs, run.batch_size) == ("Pets", "Pets", 3, 8)
    assert run.configs["adam"] == dict(optimizer="adam", lr=1e-4)
    assert run.configs["sgd"]["scheduler"] == dict(type="StepLR", step_size=50, gamma=0.1)
    assert not run.pre_encode and run.head_weights is None


@pytest.mark.parametrize("name", named_files.names("vtab_configs"))
def test_shipped_configs_parse(name):
    loaded = runs.load(name)
    assert loaded and all(run.configs or run.name == "Imagenetv2" for run in loaded)


def test_all_has_the_20_end_tasks_of_the_paper_with_its_settings():
    loaded = {run.name: run for run in runs.load("default")}
    assert len(loaded) == 20
    assert loaded["THORDepth"].configs == {"adam-0.0001-l1": dict(optimizer="adam", lr=3e-4)}
    grid = runs.load("imagenet_grid_search")
    assert [len(run.configs) for run in grid] == [5]
    assert grid[0].configs["sgd-0.01-Poly"]["lr"] == 1e-3


def test_the_shipped_list_has_33_encoders():
    loaded = {e.name: e.weights for e in experiments.load("all", suffix="_x")}
    assert len(loaded) == 33
    assert loaded["MoCov2HalfImagenet_x"].endswith("MoCov2HalfImagenet_200.pt")


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ("num_epochs", "num_epoch", ["num_epoch", "'num_epochs'", "line 7"]),
        ("num_epochs: 3", "num_epochs: three", ["Pets.num_epochs", "three", "line 7"]),
        ("num_epochs: 3", "num_epochs: 0", ["Pets.num_epochs", "0"]),
        ("batch_size: 8", "batch_size: true", ["Pets.batch_size", "True"]),
        ("  pre_encode: false", "batch_size: 32", ["batch_size=32", "root", "Pets", "line 9"]),
        ("pre_encode: false", "pre_encode: 0", ["Pets.pre_encode", "0"]),
        ("lr: 1e-4", "lr: -1", ["adam.lr", "-1"]),
        ("lr: 1e-4", "lr: .nan", ["adam.lr", "nan"]),
        ("lr: 1e-4", "momentum: 1e-4", ["adam", "lr"]),
        ("optimizer: adam", "optimizer: adm", ["adm", "'adam'", "line 5"]),
        ("{optimizer: adam, ", "{momentum: 0.9, optimizer: adam, ", ["adam.momentum", "sgd"]),
        ("StepLR", "StepLr", ["StepLr", "'StepLR'"]),
        ("gamma: 0.1", "exponent: 0.1", ["exponent", "gamma"]),
        ("task: Pets", "task: Pet", ["Pet", "'Pets'", "line 3"]),
        ("task: Pets", "size: 64", ["Pets", "task"]),
        ("sgd:", "adam:", ["adam", "line 6", "line 5"]),
        ("adam: {", "a/b: {", ["a/b", "slash"]),
        ("adam: {", "1: {", ["1", "quotes"]),
        ("Pets:\n", "Pets: 3\nx:\n", ["Pets", "3"]),
        ("  num_epochs: 3", "  task_head_weights_path: a/%s/b", ["training_configs"]),
        ("batch_size: 8", "validation: 1.5", ["Pets.validation", "1.5"]),
        ("batch_size: 8", "protocol: papr", ["papr", "'paper'"]),
        ("batch_size: 8", "task: Pets", ["task", "line 8", "line 3"]),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, old, new, facts):
    assert old in RUN
    path = write(tmp_path, RUN.replace(old, new, 1))
    with raises(UserError, path, *facts):
        runs.load(path)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ["nothing"]),
        ("- Pets", []),
        ('{"Pets": ', []),
        ("a: &x [*x]\nb: \x07", ["line 2"]),
        ("a: !!python/object/apply:os.system [ls]", ["line 1"]),
        ("[a]: 1", ["line 1"]),
        ("a: " + "[" * 1200, []),
        ("\x89PNG", ["line 1"]),
    ],
)
def test_other_files_are_refused(tmp_path, text, facts):
    path = write(tmp_path, text)
    with raises(UserError, path, *facts):
        yaml_file.read(path)


def test_files_that_are_not_text_or_do_not_exist_are_refused(tmp_path):
    path = tmp_path / "head.yaml"
    path.write_bytes(b"PK\x03\x04\xff\xfe")
    with raises(UserError, path):
        runs.load(path)
    with raises(UserError, "--vtab_configs", "missing.yaml"):
        runs.load("missing.yaml")
    with raises(UserError, "--vtab_configs", "al", "'all'"):
        runs.load("al")


def test_merged_keys_can_be_replaced_and_aliases_do_not_explode(tmp_path):
    text = "base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  y: 3\n"
    assert yaml_file.read(write(tmp_path, text))["own"] == dict(x=1, y=3)
    bomb = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    assert yaml_file.read(write(tmp_path, bomb))["a11"] == dict(x=1)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a: x.pt\na: y.pt", ["'a'", "line 2", "line 1"]),
        ("a: x.pt\nA: y.pt", ["a", "A"]),
        ("a: [x.pt]", ["a", "line 1"]),
        ("3: x.pt", ["3", "quotes"]),
        ("report.html: x.pt", ["report.html"]),
        (".a: x.pt", [".a", "dot"]),
        ("task:\n  optimizer: adam", ["task"]),
    ],
)
def test_experiment_lists_name_their_mistakes(tmp_path, text, facts):
    path = write(tmp_path, text)
    with raises(UserError, path, *facts):
        experiments.load(path)


def test_runs_whose_directories_collide_are_refused(tmp_path):
    both = {
        "Pets": dict(task="Pets", training_configs={"b-c": dict(optimizer="adam", lr=1)}),
        "Pets-b": dict(task="Pets", training_configs={"c": dict(optimizer="adam", lr=1)}),
    }
    with raises(UserError, "Pets-b-c", "Pets-b"):
        runs.load(write(tmp_path, yaml.safe_dump(both)))


@pytest.mark.parametrize("name", ["", " a", "a/b", "..", "a\x1b[0m", "x" * 201, "figures", 3])
def test_names_that_cannot_be_directories_are_refused(name):
    with raises(UserError, "where"):
        names.check_name(name, "where")


def test_usual_names_are_accepted():
    for name in ("MoCov2_800", "ResNet-50 (mine)", "größe", "a.b"):
        assert names.check_name(name, "where") == name
