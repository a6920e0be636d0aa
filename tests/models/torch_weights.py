"""Explicit conversion of the state dicts of `torch_reference` to mmjax parameters."""

import jax.numpy as jnp
import numpy as np

from mmjax import tree

# Layer names of a block: fused query, key and value; out; first and second norm; up; down.
TIMM = ("attn.qkv.", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
OPEN_CLIP = ("attn.in_proj_", "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")


def _norm(state, name):
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _dense(state, name):
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def _block(state, prefix, names):
    fused, out, first, second, up, down = (f"{prefix}.{name}" for name in names)
    thirds = zip(
        np.split(state[f"{fused}weight"], 3), np.split(state[f"{fused}bias"], 3), strict=True
    )
    attention = {
        name: {"kernel": kernel.T, "bias": bias}
        for name, (kernel, bias) in zip(("query", "key", "value"), thirds, strict=True)
    }
    return {
        "attention": {**attention, "out": _dense(state, out)},
        "attention_norm": _norm(state, first),
        "mlp_norm": _norm(state, second),
        "mlp": {"up": _dense(state, up), "down": _dense(state, down)},
    }


def _layers(state, prefix, names):
    blocks, i = [], 0
    while any(name.startswith(f"{prefix}.{i}.") for name in state):
        blocks.append(tree.flatten(_block(state, f"{prefix}.{i}", names)))
        i += 1
    return tree.unflatten({path: np.stack([b[path] for b in blocks]) for path in blocks[0]})


def _arrays(params):
    return tree.map_named(lambda path, leaf: jnp.asarray(leaf), params)


def timm_vit(state):
    """Returns the params of a touch tower."""
    patch = {
        "kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "bias": state["patch_embed.proj.bias"],
    }
    return _arrays(
        {
            "patch": patch,
            "class_token": state["cls_token"][0, 0],
            "positions": state["pos_embed"][0],
            "encoder": {"layers": _layers(state, "blocks", TIMM)},
            "pool_norm": _norm(state, "fc_norm"),
            **({"projection": _dense(state, "head")} if "head.weight" in state else {}),
        }
    )


def open_clip(state):
    """Returns the params of the image tower and of the text tower."""
    layers = _layers(state, "visual.transformer.resblocks", OPEN_CLIP)
    image = {
        "patch": {"kernel": state["visual.conv1.weight"].transpose(2, 3, 1, 0)},
        "class_token": state["visual.class_embedding"],
        "positions": state["visual.positional_embedding"],
        "pre_norm": _norm(state, "visual.ln_pre"),
        "encoder": {"layers": layers, "final_norm": _norm(state, "visual.ln_post")},
        "projection": {"kernel": state["visual.proj"]},
    }
    layers = _layers(state, "transformer.resblocks", OPEN_CLIP)
    text = {
        "token_embedding": state["token_embedding.weight"],
        "positions": state["positional_embedding"],
        "encoder": {"layers": layers, "final_norm": _norm(state, "ln_final")},
        "projection": {"kernel": state["text_projection"]},
    }
    return _arrays(image), _arrays(text)


def torch_resnet(state):
    """Returns the params and statistics of a ResNet."""
    paths = {"conv1": "stem", "bn1": "stem"}
    blocks = {name.rsplit(".", 2)[0] for name in state if name.startswith("layer")}
    for block in {name.removesuffix(".downsample") for name in blocks}:
        group, j = block.removeprefix("layer").split(".")
        path = f"groups/{int(group) - 1}/{j}"
        for k, name in enumerate(("first", "second", "third"), 1):
            paths[f"{block}.conv{k}"] = paths[f"{block}.bn{k}"] = f"{path}/{name}"
        paths[f"{block}.downsample.0"] = paths[f"{block}.downsample.1"] = f"{path}/shortcut"
    params, extra = {}, {}
    for name, value in state.items():
        layer, leaf = name.rsplit(".", 1)
        if layer == "fc":
            params["projection/kernel" if leaf == "weight" else "projection/bias"] = value.T
        elif value.ndim == 4:
            params[f"{paths[layer]}/conv/kernel"] = value.transpose(2, 3, 1, 0)
        elif leaf.startswith("running"):
            extra[f"{paths[layer]}/norm/{leaf.removeprefix('running_')}"] = value
        else:
            params[f"{paths[layer]}/norm/{'scale' if leaf == 'weight' else 'bias'}"] = value
    return _arrays(tree.unflatten(params)), _arrays(tree.unflatten(extra))
