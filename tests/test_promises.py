"""The tests that docs/promises.md names."""

import pathlib
import re

TESTS = pathlib.Path(__file__).parent
PAGE = TESTS.parent / "docs" / "promises.md"


def test_every_test_that_holds_a_promise_exists():
    missing, found = [], 0
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("| ") or line.startswith("| promise"):
            continue
        *_, named, _ = line.split("|")
        for entry in named.split(";"):
            path, _, names = entry.strip().partition(": ")
            file = TESTS / path
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            wanted = names.split(", ") if names else [r"test_\w+"]
            found += len(wanted)
            missing += [
                f"{path}: {name}"
                for name in wanted
                if not re.search(rf"^def {name}\(", text, re.M)
            ]
    assert not missing
    assert found > 60
