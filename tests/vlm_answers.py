"""How the stub server `tests.vlm_server` checks requests and answers them."""

import base64
import binascii
import io
import json
import re

import numpy as np
from PIL import Image

from mmjax.diagnostic_text.describer import describe
from mmjax.diagnostic_text.pairs import Pair

MARKER = "[img]"
CLASS = re.compile(r"Name the class (.+?) in your answer")


JUDGE = re.compile(r"Reference: (.*?)\n\nAnswer: (.*?)\n\n", re.DOTALL)


class BadRequest(Exception):
    """The request is not valid; the server answers with status 400."""


def read_ollama(body):
    """Returns `(text, PNG images)` of the last message of an Ollama chat request."""
    options = body.get("options") or {}
    if not isinstance(options, dict) or not isinstance(body.get("tools") or [], list):
        raise BadRequest("options must be an object and tools an array")
    message = body["messages"][-1]
    text, images = message.get("content") or "", message.get("images") or []
    if text.count(MARKER) != len(images):
        raise BadRequest(f"{text.count(MARKER)} markers for {len(images)} images")
    return text, images


def read_openai(body):
    """Returns `(text, PNG images)` of the last message of a chat completion request."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content, []
    prefix = "data:image/png;base64,"
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    if not all(url.startswith(prefix) for url in urls):
        raise BadRequest("an image is not a PNG data URL")
    text = "".join(part["text"] for part in content if part["type"] == "text")
    return text, [url.removeprefix(prefix) for url in urls]


def read_images(encoded, size):
    """Returns images, uint8 [size, size, 3]."""
    images = []
    for data in encoded:
        try:
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            image.load()
        except (binascii.Error, OSError) as error:
            raise BadRequest(f"an image cannot be decoded: {error}") from error
        if image.format != "PNG" or image.size != (size, size):
            raise BadRequest(f"expected a PNG of side {size}; got {image.format} {image.size}")
        images.append(np.asarray(image.convert("RGB")))
    return images


def class_of(text, class_names):
    """Returns the class that a prompt asks about: the last of `class_names` in it."""
    if not class_names:
        found = CLASS.findall(text)
        return found[-1] if found else "OBJECT"
    positions = {name: text.rfind(name) for name in class_names}
    return max(positions, key=lambda name: (positions[name], len(name)))


def judgment(reference, answer):
    """Returns the judgment of a judge for whom the same words are the same text."""
    words, known = set(answer.split()), set(reference.split())
    score = round(5 * len(words & known) / len(words | known))
    return json.dumps({"correct": words == known, "score": score, "reason": "words"})


def answer(text, images, class_names=()):
    """Returns the describer's text for the last two images.

    An overlay with an opacity above 0.5 shows its mask: pixels inside are brighter than 127 in all
    channels, and pixels outside are darker.
    """
    if found := JUDGE.search(text):
        return judgment(*found.groups())
    name = class_of(text, class_names)
    if len(images) < 2:
        return f"The {name} region is not visible in the image."
    truth, prediction = (image.min(-1) > 127 for image in images[-2:])
    return describe(Pair(f"stub-{len(text)}", name, images[-1], truth, prediction))
