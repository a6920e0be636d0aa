"""Weights: files of PyTorch, safetensors, TensorFlow and Hugging Face, and mmjax's own runs."""

import numpy as np

from tests.drills.kinds import kind

RNG = np.random.default_rng(0)
WEIGHTS = {f"layer{i}.weight": RNG.normal(size=(6, 4)).astype(np.float32) for i in range(3)}
CONTENT = {"model": WEIGHTS, "epoch": 7, "names": ["a", "b"], "args": {"lr": 0.1}}
NO_CHECKSUM = {
    "*.safetensors": "safetensors has no checksum",
    "*.json": "JSON has no checksum",
    "*.txt": "text has no checksum",
}


def torch_file(name, uncovered, write):
    def make(directory):
        from mmjax.formats import torch_reader

        write(directory / "model.pth")
        return lambda where: torch_reader.entries(where / "model.pth")

    make.__name__ = name
    return kind(uncovered)(make)


def _save(path):
    from tests.convert import torch_writer

    torch_writer.save(path, CONTENT)


def _save_legacy(path):
    from tests.convert import torch_writer

    torch_writer.save_legacy(path, CONTENT)


def _safetensors(path):
    from mmjax.formats import safetensors

    safetensors.write(path, WEIGHTS)


torch_file("torch_zip", None, _save)
torch_file("torch_legacy", {"*": "PyTorch's format before 1.6 has no checksum"}, _save_legacy)
torch_file("safetensors", {"*": "safetensors has no checksum"}, _safetensors)


@kind()
def image_backbone(directory):
    """A ResNet that is planned and read as `mmjax convert` does."""
    from mmjax.convert import dispatch, load
    from tests.convert import torch_writer

    def unit(key, norm, fan_out, fan_in, size):
        arrays = {f"{key}.weight": RNG.normal(size=(fan_out, fan_in, size, size))}
        stats = ("weight", "bias", "running_mean", "running_var")
        return arrays | {f"{norm}.{stat}": RNG.uniform(0.5, 1, fan_out) for stat in stats}

    arrays = unit("conv1", "bn1", 2, 3, 7)
    for layer in range(1, 5):
        for block in range(2):
            fan_in = 2 if layer == 1 else 2 ** (layer - (block == 0))
            width, at = 2**layer, f"layer{layer}.{block}"
            arrays |= unit(f"{at}.conv1", f"{at}.bn1", width, fan_in, 3)
            arrays |= unit(f"{at}.conv2", f"{at}.bn2", width, width, 3)
            if block == 0 and layer > 1:
                arrays |= unit(f"{at}.downsample.0", f"{at}.downsample.1", width, fan_in, 1)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    torch_writer.save(directory / "model.pth", {"state_dict": arrays})

    def read(where):
        message = dispatch.convert([str(where / "model.pth")], inspect=True).message
        return message, load.load_params(str(where / "model.pth"))

    return read


@kind({"checkpoint": "names the newest checkpoint"})
def tensorflow(directory):
    from mmjax.convert import load
    from tests.convert import published

    published.write(directory, published.values(published.finetuned()), step=7)
    return lambda where: load.load_params(str(where / "ckpt-7"))


@kind(NO_CHECKSUM)
def bert(directory):
    from mmjax import tree
    from mmjax.sentence_encoders import bert_files
    from tests.sentence_encoders import tiny_bert

    tiny_bert.write(directory, sentence={"max_seq_length": 20})
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": true}')

    def read(where):
        cfg, params, tokenizer = bert_files.load(where)
        ids = [encoding.ids for encoding in tokenizer.encode_batch(["the red cat sit", "dog"])]
        return repr(cfg), tree.flatten(params), ids

    return read


@kind(NO_CHECKSUM)
def bert_in_parts(directory):
    """Weights in several files, and the tokenizer as tokenizer.json."""
    import json

    from mmjax import tree
    from mmjax.formats import safetensors
    from mmjax.sentence_encoders import bert_files
    from tests.sentence_encoders import tiny_bert

    tiny_bert.write(directory, modules=None)
    bert_files.load(directory)[2].save(str(directory / "tokenizer.json"))
    for name in ("vocab.txt", "model.safetensors"):
        (directory / name).unlink()
    arrays, parts = tiny_bert.weights(), {}
    for number, keys in enumerate((list(arrays)[:6], list(arrays)[6:])):
        file = f"model-{number}.safetensors"
        safetensors.write(directory / file, {key: arrays[key] for key in keys})
        parts |= dict.fromkeys(keys, file)
    index = {"metadata": {}, "weight_map": parts}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    def read(where):
        cfg, params, tokenizer = bert_files.load(where)
        return repr(cfg), tree.flatten(params), tokenizer.encode("the red cat").ids

    return read


@kind({"config.json": "JSON has no checksum"})
def run_directory(directory):
    """A run as `mmjax.load`, evaluation and `init_from` read it."""
    from mmjax import config
    from mmjax.checkpoints.manager import Checkpoints
    from mmjax.checkpoints.run_dir import RunDir
    from mmjax.convert import load

    checkpoints = Checkpoints(directory)
    state = {"params": {"a": RNG.normal(size=(8, 4)).astype(np.float32)}, "extra": {}}
    checkpoints.save(7, state, {"step": 7})
    checkpoints.close()
    (directory / "config.json").write_text(config.to_json(config.base()))

    def read(where):
        cfg = RunDir(where, create=False).read_config()
        return config.to_json(cfg), load.load_params(str(where))

    return read
