import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax import convert
from vit_jax.weights.loading import load_weights


@pytest.fixture
def workdir(tmp_path, make_workdir):
    return make_workdir(tmp_path / "run", class_names=("cat", "dog"), gelu="exact")


def test_there_and_back(workdir, tmp_path, run_command, capsys):
    steps = [
        (workdir, "a.npz", "google"),
        ("a.npz", "b.npz", "big_vision"),
        ("b.npz", "c", "timm"),
        ("c", "d", "huggingface"),
        ("d", "e.safetensors", "vit_jax"),
    ]
    for source, destination, format in steps:
        run_command(
            convert, tmp_path / source, tmp_path / destination, f"--to={format}"
        )
        assert f"wrote {tmp_path / destination} in " in capsys.readouterr().out
    first, last = load_weights(workdir), load_weights(tmp_path / "e.safetensors")
    for name, leaf in first.params["blocks_01"]["attention"]["query"].items():
        found = last.params["blocks_01"]["attention"]["query"][name]
        np.testing.assert_array_equal(found, leaf)
    assert last.description.architecture.num_heads == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected SOURCE DESTINATION --to=FORMAT, got 0 argument"),
        (["a", "b"], "no --to"),
        (["a", "b", "--to=tim"], "did you mean 'timm'"),
        (["absent/run", "b", "--to=timm"], "absent/run"),
        (["a", "b", "--to=timm", "--num_heads=0"], "num_heads"),
        (
            ["a", "b", "--to=timm", "--trained_image_size=8,x"],
            "--trained_image_size=8,x: expected one size, or HEIGHT,WIDTH",
        ),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, run_command):
    with pytest.raises(SystemExit, match=message):
        run_command(convert, *arguments)


def test_the_meaning_of_the_outputs_can_be_given(workdir, tmp_path, run_command):
    google, ours = tmp_path / "a.npz", tmp_path / "b.safetensors"
    run_command(convert, workdir, google, "--to=google")
    run_command(convert, google, ours, "--to=vit_jax", "--outputs=independent")
    assert load_weights(google).description.outputs == "exclusive"
    assert load_weights(ours).description.outputs == "independent"


def test_facts_that_a_file_lacks_can_be_given(tmp_path, make_workdir, run_command):
    """Gives the grid of 6 patches, and the heads of a width of 16."""
    workdir = make_workdir(tmp_path / "run", image_size=(8, 12))
    google, timm, ours = (
        tmp_path / name for name in ("a.npz", "b.safetensors", "c.safetensors")
    )
    run_command(convert, workdir, google, "--to=google")
    size = "--trained_image_size=8,12"
    with pytest.raises(SystemExit, match=r"vit_jax.convert --trained_image_size=…"):
        run_command(convert, google, ours, "--to=vit_jax")
    run_command(convert, google, ours, "--to=vit_jax", size)
    found = load_weights(ours)
    assert found.description.architecture.grid == (2, 3)
    expected = load_weights(workdir).params["pos_embed"]
    np.testing.assert_array_equal(found.params["pos_embed"], expected)

    run_command(convert, workdir, timm, "--to=timm")
    tensors = load_file(timm)
    save_file(tensors, timm)  # without the config inside
    with pytest.raises(SystemExit, match=r"python -m vit_jax.convert --num_heads=…"):
        run_command(convert, timm, ours, "--to=vit_jax", size)
    run_command(convert, timm, ours, "--to=vit_jax", size, "--num_heads=2")
    assert load_weights(ours).description.architecture.num_heads == 2
    with pytest.raises(SystemExit, match="has 2 attention heads; omit num_heads"):
        run_command(convert, ours, timm, "--to=timm", "--num_heads=4")
    with pytest.raises(SystemExit, match=r"trained at \(8, 12\); omit trained_image"):
        run_command(convert, ours, timm, "--to=timm", "--trained_image_size=16")


def test_facts_about_a_decoder_can_be_given(tmp_path, run_command):
    source = pathlib.Path(__file__).parent / "golden" / "mae_meta.pth"
    ours, back = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    told = ["--num_heads=4", "--trained_image_size=8,12"]
    told += ["--decoder_heads=8", "--nonormalize_pixels"]
    run_command(convert, source, ours, "--to=vit_jax", *told)
    decoder = load_weights(ours).description.decoder
    assert (decoder.num_heads, decoder.normalize_pixels) == (8, False)
    run_command(convert, ours, back, "--to=mae")
    assert "decoder_blocks.0.attn.qkv.weight" in load_file(back)
