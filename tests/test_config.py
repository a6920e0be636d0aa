"""Configs: key and type checks, sections as keyword arguments, recipe lookup and JSON."""

import ml_collections
import pytest

from mmjax import config
from mmjax.errors import UserError
from tests.messages import raises


def test_the_defaults_are_valid():
    cfg = config.base()
    before = config.plain(cfg)
    config.resolve(cfg)
    assert config.plain(cfg) == before


def test_each_call_of_base_returns_a_new_config():
    config.base().mesh.data = 3
    assert config.base().mesh.data == -1


@pytest.mark.parametrize(
    ("key", "value", "facts"),
    [
        ("total_step", 5, ("'total_step'", "'total_steps'", "accumulate_steps, augment")),
        ("optimzer", {}, ("'optimzer'", "'optimizer'", "accumulate_steps, augment")),
        ("batch_size", "8", ("config.batch_size", "int", "'8'", "str")),
        ("batch_size", 8.0, ("config.batch_size", "int", "8.0", "float")),
        ("batch_size", True, ("config.batch_size", "int", "True", "bool")),
        ("batch_size", {"a": 1}, ("config.batch_size", "int", "'a': 1")),
        ("batch_size", 0, ("config.batch_size", "1", "0")),
        ("total_steps", -1, ("config.total_steps", "1", "-1")),
        ("accumulate_steps", 3, ("config.batch_size=8", "config.accumulate_steps=3")),
        ("updates_per_step", 3, ("config.batch_size=8", "config.updates_per_step=3")),
        ("updates_per_step", 0, ("config.updates_per_step", "1", "0")),
        ("clip_shards", 3, ("config.batch_size=8", "config.clip_shards=3")),
        ("clip_shards", -1, ("config.clip_shards", "0", "-1")),
        ("ema_decay", 1, ("config.ema_decay", "0", "1.0")),
        ("init_allow", "head", ("config.init_allow", "tuple", "'head'")),
        ("tensorboard", 1, ("config.tensorboard", "bool", "int")),
        ("mesh", 8, ("config.mesh", "dict", "8")),
        ("mesh", {"fsdp": "8"}, ("config.mesh.fsdp", "int", "'8'")),
        ("checkpoint", {"keep": 1.5}, ("config.checkpoint.keep", "int", "1.5")),
        ("model", "tx_fac", ("config.model", "dict", "'tx_fac'")),
        ("nan_policy", "skp", ("config.nan_policy", "'skp'", "'skip'", "skip, stop")),
    ],
)
def test_unknown_keys_and_invalid_values_are_an_error(key, value, facts):
    cfg = config.base()
    with cfg.unlocked(), cfg.ignore_type():
        cfg[key] = value
    with raises(UserError, *facts):
        config.resolve(cfg)


def test_equivalent_types_and_values_at_the_limits_are_valid():
    cfg = config.base()
    with cfg.ignore_type():
        cfg.init_allow = ["head"]
        cfg.ema_decay = 0
    cfg.accumulate_steps = 4
    cfg.clip_shards = 8
    config.resolve(cfg)
    assert cfg.batch_size == 8  # divisible by both


# ---- sections


def build(first, second=2, *, depth=1, **rest): ...


def configure(*, depth=1, width=2): ...


def test_a_section_becomes_keyword_arguments():
    section = ml_collections.ConfigDict({"depth": 3, "width": ml_collections.ConfigDict({"a": 1})})
    keywords = config.keywords(configure, section, "model")
    assert keywords == {"depth": 3, "width": {"a": 1}} and type(keywords["width"]) is dict


def test_an_unknown_key_of_a_section_is_an_error_with_the_nearest_name():
    with raises(UserError, "'model.widht'", "'model.width'", "model.depth, model.width"):
        config.keywords(configure, {"widht": 3}, "model")


def test_the_name_of_var_keywords_is_not_a_valid_key():
    with raises(UserError, "'model.rest'", "model.depth, model.first, model.second"):
        config.keywords(build, {"rest": 3}, "model")


