"""`python -m mmjax.main --task=pretrain`: command-line flags and dispatch."""

from __future__ import annotations

import os
import pathlib
import sys

from absl import app, flags, logging

from mmjax import cache, config, files, plain_text, registry
from mmjax.errors import UserError
from mmjax.monitor import log
from mmjax.tasks import TASKS

_TASK = flags.DEFINE_string(
    "task",
    "pretrain",
    f"What to train: {', '.join(sorted(TASKS))}, or package.module:Name for your own task (then "
    "pass the file of its recipe with --config).",
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train, or evaluate the checkpoints of a run."
)
_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Name or .py file of a recipe, with :ARG for its argument. --config.key=value overrides any "
    "value. Default: demo, or the recipe of --model_arch.",
)
_MODEL_ARCH = flags.DEFINE_string(
    "model_arch",
    None,
    "Architecture by VATT's name (tx_fac, ut_fac, mmv_fac; vit_base, wat_base, ut_medium, …). "
    "Selects its published recipe, or is the argument of --config.",
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir",
    None,
    "Run directory. Default: runs/<task>-<recipe>[-<argument>] in the current directory.",
)
_OVERRIDE_CHECKPOINT = flags.DEFINE_string(
    "override_checkpoint",
    None,
    "Train: initialize parameters from this run directory (or <run>/checkpoints/<step>) or VATT "
    "TensorFlow checkpoint (…/ckpt-500000). Eval: evaluate only this checkpoint.",
)
_EVALS = flags.DEFINE_string(
    "evals",
    None,
    "Eval: run these evaluators instead of the run's own: suite, or a .py file, with :ARG for its "
    "argument.",
)
_MAX_HOURS = flags.DEFINE_float(
    "max_hours", 0.0, "Save and stop after this many hours; 0 is no limit."
)
_PROFILE = flags.DEFINE_string("profile", "", "START:STOP: steps to trace with jax.profiler.")


# Functions from a config to the config of a training run, for tasks that need their data and
# checkpoints to determine it.
_PREPARE = {"probe": "mmjax.benchmark.prepare:prepare"}


def _model_dir(task: str, recipe: str) -> str:
    if _MODEL_DIR.value:
        return _MODEL_DIR.value
    name, _, arg = recipe.partition(":")
    parts = [task.rpartition(":")[2].lower(), pathlib.Path(name).stem]
    return os.path.join("runs", "-".join([*parts, *filter(None, arg.split(","))]))


def _dispatch(overrides: list[str]) -> None:
    from mmjax import distributed

    distributed.initialize()
    task = _TASK.value if ":" in _TASK.value else _TASK.value.lower()
    recipe = config.choose_recipe(task, _CONFIG.value, _MODEL_ARCH.value)
    model_dir = _model_dir(task, recipe)
    if _MODE.value == "eval":
        sys.exit(_evaluate(task, recipe, model_dir, overrides))
    if _EVALS.value:
        raise UserError(
            f"--evals={_EVALS.value} is for --mode=eval. In training, set config.evals."
        )
    # The config is checked before the slow imports below.
    cfg = config.load(task, recipe, overrides)
    if cfg.compilation_cache:
        cache.keep_compiled_programs()
    if _OVERRIDE_CHECKPOINT.value:
        cfg.init_from = _OVERRIDE_CHECKPOINT.value
    if task in _PREPARE:
        cfg = registry.resolve("--task", task, _PREPARE)(cfg)
    from mmjax import evaluate, train

    with distributed.report_lost_processes():
        results = train.train(cfg, model_dir, max_hours=_MAX_HOURS.value, profile=_PROFILE.value)
    if evaluate.failures(results):
        sys.exit(1)


def _evaluate(task: str, recipe: str, model_dir: str, overrides: list[str]) -> int:
    """Runs the evaluation job and returns its exit status."""
    from mmjax import eval_job

    cache.keep_compiled_programs()
    explicit = _CONFIG.value or _MODEL_ARCH.value
    return eval_job.run_job(
        config.load(task, recipe) if explicit else None,
        model_dir,
        overrides=overrides,
        override_checkpoint=_OVERRIDE_CHECKPOINT.value,
        evals=config.load_evals(_EVALS.value) if _EVALS.value else None,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"{error}\nPass --help for the flags.", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """Runs the command; exits with status 2 after an error that the user can fix."""
    argv, overrides = config.split_arguments(sys.argv)

    def run(rest: list[str]) -> None:
        log.setup()
        try:
            if len(rest) > 1:
                raise UserError(f"Unknown argument {rest[1]}. Flags have the form --name=value.")
            _dispatch(overrides)
        except UserError as error:
            logging.error("%s", error)
            sys.exit(2)
        except OSError as error:  # no permission, a full disk, a file where a directory should be
            if error.filename is None:
                raise
            logging.error("%s", files.describe(error))
            sys.exit(2)

    logging.use_absl_handler()  # replaces a handler of the standard error that is wrapped next
    with plain_text.plain_output():
        app.run(run, argv=argv, flags_parser=_parse_flags)


if __name__ == "__main__":
    main()
