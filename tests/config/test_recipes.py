"""The command line: recipes, overrides, and one message with all mistakes."""

import logging
import subprocess
import sys

import pytest

from vit_jax import command
from vit_jax.config.recipes import WrongOverrides, load_recipe
from vit_jax.errors import UserError

RECIPE = """
from vit_jax.config import default_config
from vit_jax.errors import UserError

def get_config(argument="none"):
    if argument == "bad":
        raise UserError("no such argument")
    config = default_config()
    config.name = argument
    config.total_steps = 10
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


def load(*arguments):
    return load_recipe(["main", *arguments])


def test_recipe_argument_workdir_and_overrides(recipe):
    config, workdir = load(
        f"--config={recipe}:cats:and=dogs",
        "--workdir=runs/a",
        "--config.learning_rate=0.5",
        "--config.model.dropout_rate=1e-1",
        "--config.seed",
        "3",
        "--config.model.scan",
        "--noconfig.per_class",
    )
    assert config.name == "cats:and=dogs"
    assert workdir == "runs/a"
    assert (config.learning_rate, config.seed) == (0.5, 3)
    assert config.model.dropout_rate == 0.1
    assert config.model.scan
    assert not config.per_class


def test_options_of_an_objective_need_not_be_in_the_recipe(recipe):
    options = {
        "teachers": "runs/a=b;B/16",
        "alpha": "0.25",
        "steps": "3",
        "flag": "false",
        "size": "(8, 16)",
        "list": "[1]",
    }
    flags = [f"--config.objective_options.{k}={x}" for k, x in options.items()]
    config, _ = load(f"--config={recipe}", *flags)
    assert config.objective_options.to_dict() == {
        "teachers": "runs/a=b;B/16",
        "alpha": 0.25,
        "steps": 3,
        "flag": False,
        "size": (8, 16),
        "list": "[1]",
    }
    assert config.is_locked
    flag = "--config.loss_options.class_weights=balanced"
    config, _ = load(f"--config={recipe}", flag)
    assert config.loss_options.to_dict() == {"class_weights": "balanced"}
    with pytest.raises(WrongOverrides, match="no such key"):
        load(f"--config={recipe}", "--config.modle.width=3")


@pytest.mark.parametrize("section", ["objective", "loss", "optimizer"])
def test_options_without_name_or_value_are_explained(section, recipe):
    options = f"--config.{section}_options"
    with pytest.raises(WrongOverrides) as error:
        load(f"--config={recipe}", f"{options}=3", f"{options}.beta")
    assert str(error.value) == (
        f"{options}=3: expected one of its options, as in {options}.NAME=VALUE\n"
        f"{options}.beta: expected a name and a value, as in {options}.beta=VALUE"
    )


@pytest.mark.parametrize("word", ["false", "False", "0"])
def test_booleans_may_be_separate_arguments(recipe, word):
    config, _ = load(f"--config={recipe}", "--config.reset_head", word)
    assert config.reset_head is False
    with pytest.raises(UserError, match=r"config\.per_class=foo: expected true or fal"):
        load(f"--config={recipe}", "--config.per_class", "foo")


def test_image_sizes_parse_from_one_or_two_numbers(recipe):
    sizes = [
        load(f"--config={recipe}", f"--config.image_size={text}")[0].image_size
        for text in ("32", "32,48", "(32,48)")
    ]
    assert sizes == [(32,), (32, 48), (32, 48)]


def test_a_length_on_the_command_line_clears_the_recipes_length(recipe):
    config, _ = load(f"--config={recipe}", "--config.total_epochs=3")
    assert (config.total_steps, config.total_epochs) == (None, 3.0)


def test_a_length_that_cannot_be_read_clears_nothing(recipe):
    with pytest.raises(WrongOverrides, match="=abc: expected a number") as error:
        load(f"--config={recipe}", "--config.total_epochs=abc")
    assert error.value.config.total_steps == 10


def test_all_wrong_arguments_are_reported_at_once(recipe):
    with pytest.raises(UserError) as error:
        load(
            f"--config={recipe}",
            "--config.learning_rat=1",
            "--config.model.dropout=1",
            "--config.seed=x",
            "--config.total_steps=2.5",
            "--config.augment={}",
            "--config.model..x=1",
        )
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    assert "config.augment={}: expected one of its keys, such as aug" in lines[4]
    assert "config.model..x: no such key" in lines[5]
    assert "config.learning_rat: no such key; did you mean 'learning_rate'" in lines[0]
    assert "model.dropout: no such key; did you mean 'model.dropout_rate'" in lines[1]
    assert "config.seed=x" in lines[2]
    assert "config.total_steps=2.5" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "no recipe given; pass one"),
        (("--config=nowhere/x.py",), "no recipe at nowhere/x.py"),
        (("--config=RECIPE:bad",), "no such argument"),
        (("--config=RECIPE", "stray"), r"unexpected arguments \['stray'\]"),
        (("--config=RECIPE", "--wrkdir=x"), "flag 'wrkdir'. Did you mean: workdir"),
    ],
)
def test_invalid_command_lines_are_rejected(recipe, arguments, text):
    with pytest.raises(UserError, match=text):
        load(*(argument.replace("RECIPE", recipe) for argument in arguments))


def test_a_missing_recipe_lists_the_existing_ones(recipe):
    with pytest.raises(UserError, match=r"found .*recipe\.py"):
        load("--config=" + recipe.replace("recipe.py", "recip.py"))


def test_a_user_error_ends_with_one_message_and_no_traceback(recipe):
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.main", f"--config={recipe}", "--config.sed=1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: the config has 1 problem(s):\n"
        "  - --config.sed: no such key; did you mean 'seed' or 'schedule'? "
        "All keys are in vit_jax/config/keys.py\n"
    )


def test_a_closed_output_pipe_is_not_an_error():
    script = "from vit_jax import command; command.guard(lambda: print('x' * 10**6))"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "error: /a/b: permission"),
        (
            OSError(28, "No space left on device"),
            "error: a file or the output: no space",
        ),
    ],
)
def test_errors_of_the_system_are_explained(error, message, monkeypatch):
    def action():
        raise error

    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit, match=message):
        command.guard(action)


def test_other_failures_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(OSError, match="other"):
        command.guard(lambda: (_ for _ in ()).throw(OSError(22, "other")))


def test_help_shows_usage_and_flags():
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--config=configs/b16.py" in done.stdout
    assert "--workdir" in done.stdout
