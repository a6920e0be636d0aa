"""Recipes: names, types, sections as keywords, and their way to JSON and back."""

import ml_collections
import pytest

from mmjax import config
from mmjax.errors import UserError


def test_the_defaults_are_valid():
    config.check(config.base())


def test_each_call_of_base_is_a_fresh_config():
    config.base().mesh.data = 3
    assert config.base().mesh.data == -1


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("total_step", 5, "Unknown config key 'total_step'. Did you mean 'total_steps'"),
        ("optimiser", {}, "Unknown config key 'optimiser'. Did you mean 'optimizer'"),
        ("batch_size", "8", r"config.batch_size must be int, not '8' \(str\)"),
        ("batch_size", 8.0, "config.batch_size must be int"),
        ("batch_size", True, "config.batch_size must be int"),
        ("batch_size", {"a": 1}, "config.batch_size must be int"),
        ("batch_size", 0, "config.batch_size must be at least 1"),
        ("total_steps", -1, "config.total_steps must be at least 1"),
        ("accumulate_steps", 3, "batch_size=8 is not divisible by config.accumulate_steps=3"),
        ("clip_shards", 3, "batch_size=8 is not divisible by config.clip_shards=3"),
        ("clip_shards", -1, "config.clip_shards must be at least 0"),
        ("ema_decay", 1, "config.ema_decay must be at least 0 and below 1"),
        ("init_allow", "head", "config.init_allow must be tuple, not 'head'"),
        ("tensorboard", 1, "config.tensorboard must be bool"),
        ("mesh", 8, "config.mesh must be dict, not 8"),
        ("mesh", {"fsdp": "8"}, "config.mesh.fsdp must be int, not '8'"),
        ("checkpoint", {"keep": 1.5}, "config.checkpoint.keep must be int"),
        ("model", "tx_fac", "config.model must be dict, not 'tx_fac'"),
        ("nan_policy", "skp", "'skp'. Did you mean 'skip'"),
    ],
)
def test_what_cannot_be_meant_is_named(key, value, words):
    cfg = config.base()
    with cfg.unlocked(), cfg.ignore_type():
        cfg[key] = value
    with pytest.raises(UserError, match=words):
        config.check(cfg)


def test_what_can_be_meant_passes():
    cfg = config.base()
    with cfg.ignore_type():
        cfg.init_allow = ["head"]
        cfg.ema_decay = 0
    cfg.accumulate_steps = 4
    cfg.clip_shards = 8
    config.check(cfg)


# ---- sections


def build(first, second=2, *, depth=1, **rest): ...


def configure(*, depth=1, width=2): ...


def test_a_section_becomes_keywords():
    section = ml_collections.ConfigDict({"depth": 3, "width": ml_collections.ConfigDict({"a": 1})})
    found = config.keywords(configure, section, "model")
    assert found == {"depth": 3, "width": {"a": 1}} and type(found["width"]) is dict


def test_an_unknown_key_of_a_section_is_named_with_the_nearest():
    with pytest.raises(UserError, match="model.widht.*Did you mean 'model.width'"):
        config.keywords(configure, {"widht": 3}, "model")


def test_what_stands_for_any_keyword_is_no_key():
    with pytest.raises(UserError, match="model.rest"):
        config.keywords(build, {"rest": 3}, "model")


# ---- finding a recipe


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A tree of recipes in place of the installed one, and an empty current directory."""
    root = tmp_path / "configs"
    for name in ("pretrain/demo", "pretrain/large", "pretrain/__init__", "finetune/demo"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text("")
    monkeypatch.setattr(config, "CONFIGS", root)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return root


def test_recipes_are_found_by_name_or_file(recipes, tmp_path):
    assert config.find_recipe("pretrain", "large") == recipes / "pretrain/large.py"
    assert config.find_recipe("pretrain", "finetune/demo") == recipes / "finetune/demo.py"
    assert config.find_recipe("pretrain", "pretrain/large.py") == recipes / "pretrain/large.py"
    own = tmp_path / "here" / "mine.py"
    own.write_text("")
    assert config.find_recipe("pretrain", "mine.py") == own


def test_a_recipe_that_is_not_there(recipes):
    with pytest.raises(UserError) as error:
        config.find_recipe("pretrain", "lrage")
    assert "--task=pretrain 'lrage'. Did you mean 'large'? Valid: demo, large." in str(error.value)
    with pytest.raises(UserError, match="--config=mine.py: no such file"):
        config.find_recipe("pretrain", "mine.py")


def test_overrides_are_set_apart_from_flags():
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
    cfg.data = dict(train="world", video=dict(size=32), text=dict(max_words=16))
    cfg.model = dict(video="vit_tiny")
    return cfg
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return str(path)


def test_a_recipe_gets_its_argument_and_overrides_of_any_kind(recipe):
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
    ("override", "message"),
    [
        ("--config.bach_size=4", "Unknown config key 'bach_size'. Did you mean 'batch_size'?"),
        ("--config.batch_size=four", "config.batch_size must be int, not 'four'"),
        ("--config.batch_size=4.5", "config.batch_size must be int, not 4.5"),
        ("--config.data.video.size=big", "config.data.video.size must be int, not 'big'"),
        ("--config.batch_size", "write --config.key=value"),
        ("--config.seed.x=1", "config.seed is 0, which has no keys"),
        ("--config.mesh=3", "config.mesh must be dict, not 3"),
    ],
)
def test_overrides_that_cannot_be(recipe, override, message):
    with pytest.raises(UserError) as error:
        config.load("pretrain", recipe, [override])
    assert message in str(error.value)


def test_a_recipe_of_another_task(recipe):
    with pytest.raises(UserError, match="a recipe for --task=pretrain, not finetune"):
        config.load("finetune", recipe)


# ---- JSON


def test_a_config_survives_json_with_its_tuples():
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
    config.check(back)


def test_plain_has_no_trace_of_config_objects():
    nested = ml_collections.ConfigDict({"a": [ml_collections.ConfigDict({"b": [1]}), 2]})
    assert config.plain(nested) == {"a": ({"b": (1,)}, 2)}
    assert type(config.plain(nested)["a"][0]) is dict
