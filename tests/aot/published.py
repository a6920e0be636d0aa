"""Compiles the published recipes for TPUs and GPUs, and prints a Markdown table.

    python -m tests.aot.published RESULTS.jsonl --only='tvl.*v5e.*train_step'

It appends one JSON line per program to RESULTS.jsonl and skips programs that the file contains,
unless they failed. So it can be stopped and started again, and it can be run with several
environments, one with libtpu and one with the CUDA plugin. Without --only it takes hours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmjax import config
from mmjax.aot import report, topology
from mmjax.aot.compile import compile_recipe
from mmjax.config import Config
from mmjax.configs.guided._methods import METHODS
from mmjax.errors import UserError
from mmjax.monitor.report import format_bytes

TOPOLOGIES = ("v5e:2x4", "v5p:2x2x2", "v6e:2x4", "h200:1x1x1", "h200:1x1x8")
FUNCTIONS = ("train_step", "features")
PER_DEVICE = 8  # examples, as for VATT in its paper: 2048 on 256 devices
# Kinetics-600, Kinetics-700 and Moments in Time differ from Kinetics-400 only in the classifier.
# `clip_sbert` needs the features of its captions.
RECIPES = (
    *(("pretrain", name) for name in ("tx_fac:bbs", "tx_fac:mbs", "tx_fac:lbs")),
    *(("pretrain", name) for name in ("ut_fac:medium", "mmv_fac:i3d")),
    *(("finetune", f"kinetics400:{tower}") for tower in ("vit_base", "vit_medium", "vit_large")),
    *(("finetune", name) for name in ("kinetics400:ut_medium", "imagenet:vit_base")),
    *(("finetune", name) for name in ("audioset:wat_base", "audioset:ut_medium")),
    *(("touch", f"tvl:{size}") for size in ("tiny", "small", "base")),
    *(("guided", f"lgssl:{method}") for method in METHODS if method != "clip_sbert"),
)
_CLASSES = {"kinetics400": 400, "imagenet": 1000, "audioset": 527}


class Case(NamedTuple):
    """A function of a published recipe, and the devices to compile it for."""

    task: str
    recipe: str
    topology: str
    function: str

    def __str__(self) -> str:
        return " ".join(self)


CASES = tuple(Case(*r, t, f) for r in RECIPES for t in TOPOLOGIES for f in FUNCTIONS)


def has_compiler(case: Case) -> bool:
    """Returns whether the compiler of the devices is installed."""
    try:
        return bool(topology.parse(case.topology).compiler())
    except UserError:
        return False


def config_of(case: Case) -> Config:
    """Returns the published config, with at most `PER_DEVICE` examples per device."""
    cfg = config.load(case.task, case.recipe)
    devices = topology.parse(case.topology).num_devices
    cfg.batch_size = devices * min(PER_DEVICE, max(1, cfg.batch_size // devices))
    if classes := _CLASSES.get(case.recipe.split(":")[0]):
        cfg.data.label.num_classes = classes
    if cfg.sharding == "fsdp":
        cfg.mesh = dict(data=1, fsdp=devices, tensor=1)
    return config.resolve(cfg)


def analyze(case: Case) -> dict[str, Any]:
    """Returns the result of `mmjax plan --compile --json` for a case.

    Raises:
      UserError: The compiler is not installed, crashes or refuses the program.
    """
    cfg = config_of(case)
    name = f"{case.task} {case.recipe}"
    program = compile_recipe(cfg, case.topology, function=case.function, recipe=name)
    result = report.analyze(program, cfg, name)
    return result | {"per_device": cfg.batch_size // result["devices"]}


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """Returns the Markdown table of results, or of {'case', 'error'} for those without one."""
    columns = "recipe, function, devices, examples per device, compilation, arguments, temporaries"
    header = [*columns.split(", "), "peak", "collectives"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for result in results:
        if "error" in result:
            task, recipe, devices, function = result["case"]
            cells = [f"{task} {recipe}", function, devices, "", "", "", "", "", result["error"]]
        else:
            memory = result["memory"]
            sizes = [format_bytes(memory.get(k, 0)) for k in ("arguments", "temporaries", "peak")]
            sizes[2] += "" if result["fits"] else f" of {format_bytes(memory['limit'])}: no"
            cells = [
                *(result[key] for key in ("recipe", "function", "topology", "per_device")),
                f"{result['compile_seconds']:.0f} s",
                *sizes,
                _collectives(result.get("collectives", ())),
            ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _collectives(traffic: Iterable[Mapping[str, Any]]) -> str:
    parts = [f"{t['count']} {t['kind']} ({format_bytes(t['bytes'])})" for t in traffic]
    return ", ".join(parts) or "none"


def main(argv: list[str] | None = None) -> None:
    """Compiles what is missing in a file of results, and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", metavar="RESULTS.jsonl")
    parser.add_argument("--only", default="", metavar="REGEX", help="task recipe topology function")
    args = parser.parse_args(argv)
    results: dict[Case, dict[str, Any]] = {}
    if os.path.exists(args.results):
        with open(args.results) as file:
            results = {Case(*(r := json.loads(line))["case"]): r for line in file}
    for case in CASES:
        done = case in results and "error" not in results[case]
        if done or not re.search(args.only, str(case)) or not has_compiler(case):
            continue
        try:
            results[case] = {"case": case, **analyze(case)}
        except UserError as error:
            results[case] = {"case": case, "error": str(error).splitlines()[0][:200]}
        with open(args.results, "a") as file:
            file.write(json.dumps(results[case]) + "\n")
        print(case, results[case].get("error", "compiled"), flush=True)
    print(table(results[case] for case in CASES if case in results))


if __name__ == "__main__":
    main()
