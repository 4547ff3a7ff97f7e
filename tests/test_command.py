"""The frame of all commands: any text can be written, and any end is quiet."""

import errno
import os
import subprocess
import sys
import warnings

import pytest

from vit_jax import command

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


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_standard_streams_are_no_traceback(closed):
    line = f"{sys.executable} -c '{SOME_STATUS}' {closed}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert (done.stdout == "") == (">&-" in closed.split())


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "error: a.bin: no space left on the disk"),
        (errno.EROFS, "error: a.bin: Read-only file system"),
        (errno.EDQUOT, "error: a.bin: Disk quota exceeded"),
        (errno.ENAMETOOLONG, "error: a.bin: File name too long"),
    ],
)
def test_errors_of_disks_are_one_line(number, message, run_command):
    def action():
        raise OSError(number, os.strerror(number), "a.bin")

    with pytest.raises(SystemExit, match=f"^{message}$"):
        command.guard(action)


def test_pillow_warns_of_nothing_without_a_name(run_command, recwarn):
    def action():
        with warnings.catch_warnings():
            warnings.warn_explicit("Corrupt EXIF data", UserWarning, "f", 1, "PIL.x")
            warnings.warn_explicit("ours", UserWarning, "f", 1, "vit_jax.x")

    command.guard(action)
    assert [str(each.message) for each in recwarn] == ["ours"]


@pytest.mark.parametrize(
    ("shell", "status"),
    [("| head -c 9", 141), ("2>&1 | head -c 9", 141), ("> /dev/null", 3)],
)
def test_a_closed_pipe_is_no_traceback_whatever_the_status(shell, status):
    line = f"{sys.executable} -c '{SOME_STATUS}' {shell}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
