"""`mmjax plan`: what the published sizes need, without the devices."""

import re

import pytest

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


def test_copies_are_whole_on_every_device(capsys):
    assert cli.main(["plan", "--data=16", "--config.batch_size=64"]) == 0
    _, mebibytes, on_one = numbers(capsys.readouterr().out, "params")
    assert mebibytes == on_one


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
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    arguments = ["plan", "--config.batch_size=64", *arguments]
    assert cli.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
