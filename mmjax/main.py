"""`python -m mmjax.main --task=pretrain`: flags, then dispatch; nothing else."""

from __future__ import annotations

import logging as std_logging
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mmjax import config
from mmjax.errors import UserError
from mmjax.tasks import TASKS

_TASK = flags.DEFINE_enum("task", "pretrain", sorted(TASKS), "What is learned.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train, or evaluate checkpoints beside a trainer."
)
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe's name or .py file; --config.key=value overrides any value."
)
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "The run directory. Default: runs/<task>-<recipe> where you are."
)
_OVERRIDE_CHECKPOINT = flags.DEFINE_string(
    "override_checkpoint",
    None,
    "Train: start from the parameters of this run directory (or <run>/checkpoints/<step>). "
    "Eval: evaluate this checkpoint alone, then end.",
)
_MAX_HOURS = flags.DEFINE_float("max_hours", 0.0, "Save and end after so many hours (0: never).")
_PROFILE = flags.DEFINE_string("profile", "", "START:STOP: steps to trace with jax.profiler.")


def _task_of(argv: list[str]) -> str:
    """--task, which is needed to find a recipe before flags can be parsed."""
    for i, argument in enumerate(argv):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "task":
            return value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
    return _TASK.default


def _quiet(record: std_logging.LogRecord) -> bool:
    """Keeps the log to what this project says; others' warnings pass."""
    return record.levelno >= std_logging.WARNING or f"{os.sep}mmjax{os.sep}" in record.pathname


def _setup_logging() -> None:
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_quiet)


def _enable_compilation_cache() -> None:
    import jax

    root = os.environ.get("MMJAX_CACHE") or pathlib.Path.home() / ".cache" / "mmjax"
    folder = pathlib.Path(root) / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("No compilation cache: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _dispatch(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"Not a flag: {argv[1:]}. Flags look like --name=value.")
    from mmjax import distributed

    distributed.initialize()
    cfg = _CONFIG.value
    recipe = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    model_dir = _MODEL_DIR.value or os.path.join("runs", f"{_TASK.value}-{recipe}")
    if _MODE.value == "eval":
        from mmjax import evaluate

        sys.exit(
            evaluate.run_job(
                cfg if _is_given("config") else None,
                model_dir,
                override_checkpoint=_OVERRIDE_CHECKPOINT.value,
            )
        )
    if cfg.task != _TASK.value:
        raise UserError(f"--config is a recipe for --task={cfg.task}, not {_TASK.value}.")
    if _OVERRIDE_CHECKPOINT.value:
        cfg.init_from = _OVERRIDE_CHECKPOINT.value
    config.check(cfg)
    if cfg.compilation_cache:
        _enable_compilation_cache()
    from mmjax import train

    train.train(cfg, model_dir, max_hours=_MAX_HOURS.value, profile=_PROFILE.value)


def _is_given(flag: str) -> bool:
    return any(argument.lstrip("-").startswith(flag) for argument in sys.argv[1:])


def _main(argv: list[str]) -> None:
    _setup_logging()
    try:
        _dispatch(argv)
    except UserError as error:
        logging.error("%s", error)
        sys.exit(2)


def main() -> None:
    try:
        argv = config.expand_arguments(sys.argv, _task_of(sys.argv))
        app.run(_main, argv=argv)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
