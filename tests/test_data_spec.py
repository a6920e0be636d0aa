"""Batch shapes and dtypes derived from the config, without loading data."""

import itertools

import numpy as np
import pytest

from mmjax import config, eval_job
from mmjax.data.pairs import pair_files
from mmjax.data.pipeline import loader, precomputed_features
from mmjax.data_spec import DataSpec

WIDTH, WORLD = 5, "world:tiny,train=8"
CROPS = ((0.2, 1.0), (0.2, 1.0), (0.5, 1.0))


def cfg_of(**data):
    cfg = config.base()
    cfg.batch_size = 4
    cfg.data = dict(train=WORLD, **data)
    return cfg


def shapes(data_spec):
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in data_spec.batch.items()}


@pytest.fixture
def features(tmp_path):
    precomputed_features.write_description(tmp_path, dataset="tiny", num_examples=dict(train=8))
    (tmp_path / "train").mkdir()
    for name in ("image", "text"):
        np.save(
            precomputed_features.features_path(tmp_path, "train", name),
            np.zeros((8, WIDTH), np.float32),
        )
    return str(tmp_path)


def test_shapes_from_the_config_equal_loaded_batches(tmp_path):
    section = dict(image=dict(size=16, crops=CROPS), pairs=dict(path=str(tmp_path)))
    data = loader.make_train_data(dict(train=WORLD, image=section["image"]), batch_size=4, seed=0)
    info = data.info
    pair_files.write_pairs(
        tmp_path, (np.arange(8)[:, None] + 1) % 8, np.ones((8, 1)), dataset=info.name, split="train"
    )
    for changes in ({}, section):
        cfg = cfg_of(**(section | changes))
        train_data = loader.make_train_data(config.plain(cfg.data), batch_size=4, seed=0)
        (batch,) = itertools.islice(train_data.iterate(), 1)
        facts = shapes(DataSpec.of_config(cfg))
        assert facts["image"] == ((4, 3, 16, 16, 3), "uint8")
        assert facts == {name: (batch[name].shape, str(batch[name].dtype)) for name in facts}
        assert facts == {name: shapes(DataSpec.of(train_data))[name] for name in facts}


def test_shapes_of_segmentation_from_the_config_equal_loaded_batches():
    section = dict(train="world:scenes_tiny,train=4,test=4", segmentation=dict(size=16))
    cfg = config.Config(task="x", batch_size=4, data=section)
    data = loader.make_train_data(section, batch_size=4, seed=0)
    planned, actual = DataSpec.of_config(cfg, num_classes=9), DataSpec.of(data)
    facts = shapes(planned)
    assert set(facts) == {"image", "image_mask", "segmentation"}
    assert facts == {name: shapes(actual)[name] for name in facts}
    assert planned.num_classes == actual.num_classes == 9
    assert actual.mask_classes[:2] == ("background", "circle")


def test_evaluation_shapes_need_neither_pairs_nor_features(features):
    section = dict(
        image=dict(size=16, crops=CROPS[:2]),
        touch=dict(size=8, features="nowhere"),
        pairs=dict(path="nowhere"),
    )
    cfg = cfg_of(**section)
    result = shapes(eval_job._data_spec(config.resolve(cfg)))
    assert result["image"] == ((4, 2, 16, 16, 3), "uint8") and result["touch"][0] == (4, 8, 8, 3)
    # The config of the run is unchanged.
    assert config.plain(cfg.data)["touch"]["features"] == "nowhere"
    text = dict(candidates=1, max_tokens=4)
    labeled = dict(image=dict(size=16, features=("nowhere",)), text=text, label={})
    result = shapes(eval_job._data_spec(config.resolve(cfg_of(**labeled))))
    assert result["image"] == ((4, 16, 16, 3), "uint8") and result["text"] == ((4, 1, 4), "int32")


def test_evaluation_shapes_use_the_width_of_existing_features(features):
    cfg = cfg_of(image=dict(size=16, features=features), touch=dict(size=8, features="nowhere"))
    result = shapes(eval_job._data_spec(config.resolve(cfg)))
    assert result["image"] == ((4, WIDTH), "float32") and result["touch"] == ((4, 8, 8, 3), "uint8")
