"""Imports between modules: downward only, no circles, TensorFlow only where data are read."""

import ast
import pathlib
import subprocess
import sys

import mmjax

ROOT = pathlib.Path(mmjax.__file__).resolve().parent.parent

# Modules and packages from the lowest layer to the highest. A module may import from its own layer
# and from lower ones. The order within `data` is that of DATA_LAYERS.
LAYERS = (
    "errors limits plain_text files registry tree cache config distributed modalities cpus assets "
    "configs end_tasks pixel_statistics",
    "losses formats monitor data neighbors diagnostic_text",
    "state lookups models checkpoints optim sharding sentence_encoders",
    "data_spec step program preprocess",
    "tasks evals published configs.*",
    "convert",
    "init_from evaluate eval_watch eval_job plan embed aot text_stage enrichment",
    "start session train",
    "benchmark",
    "inference main",
    "tools",
)
DATA_LAYERS = (
    "storage",
    "text world",
    "sources",
    "pairs end_tasks",
    "pipeline",
    "build",
    "importers",
)
TENSORFLOW = ("mmjax.data", "mmjax.formats.tf_checkpoint")


def module_files():
    """{module name: file} of the package, with its top-level directories."""
    files = {}
    for directory, package in (
        ("mmjax", "mmjax"),
        ("configs", "mmjax.configs"),
        ("tools", "mmjax.tools"),
    ):
        for path in (ROOT / directory).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / directory).with_suffix("").parts]
            name = ".".join(parts).removesuffix(".__init__")
            if name not in files or directory != "mmjax":  # not the shims mmjax/{configs,tools}
                files[name] = path
    return files


def imports_of(path, modules):
    """Pairs `(imported module, whether at the top level)` of a file; for typing only: left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in modules else node.module), top


MODULES = module_files()
GRAPH = {
    name: {(target, top) for target, top in imports_of(path, MODULES) if target in MODULES}
    for name, path in MODULES.items()
}


def layer_of(name):
    """Index of a module's layer; within `data`, a fraction of one."""
    parts = name.split(".")[1:]
    if not parts:
        return -1  # mmjax itself
    if parts[0] == "data" and len(parts) > 1:
        base = next(i for i, names in enumerate(LAYERS) if "data" in names.split())
        index = next(i for i, names in enumerate(DATA_LAYERS) if parts[1] in names.split())
        return base + (index + 1) / (len(DATA_LAYERS) + 1)
    key = "configs.*" if parts[0] == "configs" and len(parts) > 1 else parts[0]
    return next(i for i, names in enumerate(LAYERS) if key in names.split())


def test_every_module_has_a_layer():
    assert {name: layer_of(name) for name in MODULES}.keys() == MODULES.keys()
    assert len(MODULES) > 150


def test_the_contribution_guide_lists_every_module():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = {name.removesuffix(".*") for layer in LAYERS for name in layer.split()}
    assert not {name for name in names if f"`{name}`" not in text}


def test_no_import_points_upward():
    upward = [
        f"{name} -> {target}"
        for name, targets in GRAPH.items()
        for target, _ in targets
        if name != "mmjax"
        and int(layer_of(target)) > int(layer_of(name))
        or (name.startswith("mmjax.data.") and target.startswith("mmjax.data."))
        and layer_of(target) > layer_of(name)
    ]
    assert not upward, "\n".join(upward)


def find_circle(graph):
    """A list of nodes whose edges form a circle, or None."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        path.append(node)
        for target in sorted(graph.get(node, ())):
            if circle := visit(target):
                return circle
        path.pop()
        done.add(node)
        return None

    return next(filter(None, map(visit, sorted(graph))), None)


def test_no_circle_between_modules():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    graph = {name: {target for target, _ in targets} for name, targets in GRAPH.items()}
    graph["mmjax"] = set()  # `mmjax.load` imports the whole package when it is called
    assert find_circle(graph) is None


def package_of(name):
    """The directory of a module below mmjax, two levels in `data`; None for single modules."""
    parts = name.split(".")
    if len(parts) < 3:
        return None
    return ".".join(parts[1:3] if parts[1] == "data" and len(parts) > 3 else parts[1:2])


def test_no_circle_between_directories():
    graph = {}
    for name, targets in GRAPH.items():
        for target, _ in targets:
            source, destination = package_of(name), package_of(target)
            if source and destination and source != destination:
                graph.setdefault(source, set()).add(destination)
    assert find_circle(graph) is None


def test_converters_import_no_recipe():
    """Converted runs must not change with a recipe that a user edits."""
    below, seen = [name for name in MODULES if name.startswith("mmjax.convert")], set()
    assert len(below) > 15
    while below:
        name = below.pop()
        if name not in seen:
            seen.add(name)
            below += [target for target, _ in GRAPH[name] if target != "mmjax"]
    assert not [name for name in seen if name.startswith("mmjax.configs.")]
    for name in MODULES:
        if name.startswith("mmjax.convert"):
            assert "importlib" not in MODULES[name].read_text(), name


def test_tensorflow_is_imported_only_where_data_are_read():
    culprits = {
        name
        for name, path in MODULES.items()
        for target, _ in imports_of(path, MODULES)
        if target.split(".")[0] in ("tensorflow", "tensorflow_datasets")
        and not name.startswith(TENSORFLOW)
    }
    assert not culprits


def test_compiled_code_does_not_load_tensorflow(user_env):
    """TensorFlow would take the accelerator's memory."""
    packages = ("mmjax.losses.", "mmjax.models.", "mmjax.preprocess.", "mmjax.tasks.")
    names = [name for name in MODULES if f"{name}.".startswith(packages)]
    names += ["mmjax.step", "mmjax.program", "mmjax.init_from"]
    assert len(names) > 30
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'tensorflow' not in sys.modules, name\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=user_env()
    )
    assert result.returncode == 0, result.stderr
