"""Names that a config chooses: built-in entries, and objects from outside the package."""

import pytest

from mmjax import registry
from mmjax.errors import UserError
from tests.messages import raises

ENTRIES = {"built_in": "collections:OrderedDict", "object": dict}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package outside mmjax with a class, and a module whose import fails."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "things.py").write_text("class Thing:\n    class Inner: pass\n")
    (tmp_path / "outside" / "broken.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_built_in_entries_are_objects_or_imported_when_used():
    import collections

    assert registry.resolve("thing", "built_in", ENTRIES) is collections.OrderedDict
    assert registry.resolve("thing", "object", ENTRIES) is dict


def test_objects_from_outside_the_package_are_imported(package):
    assert registry.resolve("thing", "outside.things:Thing", ENTRIES).__name__ == "Thing"
    assert registry.resolve("thing", "outside.things:Thing.Inner", ENTRIES).__name__ == "Inner"


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("built_on", ("config.x", "'built_on'", "'built_in'", "package.module:Name")),
        ("outside.nothing:Thing", ("config.x=outside.nothing:Thing", "outside.nothing")),
        ("outside.broken:Thing", ("outside.broken", "no_such_package_at_all")),
        ("outside.things:Thin", ("outside.things", "'Thin'", "'Thing'")),
        ("not a reference:", ("config.x", "'not a reference:'", "built_in")),
    ],
)
def test_names_that_cannot_be_resolved_are_an_error(package, name, facts):
    with raises(UserError, *facts):
        registry.resolve("config.x", name, ENTRIES)
