"""Tested versions, which are those that setup.py allows and constraints.txt pins."""

import pathlib
import re

import pytest
from packaging.specifiers import SpecifierSet

import vit_jax
from vit_jax import predict, versions
from vit_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[1]
SETUP = (REPOSITORY / "setup.py").read_text()
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text()


def pins(name):
    """Reads [(library, version, marker)] from a file of constraints."""
    text = (REPOSITORY / name).read_text()
    return re.findall(r"^([\w.-]+)==([\w.]+)(.*)$", text, re.MULTILINE)


def lowest_allowed():
    """Reads {library: version} of the requirements and of the extra "test"."""
    runtime = SETUP[SETUP.index("install_requires=") : SETUP.index("extras_require=")]
    tests = SETUP[SETUP.index("TEST = ") : SETUP.index("LINT = ")]
    return dict(re.findall(r"[\"']([\w.-]+)(?:\[\w+\])?>=([\w.]+)", runtime + tests))


def test_the_lowest_versions_are_those_that_setup_allows():
    lowest = {name: version for name, version, _ in pins("constraints-lowest.txt")}
    assert lowest == lowest_allowed()


@pytest.mark.parametrize("name", versions.TESTED)
def test_tested_versions_span_the_pins(name):
    tested = SpecifierSet(versions.TESTED[name])
    if name == "Python":
        lowest = re.search(r'python_requires=">=([\d.]+)"', SETUP)[1]
        highest = max(re.findall(r"Python :: (3\.\d+)", SETUP))
        beyond = f"3.{int(highest.split('.')[1]) + 1}"
    else:
        lowest = lowest_allowed()[name]
        highest = max(
            (
                version
                for library, version, _ in pins("constraints.txt")
                if library == name
            ),
            key=lambda version: [int(number) for number in version.split(".")],
        )
        beyond = re.sub(r"^\d+\.\d+", lambda m: f"{float(m[0]) + 0.1:.1f}", highest)
    assert tested.contains(lowest)
    assert tested.contains(highest)
    assert not tested.contains(f"{lowest}.dev1", prereleases=True)
    assert not tested.contains(beyond)


def test_the_installed_versions_were_tested():
    found = versions.installed()
    assert found.keys() == versions.TESTED.keys()
    assert versions.untested(found) == ""


def test_untested_versions_are_named_in_one_line():
    found = versions.installed() | {"jax": "99.0", "Python": "3.14.0"}
    line = versions.untested(found)
    assert line == (
        "vit_jax was never tested with Python 3.14.0 (tested: >=3.11,<3.14), "
        "jax 99.0 (tested: >=0.10.2,<=0.12.0.1)"
    )
    # A bug-fix release of a tested version is not reported.
    assert versions.untested({"numpy": "2.5.99", "Python": "3.13.99"}) == ""


def test_untested_versions_are_reported_once(monkeypatch, run_command, capsys, caplog):
    monkeypatch.setattr(versions, "installed", lambda: {"jax": "99.0"})
    for _ in range(2):
        versions.warn_of_untested.cache_clear()
        with pytest.raises(SystemExit):
            run_command(predict, "--checkpoint=nothing_there", "picture.png")
        with pytest.raises(UserError):
            vit_jax.load("nothing_there")
    lines = [r.message for r in caplog.records if "never tested" in r.message]
    assert (
        lines
        == ["vit_jax was never tested with jax 99.0 (tested: >=0.10.2,<=0.12.0.1)"] * 2
    )
    versions.warn_of_untested.cache_clear()


def test_the_changelog_has_the_version():
    newest = re.search(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)
    assert newest[1] == vit_jax.__version__
