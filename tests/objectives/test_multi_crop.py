"""Multi-crop: DINO's views, their sizes, and random draws of their own."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax.data.loading.batches import train_batches
from vit_jax.train.setup import set_up

COLOURS = "flip_lr|color_jitter(0.4, 0.4, 0.2, 0.1, prob=0.8)|grey(prob=0.2)"


@pytest.fixture
def setup_of(tiny_config):
    def make(values=(), **options):
        config = tiny_config(
            **{
                "objective": "self_distillation",
                "augment.train": None,
                "model.depth": 1,
                "mesh.data": 1,
                **dict(values),
            }
        )
        config.objective_options = ConfigDict(
            {"out_dim": 8, "freeze_last_layer": 0, **options}
        )
        return set_up(config)

    return make


def test_views_of_dino(setup_of):
    sizes = {"image_size": (224,), "model.variant": "Ti/16"}
    chains = setup_of(sizes).train_transforms
    assert list(chains) == ["global_0", "global_1", *(f"local_{i}" for i in range(8))]
    crop = "random_resized_crop(area_min={}, area_max={})"
    assert [chain.text for chain in chains.values()] == [
        f"{crop.format(0.4, 1.0)}|{COLOURS}|blur",
        f"{crop.format(0.4, 1.0)}|{COLOURS}|blur(prob=0.1)|solarize(prob=0.2)",
        *[f"{crop.format(0.05, 0.4)}|{COLOURS}|blur(prob=0.5)"] * 8,
    ]
    assert chains["global_1"].image_size == (224, 224)
    assert chains["local_7"].image_size == (96, 96)


@pytest.mark.parametrize(
    ("image_size", "patch", "size"),
    [
        ((224,), 8, (96, 96)),
        ((384,), 16, (160, 160)),
        ((32,), 4, (12, 12)),
        ((64, 32), 8, (24, 16)),
        ((8,), 8, (8, 8)),  # at least one patch
    ],
)
def test_small_views_are_three_sevenths_of_the_image(setup_of, image_size, patch, size):
    setup = setup_of({"image_size": image_size, "model.variant": f"Ti/{patch}"})
    assert setup.train_transforms["local_0"].image_size == size


def test_number_size_and_scale_of_small_views(setup_of):
    setup = setup_of(
        {"image_size": (16,)},
        local_crops_number=1,
        local_crops_size=(4, 12),
        local_crops_scale=(0.1, 0.2),
        global_crops_scale=(0.14, 1.0),
    )
    chains = setup.train_transforms
    assert list(chains) == ["global_0", "global_1", "local_0"]
    assert chains["local_0"].image_size == (4, 12)
    assert "area_min=0.1, area_max=0.2" in chains["local_0"].text
    assert "area_min=0.14, area_max=1.0" in chains["global_1"].text
    assert list(setup_of(local_crops_number=0).train_transforms) == list(chains)[:2]


def test_chains_of_the_recipe_replace_the_default(setup_of):
    def texts(values=(), **options):
        chains = setup_of(values, local_crops_number=1, **options).train_transforms
        return [chain.text for chain in chains.values()]

    default = texts()
    assert texts(second_chain="resize") == [default[0], "resize", default[2]]
    assert texts(local_chain="resize") == [*default[:2], "resize"]
    own = {"augment.train": "inception_crop"}
    assert texts(own) == ["inception_crop", "inception_crop", default[2]]
    assert texts(own, first_chain="resize")[:2] == ["resize", "inception_crop"]


def test_every_view_has_draws_of_its_own_that_depend_on_its_position(setup_of):
    setup = setup_of(
        first_chain="random_resized_crop",
        second_chain="random_resized_crop",
        local_crops_size=8,
        local_chain="random_resized_crop",
        local_crops_number=2,
    )
    source = setup.dataset.split("train[:32]")
    batches = []
    for threads, start in ((0, 0), (2, 0), (0, 1)):
        with train_batches(
            source,
            batch_size=16,
            transform=setup.train_transforms,
            channels=1,
            seed=0,
            start=start,
            stop=2,
            num_threads=threads,
        ) as loaded:
            batches.append(list(loaded))
    names = ("global_0", "global_1", "local_0", "local_1")
    first = batches[0][0]
    for i, one in enumerate(names):
        for other in names[:i]:
            pairs = zip(first[one], first[other], strict=True)
            assert sum(np.array_equal(x, y) for x, y in pairs) <= 2, (one, other)
    for name in names:
        np.testing.assert_array_equal(batches[1][1][name], batches[0][1][name])
        np.testing.assert_array_equal(batches[2][0][name], batches[0][1][name])
