"""Reads BERT sentence encoders as sentence-transformers and Hugging Face publish them.

config.json, model.safetensors           options and weights
tokenizer.json, or vocab.txt             tokenizer
modules.json, 1_Pooling/config.json      pooling; without them, the mean of the tokens
sentence_bert_config.json                maximum length; without it, that of the position embedding
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax import files, tree
from mmjax.errors import UserError, about
from mmjax.formats import name_rules, torch_reader
from mmjax.formats.name_rules import Leaf, Rule, Rules, dense, norm
from mmjax.models.blocks.transformer import EncoderConfig
from mmjax.monitor import nonfinite
from mmjax.sentence_encoders.bert_model import POOLINGS, BertConfig, BertModel
from mmjax.state import ModelDef

if TYPE_CHECKING:
    import tokenizers

# The first that exists is read. An index lists the files of a model in several parts.
WEIGHTS = tuple(
    name + end
    for name in ("model.safetensors", "pytorch_model.bin")
    for end in ("", torch_reader.INDEX)
)
OTHER_MODELS = (
    "mmjax supports only BERT models (MiniLM, bert-base-*, bge-*-en). sentence-transformers "
    'supports others: pip install "mmjax[sentences]", then for example --encoder '
    "st:all-mpnet-base-v2 (a directory or name after st:)."
)
_LAYER, _PATH = "encoder.layer.{i}", "encoder/layers"
RULES: Rules = [
    Rule("embeddings.word_embeddings.weight", ("word_embedding",)),
    Rule("embeddings.position_embeddings.weight", ("positions",)),
    Rule("embeddings.token_type_embeddings.weight", ("types",)),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *dense(f"{_LAYER}.attention.self.query", f"{_PATH}/attention/query"),
    *dense(f"{_LAYER}.attention.self.key", f"{_PATH}/attention/key"),
    *dense(f"{_LAYER}.attention.self.value", f"{_PATH}/attention/value"),
    *dense(f"{_LAYER}.attention.output.dense", f"{_PATH}/attention/out"),
    *norm(f"{_LAYER}.attention.output.LayerNorm", f"{_PATH}/attention_norm"),
    *dense(f"{_LAYER}.intermediate.dense", f"{_PATH}/mlp/up"),
    *dense(f"{_LAYER}.output.dense", f"{_PATH}/mlp/down"),
    *norm(f"{_LAYER}.output.LayerNorm", f"{_PATH}/mlp_norm"),
]
_FIRST = "embeddings.word_embeddings.weight"
_UNUSED = ("pooler.", "cls.", "embeddings.position_ids")  # not needed for embeddings
_SIZES = {  # {option of the encoder: key of config.json}
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}


def is_directory(source: str | os.PathLike) -> bool:
    """Returns whether a directory contains a model of Hugging Face or sentence-transformers."""
    names = ("config.json", "modules.json")
    return any((pathlib.Path(source) / name).is_file() for name in names)


def load(
    directory: str | os.PathLike, *, dtype: str = "float32"
) -> tuple[BertConfig, dict[str, Any], tokenizers.Tokenizer]:
    """Returns the config, parameters and tokenizer of a model.

    Args:
      directory: The model.
      dtype: Type of the computation.

    Returns:
      `(config, params, tokenizer)`; the tokenizer truncates texts to the maximum length.

    Raises:
      UserError: The model is not a BERT, a file is missing or damaged, or arrays are missing,
        unknown or have other shapes than config.json requires.
    """
    root = pathlib.Path(os.path.expanduser(directory))
    transformer, pooling, normalize = _read_modules(root)
    options = _read_json(transformer / "config.json", required=True)
    sentence = _read_json(transformer / "sentence_bert_config.json") or _read_json(
        root / "sentence_bert_config.json"
    )
    cfg = _config(
        options, transformer / "config.json", pooling=pooling, normalize=normalize, dtype=dtype
    )
    longest = sentence.get("max_seq_length") or cfg.max_positions
    if type(longest) is not int or longest < 3:
        raise UserError(
            f"{transformer}: max_seq_length in sentence_bert_config.json must be an integer of at "
            f"least 3; got {longest!r}."
        )
    tokenizer = _tokenizer(transformer, lower=bool(sentence.get("do_lower_case")))
    tokenizer.enable_truncation(min(longest, cfg.max_positions))
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if index >= cfg.vocab_size:
        raise UserError(
            f"{transformer}: the tokenizer's token {token!r} has the id {index}, but vocab_size in "
            f"config.json is {cfg.vocab_size}. The tokenizer belongs to another model; download "
            "all files of one model."
        )
    return cfg, _read_weights(transformer, cfg), tokenizer


def _read_modules(root: pathlib.Path) -> tuple[pathlib.Path, str, bool]:
    """Returns the directory of the transformer, the pooling, and whether to normalize."""
    path = root / "modules.json"
    entries = _read_json(path, default=[])
    if not entries:
        return root, "mean", False  # as sentence-transformers reads a plain BERT
    modules = []
    for index, entry in enumerate(entries):
        values = [entry.get(k) for k in ("type", "path")] if isinstance(entry, dict) else [None]
        if not all(isinstance(value, str) for value in values):
            raise UserError(
                f"{path}: entry {index} must be an object with the keys 'type' and 'path' "
                f"(strings); got {entry!r}."
            )
        modules.append((values[0].rpartition(".")[2], root / values[1]))
    names = [name for name, _ in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{path}: the modules {', '.join(names)} are not supported; expected Transformer, "
            f"Pooling and optionally Normalize. {OTHER_MODELS}"
        )
    with about(f"{path} lists a module"):
        path = modules[1][1] / "config.json"
        pooling = _read_json(path, required=True)
    # Before version 5, there was one switch for each type of pooling.
    active = [pooling["pooling_mode"]] if "pooling_mode" in pooling else _active(pooling)
    if len(active) != 1 or active[0] not in POOLINGS:
        raise UserError(
            f"{path}: pooling by {', '.join(map(str, active)) or 'nothing'} is not supported; "
            f"expected {' or '.join(POOLINGS)}. {OTHER_MODELS}"
        )
    return modules[0][1], active[0], "Normalize" in names


def _active(pooling: Mapping[str, Any]) -> list[str]:
    """Returns the types of pooling that are switched on."""
    names = {"cls_token": "cls", "mean_tokens": "mean"}
    types = [key.removeprefix("pooling_mode_") for key, value in pooling.items() if value is True]
    return [names.get(type_, type_) for type_ in types if type_ != "include_prompt"]


def _config(
    options: Mapping[str, Any], path: pathlib.Path, *, pooling: str, normalize: bool, dtype: str
) -> BertConfig:
    """Returns the config from the content of config.json."""
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in expected.items():
        if (actual := options.get(key, value)) != value:
            raise UserError(f"{path}: {key} is {actual!r}; expected {value!r}. {OTHER_MODELS}")

    def size(key: str, default: int | None = None) -> int:
        value = options.get(key, default)
        if type(value) is not int or value < 1:
            actual = repr(value) if key in options else "no such key"
            raise UserError(
                f"{path}: {key} must be a positive integer; got {actual}. {OTHER_MODELS}"
            )
        return value

    sizes = {name: size(key) for name, key in _SIZES.items()}
    if sizes["width"] % sizes["num_heads"]:
        raise UserError(
            f"{path}: hidden_size {sizes['width']} must be divisible by num_attention_heads "
            f"{sizes['num_heads']}."
        )
    epsilon = options.get("layer_norm_eps", 1e-12)
    if type(epsilon) not in (int, float):
        raise UserError(f"{path}: layer_norm_eps must be a number; got {epsilon!r}.")
    return BertConfig(
        encoder=EncoderConfig(
            **sizes,
            head_dim=sizes["width"] // sizes["num_heads"],
            pre_norm=False,
            epsilon=float(epsilon),
            dropout_rate=0.0,
            dtype=dtype,
        ),
        vocab_size=size("vocab_size"),
        max_positions=size("max_position_embeddings"),
        num_types=size("type_vocab_size", 2),
        pooling=pooling,
        normalize=normalize,
    )


def _read_weights(directory: pathlib.Path, cfg: BertConfig) -> dict[str, Any]:
    """Returns the parameters of a model."""
    path = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if path is None:
        raise UserError(f"{directory} contains no {WEIGHTS[0]}. {OTHER_MODELS}")
    arrays = torch_reader.tensors(path)
    prefixes = name_rules.prefixes(arrays, _FIRST)
    if len(prefixes) != 1:
        raise UserError(f"{path} contains no array {_FIRST}, as a BERT does. {OTHER_MODELS}")
    prefix = prefixes[0]
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    arrays = {name: array for name, array in arrays.items() if not name.startswith(_UNUSED)}
    arrays = _with_new_names(arrays, path)
    shapes = {name: array.shape for name, array in arrays.items()}
    leaves, mismatches, unknown = name_rules.match_keys(shapes, RULES)
    mismatches |= {name: "is not an array of a BERT" for name in unknown}
    target = tree.flatten(ModelDef(lambda rngs: BertModel(cfg, rngs=rngs)).params)
    for path_in_model, leaf in target.items():
        mismatches |= _compare(path_in_model, leaf.shape, leaves, shapes)
    if mismatches:
        some = [f"{prefix}{name} {text}" for name, text in list(mismatches.items())[:5]]
        more = f"; and {len(mismatches) - 5} more" if len(mismatches) > 5 else ""
        raise UserError(
            f"{path} does not fit {directory / 'config.json'}: {'; '.join(some)}{more}. Download "
            "all files of one model."
        )
    params = {name: leaves[name].read(arrays) for name in target}
    nonfinite.warn_about_weights(params, path, {name: leaves[name].keys for name in target})
    return tree.unflatten(params)


def _with_new_names(arrays: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns arrays with PyTorch's names of LayerNorm for those of Google's TensorFlow code."""
    result: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        for old, new in (("gamma", "weight"), ("beta", "bias")):
            if name.endswith(f"LayerNorm.{old}"):
                name = name.removesuffix(old) + new
        if name in result:
            raise UserError(f"{path} contains {name} twice, also as gamma or beta. Remove one.")
        result[name] = array
    return result


