import json

import pytest

from vit_jax.models import __main__ as models


@pytest.fixture
def listed(run_command, capsys):
    """Returns a function of arguments that lists the names printed by the command."""

    def names(*arguments):
        run_command(models, *arguments, "--json")
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        return [row["name"] for row in json.loads(lines[0])["models"]]

    return names


def test_everything_is_listed(listed):
    names = listed()
    assert len(names) > 150
    assert "vit_base_patch16_224.augreg_in21k" in names


def test_filters_can_be_combined(listed):
    names = listed("--task=i1k", "--resolution=384", "--max_params=30M", "timm")
    assert names == [
        "vit_tiny_patch16_384.augreg_in21k_ft_in1k",
        "vit_small_patch32_384.augreg_in21k_ft_in1k",
        "vit_small_patch16_384.augreg_in21k_ft_in1k",
        "vit_small_patch16_384.augreg_in1k",
        "vit_tiny_r_s16_p8_384.augreg_in21k_ft_in1k",
    ]
    assert listed("--family=sam") == ["sam/ViT-B_16", "sam/ViT-B_32"]
    assert listed("recommended", "hybrid", "--task=i21k", "--max_params=0.02B") == [
        "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
    ]
    assert len(listed("--task=none", "dinov2.lvd142m")) == 6
    assert len(listed("--task=none", "facebook/dinov2")) == 6


def test_a_row_as_json(run_command, capsys):
    run_command(models, "deit_tiny_patch16_224", "--json")
    report = json.loads(capsys.readouterr().out)
    (row,) = report["models"]
    mirrors = row.pop("mirrors")
    assert row == {
        "name": "deit_tiny_patch16_224.fb_in1k",
        "family": "deit",
        "variant": "Ti/16",
        "params": 5_717_416,
        "resolution": 224,
        "pretraining": "i1k",
        "task": "i1k",
        "top1": 72.2,
        "protocol": "deit",
        "recommended": False,
        "note": "",
    }
    assert mirrors[1]["sha256"] == "a1311bcf"
    assert "facebookresearch/deit" in report["protocols"]["deit"]


def test_licences_that_are_not_free_are_listed(run_command, capsys):
    run_command(models, "vit_base_patch16_224.mae")
    *_, last = capsys.readouterr().out.splitlines()
    licence = "CC-BY-NC 4.0 (no commercial use)"
    assert last == f"MAE (arXiv:2111.06377): licence {licence}"
    run_command(models, "vit_base_patch16_224.mae", "--json")
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["licence"] == licence


def test_in_a_pipe_each_row_is_a_line(run_command, capsys):
    run_command(models, "--family=augreg", "S/16")
    lines = capsys.readouterr().out.splitlines()
    name = (
        "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"
        "--imagenet2012-steps_20k-lr_0.03-res_384"
    )
    (line,) = [line for line in lines if name in line]
    words = ["★", name, "22.2M", "384", "i21k", "i1k", "83.73", "(google)"]
    assert line.split() == words
    assert lines[-1].startswith("(timm) ImageNet validation as reported by timm")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["nothing", "such"], ["no published weights match"]),
        (
            ["--family=x", "--task=y", "--max_params=many"],
            [
                "--family=x: choose from google, augreg",
                "--task=y: choose from i1k, i21k, none",
                "--max_params=many: expected a number such as 30M",
            ],
        ),
        (["--resolution=big"], ["resolution"]),
    ],
)
def test_invalid_arguments_give_one_message(run_command, arguments, messages):
    with pytest.raises(SystemExit) as caught:
        run_command(models, *arguments)
    for message in messages:
        assert message in str(caught.value.code)
