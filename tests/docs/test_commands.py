"""Commands, links and Python blocks of all documentation pages.

Commands are parsed and their recipes and overrides resolved, but only a few cheap ones are run.
`test_add_a.py` runs all commands of `docs/add_a_*.md`.
"""

import ast
import contextlib
import copy
import functools
import importlib
import io
import os
import re
import subprocess
import sys

import pytest
from absl import flags
from jax.sharding import AbstractMesh, AxisType

import mmjax.main  # noqa: F401 - defines the flags
from mmjax import config, evals, program, sharding, tasks
from mmjax.benchmark import options as probe_options
from mmjax.data import importers
from mmjax.data.pipeline.config import parse_config
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.evals import base
from mmjax.tools import cli, import_data
from tests.docs import pages
from tests.messages import raises

# Programs besides mmjax's own that the pages may use.
OTHER_PROGRAMS = {
    "pip",
    "pytest",
    "ruff",
    "tfds",
    "mkdir",
    "touch",
    "printf",
    "mv",
    "export",
    "docker",
    "ollama",
}
# Commands that take neither long nor need files.
CHEAP = ("mmjax import --list", "mmjax import kinetics400 --help", "python -m mmjax.main --help")
# Sections that are checked by building the model, which takes about a second.
BUILT = ("model", "loss", "augment", "optimizer")
_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_ADDED = re.compile(r"docs/add_a_\w+\.md")


@pytest.fixture(autouse=True, scope="module")
def directory(tmp_path_factory):
    """An empty current directory, as paths in commands are relative to it."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


class Problems:
    """Collects the problems of a page, each with its line, and fails with all of them."""

    def __init__(self):
        self.lines = []

    def check(self, where, text, function, *args):
        """Calls the function, and records the error that it raises."""
        try:
            return function(*args)
        except (UserError, AssertionError) as error:
            self.lines.append(f"{where}: {text}\n    {error}")
            return None

    def fail(self):
        assert not self.lines, "\n".join(self.lines)


def parse_flags(arguments):
    """Returns the flags of `python -m mmjax.main`; UserError for unknown ones."""
    values = flags.FlagValues()
    for flag in flags.FLAGS.flags_by_module_dict()["mmjax.main"]:
        values[flag.name] = copy.deepcopy(flag)
    try:
        rest = values(["mmjax.main", *arguments])
    except flags.Error as error:
        raise UserError(str(error)) from error
    if rest[1:]:
        raise UserError(f"arguments without a flag: {rest[1:]}")
    return values


@functools.cache
def check_config(task, recipe, overrides):
    """Checks the sections of a recipe with overrides; raises UserError."""
    cfg = config.resolve(config.load(task, recipe, overrides))
    check_evals(cfg.evals)
    if cfg.task == "probe":  # the rest is built from data and an encoder
        probe_options.parse(cfg.probe)
        return
    data = parse_config(cfg.data)
    changed = {override.lstrip("-").split(".")[1].split("=")[0] for override in overrides}
    sections = [getattr(data, name) for name in ("image", "text", "touch")]
    precomputed = any(getattr(section, "features", "") for section in sections)
    if changed.isdisjoint(BUILT) or precomputed:
        return
    mesh = AbstractMesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    task = tasks.make_task(cfg, DataSpec.of_config(cfg, num_classes=10))
    program.build_program(cfg, task, mesh)


def check_evals(sections):
    """Checks the types and keys of evaluators; raises UserError."""
    for name, section in sections.items():
        if section is None:
            continue
        where, options = f"evals.{name}", dict(section)
        cls = base.registry.resolve(f"config.{where}.type", options.pop("type"), evals.EVALUATORS)
        config.keywords(cls, options, where, provided=base.PROVIDED, also=base._SCHEDULE)


def check_main(arguments):
    """Checks `python -m mmjax.main …`."""
    own, overrides = config.split_arguments(list(arguments))
    values = parse_flags(own)
    task = values.task if ":" in values.task else values.task.lower()
    recipe = config.choose_recipe(task, values.config, values.model_arch)
    if values.evals:
        check_evals(config.load_evals(values.evals))
    if values.mode == "eval" and not (values.config or values.model_arch):
        # The config is that of a run. Only new evaluators can be checked.
        cfg = config.load(task, recipe)
        if values.evals:
            cfg.evals = config.load_evals(values.evals)
        config.apply(cfg, overrides)
        check_evals({k: v for k, v in config.plain(cfg.evals).items() if v and "type" in v})
    else:
        check_config(task, recipe, tuple(overrides))


def check_mmjax(arguments):
    """Checks `mmjax NAME …`."""
    name, *rest = arguments
    if name not in cli.COMMANDS:
        raise UserError(f"mmjax {name}: unknown command")
    module = importlib.import_module(f"mmjax.tools.{cli.COMMANDS[name].module}")
    args = exits_as_errors(cli._parse, name, module, rest)
    if name == "import" and not args.list:
        importer = importers.find(args.dataset)
        parser = import_data._parser(args.dataset, importer)
        if "--help" not in args.arguments:
            exits_as_errors(parser.parse_args, args.arguments)
    if name in ("plan", "bench"):
        check_config(args.task, args.config, tuple(args.overrides))
    if name == "embed" and not args.run_dir:
        check_config("touch", args.config, tuple(args.overrides))


def exits_as_errors(function, *args):
    """Calls a function of argparse; raises UserError with its message instead of exiting."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return function(*args)
    except SystemExit as error:
        raise UserError(message.getvalue()) from error


