"""The documentation: commands parse, configs resolve, links have targets, prose is wrapped.

Nothing runs here. Other tests run the commands of `docs/datasets`, `docs/sentences.md` and
`docs/add_a_*.md` on small files.
"""

import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags

from mmjax import config, main
from mmjax.tools import cli

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TRAIN = "python -m mmjax.main"


def commands(page, program):
    """Returns the commands of a page's bash blocks that run a program, without continuations."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    text = "".join(blocks).replace("\\\n", " ")
    variables = dict(re.findall(r'^([A-Z]\w*)="([^"]*)"$', text, re.MULTILINE))
    for name, value in variables.items():
        text = text.replace(f"${name} ", f"{value} ")
    text = re.sub(r'^[A-Z]\w*="[^"]*"$', "", text, flags=re.MULTILINE)
    parts = [part.strip(" &") for line in text.splitlines() for part in line.split(" && ")]
    parts = [re.sub(r"^([A-Z_]+=\S+ )+", "", part) for part in parts if part]
    return [part for part in parts if part.startswith(f"{program} ")]


def with_commands(program):
    pages = [page for page in PAGES if not page.stem.startswith("add_a_")]  # their tests run them
    found = [(page, command) for page in pages for command in commands(page, program)]
    assert found
    return [
        pytest.param(command, id=f"{page.relative_to(ROOT)}-{index}")
        for index, (page, command) in enumerate(found)
    ]


@pytest.fixture(autouse=True)
def outside_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", with_commands(TRAIN))
def test_training_and_evaluation_commands_have_valid_flags_and_configs(command):
    argv, overrides = config.split_arguments(shlex.split(command)[3:])
    assert not [argument for argument in argv if not argument.startswith("--")]
    values = dict(argument.removeprefix("--").split("=", 1) for argument in argv)
    valid = {flag.name for flag in flags.FLAGS.flags_by_module_dict()[main.__name__]}
    assert set(values) <= valid
    if "evals" in values:
        config.load_evals(values["evals"])
    recipe = config.choose_recipe(values["task"], values.get("config"), values.get("model_arch"))
    config.resolve(config.load(values["task"], recipe, known(overrides)))


def known(overrides):
    """Returns overrides without those of a run's own evaluators, which recipes do not have."""
    return [override for override in overrides if not override.startswith("--config.evals.")]


@pytest.mark.parametrize("command", with_commands("mmjax"))
def test_arguments_of_mmjax_commands_parse(command):
    _, name, *argv = shlex.split(command)
    if name == "import":
        argv = argv[:1]  # tests/data/importers/test_docs.py runs the imports
    module = importlib.import_module(f"mmjax.tools.{cli.COMMANDS[name].module}")
    args = cli._parse(name, module, argv)
    recipe = getattr(args, "config", None)
    if args.overrides and recipe and not getattr(args, "run", None):
        task = getattr(args, "task", "touch")
        config.resolve(config.load(task, recipe, args.overrides))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}"


def anchors(page):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped_at_100_columns(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("|")]
    assert not [line for line in lines if len(line) > 100]
