"""Names of work directories: a run is found again, also by versions with more keys."""

import pathlib
import re

import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoints.workdir import locate
from vit_jax.config.recipes import load_recipe
from vit_jax.train.workdir_name import default_workdir

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

# Command lines, and the directories in which version 0.1 (4f40482) trained them.
OF_0_1 = {
    ("b16.py:digits",): "runs/b16-digits-09ab617c",
    (
        "quickstart.py:pretrain",
        "--config.log_every=1",
        "--config.mesh.fsdp=4",
        "--config.seed=7",
    ): "runs/quickstart-pretrain-digits-cac6694f",
    (
        "cifar.py:/data/my flowers",
        "--config.ema_decay=0.99",
        "--config.profile_steps=3,5",
    ): "runs/cifar-data-my-flowers-45b05a55",
    (
        "deit.py:B/16,imagenet2012",
        "--config.keep_best=top1",
        "--config.image_size=160,128",
    ): "runs/deit-B16-imagenet2012-922af574",
}


def recipe(**values):
    config = config_lib.default_config()
    config.total_steps = 1000
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return config


def test_the_name_depends_on_every_value_that_makes_another_run():
    first = default_workdir(recipe(dataset="/data/my flowers"))
    assert re.fullmatch(r"runs/custom-data-my-flowers-[0-9a-f]{8}", first)
    assert first == default_workdir(recipe(dataset="/data/my flowers"))
    for key, value in (("seed", 1), ("model.scan", True), ("image_size", (224, 256))):
        other = recipe(dataset="/data/my flowers", **{key: value})
        assert default_workdir(other) != first
    free = recipe(dataset="/data/my flowers", log_every=7, **{"mesh.fsdp": 8})
    assert first == default_workdir(free)


def test_the_name_does_not_depend_on_keys_at_their_defaults(add_keys):
    before = default_workdir(recipe(seed=3))
    add_keys()
    assert default_workdir(recipe(seed=3)) == before
    for key, value in (
        ("a_new_key", 2.5),
        ("model.a_new_key", False),
        ("a_new_section.a_new_key", (1, 3)),
    ):
        assert default_workdir(recipe(seed=3, **{key: value})) != before


@pytest.mark.parametrize("flags", OF_0_1)
def test_runs_begun_by_version_0_1_are_found(flags, add_keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add_keys()
    config, _ = load_recipe(["main", f"--config={CONFIGS / flags[0]}", *flags[1:]])
    new = default_workdir(config)
    assert new.rpartition("-")[0] == OF_0_1[flags].rpartition("-")[0]
    assert new != OF_0_1[flags]
    locate(OF_0_1[flags]).mkdir(parents=True)
    assert default_workdir(config) == OF_0_1[flags]
    # With a new key at another value it is another run.
    config.a_new_section.a_new_key = (3, 4)
    assert default_workdir(config) not in (new, OF_0_1[flags])
    # The new name takes precedence if both exist.
    config.a_new_section.a_new_key = (1, 2)
    locate(new).mkdir()
    assert default_workdir(config) == new
