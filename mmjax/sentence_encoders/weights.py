"""Folders of sentence encoders as sentence-transformers and Hugging Face publish them: BERT's.

config.json, model.safetensors           BERT's options and weights
tokenizer.json, or vocab.txt             pieces of words
modules.json, 1_Pooling/config.json      how tokens become an embedding; if they are missing:
sentence_bert_config.json                the mean of the tokens, texts of any length
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmjax import tree
from mmjax.errors import UserError
from mmjax.formats import name_rules, torch_reader
from mmjax.formats.name_rules import Rule, Rules, dense, norm
from mmjax.models.blocks.transformer import EncoderConfig
from mmjax.sentence_encoders.bert import POOLINGS, SentenceConfig, SentenceEncoder
from mmjax.state import ModelDef

if TYPE_CHECKING:
    import tokenizers

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
ELSEWHERE = (
    "mmjax reads BERT's kind alone (MiniLM, bert-base-*, bge-*-en). sentence-transformers runs the "
    'others: pip install "mmjax[sentences]", then for example --encoder st:all-mpnet-base-v2 (the '
    "folder or the name after st:)."
)
_LAYER, _OURS = "encoder.layer.{i}", "encoder/layers"
RULES: Rules = [
    Rule("embeddings.word_embeddings.weight", ("word_embedding",)),
    Rule("embeddings.position_embeddings.weight", ("positions",)),
    Rule("embeddings.token_type_embeddings.weight", ("types",)),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *dense(f"{_LAYER}.attention.self.query", f"{_OURS}/attention/query"),
    *dense(f"{_LAYER}.attention.self.key", f"{_OURS}/attention/key"),
    *dense(f"{_LAYER}.attention.self.value", f"{_OURS}/attention/value"),
    *dense(f"{_LAYER}.attention.output.dense", f"{_OURS}/attention/out"),
    *norm(f"{_LAYER}.attention.output.LayerNorm", f"{_OURS}/attention_norm"),
    *dense(f"{_LAYER}.intermediate.dense", f"{_OURS}/mlp/up"),
    *dense(f"{_LAYER}.output.dense", f"{_OURS}/mlp/down"),
    *norm(f"{_LAYER}.output.LayerNorm", f"{_OURS}/mlp_norm"),
]
_FIRST = "embeddings.word_embeddings.weight"
_UNUSED = ("pooler.", "cls.", "embeddings.position_ids")  # no part of an embedding
_OPTIONS = {  # ours: theirs
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}


def is_directory(source: str | os.PathLike) -> bool:
    """Whether a source is a folder of a model of Hugging Face's or sentence-transformers'."""
    names = ("config.json", "modules.json")
    return any((pathlib.Path(source) / name).is_file() for name in names)


def load(
    directory: str | os.PathLike, *, dtype: str = "float32"
) -> tuple[SentenceConfig, dict[str, Any], tokenizers.Tokenizer]:
    """`(options, parameters, tokenizer)` of a folder; the tokenizer cuts texts that are too long.

    Args:
      folder: see above.
      dtype: of computation.

    Raises:
      UserError: a model of another kind, a file that is missing or damaged, or weights that are not
        all there or too many.
    """
    root = pathlib.Path(os.path.expanduser(directory))
    part, pooling, normalize = _modules(root)
    options = _json(part / "config.json", required=True)
    sentence = _json(part / "sentence_bert_config.json") or _json(
        root / "sentence_bert_config.json"
    )
    cfg = _config(options, part / "config.json", pooling=pooling, normalize=normalize, dtype=dtype)
    longest = sentence.get("max_seq_length") or cfg.max_positions
    tokenizer = _tokenizer(part, lower=bool(sentence.get("do_lower_case")))
    tokenizer.enable_truncation(min(longest, cfg.max_positions))
    piece, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= cfg.vocab_size:
        raise UserError(
            f"{part}: the tokenizer's piece {piece!r} has number {number}, but the model has "
            f"{cfg.vocab_size} rows for pieces: they are not of one model."
        )
    return cfg, _weights(part, cfg), tokenizer


def _modules(root: pathlib.Path) -> tuple[pathlib.Path, str, bool]:
    """(folder of the transformer, pooling, whether embeddings are normalized)."""
    path = root / "modules.json"
    entries = _json(path, default=[])
    if not entries:
        return root, "mean", False  # as sentence-transformers reads a plain BERT
    try:
        kinds = [(entry["type"].rpartition(".")[2], root / entry["path"]) for entry in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no list of modules: {error!r}.") from error
    names = [kind for kind, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(f"{path}: a model of {', '.join(names)}. {ELSEWHERE}")
    path = kinds[1][1] / "config.json"
    found = _json(path, required=True)
    # Until version 5 there was a switch for each kind of pooling.
    kinds_on = [found["pooling_mode"]] if "pooling_mode" in found else _switched_on(found)
    if len(kinds_on) != 1 or kinds_on[0] not in POOLINGS:
        raise UserError(f"{path}: pooling {', '.join(map(str, kinds_on)) or 'none'}. {ELSEWHERE}")
    return kinds[0][1], kinds_on[0], "Normalize" in names


def _switched_on(pooling: Mapping[str, Any]) -> list[str]:
    names = {"cls_token": "cls", "mean_tokens": "mean"}
    kinds = [key.removeprefix("pooling_mode_") for key, value in pooling.items() if value is True]
    return [names.get(kind, kind) for kind in kinds if kind != "include_prompt"]


def _config(
    options: Mapping[str, Any], path: pathlib.Path, *, pooling: str, normalize: bool, dtype: str
) -> SentenceConfig:
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in expected.items():
        if (found := options.get(key, value)) != value:
            raise UserError(f"{path}: {key} is {found!r}, not {value!r}. {ELSEWHERE}")
    try:
        sizes = {ours: int(options[theirs]) for ours, theirs in _OPTIONS.items()}
        return SentenceConfig(
            encoder=EncoderConfig(
                **sizes,
                head_dim=sizes["width"] // sizes["num_heads"],
                pre_norm=False,
                epsilon=float(options.get("layer_norm_eps", 1e-12)),
                dropout_rate=0.0,
                dtype=dtype,
            ),
            vocab_size=int(options["vocab_size"]),
            max_positions=int(options["max_position_embeddings"]),
            num_types=int(options.get("type_vocab_size", 2)),
            pooling=pooling,
            normalize=normalize,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not describe a BERT: {error!r}. {ELSEWHERE}") from error


def _weights(directory: pathlib.Path, cfg: SentenceConfig) -> dict[str, Any]:
    path = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if path is None:
        raise UserError(f"{directory} holds no {WEIGHTS[0]}. {ELSEWHERE}")
    arrays = torch_reader.tensors(path)
    before = name_rules.prefixes(arrays, _FIRST)
    if len(before) != 1:
        raise UserError(f"{path} holds no {_FIRST}: it is no BERT. {ELSEWHERE}")
    arrays = {name.removeprefix(before[0]): array for name, array in arrays.items()}
    arrays = {name: array for name, array in arrays.items() if not name.startswith(_UNUSED)}
    leaves, problems, surplus = name_rules.match_keys({n: a.shape for n, a in arrays.items()}, RULES)
    problems |= {name: "is no array of a BERT" for name in surplus}
    target = tree.flatten(ModelDef(lambda rngs: SentenceEncoder(cfg, rngs=rngs)).params)
    for name, leaf in target.items():
        if name not in leaves:
            problems[name] = "missing"
        elif leaves[name].shape != leaf.shape:
            problems[leaves[name].keys[0]] = (
                f"makes {name} {leaves[name].shape}, by config.json it is {leaf.shape}"
            )
    if problems:
        some = [f"{name}: {problem}" for name, problem in list(problems.items())[:5]]
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path}: {'; '.join(some)}{more}.")
    return tree.unflatten({name: leaves[name].read(arrays) for name in target})


def _tokenizer(directory: pathlib.Path, *, lower: bool) -> tokenizers.Tokenizer:
    """Makes pieces with [CLS] and [SEP] around them; pads and cuts nothing."""
    import tokenizers

    path = directory / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"{path} is no tokenizer: {error}.") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
    else:
        tokenizer = _word_pieces(directory)
    if lower:
        first = [tokenizers.normalizers.Lowercase()]
        others = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = tokenizers.normalizers.Sequence(first + others)
    return tokenizer


def _word_pieces(directory: pathlib.Path) -> tokenizers.Tokenizer:
    import tokenizers

    path = directory / "vocab.txt"
    if not path.is_file():
        raise UserError(f"{directory} has neither tokenizer.json nor vocab.txt.")
    options = _json(directory / "tokenizer_config.json")
    pieces = path.read_text(encoding="utf-8").split("\n")
    numbers = {piece: number for number, piece in enumerate(pieces) if piece}
    if missing := [mark for mark in ("[CLS]", "[SEP]", "[UNK]") if mark not in numbers]:
        raise UserError(f"{path}: a BERT vocabulary has {', '.join(missing)}.")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=bool(options.get("do_lower_case", True)),
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
        strip_accents=options.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _json(path: pathlib.Path, *, required: bool = False, default: Any = None) -> Any:
    """The content of a JSON file; `default` (an empty object) if there is none."""
    if not path.is_file():
        if required:
            raise UserError(f"There is no {path}.")
        return {} if default is None else default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict if default is None else type(default)):
        raise UserError(f"{path} is not what its name says.")
    return content