@pytest.mark.parametrize("page", pages.NAMES)
def test_commands_are_valid(page):
    problems = Problems()
    for command in pages.commands(page):
        match command.words:
            case "python", "-m", "mmjax.main", *arguments if not _ADDED.match(page):
                problems.check(command.where, command.text, check_main, arguments)
            case "mmjax", *arguments if not _ADDED.match(page):
                problems.check(command.where, command.text, check_mmjax, arguments)
            case "python", "-c", code:
                problems.check(command.where, command.text, compile_code, code)
            case name, *_:
                known = name in {"python", "mmjax", *OTHER_PROGRAMS}
                if not known:
                    problems.lines.append(f"{command.where}: unknown program {name}")
    problems.fail()


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("python -m mmjax.main --taks=pretrain", ("taks",)),
        ("python -m mmjax.main --config=demos", ("'demos'", "'demo'")),
        ("python -m mmjax.main --config.totalsteps=3", ("totalsteps", "total_steps")),
        ("python -m mmjax.main --config.data.video.sice=3", ("sice", "config")),
        ("python -m mmjax.main --config.model.video.withd=3", ("withd", "width")),
        ("python -m mmjax.main --config.optimizer.b3=3", ("optimizer.b3",)),
        ("python -m mmjax.main --config.evals.x.type=knm", ("config.evals.x.type", "'knn'")),
        ("python -m mmjax.main --config.evals.probe.train=3", ("evals.probe.train",)),
        ("python -m mmjax.main --mode=eval --config.evals.x.type=knm", ("'knm'", "'knn'")),
        (
            "python -m mmjax.main --task=probe --config.probe.epoch=3",
            ("'probe.epoch'", "'probe.epochs'"),
        ),
        ("mmjax biuld", ("biuld",)),
        ("mmjax validate datasets/x --quick", ("mmjax validate",)),
        ("mmjax import kinetic400", ("'kinetic400'", "'kinetics400'")),
        ("mmjax import kinetics400 --annotation x", ("mmjax import",)),
        ("mmjax plan --task=pretrain --config.batch=3", ("'batch'", "'batch_size'")),
    ],
)
def test_a_wrong_command_is_found(words, facts):
    """The checks of this file fail where they should."""
    words = words.split()
    check, arguments = (check_mmjax, words[1:]) if words[0] == "mmjax" else (check_main, words[3:])
    with raises(UserError, *facts):
        check(arguments)


def compile_code(code):
    try:
        ast.parse(code)
    except SyntaxError as error:
        raise UserError(f"line {error.lineno}: {error}") from error


@pytest.mark.parametrize("page", pages.NAMES)
def test_python_blocks_compile(page):
    problems = Problems()
    for block in pages.read_blocks(page):
        if block.language == "python":
            problems.check(f"{page}:{block.line}", block.text[:60], compile_code, block.text)
    problems.fail()


@pytest.mark.parametrize("page", pages.NAMES)
def test_commands_are_in_bash_blocks(page):
    """Commands in blocks of another language would not be checked."""
    wrong = [
        f"{page}:{block.line}: {block.text.splitlines()[0]}"
        for block in pages.read_blocks(page)
        if block.language not in ("bash", "python", "diff")
        and re.match(r"(mmjax|python|pip) ", block.text)
        and "…" not in block.text  # a command with parts left out
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", pages.NAMES)
def test_local_links_exist(page):
    path = pages.REPOSITORY / page
    text = _FENCED.sub(lambda match: "\n" * match[0].count("\n"), path.read_text())
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        for link in _LINK.findall(line):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            linked = (path.parent / target).resolve() if target else path
            if not linked.exists():
                problems.append(f"{page}:{number}: {link} does not exist")
            elif anchor and anchor not in anchors(linked):
                problems.append(f"{page}:{number}: {link}: no such heading")
    assert not problems, "\n".join(problems)


@functools.cache
def anchors(path):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    text = _FENCED.sub("", path.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", pages.NAMES)
def test_datasets_are_not_below_data(page):
    """`data/` contains assets of mmjax. Datasets are below `datasets/`."""
    assets = {entry.name for entry in (pages.REPOSITORY / "data").iterdir()}
    wrong = []
    for command in pages.commands(page):
        for word in command.words:
            for path in re.findall(r"(?:^|[=:,'\"(])(?:\./)?data/([\w.-]+)", word):
                if path not in assets:
                    wrong.append(f"{command.where}: {word}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("command", CHEAP)
def test_cheap_commands_run(command, user_env):
    words = command.split()
    if words[0] == "mmjax":
        words = ["python", "-m", "mmjax.tools.cli", *words[1:]]
    done = subprocess.run(
        [sys.executable, *words[1:]], env=user_env(), capture_output=True, text=True
    )
    assert done.stdout.count("\n") > 5, done.stderr
    assert "Traceback" not in done.stderr
