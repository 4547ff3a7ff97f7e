"""The frame of every command: flags without tracebacks, errors a user can read."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from vit_jax.errors import UserError
from vit_jax.versions import warn_of_untested

# Errors that a disk or a file system causes, never the program.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENAMETOOLONG)


def run(main: Callable[[list[str]], None], flag_values: flags.FlagValues) -> None:
    """Parses the command line and runs `main(positional arguments)` under `guard`.

    Args:
      main: the command, which reads its flags from `flag_values`.
      flag_values: a command's own flags, so that two commands can be imported at once.
    """
    usage = sys.modules["__main__"].__doc__ or ""
    guard(lambda: main(parse(sys.argv, flag_values, usage)))


def guard(action: Callable[[], None]) -> None:
    """Runs a command's action and turns its end into an exit status.

    0 = done; 1 = an error that the user can fix, in one message on standard error;
    130 = Ctrl-C; 141 = the output is no longer read; a command may add its own.
    Anything else is a bug of ours and shows its traceback.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        _write_any_text(stream)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[_ToStandardError()]
    )
    logging.getLogger("vit_jax").setLevel(logging.INFO)
    # Our own messages say which addresses did not answer.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # And which images are damaged; Pillow's and tifffile's do not name them.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    sys.unraisablehook = _show
    warn_of_untested()
    try:
        try:
            action()
        finally:
            # Here, because an error while Python ends would be a traceback.
            sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # The reader of our output is gone. With the output redirected, Python does not
        # complain again at exit. The status is SIGPIPE's, which not every system has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except PermissionError as error:
        sys.exit(
            f"error: {error.filename or 'a file'}: permission denied; make it (and the "
            "folders above it) accessible, or pass another path"
        )
    except OSError as error:
        if error.errno not in _DISK:
            raise
        reason = error.strerror
        if error.errno == errno.ENOSPC:
            reason = "no space left on the disk"
        sys.exit(f"error: {error.filename or 'a file or the output'}: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)


def say_last(message: object) -> None:
    """Prints to standard error, which may be a terminal that has been closed."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        # Python would try again at exit, and turn its failure into an exit status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def define_outputs(flag_values: flags.FlagValues) -> None:
    """Defines the flag --outputs, for weights that do not record what they mean."""
    flags.DEFINE_enum(
        "outputs",
        None,
        ["exclusive", "independent", "numbers"],
        "what the model's outputs mean, if its file does not record it: classes that "
        "exclude each other, a yes or no for each class, or plain numbers",
        flag_values=flag_values,
    )


def define_base(flag_values: flags.FlagValues) -> None:
    """Defines the flag --base, for work directories that hold only adapters."""
    flags.DEFINE_string(
        "base",
        None,
        "for a work directory that holds only adapters and a head: the weights that "
        "they were trained beside, if these have moved",
        flag_values=flag_values,
    )


def parse(
    argv: Sequence[str],
    flag_values: flags.FlagValues,
    usage: str,
    known_only: bool = False,
) -> list[str]:
    """Parses `argv`; flags and positional arguments may come in any order.

    Args:
      argv: the program's name and its arguments.
      flag_values: the command's flags.
      usage: text that `--help` shows before the flags.
      known_only: leave flags that are not in `flag_values` in the result.

    Returns:
      The positional arguments.

    Raises:
      UserError: an unknown flag, or a value of the wrong type.
      SystemExit: after `--help` has been shown.
    """
    flag_values.set_gnu_getopt(True)
    if "--help" in argv[1:] or "-h" in argv[1:]:
        options = flag_values.get_help(include_special_flags=False)
        print(f"{usage.strip()}\n\nFlags:\n{options}")
        sys.exit(0)
    try:
        return list(flag_values(list(argv), known_only=known_only))[1:]
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}. See --help.") from None


def _open_standard_streams() -> None:
    """Discards what is written to standard streams that were closed, as in `>&-`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _write_any_text(stream: Any) -> None:
    """Makes a stream escape what its encoding lacks, such as names in other scripts."""
    with contextlib.suppress(AttributeError, ValueError):  # replaced, or closed
        stream.reconfigure(errors="backslashreplace")


class _ToStandardError(logging.StreamHandler):
    """A handler that writes to the current standard error, above any progress bar."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _show(unraisable: Any) -> None:
    """Shows an exception that cannot be caught, unless it is known to be noise.

    When a full disk has ended a save, TensorStore's threads report every single write
    to an event loop of Orbax that is gone. The failed save itself is explained.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
