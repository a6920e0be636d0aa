"""`mmjax plan` reports the memory and time that published sizes need, without the devices."""

import re

import pytest

from mmjax import config
from mmjax.data_spec import DataSpec
from mmjax.tools import cli
from tests.e2e.program import lines_mentioning
from tests.messages import assert_mentions

SIZES = {"bbs": 213_540_652, "mbs": 280_569_132, "lbs": 431_723_820}


def numbers(table, part):
    """Returns elements, total MiB and MiB per device of a part of the train state."""
    match = re.search(rf"^{part} +([\d,]+) +([\d.]+) +([\d.]+)$", table, re.MULTILINE)
    return int(match[1].replace(",", "")), float(match[2]), float(match[3])


@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_memory_of_published_sizes(size, capsys):
    arguments = ["plan", f"--config=tx_fac:{size}", "--data=4", "--fsdp=8"]
    assert cli.main([*arguments, "--config.sharding=fsdp"]) == 0
    table = capsys.readouterr().out
    params, mebibytes, on_one = numbers(table, "params")
    assert params + numbers(table, "extra")[0] == SIZES[size]
    assert mebibytes == pytest.approx(params * 4 / 2**20, abs=0.01)
    # All but small arrays are sharded over eight devices.
    assert mebibytes / 8 <= on_one <= 1.02 * mebibytes / 8
    moments, mebibytes, on_one = numbers(table, "opt")
    assert mebibytes / 8 <= on_one <= 1.02 * mebibytes / 8
    token_embedding = 65_536 * 300  # frozen, so it has no moments
    assert moments == pytest.approx(2 * (params - token_embedding), abs=4)
    assert lines_mentioning(table, 32, "devices")
    assert lines_mentioning(table, "Batch", 2048, 64)


def test_the_sample_rate_of_the_config_is_used():
    overrides = ["--config.data.audio.sample_rate=16000"]
    cfg = config.load("finetune", "audio:spt_tiny", overrides)
    assert DataSpec.of_config(cfg).sample_rate == 16_000
    cfg = config.load("finetune", "audio:wat_tiny", overrides)
    assert DataSpec.of_config(cfg).sample_rate == 8000  # every second sample


def test_replicated_parameters_need_the_full_memory_on_each_device(capsys):
    assert cli.main(["plan", "--data=16", "--config.batch_size=64"]) == 0
    _, mebibytes, on_one = numbers(capsys.readouterr().out, "params")
    assert mebibytes == on_one


def test_activation_memory_and_minimum_step_time(capsys):
    def estimates(*overrides):
        arguments = ["plan", "--config=tx_fac:bbs", "--data=256", "--device=TPU v3"]
        assert cli.main([*arguments, *overrides]) == 0
        table = capsys.readouterr().out
        size, unit = re.search(r"model\.remat=.* ([\d.]+) ([MG]iB)\b", table).groups()
        seconds = re.search(r"\b6[12] TFLOP/s.* ([\d.]+) s\b", table)[1]
        flops = re.search(r" ([\d.]+e\+\d+) ", table)[1]
        size = float(size) * {"MiB": 2**20, "GiB": 2**30}[unit]
        return size, float(seconds), float(flops)

    dots, seconds, flops = estimates()
    assert seconds == pytest.approx(flops / 256 / 61.5e12, rel=0.01)
    full, *_ = estimates("--config.model.remat=full")
    # 8 examples per device in bfloat16: 'full' keeps at least the input of each block, 'dots' also
    # queries, keys, values and hidden units (four times as wide).
    video, audio = 12 * 785 * 768, 12 * 601 * 768
    assert full > 8 * 2 * (video + audio)
    assert dots > full + 8 * 2 * 7 * (video + audio)
    # Without DropToken, the towers process twice as many patches.
    more, _, work = estimates(
        "--config.model.video.keep_tokens=1.0", "--config.model.audio.keep_tokens=1.0"
    )
    assert more > 1.8 * dots and work > 2 * flops
    # Two microbatches need half the memory.
    half, *_ = estimates("--config.accumulate_steps=2")
    assert half == pytest.approx(dots / 2, rel=0.02)
    # So do two updates per step, which are as much work as one of the whole batch.
    half, _, work = estimates("--config.updates_per_step=2")
    assert half == pytest.approx(dots / 2, rel=0.02) and work == flops


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (["--data=3"], ("batch_size=64", "3 devices", "63")),
        (["--config=tx_fax"], ("--task=pretrain", "'tx_fax'", "'tx_fac'")),
        (["--config=tx_fac:mbz"], ("'mbz'", "'mbs'")),
        (["--config.model.sise=tiny"], ("'model.sise'", "'model.size'")),
        (["--data=0"], ("0 × 1 × 1",)),
        (["--task=pretran"], ("'pretran'", "'pretrain'")),
        (["--config.sharding=fdsp"], ("'fdsp'", "'fsdp'")),
        (["--device=abacus"], ("--device=abacus", "float32", "TPU")),
    ],
)
def test_user_errors_name_the_flag_and_the_nearest_choice(arguments, facts, capsys):
    arguments = ["plan", "--config.batch_size=64", *arguments]
    assert cli.main(arguments) == 2
    assert_mentions(capsys.readouterr().err, *facts)
