"""OpenCLIP's names for the arrays of its image and text towers (ViT; Radford et al. 2021).

They are the names in `open_clip_pytorch_model.bin` and `open_clip_model.safetensors`, and in state
dicts of OpenAI's models.
"""

from __future__ import annotations

from mmjax.formats.name_rules import QKV, Rule, Rules, dense, norm

_BLOCK = "transformer.resblocks.{i}"
_LAYERS = "encoder/layers"
_ENCODER: Rules = [
    *norm(f"{_BLOCK}.ln_1", f"{_LAYERS}/attention_norm"),
    *dense(f"{_BLOCK}.attn.in_proj", *QKV, weight="_weight", bias="_bias"),
    *dense(f"{_BLOCK}.attn.out_proj", f"{_LAYERS}/attention/out"),
    *norm(f"{_BLOCK}.ln_2", f"{_LAYERS}/mlp_norm"),
    *dense(f"{_BLOCK}.mlp.c_fc", f"{_LAYERS}/mlp/up"),
    *dense(f"{_BLOCK}.mlp.c_proj", f"{_LAYERS}/mlp/down"),
]
# Without the prefix of the tower, which is `visual.` for images.
IMAGE: Rules = [
    Rule("class_embedding", ("class_token",)),
    Rule("positional_embedding", ("positions",)),
    Rule("conv1.weight", ("patch/kernel",), "convolution"),
    *norm("ln_pre", "pre_norm"),
    *_ENCODER,
    *norm("ln_post", "encoder/final_norm"),
    Rule("proj", ("projection/kernel",)),  # [in, out], as in mmjax
]
TEXT: Rules = [
    Rule("token_embedding.weight", ("token_embedding",)),
    Rule("positional_embedding", ("positions",)),
    *_ENCODER,
    *norm("ln_final", "encoder/final_norm"),
    Rule("text_projection", ("projection/kernel",)),  # [in, out], as in mmjax
]
# Names that identify a tower; their prefix is that of the tower.
IMAGE_KEY, TEXT_KEY = "visual.conv1.weight", "token_embedding.weight"
# Arrays that are not weights: masks, and constants in OpenAI's files.
CONSTANTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")
OPENAI_KEY = "input_resolution"  # only in OpenAI's files
