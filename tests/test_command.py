"""The frame of all commands: any text can be written, and any end is quiet."""

import os
import subprocess
import sys

import pytest

ANY_TEXT = """
import logging, sys
from vit_jax import command
from vit_jax.errors import UserError

def action():
    print("\\u732b \\u2026", "\\udce9")
    logging.getLogger("vit_jax").info("\\u72ac \\udcff")
    raise UserError("\\u9ce5 \\udc80")

command.guard(action)
"""


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        ({"PYTHONIOENCODING": "ascii"}, [r"\u732b \u2026 \udce9", r"\u72ac \udcff"]),
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, [r"\udce9", r"\udcff"]),
        ({"PYTHONIOENCODING": "utf-8"}, [r"猫 … \udce9", r"犬 \udcff"]),
        ({"PYTHONIOENCODING": "latin-1:strict"}, [r"\u732b", r"\u72ac"]),
    ],
)
def test_text_that_an_encoding_lacks_is_escaped(environment, lines):
    done = subprocess.run(
        [sys.executable, "-c", ANY_TEXT],
        env=os.environ | environment,
        capture_output=True,
    )
    assert done.returncode == 1
    assert lines[0] in done.stdout.decode()
    assert lines[1] in done.stderr.decode()
    assert "error: " in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert "--- Logging error ---" not in done.stderr.decode()


SOME_STATUS = """
import sys
from vit_jax import command

def action():
    print("x" * 10**6)
    sys.exit(3)

command.guard(action)
"""


@pytest.mark.parametrize(
    ("shell", "status"),
    [("| head -c 9", 141), ("2>&1 | head -c 9", 141), ("> /dev/null", 3)],
)
def test_a_closed_pipe_is_no_traceback_whatever_the_status(shell, status):
    command = f"{sys.executable} -c '{SOME_STATUS}' {shell}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
