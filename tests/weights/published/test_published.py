import dataclasses
import logging
import math
import re

import jax
import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.formats.layout import Reading
from vit_jax.weights.published.families import (
    CLASSES,
    FAMILIES,
    PROTOCOLS,
    count_params,
)
from vit_jax.weights.published.names import (
    alternatives,
    find,
    published_at,
    where_published,
)
from vit_jax.weights.published.zoo import MODELS, augreg

BUCKET = "https://storage.googleapis.com/vit_models"
B16 = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"


def small(architecture):
    """A small model of the same kind."""
    a = architecture
    sizes = {"width": 24, "depth": 1, "mlp_dim": 40, "num_classes": 5}
    sizes |= {"gelu": "tanh", "layernorm_epsilon": 1e-6}
    if isinstance(a, Architecture):
        sizes |= {"num_heads": 2, "pre_logits": 7 * bool(a.pre_logits)}
        sizes |= {"trunk_numerics": "google"}
    if getattr(a, "trunk", None) is None:
        sizes |= {"patch_size": (3, 2)}
    height, width = sizes.get("patch_size", a.patch_size)
    return dataclasses.replace(a, **sizes, image_size=(2 * height, 4 * width))


def test_parameters_are_counted_as_the_models_have_them():
    architectures = {small(row.architecture) for row in MODELS.values()}
    assert len(architectures) > 12
    for architecture in architectures:
        leaves = jax.tree.leaves(abstract_params(architecture))
        expected = sum(math.prod(leaf.shape) for leaf in leaves)
        assert count_params(architecture) == expected, architecture


@pytest.mark.parametrize(
    ("name", "params"),
    [
        (B16, 102_595_923),
        ("L/16", 325_690_707),
        ("imagenet21k/ViT-B_16", 103_186_515),
        ("imagenet21k+imagenet2012/ViT-B_16", 86_859_496),
        ("gsam/ViT-S_32", 22_878_184),
        ("imagenet1k/Mixer-B_16", 59_880_472),
        ("imagenet1k/Mixer-L_16", 208_196_168),
        ("i1k-s16-90ep", 22_122_472),
        ("vit_tiny_r_s16_p8_224", 6_337_704),
        ("vit_small_r26_s32_224", 36_431_912),
        ("vit_large_r50_s32_224", 328_994_856),
        ("deit_base_distilled_patch16_224", 87_338_192),
        ("deit3_huge_patch14_224", 632_126_440),
        ("google/vit-base-patch16-224-in21k", 86_389_248),
    ],
)
def test_parameters_are_those_of_the_papers(name, params):
    assert find(name).params == params


@pytest.mark.parametrize("fields", [{"pooling": "map"}, {"qkv_bias": False}])
def test_what_no_row_has_is_counted(fields):
    variant = {"image_size": (32, 32), "num_classes": 10, "depth": 1, **fields}
    architecture = Architecture.from_variant("Ti/16", **variant)
    leaves = jax.tree.leaves(abstract_params(architecture))
    assert count_params(architecture) == sum(math.prod(x.shape) for x in leaves)


def test_every_row_can_be_used():
    for name, row in MODELS.items():
        assert find(name) is row
        assert row.family in FAMILIES
        assert row.classes in CLASSES
        assert row.architecture.num_classes == CLASSES[row.classes]
        assert row.accuracy is None or 60 < row.accuracy.top1 < 90
        assert row.accuracy is None or row.accuracy.protocol in PROTOCOLS
        assert row.mirrors
        for mirror in row.mirrors:
            assert re.fullmatch(r"https://[\w.]+/[\w./+-]+", mirror.url)
            assert mirror.sha256 is None or re.fullmatch("[0-9a-f]{8}", mirror.sha256)
            assert published_at(mirror.url).variant == row.variant
        Preprocessing(
            row.architecture.image_size,
            eval_transform=row.eval_transform or FAMILIES[row.family].eval_transform,
        )


