"""Fixtures of the tests of objectives."""

import pytest


@pytest.fixture(scope="session")
def tree():
    """Returns a function that nests the arrays whose names begin with a prefix."""

    def nested(arrays, prefix):
        found: dict = {}
        for name, value in arrays.items():
            if name.startswith(prefix):
                *folders, last = name.removeprefix(prefix).split("/")
                place = found
                for folder in folders:
                    place = place.setdefault(folder, {})
                place[last] = value
        return found

    return nested
