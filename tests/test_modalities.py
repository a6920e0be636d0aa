"""The list of modalities agrees with everything that is defined for each modality."""

import dataclasses

from mmjax import modalities
from mmjax.data.pipeline.config import DataConfig
from mmjax.data.storage.schema import Example
from mmjax.models.towers.registry import TOWERS


def test_every_modality_is_a_field_of_the_stored_example():
    fields = {field.name for field in dataclasses.fields(Example)}
    assert {modality.field for modality in modalities.MODALITIES.values()} <= fields
    for name in modalities.MODALITIES:
        stored = modalities.stored_name(name)
        assert stored in modalities.STORED
        assert modalities.MODALITIES[stored].field == modalities.MODALITIES[name].field


def test_every_input_has_a_section_of_the_data_config_and_towers():
    sections = {field.name for field in dataclasses.fields(DataConfig)}
    assert set(modalities.INPUTS) <= sections
    # Images share towers: any of them encodes a reference.
    assert {modality for modality, *_ in TOWERS.values()} == {*modalities.INPUTS} - {"reference"}
    assert set(modalities.IMAGES) <= set(modalities.INPUTS)


def test_order_is_stable():
    """Datasets list their modalities in this order, and it decides which random keys inputs get."""
    assert modalities.STORED[:5] == ("video", "audio", "text", "label", "touch")
    assert modalities.INPUTS[:5] == ("video", "audio", "image", "text", "touch")
    assert modalities.IMAGES == ("image", "touch", "reference")