# ---- recipe lookup


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Replaces the installed recipes by a small tree, and makes the current directory empty."""
    root = tmp_path / "configs"
    for name in ("pretrain/demo", "pretrain/large", "pretrain/__init__", "finetune/demo"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text("")
    monkeypatch.setattr(config, "RECIPES", root)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return root


def test_recipes_are_looked_up_by_name_or_file(recipes, tmp_path):
    assert config.find_recipe("pretrain", "large") == recipes / "pretrain/large.py"
    assert config.find_recipe("pretrain", "finetune/demo") == recipes / "finetune/demo.py"
    assert config.find_recipe("pretrain", "pretrain/large.py") == recipes / "pretrain/large.py"
    own = tmp_path / "here" / "mine.py"
    own.write_text("")
    assert config.find_recipe("pretrain", "mine.py") == own


def test_an_unknown_recipe_is_an_error_with_the_nearest_name(recipes):
    with raises(UserError, "--task=pretrain", "'lrage'", "'large'", "demo, large."):
        config.find_recipe("pretrain", "lrage")
    with raises(UserError, "--config=mine.py"):
        config.find_recipe("pretrain", "mine.py")


def test_overrides_are_separated_from_flags():
    argv = ["main", "--task=pretrain", "--config=large:small", "--config.batch_size=4", "-v"]
    assert config.split_arguments(argv) == (
        ["main", "--task=pretrain", "--config=large:small", "-v"],
        ["--config.batch_size=4"],
    )


RECIPE = """
from mmjax import config

def get_config(arg=""):
    cfg = config.base()
    cfg.task = "pretrain"
    cfg.seed = len(arg)
    cfg.data = dict(train="world", video=dict(size=32), text=dict(max_tokens=16))
    cfg.model = dict(video="vit_tiny")
    return cfg
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return str(path)


def test_a_recipe_receives_its_argument_and_overrides_of_any_type(recipe):
    cfg = config.load(
        "pretrain",
        f"{recipe}:four",
        [
            "--config.batch_size=4",
            "--config.ema_decay=0",
            "--config.data.train=('a', 'b')",
            "--config.data.text=None",
            "--config.data.video.size=64",
            "--config.loss.temperature=0.1",
            "--config.model.video.num_layers=2",
            "--config.model.audio.name=wat_tiny",
            "--config.init_allow=^head/",
        ],
    )
    assert (cfg.seed, cfg.batch_size, cfg.ema_decay) == (4, 4, 0)
    assert cfg.data.train == ("a", "b") and cfg.data.text is None and cfg.data.video.size == 64
    assert cfg.loss.temperature == 0.1
    assert config.plain(cfg.model) == {
        "video": {"name": "vit_tiny", "num_layers": 2},
        "audio": {"name": "wat_tiny"},
    }
    assert cfg.init_allow == ("^head/",)


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("--config.bach_size=4", ("'bach_size'", "'batch_size'")),
        ("--config.batch_size=four", ("config.batch_size", "int", "'four'")),
        ("--config.batch_size=4.5", ("config.batch_size", "int", "4.5")),
        ("--config.data.video.size=big", ("config.data.video.size", "int", "'big'")),
        ("--config.batch_size", ("--config.batch_size", "--config.key=value")),
        ("--config.seed.x=1", ("--config.seed.x=1", 0)),
        ("--config.mesh=3", ("config.mesh", "dict", "3")),
    ],
)
def test_invalid_overrides_are_an_error(recipe, override, facts):
    with raises(UserError, *facts):
        config.load("pretrain", recipe, [override])


def test_a_recipe_of_another_task_is_an_error(recipe):
    with raises(UserError, recipe, "--task=pretrain", "finetune"):
        config.load("finetune", recipe)


# ---- JSON


def test_a_config_round_trips_through_json_with_its_tuples():
    cfg = config.base()
    cfg.task = "pretrain"
    cfg.data = {"train": ("a", "b"), "video": {"area": (0.3, 1.0)}, "audio": None}
    cfg.sharding_rules = (("kernel$", ("fsdp", None)), ("bias$", ()))
    cfg.loss.weights = {"video_text": 1.0}
    cfg.total_steps = 10**7
    back = config.from_json(config.to_json(cfg))
    assert config.plain(back) == config.plain(cfg)
    assert back.data.train == ("a", "b") and back.data.video.area == (0.3, 1.0)
    assert back.sharding_rules == (("kernel$", ("fsdp", None)), ("bias$", ()))
    assert isinstance(back.data.video, ml_collections.ConfigDict)
    config.resolve(back)


def test_plain_converts_nested_config_dicts():
    nested = ml_collections.ConfigDict({"a": [ml_collections.ConfigDict({"b": [1]}), 2]})
    assert config.plain(nested) == {"a": ({"b": (1,)}, 2)}
    assert type(config.plain(nested)["a"][0]) is dict
