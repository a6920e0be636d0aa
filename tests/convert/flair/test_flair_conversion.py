"""Conversion of FLAIR's checkpoints in all their forms, and back."""

import json
import logging

import jax
import numpy as np
import pytest

import mmjax
from mmjax import config
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert import source_config
from mmjax.convert.export import export
from mmjax.convert.load import load_params
from mmjax.errors import UserError
from mmjax.formats import safetensors, torch_reader
from mmjax.models.flair import make_model
from mmjax.preprocess.clip_images import clip_images
from mmjax.tools import cli
from tests.convert.runs import module_of, read_report
from tests.convert.torch_writer import save
from tests.messages import assert_mentions, raises
from tests.models.flair_fixture import make_flair

SIZE = dict(num_heads=4, head_dim=8, mlp_dim=64)
OPTIONS = dict(
    image=dict(name="clip_vit_tiny", width=32, num_layers=2, image_size=12, patch_size=4, **SIZE),
    text=dict(
        name="clip_text_tiny", width=32, num_layers=3, vocab_size=50, context_length=9, **SIZE
    ),
    width=24,
    num_heads=3,
)
ADAPTERS = ("vision_adapter", "text_adapter", "concat_adapter")
HEADS = ("--head-dim", "8")
MODEL, PARAMS, STATE = make_flair(**OPTIONS)
IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
IDS = np.array([[48, 3, 14, 49, 0, 0, 0, 0, 0], [48, 9, 2, 6, 5, 3, 5, 8, 49]])


def convert(*arguments):
    return cli.main(["convert", *map(str, arguments), *HEADS])