def test_one_model_of_each_variant_is_recommended_for_each_task():
    recommended = [
        (row.variant, row.classes) for row in MODELS.values() if row.recommended
    ]
    assert len(recommended) == len(set(recommended)) == 10 + 9


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("B/16", B16),
        ("ViT-B/16", B16),
        ("B_16", B16),
        (f"{B16}.npz", B16),
        ("S/32", "S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0"),
        ("R50+L/32", "R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1"),
        ("R50_L_32", "R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1"),
        ("R+ViT-Ti/16", "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"),
        ("H/14", "imagenet21k/ViT-H_14"),
        ("Mixer-B/16", "imagenet21k/Mixer-B_16"),
        # As google-research/vision_transformer calls its files.
        ("ViT-B_16", "imagenet21k/ViT-B_16"),
        ("ViT-B_16.npz", "imagenet21k/ViT-B_16"),
        ("ViT-L_16-224", "imagenet21k+imagenet2012/ViT-L_16-224"),
        ("R50+ViT-B_16", "imagenet21k/R50+ViT-B_16"),
        # timm's defaults.
        ("vit_base_patch16_224", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("vit_base_patch16_384", "vit_base_patch16_384.augreg_in21k_ft_in1k"),
        ("timm/vit_small_patch16_224", "vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("timm/deit3_base_patch16_224.fb_in1k", "deit3_base_patch16_224.fb_in1k"),
        ("vit_huge_patch14_224", "vit_huge_patch14_224.orig_in21k"),
    ],
)
def test_names_are_found(name, found, caplog):
    caplog.set_level(logging.INFO, "vit_jax")
    assert find(name).name == found
    spelled = name.removesuffix(".npz").removeprefix("timm/")
    assert (f"{name} is taken to be {found}" in caplog.text) == (spelled != found)


def test_any_augreg_file_is_known_by_its_name():
    name = (
        "Ti_16-i1k-300ep-lr_0.001-aug_light0-wd_0.03-do_0.1-sd_0.1"
        "--cifar100-steps_10k-lr_0.003-res_384"
    )
    row = find(name)
    assert row.mirrors[0].url == f"{BUCKET}/augreg/{name}.npz"
    assert (row.variant, row.resolution, row.classes) == ("Ti/16", 384, "cifar100")
    assert row.architecture.num_classes == 100
    assert row == augreg(name) == published_at(row.mirrors[0].url)
    # Some of these have a tanh layer before the head.
    assert augreg(name.partition("--")[0]).params is None


