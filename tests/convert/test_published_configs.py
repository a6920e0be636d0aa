"""The training configs of converted runs equal the published recipes, and need no recipe."""

import pytest

from mmjax import config
from mmjax.published.tvl import tvl_config
from mmjax.published.vatt import (
    SPECTROGRAM,
    finetuning_config,
    pretraining_config,
)


def sections(cfg, *, without=("model",)):
    """Returns the plain sections of a config; the model is that of the checkpoint."""
    return {key: value for key, value in config.plain(cfg).items() if key not in without}


@pytest.mark.parametrize("recipe", ["tx_fac", "ut_fac", "mmv_fac"])
def test_pretraining_config_of_vatt_equals_the_recipes(recipe):
    expected = config.load("pretrain", recipe)
    if recipe == "mmv_fac":
        assert config.plain(expected.augment.spectrogram) == SPECTROGRAM
        del expected.augment.spectrogram  # converted runs have it if the audio tower needs it
    assert sections(pretraining_config()) == sections(expected)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_finetuning_config_of_vatt_equals_the_recipes(modality):
    assert sections(finetuning_config(modality)) == sections(config.load("finetune", modality))


@pytest.mark.parametrize("size", ["tiny", "small", "base", "resnet18"])
def test_training_config_of_tvl_equals_the_recipe(size):
    rate = 1.5e-4 if size in ("small", "base") else 3e-4
    cfg = tvl_config(base_learning_rate=rate)
    config.apply(cfg, [])  # total_examples determines total_steps, as in `config.load`
    assert sections(cfg) == sections(config.load("touch", f"tvl:{size}"))