def _compare(
    path: str,
    shape: Sequence[int],
    leaves: Mapping[str, Leaf],
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, str]:
    """Returns {key: mismatch} of the arrays that make up one parameter."""
    leaf, shape = leaves.get(path), tuple(shape)
    if leaf is None:
        return dict.fromkeys(name_rules.keys_of(path, shape[0], RULES), "is missing")
    if leaf.stacked and leaf.shape[0] != shape[0]:
        key = leaf.rule.key.replace("{i}", str(min(leaf.shape[0], shape[0])))
        verb = "is missing" if leaf.shape[0] < shape[0] else "is one layer too many"
        return {key: f"{verb}: num_hidden_layers is {shape[0]}, the file has {leaf.shape[0]}"}
    if leaf.shape == shape:
        return {}
    # The shape that the source should have, for the first of the layers.
    expected = shape[1:] if leaf.stacked else shape
    if leaf.rule.layout == "dense":
        expected = expected[::-1]
    key = leaf.keys[0]
    return {key: f"has shape {tuple(shapes[key])}; config.json requires {expected}"}


def _tokenizer(directory: pathlib.Path, *, lower: bool) -> tokenizers.Tokenizer:
    """Returns the tokenizer, with [CLS] and [SEP] and without padding and truncation."""
    import tokenizers

    path = directory / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no more specific type
            raise UserError(
                f"{path} is not a tokenizer: {error}. Download the file again."
            ) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
    else:
        tokenizer = _wordpiece_tokenizer(directory)
    if lower:
        first = [tokenizers.normalizers.Lowercase()]
        others = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = tokenizers.normalizers.Sequence(first + others)
    return tokenizer


