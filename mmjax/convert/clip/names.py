"""OpenCLIP's names for the towers of images and text (ViT models; Radford et al. 2021).

Names: of open_clip's files, `open_clip_pytorch_model.bin` and `open_clip_model.safetensors`; those
of OpenAI's models, once they are state dicts, are the same.
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
# Of a tower: below `visual.` or where the text's lies, and in our tower.
IMAGE: Rules = [
    Rule("class_embedding", ("class_token",)),
    Rule("positional_embedding", ("positions",)),
    Rule("conv1.weight", ("patch/kernel",), "convolution"),
    *norm("ln_pre", "pre_norm"),
    *_ENCODER,
    *norm("ln_post", "encoder/final_norm"),
    Rule("proj", ("projection/kernel",)),  # x @ W, as ours
]
TEXT: Rules = [
    Rule("token_embedding.weight", ("token_embedding",)),
    Rule("positional_embedding", ("positions",)),
    *_ENCODER,
    *norm("ln_final", "encoder/final_norm"),
    Rule("text_projection", ("projection/kernel",)),  # x @ W, as ours
]
IMAGE_KEY, TEXT_KEY = "visual.conv1.weight", "token_embedding.weight"  # tell where a tower lies
# Arrays that are no weights: masks, and numbers that OpenAI's files hold.
CONSTANTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")
OF_OPENAI = "input_resolution"  # in its files alone
