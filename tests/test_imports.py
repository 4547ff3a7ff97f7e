"""Imports on systems that are not POSIX, and imports of the package itself."""

import subprocess
import sys

# Imports all modules twice, the second time without the modules that only POSIX has. By
# then the libraries are loaded, so that only our own imports can find them missing.
SCRIPT = """
import builtins, importlib, os, pkgutil, signal, sys

import vit_jax

NAMES = ["vit_jax"] + [
    module.name
    for module in pkgutil.walk_packages(vit_jax.__path__, "vit_jax.")
    if not module.name.endswith(".__main__")
]
ONLY_POSIX = {
    "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios",
    "tty", "array_record", "uvloop",
}

def load():
    for name in NAMES:
        importlib.import_module(name)

load()
for name in [name for name in sys.modules if name.split(".")[0] == "vit_jax"]:
    del sys.modules[name]
for module, names in {
    os: "fork forkpty getuid geteuid getpgid kill killpg setsid sysconf uname statvfs "
    "sched_getaffinity sched_setaffinity mkfifo getloadavg wait4 O_DIRECTORY",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 alarm "
    "pause pthread_sigmask setitimer sigwait",
}.items():
    for name in names.split():
        delattr(module, name)

imported = builtins.__import__

def without_posix(name, globals=None, *rest):
    if (globals or {}).get("__name__", "").startswith("vit_jax"):
        if name.split(".")[0] in ONLY_POSIX:
            raise ModuleNotFoundError(f"No module named {name!r}")
    return imported(name, globals, *rest)

builtins.__import__ = without_posix
load()
print(len(NAMES), "modules")
"""


def test_no_module_needs_posix_only_modules():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100


def test_the_package_itself_imports_no_library():
    script = (
        "import sys; before = set(sys.modules); import vit_jax; "
        "names = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(*names - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["vit_jax"]