def _wordpiece_tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer of vocab.txt."""
    import tokenizers

    path = directory / "vocab.txt"
    if not path.is_file():
        raise UserError(
            f"{directory} contains no tokenizer.json and no vocab.txt. Download one of them."
        )
    options = _read_json(directory / "tokenizer_config.json")
    lines = files.read_text(path).split("\n")
    vocab = {token: index for index, token in enumerate(lines) if token}
    if missing := [token for token in ("[CLS]", "[SEP]", "[UNK]") if token not in vocab]:
        raise UserError(
            f"{path} lacks the special tokens {', '.join(missing)} of a BERT vocabulary."
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=bool(options.get("do_lower_case", True)),
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
        strip_accents=options.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _read_json(path: pathlib.Path, *, required: bool = False, default: Any = None) -> Any:
    """Returns the content of a JSON file; `default` (an empty dict) if it does not exist."""
    default = {} if default is None else default
    if not path.is_file():
        if required:
            raise UserError(f"{path}: no such file. Download all files of the model.")
        return default
    content = files.read_json(path)
    if not isinstance(content, type(default)):
        names = {dict: "an object", list: "a list"}
        raise UserError(
            f"{path} must contain {names[type(default)]}; got "
            f"{names.get(type(content), repr(content))}."
        )
    return content
