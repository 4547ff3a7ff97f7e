"""Refuses docstrings whose first line does not stand alone when an editor shows it.

    python .ci/check_docstrings.py FOLDER…

A first line is a verb phrase for a function, a noun phrase for a class or module. It
does not lean on the line before it ("The same of …"), nor begin with a preposition or
with an order to look elsewhere. Prints FILE:LINE and the line; the exit status is 1 if
there is any.
"""

import ast
import pathlib
import re
import sys

# Words that a first line must not begin with.
LEANING = re.compile(
    r"(of|the same|likewise|see|as|like|what|who|whose|whatever|whoever|in|by|to|from|"
    r"otherwise|also|and|or|ditto|another)\b",
    re.IGNORECASE,
)


def wrong_first_lines(file: pathlib.Path) -> list[tuple[int, str]]:
    """Line numbers and texts of the first lines that do not stand alone."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            continue
        text = (ast.get_docstring(node) or "").partition("\n")[0]
        if LEANING.match(text):
            found.append((node.body[0].lineno, text))
    return found


def main(folders: list[str]) -> int:
    """Prints all of them; returns the exit status."""
    count = 0
    for folder in map(pathlib.Path, folders):
        for file in sorted(folder.rglob("*.py")):
            for line, text in wrong_first_lines(file):
                print(f"{file}:{line}: {text}")
                count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
