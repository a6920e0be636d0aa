"""A random BERT in the published sentence-encoder format, and a NumPy reference implementation."""

import json
import math

import numpy as np

from mmjax.formats import safetensors

WORDS = "[PAD] [UNK] [CLS] [SEP] a the cat dog red blue sit run ##s ##ning , .".split()
CLS, SEP, UNK = 2, 3, 1
WIDTH, HEADS, LAYERS, MLP, POSITIONS = 24, 3, 2, 40, 40
CONFIG = dict(
    model_type="bert",
    hidden_act="gelu",
    hidden_size=WIDTH,
    num_attention_heads=HEADS,
    num_hidden_layers=LAYERS,
    intermediate_size=MLP,
    layer_norm_eps=1e-12,
    vocab_size=len(WORDS),
    max_position_embeddings=POSITIONS,
    type_vocab_size=2,
    position_embedding_type="absolute",
    hidden_dropout_prob=0.1,
)


def weights(seed=0):
    """Returns random weights as {name: array} under the names of published BERT checkpoints."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)  # noqa: E731
    arrays = {
        "embeddings.word_embeddings.weight": normal(len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": normal(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
    }
    norms, layers = ["embeddings.LayerNorm"], {}
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            layers[f"{at}.attention.self.{name}"] = WIDTH, WIDTH
        layers[f"{at}.attention.output.dense"] = WIDTH, WIDTH
        layers[f"{at}.intermediate.dense"] = MLP, WIDTH
        layers[f"{at}.output.dense"] = WIDTH, MLP
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name, shape in layers.items():
        arrays |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    for name in norms:
        arrays |= {f"{name}.weight": 1 + normal(WIDTH), f"{name}.bias": normal(WIDTH)}
    return arrays


def write(
    directory,
    *,
    arrays=None,
    config=(),
    prefix="",
    pooling=None,
    modules=("Transformer", "Pooling", "Normalize"),
    sentence=None,
):
    """Writes a model directory and returns it; without `modules` it is a plain BERT."""
    directory.mkdir(parents=True, exist_ok=True)
    save = lambda name, content: (directory / name).write_text(json.dumps(content))  # noqa: E731
    save("config.json", CONFIG | dict(config))
    arrays = weights() if arrays is None else arrays
    safetensors.write(directory / "model.safetensors", {prefix + k: v for k, v in arrays.items()})
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    if sentence:
        save("sentence_bert_config.json", sentence)
    if modules:
        paths = {"Transformer": "", "Pooling": "1_Pooling"}
        package = "sentence_transformers.models."
        save("modules.json", [dict(path=paths.get(m, m), type=package + m) for m in modules])
        (directory / "1_Pooling").mkdir()
        pooling = {"pooling_mode_mean_tokens": True} if pooling is None else pooling
        switches = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
        settings = pooling if "pooling_mode" in pooling else switches | pooling
        save("1_Pooling/config.json", {"word_embedding_dimension": WIDTH} | settings)
    return directory


def token_ids(text, length=POSITIONS):
    """Returns the token ids of a text: greedy WordPiece between [CLS] and [SEP]."""
    ids = []
    for word in text.lower().replace(",", " , ").replace(".", " . ").split():
        word_ids, rest = [], word
        while rest:
            start = "##" if word_ids else ""
            end = next((n for n in range(len(rest), 0, -1) if start + rest[:n] in WORDS), 0)
            if not end:
                word_ids = [UNK]
                break
            word_ids.append(WORDS.index(start + rest[:end]))
            rest = rest[end:]
        ids += word_ids
    return [CLS, *ids[: length - 2], SEP]


def embed(arrays, ids, *, pooling="mean", normalize=True):
    """Returns the embedding of one unpadded text: float64 [WIDTH]."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    dense = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(LAYERS):
        at, outs = f"encoder.layer.{i}", []
        q, k, v = (dense(x, f"{at}.attention.self.{n}") for n in ("query", "key", "value"))
        for part in np.split(np.arange(WIDTH), HEADS):
            scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(WIDTH / HEADS))
            outs.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        out = dense(np.concatenate(outs, axis=1), f"{at}.attention.output.dense")
        x = norm(x + out, f"{at}.attention.output.LayerNorm")
        hidden = dense(x, f"{at}.intermediate.dense")
        hidden = hidden * np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))(hidden)
        x = norm(x + dense(hidden, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    pooled = x[0] if pooling == "cls" else x.mean(0)
    return pooled / np.linalg.norm(pooled) if normalize else pooled
