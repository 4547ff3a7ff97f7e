"""Problems of the patch sizes: each is named, all at once, with a way out."""

import json
import re

import pytest
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import default_config, flat_keys
from vit_jax.config.flexible import not_dividing, size_name, wrong_flexible
from vit_jax.config.values import is_default
from vit_jax.train.choices import CHOICES


def problems(**values):
    config = config_lib.default_config()
    config.total_steps = 1000
    config.image_size = (240,)
    config.update_from_flattened_dict(
        {key.replace("flexible_", "flexible.", 1): x for key, x in values.items()}
    )
    return config_lib.problems(config, CHOICES, num_devices=1)


def test_published_sizes_are_valid():
    sizes = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)
    assert problems(flexible_patch_sizes=sizes) == []
    assert problems(flexible_patch_sizes=(8, (24, 8)), flexible_frequencies=(3, 1)) == (
        []
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"flexible_patch_sizes": (7, 16, 200, (16, 9))},
            "patch_sizes: images of 240×240 pixels cannot be cut into patches of 7 "
            r"\(nearest: 6 or 8\), 200 \(nearest: 120 or 240\), 16x9 \(nearest: 16x8 "
            r"or 16x10\)$",
        ),
        (
            {"flexible_patch_sizes": (16,), "flexible_eval_patch_sizes": (480,)},
            r"eval_patch_sizes: .* patches of 480 \(nearest: 240\)",
        ),
        (
            {"flexible_patch_sizes": (8, 16, (8, 8), 16)},
            "has 8, 16 more than once; give each size once; flexible.frequencies",
        ),
        (
            {"flexible_patch_sizes": (0, -3, 8, (1, 2, 3), "a", 2.5)},
            r"0, -3, \(1, 2, 3\), 'a', 2.5 cannot be a patch size; give sides",
        ),
        ({"flexible_kernel": (16,)}, r"kernel=\(16,\) without flexible.patch_sizes"),
        (
            {"flexible_eval_patch_sizes": (16,)},
            r"eval_patch_sizes=\(16,\) without .* leave it at \(\)",
        ),
        (
            {"flexible_patch_sizes": (8,), "flexible_kernel": (0,)},
            r"kernel=\(0,\): give one side or height,width",
        ),
        (
            {"flexible_patch_sizes": (8,), "flexible_grid": (7, 7, 7)},
            r"grid=\(7, 7, 7\): give one side or height,width",
        ),
        (
            {"flexible_patch_sizes": (8, 16), "flexible_frequencies": (1,)},
            "has 1 numbers, but flexible.patch_sizes has 2 sizes",
        ),
        (
            {"flexible_patch_sizes": (8, 16), "flexible_frequencies": (1, 0)},
            r"frequencies=\(1, 0\): give whole numbers of at least 1",
        ),
        (
            {"flexible_patch_sizes": (8,), "flexible_posemb_resize": "linar"},
            "flexible.posemb_resize='linar': .*did you mean 'linear'",
        ),
        (
            {
                "flexible_patch_sizes": (8,),
                "flexible_grid": (9,),
                "model.posemb": "sincos2d",
            },
            r"flexible.grid=\(9,\) has no effect: positions of the kind sincos2d",
        ),
    ],
)
def test_a_wrong_value_is_named(values, text):
    [problem] = problems(**values)
    assert re.search(text, problem)


def test_all_problems_are_named_at_once():
    values = {"flexible_patch_sizes": (7, 8, 8), "flexible_frequencies": (1,)}
    assert len(problems(**values, flexible_kernel=(0,))) == 4


def test_names_and_nearest_sizes():
    assert [size_name((16, 16)), size_name((16, 8))] == ["16", "16x8"]
    assert not_dividing([(4, 6), (8, 8)], (24, 24)) == []
    assert not_dividing([(5, 8)], (24, 24)) == ["5x8 (nearest: 4x8 or 6x8)"]


def test_a_config_out_of_json_has_lists_and_the_same_defaults():
    config = ConfigDict(json.loads(default_config().to_json()))
    assert config.flexible.kernel == [32]
    assert all(is_default(config, key) for key in [*flat_keys(config), "loss_options"])
    assert wrong_flexible(config) == []
    config.flexible.kernel = [16]
    assert not is_default(config, "flexible.kernel")