def outputs(module):
    def run(images, ids):
        image, text = module.encode_images(images), module.encode_texts(ids)
        return image, text, module.similarity(image.tokens, text.pooled)

    return jax.device_get(jax.jit(run)(IMAGES, IDS))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a file as published."""
    directory = tmp_path_factory.mktemp("flair")
    source = save(directory / "flair-cc3m-recap.pt", dict(STATE))
    assert convert(source, "--out", directory / "run") == 0
    return directory / "run"


def test_a_run_computes_the_outputs_of_the_model(run):
    actual, expected = outputs(module_of(run, make_model)), outputs(MODEL.bind(PARAMS, {}))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.ptp(y) > 0


def test_the_config_has_the_sizes_of_the_file(run):
    cfg = RunDir(run, create=False).read_config()
    config.resolve(cfg)
    assert cfg.task == "flair" and cfg.model.adapters == ()
    assert (cfg.data.image.size, cfg.data.text.max_tokens) == (12, 9)
    assert (cfg.model.width, cfg.model.num_heads) == (24, 3)
    assert (cfg.model.text.num_layers, cfg.model.text.vocab_size) == (3, 50)
    assert cfg.model.image.num_layers == 2 and cfg.model.image.projection == 0
    trained = [path for path in load_params(str(run))[0] if not _is_frozen(cfg, path)]
    assert trained == ["text_projection/kernel"]


def _is_frozen(cfg, path):
    return any(path.startswith(pattern.removeprefix("^")) for pattern in cfg.optimizer.frozen)


def test_the_report_lists_every_array(run):
    report = read_report(run)
    assert set(report.targets) == set(STATE)
    name = "visual_proj.attn.in_proj_weight"
    assert report.targets[name] == "pooling/{query,key,value}/kernel float32 (72, 24)"
    block = report.targets["transformer.resblocks.2.mlp.c_fc.bias"]
    assert block == "text/encoder/layers/mlp/up/bias[2] float32 (64,)"
    assert all(report.num_keys.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda state: {f"module.{name}": x for name, x in state.items()},
        lambda state: {"epoch": 3, "state_dict": {f"module.{n}": x for n, x in state.items()}},
        lambda state: {
            "model_state_dict": {f"_orig_mod.{n}": x for n, x in state.items()},
            "optimizer_state_dict": {"state": {0: {"exp_avg": np.ones(3, np.float32)}}},
        },
    ],
    ids=["module", "state_dict", "TTDL"],
)
def test_all_forms_of_files_have_the_same_parameters(tmp_path, make):
    leaves, description = load_params(save(tmp_path / "flair.pt", make(STATE)))
    expected, _ = load_params(save(tmp_path / "plain.pt", dict(STATE)))
    assert_mentions(description, tmp_path / "flair.pt")
    assert set(leaves) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(leaves[path], array)


def test_adapters_are_converted(tmp_path):
    model, params, state = make_flair(**OPTIONS, adapters=ADAPTERS)
    assert state["concat_adapter.weight"].shape == (24, 48)
    safetensors.write(tmp_path / "tuned.safetensors", state)
    assert convert(tmp_path / "tuned.safetensors", "--out", tmp_path / "run") == 0
    cfg = RunDir(tmp_path / "run", create=False).read_config()
    assert cfg.model.adapters == ADAPTERS
    module = module_of(tmp_path / "run", make_model)

    def fused(module):
        image = module.encode_images(IMAGES)
        return module.fuse(image, image), module.encode_texts(IDS)

    actual, expected = (jax.jit(lambda m=m: fused(m))() for m in (module, model.bind(params, {})))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_missing_bias_of_the_logits_is_0(tmp_path, caplog, capsys):
    state = {name: x for name, x in STATE.items() if name != "logit_bias"}
    source = save(tmp_path / "flair.pt", {f"module.{name}": x for name, x in state.items()})
    with caplog.at_level(logging.INFO):
        leaves, _ = load_params(source)
    assert leaves["logit_bias"] == 0 and leaves["logit_bias"].shape == ()
    assert_mentions(caplog.text, source, "logit_bias", 0)
    assert convert(source, "--out", tmp_path / "run") == 0
    assert_mentions(capsys.readouterr().out, "logit_bias", 0)
    assert load_params(str(tmp_path / "run"))[0]["logit_bias"] == 0


def test_export_is_lossless(run, tmp_path, capsys):
    for suffix in (".safetensors", ".pth"):
        out = tmp_path / f"flair{suffix}"
        assert cli.main(["convert", str(run), "--to", "flair", "--out", str(out)]) == 0
        arrays = torch_reader.tensors(out)
        assert set(arrays) == set(STATE)
        for name, array in STATE.items():
            assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape, name
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
        parameters = sum(x.size for x in STATE.values())
        assert_mentions(capsys.readouterr().out, out, f"{parameters:,}", len(STATE))


def test_export_needs_a_model_of_the_task(tmp_path):
    towers = {name: x for name, x in STATE.items() if "post" not in name and "_proj." not in name}
    source = save(tmp_path / "clip.pt", towers)
    with raises(UserError, "--to flair", "--task=flair"):
        export(source, to="flair", out=str(tmp_path / "out.pth"))


def test_inspection_describes_the_file(tmp_path, capsys):
    source = save(tmp_path / "flair.pt", dict(STATE))
    assert convert(source, "--inspect", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["parameters"] == sum(x.size for x in STATE.values())
    assert summary["mismatches"] == {} and len(summary["keys"]) == len(STATE)


def test_a_head_dimension_that_does_not_divide_the_width_is_an_error(tmp_path):
    with raises(UserError, "--head-dim", 24, 64):
        source_config.config_of([save(tmp_path / "flair.pt", dict(STATE))])


def test_incomplete_and_unknown_arrays_are_errors(tmp_path):
    missing = dict(STATE)
    del missing["visual.transformer.resblocks.1.mlp.c_fc.weight"]
    with raises(UserError, "visual.transformer.resblocks.1.mlp.c_fc.weight", "missing"):
        load_params(save(tmp_path / "missing.pt", missing))
    extra = STATE | {"visual.unknown": np.ones(3, np.float32)}
    assert convert(save(tmp_path / "extra.pt", extra), "--inspect") == 1
    two = {f"{p}.{n}": x for p in ("student", "teacher") for n, x in STATE.items()}
    with raises(UserError, "2 models", "student.", "teacher."):
        load_params(save(tmp_path / "two.pt", two))


def test_a_file_embeds_images_and_texts(tmp_path):
    wide = dict(width=64, num_heads=1, head_dim=64)
    options = {name: {**OPTIONS[name], **wide} for name in ("image", "text")}
    merges = tmp_path / "bpe_simple_vocab.txt"
    merges.write_text("#version\nt h\nth e</w>\n")
    options["text"] |= dict(vocab_size=2 * 256 + 2 + 2)
    model, params, state = make_flair(**options, width=64, num_heads=1)
    source = save(tmp_path / "flair.pt", dict(state))
    loaded = mmjax.load(source, overrides=[f"--config.data.text.vocab={merges}"])
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    module = model.bind(params, {})
    expected = np.asarray(module.encode_images(clip_images(image[None], 12)).pooled[0])
    expected = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(loaded.embed_image(image), expected, atol=1e-5)
    assert loaded.embed_text(["the"]).shape == (1, 64)
    # Without the vocabulary, images can be used.
    with raises(UserError, "vocabulary", "config.data.text"):
        mmjax.load(source)
    images = mmjax.load(source, overrides=["--config.data.text=None"])
    np.testing.assert_allclose(images.embed_image(image), expected, atol=1e-5)


def test_flags_of_other_models_are_errors(tmp_path, capsys):
    source = save(tmp_path / "flair.pt", dict(STATE))
    assert convert(source, "--quick-gelu", "--inspect") == 2
    assert_mentions(capsys.readouterr().err, "--quick-gelu", source)
