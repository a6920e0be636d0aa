"""The dispatcher of `mmjax`: help, lazy imports, exit statuses and arguments of all commands."""

import argparse
import importlib
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from mmjax.errors import UserError
from mmjax.evals import thresholds
from mmjax.tools import cli
from tests.messages import assert_mentions

TOOLS = pathlib.Path(cli.__file__).parent
# Prints the modules that a command has imported, after its output.
IMPORTS = """
import json, sys
from mmjax.tools import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as error:
    assert error.code == 0, error.code
print(json.dumps(sorted(sys.modules)))
"""
IMPORTER = """
from mmjax.data.importers.base import Importer
TOY = Importer(name="toy", title="A toy dataset", annotation_files="toy.csv", media_names="ID.mp4",
               read=lambda job: iter(()))
"""


def parser_of(command):
    parser = argparse.ArgumentParser()
    module = importlib.import_module(f"mmjax.tools.{cli.COMMANDS[command].module}")
    module.add_arguments(parser)
    return parser


@pytest.fixture
def command(monkeypatch):
    """Returns a function that makes `mmjax fake` call another function."""

    def make(function, **options):
        module = types.ModuleType("mmjax.tools.fake", "A fake command.")
        module.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=1)
        module.run = function
        monkeypatch.setitem(sys.modules, "mmjax.tools.fake", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("fake", "fake", **options))

    return make


def imported_modules(*arguments, env):
    process = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments], env=env, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    *output, modules = process.stdout.splitlines()
    return "\n".join(output), set(json.loads(modules))


def test_help_lists_all_commands_without_importing_them(user_env):
    output, modules = imported_modules("--help", env=user_env())
    for name, command in cli.COMMANDS.items():
        assert any(line.split() == [name, *command.help.split()] for line in output.splitlines())
    assert not modules & {"tensorflow", "jax", "numpy"}
    assert {name for name in modules if name.startswith("mmjax.tools.")} == {"mmjax.tools.cli"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_is_quick(name, user_env):
    output, modules = imported_modules(name, "--help", env=user_env())
    assert_mentions(output, f"usage: mmjax {name}")
    assert not modules & {"tensorflow", "jax"}
    own = f"mmjax.tools.{cli.COMMANDS[name].module}"
    tools = {module for module in modules if module.startswith("mmjax.tools.")}
    assert own in tools and all(t == "mmjax.tools.cli" or t.startswith(own) for t in tools)
    assert not any(module.split(".")[0] == "tools" for module in modules)


def test_every_file_in_tools_is_a_command():
    files = {path.stem for path in TOOLS.iterdir() if not path.name.startswith("_")} - {"cli"}
    assert files == {command.module for command in cli.COMMANDS.values()}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_argument_is_documented_with_its_default(name):
    for action in parser_of(name)._actions[1:]:
        assert action.help, action.option_strings
        if action.default not in (None, False, "", [], ()) and action.option_strings:
            assert "(default: " in action.help or "; default: " in action.help, action.help
        if action.nargs != 0 and not action.choices:
            assert action.metavar, action.option_strings


def test_missing_and_unknown_commands_are_refused(capsys):
    for arguments, facts in (([], ["COMMAND"]), (["biuld"], ["'biuld'", "'build'", "validate"])):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == 2
        assert_mentions(capsys.readouterr().err, *facts)


@pytest.mark.parametrize(
    ("outcome", "status", "facts"),
    [
        (None, 0, ()),
        (1, 1, ()),
        (UserError("--size must be even; got 3."), 2, ("mmjax fake", "--size", "3")),
        (PermissionError(13, "Permission denied", "out.png"), 2, ("mmjax fake", "out.png")),
        (KeyboardInterrupt(), 130, ("mmjax fake", "interrupted")),
    ],
)
def test_exit_status_and_message(command, capsys, outcome, status, facts):
    def run(args):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    command(run)
    assert cli.main(["fake"]) == status
    assert_mentions(capsys.readouterr().err, *facts)


def test_other_errors_keep_their_traceback(command):
    def run(args):
        raise ZeroDivisionError

    command(run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"])


def test_a_reader_may_stop_reading(user_env):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "mmjax.tools.cli", "import", "--list"],
        env=user_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0 and errors == b""


def test_overrides_are_passed_to_commands_that_take_them(command, capsys):
    received = []
    command(received.append, overrides=True)
    arguments = ["fake", "--size=2", "--config.model.width=8", "--config.seed=1"]
    assert cli.main(arguments) == 0
    assert received[0].size == 2
    assert received[0].overrides == ["--config.model.width=8", "--config.seed=1"]
    assert received[0].command_line == "mmjax " + " ".join(arguments)
    command(received.append)
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert_mentions(capsys.readouterr().err, "--config.model.width=8")
    assert len(received) == 1


def test_commands_that_take_overrides():
    overridable = {name for name, command in cli.COMMANDS.items() if command.overrides}
    assert overridable == {"plan", "embed", "bench", "differences", "prefill"}


def test_only_build_with_beam_passes_unknown_arguments_on(command):
    beam, local = (argparse.Namespace(runner=runner) for runner in ("beam", "local"))
    assert cli.COMMANDS["build"].passes_on(beam) and not cli.COMMANDS["build"].passes_on(local)
    received = []
    command(received.append, passes_on=lambda args: args.size > 1)
    assert cli.main(["fake", "--size=2", "--project=x", "--", "--region=y"]) == 0
    assert received[0].unknown == ["--project=x", "--region=y"]
    with pytest.raises(SystemExit):
        cli.main(["fake", "--size=1", "--project=x"])


def run_in(directory, *arguments, env):
    """Runs the command as its console script does: without the current directory on sys.path."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "mmjax.tools.cli", *arguments],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
    )


def test_modules_in_the_current_directory_can_be_named(tmp_path, user_env):
    (tmp_path / "toys.py").write_text(IMPORTER)
    process = run_in(tmp_path, "import", "toys:TOY", "--help", env=user_env())
    assert process.returncode == 0, process.stderr
    assert_mentions(process.stdout, "toys:TOY", "A toy dataset", "toy.csv", "--media")


def test_another_checkout_in_the_current_directory_is_not_mixed_in(tmp_path, user_env):
    (tmp_path / "mmjax").mkdir()
    (tmp_path / "mmjax/__init__.py").write_text("raise RuntimeError('the wrong checkout')")
    process = run_in(tmp_path, "import", "--list", env=user_env())
    assert process.returncode == 0
    running = os.path.dirname(os.path.dirname(cli.mmjax.__file__))
    assert_mentions(process.stderr, running, "python -m mmjax.tools.cli")


def test_thresholds_defaults_are_those_of_the_library():
    args = parser_of("thresholds").parse_args(["run"])
    assert tuple(args.percentiles) == thresholds.PERCENTILES
