"""The console command `mmjax`: finds the command to run and reports its errors.

`mmjax COMMAND` imports one module of `mmjax.tools`, passes a parser to its `add_arguments`, and
calls its `run`. No other command is imported, so `mmjax --help` loads neither TensorFlow nor JAX.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import pathlib
import shlex
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags, logging

import mmjax
from mmjax import files, plain_text
from mmjax.errors import UserError, unknown
from mmjax.monitor import log


class Command(NamedTuple):
    """A command of `mmjax`.

    Attributes:
      module: Name of its module in `mmjax.tools`. The docstring is the command's description.
      help: One line for `mmjax --help`.
      overrides: Whether it accepts `--config.key=value`, as `args.overrides`.
      passes_on: Returns whether unknown arguments are accepted, as `args.unknown`, for these
        arguments. By default they are an error.
    """

    module: str
    help: str
    overrides: bool = False
    passes_on: Callable[[argparse.Namespace], bool] = lambda args: False


COMMANDS = {
    "import": Command("import_data", "make a table of clips from a dataset's official files"),
    "build": Command(
        "build",
        "build a dataset from media files",
        passes_on=lambda args: args.runner == "beam",
    ),
    "validate": Command("validate", "check every record of a dataset"),
    "preview": Command("preview", "draw a contact sheet of a dataset"),
    "index": Command("index", "turn a directory of TFRecord shards into a dataset"),
    "vocab": Command("vocab", "write the vocabulary of a dataset's captions"),
    "background": Command("background", "compute the image of an untouched touch sensor"),
    "embed": Command("embed", "compute features of a dataset with trained towers", overrides=True),
    "sentences": Command("sentences", "compute sentence embeddings of a dataset's captions"),
    "neighbors": Command("neighbors", "find nearest neighbors by precomputed features"),
    "pairs": Command("pairs", "convert LGSSL's lists of pairs to the format of mmjax, or back"),
    "plan": Command("plan", "report the memory and time a recipe needs", overrides=True),
    "convert": Command("convert", "convert published checkpoints, or export a run to PyTorch"),
    "thresholds": Command("thresholds", "compute thresholds of semantic_retrieval from synonyms"),
    "differences": Command(
        "differences", "make captioned images of the errors of predicted masks", overrides=True
    ),
    "prefill": Command(
        "prefill", "fill the cache of masks for training with texts", overrides=True
    ),
    "judge": Command("judge", "compare diagnostic texts with references, by a judge model"),
    "vlm": Command("vlm", "check a server with vision-language models, or pull a model"),
    "benchmark": Command("benchmark", "probe frozen encoders on many end tasks"),
    "bench": Command("bench", "measure speed: data, step, loop, eval, …", overrides=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: The command and its arguments. By default, those of the process.

    Returns:
      The exit status: 0 for success, 1 if the command found problems, 2 for wrong input.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow logs a notice if it is on
    log.setup(logging.WARNING)
    flags.FLAGS.mark_as_parsed()  # otherwise absl warns at each log line
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        return _help(argv)
    _add_current_directory()
    with plain_text.plain_output():
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    """Runs a command, and returns its exit status."""
    name = argv[0]
    try:
        module = importlib.import_module(f"mmjax.tools.{COMMANDS[name].module}")
        return module.run(_parse(name, module, argv[1:])) or 0
    except UserError as error:
        _print_error(name, str(error))
        return 2
    except KeyboardInterrupt:
        print(f"mmjax {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has stopped: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no permission, a full disk, a file where a directory should be
        _print_error(name, files.describe(error))
        return 2


def _print_error(name: str, message: str) -> None:
    """Prints a message that, unlike a progress bar, may not return to the start of its line."""
    message = plain_text.plain(message, keep="\n")
    print(f"mmjax {name}: {message}", file=sys.stderr)


def _help(argv: Sequence[str]) -> int:
    """Handles `mmjax`, `mmjax --help` and unknown commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="mmjax",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Builds datasets, prepares features, converts checkpoints and measures speed.",
        epilog="\n".join(
            [
                "commands:",
                *lines,
                "",
                "`mmjax COMMAND --help` describes a command. To train: python -m mmjax.main --help",
            ]
        ),
    )
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    args, _ = parser.parse_known_args(argv)
    parser.error(str(unknown("command", args.command, COMMANDS)))


def _parse(name: str, module: types.ModuleType, argv: Sequence[str]) -> argparse.Namespace:
    """Returns the arguments of a command, with `overrides`, `unknown` and `command_line` added."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"mmjax {name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_paragraphs(inspect.cleandoc(module.__doc__)),
    )
    module.add_arguments(parser)
    own, overrides = list(argv), []
    if command.overrides:
        own = [argument for argument in argv if not argument.startswith("--config.")]
        overrides = [argument for argument in argv if argument.startswith("--config.")]
    args, rest = parser.parse_known_args(own)
    if rest and not command.passes_on(args):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    args.overrides = overrides
    args.unknown = [argument for argument in rest if argument != "--"]
    args.command_line = shlex.join(["mmjax", name, *argv])
    return args


def _paragraphs(text: str) -> str:
    """Wraps each paragraph of a text to the width of the terminal."""
    width = shutil.get_terminal_size().columns - 2
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))


def _add_current_directory() -> None:
    """Makes modules in the current directory importable, as `python -m` does.

    A config can then name `package.module:Name` in both. A checkout other than the one that runs
    is left out: child processes would import mmjax from there.
    """
    here = os.getcwd()
    other = pathlib.Path(here, "mmjax", "__init__.py")
    if other.is_file() and not other.samefile(mmjax.__file__):
        print(
            f"mmjax: running {os.path.dirname(mmjax.__file__)}, not the mmjax in the current "
            "directory. To run that one, use `python -m mmjax.tools.cli`.",
            file=sys.stderr,
        )
    elif "" not in sys.path and here not in sys.path:
        sys.path.append(here)


if __name__ == "__main__":
    sys.exit(main())
