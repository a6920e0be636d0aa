"""The modalities of the project: the one list from which every other list of them derives.

To add a modality, add an entry here and see docs/add_a_modality.md for what reads and encodes it.
This module imports nothing, so that models and tasks can use it without loading TensorFlow.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality:
    """How a modality is stored and used.

    Attributes:
      field: Attribute of `mmjax.data.storage.schema.Example` that holds it.
      stored_as: Name of the stored modality that it is read from, if that is another one: an
        'image' is a single frame of a 'video', and a 'reference' another one of the same record,
        with which the image is compared.
      is_input: Whether models encode it. Inputs have a batch field, a section of `config.data` and
        towers under their name.
      is_image: Whether the input is a single image. Such inputs share augmentations and towers.
    """

    field: str
    stored_as: str = ""
    is_input: bool = False
    is_image: bool = False


MODALITIES: dict[str, Modality] = {
    "video": Modality(field="frames", is_input=True),
    "audio": Modality(field="waveform", is_input=True),
    "image": Modality(field="frames", stored_as="video", is_input=True, is_image=True),
    "text": Modality(field="captions", is_input=True),
    "label": Modality(field="labels"),
    "touch": Modality(field="touch", is_input=True, is_image=True),
    "mask": Modality(field="masks"),
    "depth": Modality(field="depth"),
    "flow": Modality(field="flow"),
    "reference": Modality(field="frames", stored_as="video", is_input=True, is_image=True),
}

# The modalities that `dataset.json` lists and that records contain.
STORED: tuple[str, ...] = tuple(name for name, m in MODALITIES.items() if not m.stored_as)
# The modalities that models encode, and those of them that are single images.
INPUTS: tuple[str, ...] = tuple(name for name, m in MODALITIES.items() if m.is_input)
IMAGES: tuple[str, ...] = tuple(name for name, m in MODALITIES.items() if m.is_image)


def stored_name(name: str) -> str:
    """Returns the stored modality that a modality is read from, for example 'video' for 'image'."""
    return MODALITIES[name].stored_as or name
