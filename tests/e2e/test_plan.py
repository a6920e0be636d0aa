"""`mmjax plan`: what the published sizes need, without the devices."""

import re

import pytest

from mmjax import config
from mmjax.tasks import DataFacts
from mmjax.tools import cli

SIZES = {"bbs": 213_540_652, "mbs": 280_569_132, "lbs": 431_723_820}


def numbers(table, part):
    """Elements, MiB in all and MiB a device of a part of the train state."""
    found = re.search(rf"^{part} +([\d,]+) +([\d.]+) +([\d.]+)$", table, re.MULTILINE)
    return int(found[1].replace(",", "")), float(found[2]), float(found[3])


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size, capsys):
    arguments = ["plan", f"--config=tx_fac:{size}", "--data=4", "--fsdp=8"]
    assert cli.main([*arguments, "--config.sharding=fsdp"]) == 0
    table = capsys.readouterr().out
    params, mebibytes, on_one = numbers(table, "params")
    assert params + numbers(table, "extra")[0] == SIZES[size]
    assert mebibytes == pytest.approx(params * 4 / 2**20, abs=0.01)
    # All but small arrays are split in eight.
    assert mebibytes / 8 <= on_one <= 1.02 * mebibytes / 8
    moments, mebibytes, on_one = numbers(table, "opt")
    assert mebibytes / 8 <= on_one <= 1.02 * mebibytes / 8
    word_table = 65_536 * 300  # frozen: without moments
    assert moments == pytest.approx(2 * (params - word_table), abs=4)
    assert "32 devices" in table and "batch: 2048 examples, 64 a device" in table


def test_spectrograms_are_planned_at_the_rate_of_the_config():
    overrides = ["--config.data.audio.sample_rate=16000"]
    cfg = config.load("finetune", "audio:spt_tiny", overrides)
    assert DataFacts.of_config(cfg).sample_rate == 16_000
    cfg = config.load("finetune", "audio:wat_tiny", overrides)
    assert DataFacts.of_config(cfg).sample_rate == 8000  # every second sample


def test_copies_are_whole_on_every_device(capsys):
    assert cli.main(["plan", "--data=16", "--config.batch_size=64"]) == 0
    _, mebibytes, on_one = numbers(capsys.readouterr().out, "params")
    assert mebibytes == on_one


def test_what_the_backward_pass_keeps_and_the_least_time(capsys):
    def figures(*overrides):
        arguments = ["plan", "--config=tx_fac:bbs", "--data=256", "--device=TPU v3"]
        assert cli.main([*arguments, *overrides]) == 0
        table = capsys.readouterr().out
        kept, unit = re.search(r"at most ([\d.]+) (\wiB) a device", table).groups()
        seconds = re.search(r"6[12] TFLOP/s, a step takes ([\d.]+) s", table)[1]
        flops = re.search(r"one step: ([\d.e+]+) float", table)[1]
        size = float(kept) * {"MiB": 2**20, "GiB": 2**30}[unit]
        return size, float(seconds), float(flops)

    dots, seconds, flops = figures()
    assert seconds == pytest.approx(flops / 256 / 61.5e12, rel=0.01)
    full, *_ = figures("--config.model.remat=full")
    # Of the 8 examples a device, in bfloat16: at least each block's input, for 'dots' also the
    # queries, keys, values and hidden units (four times as wide).
    video, audio = 12 * 785 * 768, 12 * 601 * 768
    assert full > 8 * 2 * (video + audio)
    assert dots > full + 8 * 2 * 7 * (video + audio)
    # Without DropToken the towers see twice the patches.
    more, _, work = figures(
        "--config.model.video.keep_tokens=1.0", "--config.model.audio.keep_tokens=1.0"
    )
    assert more > 1.8 * dots and work > 2 * flops
    # Two microbatches: half of it at a time.
    half, *_ = figures("--config.accumulate_steps=2")
    assert half == pytest.approx(dots / 2, rel=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data=3"], r"batch_size=64 is not divisible by 3 devices"),
        (
            ["--config=tx_fax"],
            r"Unknown recipe for --task=pretrain 'tx_fax'. Did you mean 'tx_fac'",
        ),
        (["--config=tx_fac:mbz"], r"'mbz'. Did you mean 'mbs'"),
        (["--config.model.sise=tiny"], r"'sise'. Did you mean 'size'"),
        (["--data=0"], r"0 × 1 × 1 devices"),
        (["--task=pretran"], r"'pretran'. Did you mean 'pretrain'"),
        (["--config.sharding=fdsp"], r"'fdsp'. Did you mean 'fsdp'"),
        (["--device=abacus"], r"--device=abacus: its rate in float32 is not known"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    arguments = ["plan", "--config.batch_size=64", *arguments]
    assert cli.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
