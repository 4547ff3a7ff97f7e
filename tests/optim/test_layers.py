"""Layer-wise decay in timm's form, against factors that timm computed."""

import pathlib
import re

import numpy as np
import pytest

from vit_jax.config import default_config
from vit_jax.models import abstract_params
from vit_jax.models.architecture import Architecture
from vit_jax.optim.groups import make_groups
from vit_jax.optim.layers import layer_factors
from vit_jax.optim.paths import paths_of
from vit_jax.optim.rules import OPTIMIZERS

FILE = pathlib.Path(__file__).parents[1] / "golden" / "tuning.npz"
# The models of make_tuning_references.py, by what they have besides the rest.
TOKENLESS = {"class_token": False, "class_token_position": False}
FIELDS = {
    "registers": {"depth": 3, "registers": 2, "layer_scale": True},
    "distilled": {"depth": 2, "distillation_token": True},
    "map": {"depth": 2, "pooling": "map", **TOKENLESS},
    "fc_norm": {"depth": 2, "pooling": "gap", "norm": "after_pool"},
    "headless": {"depth": 2, "num_classes": 0},
}
# Pattern for our paths → timm's name of the layer that contains it.
NAMES = (
    (r"cls", r"cls_token"),
    (r"registers", r"reg_token"),
    (r"distillation", r"dist_token"),
    (r"pos_embed(_prefix)?", r"pos_embed"),
    (r"patch_embed/.*", r"patch_embed\.proj\..*"),
    (r"blocks_0(\d)/attention/.*", r"blocks\.\1\.attn\..*"),
    (r"blocks_0(\d)/(norm\d|mlp)/.*", r"blocks\.\1\.\2\..*"),
    (r"blocks_0(\d)/layer_scale(\d)", r"blocks\.\1\.ls\2\..*"),
    (r"norm/.*", r"(fc_)?norm\..*"),
    (r"map_head/.*", r"attn_pool\..*"),
    (r"head/.*", r"head\..*"),
    (r"head_distillation/.*", r"head_dist\..*"),
)


def params_of(kind):
    sizes = {"width": 16, "mlp_dim": 32, "num_heads": 2, "num_classes": 5}
    inputs = {"patch_size": (4, 4), "image_size": (8, 8)}
    return abstract_params(Architecture(**{**sizes, **inputs, **FIELDS[kind]}))


@pytest.mark.parametrize("limit", ["", "_limited"])
@pytest.mark.parametrize("kind", FIELDS)
def test_factors_are_timms(kind, limit):
    with np.load(FILE) as file:
        names, values = (
            file[f"factors/{kind}{limit}/{x}"] for x in ("names", "values")
        )
        decay, smallest = float(file["decay"]), float(file["smallest"])
    theirs = dict(zip(names.tolist(), values.tolist(), strict=True))
    found = layer_factors(
        *(params_of(kind), decay, "timm", smallest if limit else 0.0),
        norm_after_pool=kind == "fc_norm",
    )
    seen = set()
    for path, factor in found.items():
        [name] = [
            match.expand(theirs_of)
            for ours, theirs_of in NAMES
            if (match := re.fullmatch(ours, path))
        ]
        same = {n for n in theirs if re.fullmatch(name, n)}
        assert same, path
        assert [theirs[n] for n in same] == pytest.approx([factor] * len(same)), path
        seen |= same
    assert seen == set(theirs)


def test_the_forms_differ_in_the_final_norm_alone():
    params = params_of("registers")
    forms = [layer_factors(params, 0.5, form) for form in ("mae", "timm")]
    differ = {path for path in forms[0] if forms[0][path] != forms[1][path]}
    assert differ == {"norm/scale", "norm/bias"}
    assert (forms[0]["norm/bias"], forms[1]["norm/bias"]) == (1.0, 0.5)


def test_what_an_objective_adds_has_the_full_rate():
    params = params_of("headless") | {"decoder": {"blocks_00": {"mlp": np.zeros(1)}}}
    found = layer_factors(params, 0.5, "timm")
    assert (found["decoder/blocks_00/mlp"], found["norm/bias"]) == (1.0, 0.5)


def test_the_config_sets_form_and_limit_and_rows_still_replace_the_factor():
    config = default_config()
    config.update({"total_steps": 9, "layer_decay": 0.5, "layer_decay_form": "timm"})
    config.update({"layer_decay_min": 0.2, "groups": "patch_embed/.*: lr=3"})

    def factors(norm_after_pool):
        found = make_groups(
            *(config, params_of("registers"), OPTIMIZERS),
            norm_after_pool=norm_after_pool,
        )
        return {path: group.lr for path, group in found.by_path.items()}

    found = factors(norm_after_pool=False)
    assert set(found) == set(paths_of(params_of("registers")))
    assert (found["cls"], found["blocks_00/norm1/bias"]) == (0.2, 0.2)
    assert (found["blocks_01/norm1/bias"], found["norm/bias"]) == (0.25, 0.5)
    assert (found["head/bias"], found["patch_embed/bias"]) == (1.0, 3.0)
    assert factors(norm_after_pool=True)["norm/bias"] == 1.0
