"""`python -m mmjax.main --task=pretrain`: flags, then dispatch; nothing else."""

from __future__ import annotations

import os
import pathlib
import sys

from absl import app, flags, logging

from mmjax import cache, config
from mmjax.errors import UserError
from mmjax.monitor import log
from mmjax.tasks import TASKS

_TASK = flags.DEFINE_enum(
    "task", "pretrain", sorted(TASKS), "What is learned.", case_sensitive=False
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train, or evaluate checkpoints beside a trainer."
)
_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A recipe's name or .py file, with :ARG for its argument; --config.key=value overrides any of "
    "its values. Default: demo, or that of --model_arch.",
)
_MODEL_ARCH = flags.DEFINE_string(
    "model_arch",
    None,
    "VATT's name of an architecture (tx_fac, ut_fac, mmv_fac; vit_base, wat_base, ut_medium, …): "
    "takes its published recipe, or is the argument of --config.",
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir",
    None,
    "The run directory. Default: runs/<task>-<recipe>[-<its argument>] where you are.",
)
_OVERRIDE_CHECKPOINT = flags.DEFINE_string(
    "override_checkpoint",
    None,
    "Train: start from the parameters of this run directory (or <run>/checkpoints/<step>), or of "
    "VATT's TensorFlow checkpoint (…/ckpt-500000). "
    "Eval: evaluate this checkpoint alone, then end.",
)
_EVALS = flags.DEFINE_string(
    "evals",
    None,
    "Eval: these evaluators in place of the run's own: suite, or a .py file, with :ARG for its "
    "argument.",
)
_MAX_HOURS = flags.DEFINE_float("max_hours", 0.0, "Save and end after so many hours (0: never).")
_PROFILE = flags.DEFINE_string("profile", "", "START:STOP: steps to trace with jax.profiler.")


def _enable_compilation_cache() -> None:
    import jax

    directory = cache.cache_dir() / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("No compilation cache: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _dispatch(overrides: list[str]) -> None:
    from mmjax import distributed

    distributed.initialize()
    recipe = config.choose_recipe(_TASK.value, _CONFIG.value, _MODEL_ARCH.value)
    name, _, arg = recipe.partition(":")
    words = [_TASK.value, pathlib.Path(name).stem, *filter(None, arg.split(","))]
    model_dir = _MODEL_DIR.value or os.path.join("runs", "-".join(words))
    if _MODE.value == "eval":
        from mmjax import evaluate

        _enable_compilation_cache()
        own = _CONFIG.value or _MODEL_ARCH.value
        status = evaluate.run_job(
            config.load(_TASK.value, recipe) if own else None,
            model_dir,
            overrides=overrides,
            override_checkpoint=_OVERRIDE_CHECKPOINT.value,
            evals=config.load_evals(_EVALS.value) if _EVALS.value else None,
        )
        sys.exit(status)
    if _EVALS.value:
        raise UserError("--evals is for --mode=eval; a training has config.evals.")
    cfg = config.load(_TASK.value, recipe, overrides)
    if cfg.compilation_cache:
        _enable_compilation_cache()
    if _OVERRIDE_CHECKPOINT.value:
        cfg.init_from = _OVERRIDE_CHECKPOINT.value
    from mmjax import (
        evaluate,
        train,
    )  # after the config: what is wrong there need not wait for them

    results = train.train(cfg, model_dir, max_hours=_MAX_HOURS.value, profile=_PROFILE.value)
    if evaluate.failures(results):
        sys.exit(1)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"{error}\nPass --help for the flags.", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """The command; exits with 2 after an error that the user can put right."""
    argv, overrides = config.split_arguments(sys.argv)

    def run(rest: list[str]) -> None:
        log.setup()
        try:
            if len(rest) > 1:
                raise UserError(f"Not a flag: {rest[1]}. Flags look like --name=value.")
            _dispatch(overrides)
        except UserError as error:
            logging.error("%s", error)
            sys.exit(2)

    app.run(run, argv=argv, flags_parser=_parse_flags)


if __name__ == "__main__":
    main()
