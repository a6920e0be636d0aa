"""What a batch looks like, by the config alone."""

import itertools

import numpy as np
import pytest

from mmjax import config, evaluate
from mmjax.data import loader, pairs, stored
from mmjax.tasks import DataFacts

WIDTH, WORLD = 5, "world:tiny,train=8"
CROPS = ((0.2, 1.0), (0.2, 1.0), (0.5, 1.0))


def cfg_of(**data):
    cfg = config.base()
    cfg.batch_size = 4
    cfg.data = dict(train=WORLD, **data)
    return cfg


def shapes(facts):
    return {name: (row.shape, str(row.dtype)) for name, row in facts.spec.items()}


@pytest.fixture
def features(tmp_path):
    stored.write_description(tmp_path, dataset="tiny", num_examples=dict(train=8))
    (tmp_path / "train").mkdir()
    for name in ("image", "text"):
        np.save(stored.features_path(tmp_path, "train", name), np.zeros((8, WIDTH), np.float32))
    return str(tmp_path)


def test_views_are_what_the_loader_makes(tmp_path):
    section = dict(image=dict(size=16, crops=CROPS), pairs=dict(path=str(tmp_path)))
    data = loader.make_train_data(dict(train=WORLD, image=section["image"]), batch_size=4, seed=0)
    info = data.info
    pairs.write_pairs(
        tmp_path, (np.arange(8)[:, None] + 1) % 8, np.ones((8, 1)), dataset=info.name, split="train"
    )
    for changes in ({}, section):
        cfg = cfg_of(**(section | changes))
        made = loader.make_train_data(config.plain(cfg.data), batch_size=4, seed=0)
        (batch,) = itertools.islice(made.iterate(), 1)
        facts = shapes(DataFacts.of_config(cfg))
        assert facts["image"] == ((4, 3, 16, 16, 3), "uint8")
        assert facts == {name: (batch[name].shape, str(batch[name].dtype)) for name in facts}
        assert facts == {name: shapes(DataFacts.of(made))[name] for name in facts}


def test_evaluation_needs_no_pairs_and_no_features(features):
    section = dict(
        image=dict(size=16, crops=CROPS[:2]),
        touch=dict(size=8, features="nowhere"),
        pairs=dict(path="nowhere"),
    )
    cfg = cfg_of(**section)
    seen = shapes(evaluate._facts(cfg))
    assert seen["image"] == ((4, 2, 16, 16, 3), "uint8") and seen["touch"][0] == (4, 8, 8, 3)
    assert config.plain(cfg.data)["touch"]["features"] == "nowhere"  # the run's config is its own
    text = dict(candidates=1, max_words=4)
    labelled = dict(image=dict(size=16, features=("nowhere",)), text=text, label={})
    seen = shapes(evaluate._facts(cfg_of(**labelled)))
    assert seen["image"] == ((4, 16, 16, 3), "uint8") and seen["text"] == ((4, 1, 4), "int32")


def test_features_that_are_there_say_their_width_in_evaluation_too(features):
    cfg = cfg_of(image=dict(size=16, features=features), touch=dict(size=8, features="nowhere"))
    seen = shapes(evaluate._facts(cfg))
    assert seen["image"] == ((4, WIDTH), "float32") and seen["touch"] == ((4, 8, 8, 3), "uint8")