@pytest.mark.parametrize(
    "name",
    [
        B16.replace("medium1", "medium3"),
        B16.replace("B_16", "B_17"),
        B16 + "--imagenet2012-steps_20k-lr_0.03-res_512",
    ],
)
def test_a_name_that_is_no_augreg_file_is_refused(name):
    assert augreg(name) is None
    with pytest.raises(UserError, match=f"nearest: .*{B16}"):
        find(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_base_patch16_224.augreg_in22k", "vit_base_patch16_224.augreg_in21k"),
        ("b/16", "B/16"),
        ("google/vit-base-patch16-242", "google/vit-base-patch16-224"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(UserError) as caught:
        find(name)
    message = str(caught.value)
    assert nearest in message.partition("nearest: ")[2].partition(". ")[0].split(", ")
    assert "hf:OWNER/NAME" in message


def test_recommended_files_are_asked_of_the_bucket_and_then_of_the_hub():
    urls = [mirror.url for mirror in find("B/16").mirrors]
    assert urls == [
        f"{BUCKET}/augreg/{B16}.npz",
        "https://huggingface.co/timm/vit_base_patch16_224.augreg_in21k/resolve/main/"
        "model.safetensors",
    ]
    assert (
        find("vit_base_patch16_224.augreg_in21k").mirrors == find("B/16").mirrors[::-1]
    )


def test_facebooks_files_say_how_their_checksum_begins():
    mirror = find("deit_base_patch16_224").mirrors[1]
    assert mirror.url.endswith("/deit/deit_base_patch16_224-b5f2ef4d.pth")
    assert mirror.sha256 == "b5f2ef4d"


def test_models_of_the_hub():
    row = find("hf:someone/their.model@refs%2Fpr%2F1")
    assert [mirror.url for mirror in row.mirrors] == [
        f"https://huggingface.co/someone/their.model/resolve/refs%2Fpr%2F1/{file}"
        for file in (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
        )
    ]
    assert (row.params, row.resolution, row.family) == (None, None, "")
    assert find("hf:timm/deit_base_patch16_224.fb_in1k").family == "deit"
    assert find("hf://google/vit-base-patch16-224").params == 86_567_656
    assert (
        find("hf:a/b/sub/w.npz").mirrors[0].url.endswith("a/b/resolve/main/sub/w.npz")
    )
    for wrong in ("hf:", "hf:alone", "hf:a/b@"):
        with pytest.raises(UserError, match="expected hf:OWNER/NAME"):
            find(wrong)


def test_like_weights_elsewhere():
    assert alternatives(find("L/16")) == [
        "imagenet21k/ViT-L_16",
        "vit_large_patch16_224.augreg_in21k",
    ]
    assert alternatives(find("hf:a/b")) == []


def reading(**fields):
    sizes = {"width": 16, "depth": 1, "mlp_dim": 8, "num_heads": 2}
    architecture = Architecture(
        **sizes, patch_size=(4, 4), image_size=(8, 12), num_classes=3, **fields
    )
    return Reading(architecture, Preprocessing((8, 12), mean=(0.1,), std=(0.2,)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("B/16", ("tanh", 1e-6, "google", "google", "resize", 0.5, "sigmoid")),
        (
            "vit_base_patch16_384.augreg_in21k_ft_in1k",
            (
                "exact",
                1e-6,
                "timm",
                "bicubic",
                "resize_small(interpolation='bicubic_antialias', rounding='down')"
                "|central_crop(rounding='nearest')",
                0.5,
                "softmax",
            ),
        ),
        (
            "deit_tiny_patch16_224",
            (
                "exact",
                1e-6,
                "timm",
                "bicubic",
                "resize_small(248, 'bicubic_antialias', 'down')"
                "|central_crop(rounding='nearest')",
                0.485,
                "softmax",
            ),
        ),
    ],
)
def test_a_row_completes_what_its_files_do_not_say(name, expected):
    # As if read from a mirror in another family's format.
    other = "exact" if expected[0] == "tanh" else "tanh"
    before = reading(gelu=other, layernorm_epsilon=1e-12)
    if "248" in expected[4]:
        before = before._replace(
            architecture=dataclasses.replace(before.architecture, image_size=(224, 224))
        )
    after = find(name).complete(before)
    a, p = after.architecture, after.preprocessing
    assert (a.gelu, a.layernorm_epsilon, a.trunk_numerics) == expected[:3]
    assert (after.posemb_resize, p.eval_transform, p.mean[0], after.loss) == expected[
        3:
    ]
    assert p.image_size == a.image_size
    assert a.num_classes == 3


def test_what_a_row_knows_needs_no_assumption():
    row = find("B/16")
    before = reading()._replace(assumed=("2 heads",))
    assert row.complete(before).assumed == ("2 heads",)
    known = before._replace(architecture=row.architecture)
    assert row.complete(known).assumed == ()


@pytest.mark.parametrize("name", ["google/vit-base-patch16-224", "hf:a/b"])
def test_companions_are_believed(name):
    before = reading(gelu="exact", layernorm_epsilon=1e-12)
    assert find(name).complete(before) is before


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("ViT-B_16.npz", f"{BUCKET}/imagenet21k/ViT-B_16.npz"),
        ("/some/where/vit-l_32.NPZ", f"{BUCKET}/imagenet21k/ViT-L_32.npz"),
        ("R50+ViT-B_16.npz", f"{BUCKET}/imagenet21k/R50+ViT-B_16.npz"),
        (f"here/{B16}.npz", f"{BUCKET}/augreg/{B16}.npz"),
        ("runs/mine", None),
        ("model.safetensors", None),
    ],
)
def test_knows_the_address_by_the_file_name(path, address):
    assert where_published(path) == address


def test_addresses_that_are_not_in_the_table():
    assert published_at("https://example.org/ViT-B_16.npz") is None
    assert published_at(f"{BUCKET}/augreg/index.csv") is None
