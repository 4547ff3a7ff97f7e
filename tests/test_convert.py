import numpy as np
import pytest

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
    ],
)
def test_wrong_arguments_are_explained(arguments, message, run_command):
    with pytest.raises(SystemExit, match=message):
        run_command(convert, *arguments)
