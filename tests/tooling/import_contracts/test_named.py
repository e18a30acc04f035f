"""Names in comments and docstrings that do not exist in the code are found."""

from tools.named import code, missing, prose

MODULE = '''"""The parts of `Registry`."""

LIMIT = 3  # see `Registry.clear`


class Registry:
    """Replaced `OldRegistry`."""

    name = "`quoted`"
'''


def test_prose_of_a_module_is_its_comments_and_docstrings_but_not_its_strings() -> None:
    assert sorted(prose(MODULE)) == [
        (1, "The parts of `Registry`."),
        (3, "# see `Registry.clear`"),
        (7, "Replaced `OldRegistry`."),
    ]


def test_name_that_occurs_only_in_prose_is_reported_as_missing() -> None:
    assert "OldRegistry" not in code(MODULE)
    assert [*missing(MODULE, {"Registry", "name", "LIMIT"})] == [(3, "Registry.clear"), (7, "OldRegistry")]
    assert [*missing(MODULE, {"Registry", "clear", "OldRegistry"})] == []
