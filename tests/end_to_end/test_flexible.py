"""A run of flexible patch sizes: resumed bit for bit, and used at any size."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

from vit_jax import api, convert, evaluate, predict
from vit_jax.checkpoints.reading import load_checkpoint, load_params
from vit_jax.errors import UserError
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up

VALUES = {
    "total_steps": 6,
    "model.depth": 1,
    "mesh.data": 1,
    "flexible.patch_sizes": (2, (8, 4)),
    "flexible.kernel": (3,),
    "flexible.grid": (3,),
    "flexible.eval_patch_sizes": ((8, 4),),
    "keep_best": "patch_8x4/top1",
    "keep_checkpoints": 9,
    # What else a run may have.
    "ema_decay": 0.9,
    "momentum_dtype": "bfloat16",
    "bad_update": "skip",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_recipe):
    """Returns the recipe's config, the run's directory and what it logged."""
    from vit_jax.config.recipes import load_recipe

    folder = tmp_path_factory.mktemp("flexible")
    recipe = tiny_recipe(folder, **VALUES)
    config, _ = load_recipe(["main", f"--config={recipe}"])
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("vit_jax")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    train_and_evaluate(config, folder / "run")
    logger.removeHandler(handler)
    logger.setLevel(before)
    return config, folder / "run", lines


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_says_what_it_draws(trained):
    config, workdir, lines = trained
    drawn = set_up(config).objective.patch_sizes
    sizes = [
        (line["patch_height"], line["patch_width"])
        for line in metrics(workdir)
        if line["split"] == "train"
    ]
    assert sizes == [drawn(step) for step in range(6)]
    assert set(sizes) == {(2, 2), (8, 4)}
    assert (
        "patches    every step draws one of 2, 8x4 pixels, resized from a kernel of "
        "3×3 pixels and positions of 3×3" in lines
    )
    [compiled] = [line for line in lines if line.startswith("compiled")]
    assert compiled.startswith("compiled   2 programs of the training step in ")


def test_a_resumed_run_has_the_same_bits(trained, tmp_path):
    config, workdir, _ = trained
    left = tmp_path / "left"
    shutil.copytree(workdir, left)
    for step in (4, 6):  # killed during the fourth step
        shutil.rmtree(left / "checkpoints" / str(step))
    lines = (left / "metrics.jsonl").read_text().splitlines(True)
    (left / "metrics.jsonl").write_text("".join(lines[:3]))
    train_and_evaluate(config, left)
    assert metrics(left) == metrics(workdir)
    trees = [
        (load_params(run, 6), load_checkpoint(run, 6, ema=True)[1])
        for run in (workdir, left)
    ]
    assert jax.tree.all(jax.tree.map(np.array_equal, *trees))


def test_evaluations_are_those_of_models_that_are_loaded_at_that_size(
    trained, run_command, capsys
):
    _, workdir, _ = trained
    [recorded] = [line for line in metrics(workdir) if line["split"] == "eval_ema"]
    for flag, name in (("8,4", "patch_8x4/"), ("4", "")):
        run_command(
            evaluate, f"--checkpoint={workdir}", f"--patch_size={flag}", "--json"
        )
        report = json.loads(capsys.readouterr().out)
        sides = [int(side) for side in flag.split(",")]
        assert report["patch_size"] == [sides[0], sides[-1]]
        for metric in ("loss", "top1"):
            expected = recorded[f"{name}{metric}"]
            assert report[metric] == pytest.approx(expected, rel=1e-6)


def test_a_run_is_loaded_at_any_size(trained, tmp_path, run_command, capsys):
    _, workdir, _ = trained
    flexible = api.load(workdir)
    assert flexible.params["patch_embed"]["kernel"].shape == (3, 3, 3, 16)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    apply = jax.jit(flexible.module.apply, static_argnames="patch_size")
    for size in ((4, 4), (2, 4)):
        found = apply({"params": flexible.params}, images, patch_size=size)
        fixed = api.load(workdir, patch_size=size)
        assert fixed.architecture.flexible_kernel is None
        assert fixed.params["patch_embed"]["kernel"].shape[:2] == size
        np.testing.assert_allclose(fixed(images), found, rtol=0, atol=1e-6)
        assert np.ptp(found) > 1e-3
    np.testing.assert_array_equal(
        apply({"params": flexible.params}, images), flexible(images)
    )
    # Other formats get one size; our own keeps them all.
    file = tmp_path / "a.npz"
    for flags, size in (((), 4), (("--patch_size=2",), 2)):
        run_command(convert, workdir, file, "--to=google", *flags)
        same = api.load(file, num_heads=2)
        expected = api.load(workdir, patch_size=size)
        assert same.architecture == expected.architecture
        jax.tree.map(np.testing.assert_array_equal, same.params, expected.params)
    api.save(flexible, tmp_path / "all.safetensors")
    again = api.load(tmp_path / "all.safetensors")
    assert again.architecture == flexible.architecture
    np.testing.assert_array_equal(again(images), flexible(images))
    pixels = tmp_path / "image.png"
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(pixels)
    flags = (f"--checkpoint={workdir}", "--patch_size=2,4", "--json", "--top_k=10")
    run_command(predict, *flags, pixels)
    [image] = json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"]
    [expected] = fixed.predict(str(pixels), top_k=10)
    assert image["top"][0]["probability"] == pytest.approx(expected[0][1], abs=1e-6)


def test_a_method_for_positions_replaces_the_recorded_one(trained):
    _, workdir, _ = trained
    ours, other = (
        api.load(workdir, patch_size=2, posemb_resize=method).params["pos_embed"]
        for method in (None, "google")
    )
    assert ours.shape == other.shape == (1, 4, 4, 16)
    assert np.abs(ours - other).max() > 1e-4


def test_sizes_that_do_not_divide_are_refused(trained, run_command, tmp_path):
    _, workdir, _ = trained
    said = "images of 8×8 pixels cannot be cut into patches of 3 (nearest: 2 or 4)"
    with pytest.raises(UserError) as error:
        api.load(workdir, patch_size=3)
    assert str(error.value) == said
    for module, *rest in (
        (evaluate, f"--checkpoint={workdir}"),
        (convert, workdir, tmp_path / "x.safetensors", "--to=vit_jax"),
    ):
        with pytest.raises(SystemExit, match="cut into patches of 3"):
            run_command(module, *rest, "--patch_size=3")
        with pytest.raises(SystemExit, match="--patch_size=a: expected one side"):
            run_command(module, *rest, "--patch_size=a")


def test_fine_tuning_begins_at_any_size_and_from_any_model(trained, tiny_config):
    from vit_jax.train.start import fit_weights
    from vit_jax.weights.loading import load_weights

    _, workdir, _ = trained
    weights = load_weights(workdir)
    values = {"pretrained": str(workdir), "reset_head": False, "model.depth": 1}
    plain = tiny_config(**values | {"model.variant": "Ti/2"})
    setup = set_up(plain, pretrained=weights.description)
    params = fit_weights(setup, weights, weights.description.class_names)
    expected = api.load(workdir, patch_size=2).params
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(expected))
    # Without a variant, the patch size is that of the weights, and fixed.
    same = set_up(
        tiny_config(**values | dict.fromkeys(NO_SIZES) | {"model.variant": ""}),
        pretrained=weights.description,
    )
    assert same.architecture.flexible_kernel is None
    assert same.architecture.patch_size == (4, 4)
    # An ordinary model becomes a flexible one.
    other = {"flexible.patch_sizes": (2, 8), "flexible.kernel": (4,)}
    other["flexible.grid"] = (2,)
    setup = set_up(tiny_config(**values, **other), pretrained=weights.description)
    params = fit_weights(setup, weights, weights.description.class_names)
    assert params["patch_embed"]["kernel"].shape == (4, 4, 3, 16)
    assert params["pos_embed"].shape == (1, 2, 2, 16)


NO_SIZES = [f"model.{name}" for name in ("width", "depth", "mlp_dim", "num_heads")]


def test_rows_of_evaluators_have_patch_sizes(tiny_config):
    def rows(**row):
        config = tiny_config()
        config.evaluators = {"near": {"kind": "knn", "every": 0, **row}}
        return set_up(config)

    [row] = rows(patch_size=(2, 4)).evaluators
    assert (row.patch_size, row.options) == ((2, 4), {})
    with pytest.raises(UserError, match=r"patch_size='big': expected a side in pixels"):
        rows(patch_size="big")
    with pytest.raises(UserError, match=r"pixels cannot be cut into patches of 3"):
        rows(patch_size=3)
    config = tiny_config(**{"flexible.patch_sizes": (2, 4)})
    config.flexible.eval_patch_sizes = (2,)
    config.evaluators = {"patch_2": {"kind": "knn", "every": 0}}
    with pytest.raises(UserError, match="makes an evaluator of this name"):
        set_up(config)
    config = tiny_config(**{"flexible.patch_sizes": (2, 4), "keep_best": "patch_8/x"})
    config.flexible.eval_patch_sizes = (2, 8)
    with pytest.raises(UserError, match=r"keep_best='patch_8/x': .*patch_8/top1"):
        set_up(config)
