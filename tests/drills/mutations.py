"""Ways in which a file is damaged, or made by somebody hostile."""

import json
import pathlib

import numpy as np

MAX_EXTRA = 300  # bytes that are added

BYTES = {}


def mutation(function):
    BYTES[function.__name__] = function
    return function


def span(data, rng, most=200):
    """Returns start and end of a random part."""
    start = int(rng.integers(0, len(data) + 1))
    return start, min(len(data), start + int(rng.integers(1, most)))


@mutation
def flip_bit(data, rng):
    at = int(rng.integers(0, 8 * len(data)))
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


@mutation
def flip_bit_near_the_start(data, rng):
    """Headers are short, and most of them are at the start."""
    return flip_bit(data[:200], rng) + data[200:]


@mutation
def flip_bit_near_the_end(data, rng):
    return data[:-200] + flip_bit(data[-200:], rng)


@mutation
def set_byte(data, rng):
    at = int(rng.integers(0, len(data)))
    return data[:at] + bytes([rng.integers(0, 256)]) + data[at + 1 :]


@mutation
def truncate(data, rng):
    return data[: int(rng.integers(0, len(data)))]


@mutation
def cut_the_last_byte(data, rng):
    return data[:-1]


@mutation
def extend(data, rng):
    return data + rng.bytes(int(rng.integers(1, MAX_EXTRA)))


@mutation
def append_zero(data, rng):
    return data + b"\0"


@mutation
def insert(data, rng):
    at, _ = span(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


@mutation
def remove_part(data, rng):
    start, end = span(data, rng)
    return data[:start] + data[end:]


@mutation
def zero_part(data, rng):
    start, end = span(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


@mutation
def fill_part(data, rng):
    """Sets bytes to 255: lengths become negative, or as large as possible."""
    start, end = span(data, rng, most=9)
    return data[:start] + b"\xff" * (end - start) + data[end:]


@mutation
def swap_halves(data, rng):
    at, _ = span(data, rng)
    return data[at:] + data[:at]


@mutation
def repeat_part(data, rng):
    start, end = span(data, rng)
    return data[:end] + data[start:end] + data[end:]


@mutation
def change_digit(data, rng):
    """Changes a decimal digit, for headers and tables in text."""
    digits = [i for i, byte in enumerate(data[:4000]) if 48 <= byte < 58]
    if not digits:
        return flip_bit(data, rng)
    at = digits[rng.integers(0, len(digits))]
    return data[:at] + rng.choice([b"9", b"0", b"-", b"99999999999", b"1e999"]) + data[at + 1 :]


@mutation
def empty(data, rng):
    return b""


@mutation
def deep_brackets(data, rng):
    return b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@mutation
def invalid_utf8(data, rng):
    at, _ = span(data, rng)
    return data[:at] + b"\xff\xfe\xc3" + data[at:]


VALUES = (None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x", [], {}, [[]], {"a": 1}, "\ud800")


def change_json(data, rng):
    """Replaces, removes or nests a random node; None if the data are not JSON."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    nodes = []  # (container, key)

    def visit(node):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in list(items):
            nodes.append((node, key))
            if isinstance(child, dict | list):
                visit(child)

    if not isinstance(value, dict | list):
        return None
    visit(value)
    if not nodes:
        return None
    container, key = nodes[rng.integers(0, len(nodes))]
    how = rng.integers(0, 4)
    if how == 0:
        del container[key]
    elif how == 1:
        container[key] = [container[key]]
    else:
        container[key] = VALUES[rng.integers(0, len(VALUES))]
    return json.dumps(value).encode()


def mutate(path: pathlib.Path, rng: np.random.Generator) -> str:
    """Damages a file, and returns how."""
    data = path.read_bytes()
    if rng.random() < 0.4 and (changed := change_json(data, rng)) is not None:
        path.write_bytes(changed)
        return "change_json"
    if rng.random() < 0.02:
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
            return "directory"
        return "missing"
    name = list(BYTES)[rng.integers(0, len(BYTES))]
    path.write_bytes(BYTES[name](data, rng) if data else b"\0")
    return name
