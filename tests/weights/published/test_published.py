import dataclasses
import logging
import math
import pathlib
import re

import jax
import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, abstract_params
from vit_jax.weights.formats.known import FORMATS
from vit_jax.weights.formats.layout import Hints, Reading
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
    """Makes a small model of the same kind."""
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


def test_parameter_counts_equal_those_of_the_models():
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
        ("facebook/dinov2-small", 22_056_192),
        ("facebook/dinov2-with-registers-base", 86_582_784),
        ("facebook/dinov2-large-imagenet1k-1-layer", 304_367_616 + 2_049_000),
        ("google/siglip-base-patch16-224", 92_884_224),
        ("facebook/ijepa_vith14_1k", 630_762_240),
    ],
)
def test_parameters_are_those_of_the_papers(name, params):
    assert find(name).params == params


@pytest.mark.parametrize(
    ("size", "params"),
    [("base", 111_655_680), ("large", 329_239_296), ("huge", 656_613_964)],
)
def test_parameters_of_decoders_are_counted(size, params):
    row = find(f"mae_pretrain_vit_{size}_full")
    a = row.architecture
    # Published without the positions, which are fixed.
    positions = (a.grid[0] * a.grid[1] + 1) * a.width
    assert row.params == params + positions
    assert find(f"facebook/vit-mae-{size}").params == row.params


def test_files_of_mae_have_the_target_of_their_training():
    for name, normalized in (
        ("mae_pretrain_vit_huge_full", True),
        ("mae_visualize_vit_base", False),
        ("mae_visualize_vit_large_ganloss.pth", False),
        ("hf:facebook/vit-mae-large", False),
    ):
        row = find(name)
        assert row.decoder.normalize_pixels is normalized
        assert row.licence.startswith("CC-BY-NC 4.0")
    assert find("mae_pretrain_vit_base").decoder is None
    tuned = find("mae_finetuned_vit_huge")
    a = tuned.architecture
    assert (a.pooling, a.norm, a.patch_size) == ("gap", "after_pool", (14, 14))
    assert tuned.accuracy.top1 == 86.928
    assert tuned.mirrors[0].md5 == "2541f2"


def test_a_row_adds_facts_about_its_decoder():
    row = find("mae_visualize_vit_base")
    decoder = dataclasses.replace(row.decoder, num_heads=8, normalize_pixels=None)
    before = reading(row.architecture)._replace(decoder=decoder, assumed=("8 heads",))
    after = row.complete(before, CACHED)
    assert after.decoder == row.decoder
    assert after.assumed == ()
    with pytest.raises(UserError, match="decoder_width: None in the file, 512 expec"):
        row.complete(reading(row.architecture), CACHED)


@pytest.mark.parametrize(
    "fields",
    [{"pooling": "map"}, {"qkv_bias": False}, {"pooling": "cls_gap", "pre_logits": 7}],
)
def test_options_that_no_row_has_are_counted(fields):
    variant = {"image_size": (32, 32), "num_classes": 10, "depth": 1, **fields}
    architecture = Architecture.from_variant("Ti/16", **variant)
    leaves = jax.tree.leaves(abstract_params(architecture))
    assert count_params(architecture) == sum(math.prod(x.shape) for x in leaves)


@pytest.mark.parametrize(
    "name",
    [
        "facebook/ijepa_vith14_1k",
        "hf:facebook/ijepa_vith14_22k",
        "vit_huge_patch16_gap_448",
        "timm/vit_giant_patch16_gap_224.in22k_ijepa",
    ],
)
def test_the_licence_of_ijepa_is_not_free(name):
    assert find(name).licence == "CC-BY-NC 4.0 (no commercial use)"
    assert find("facebook/dinov2-small").licence == ""


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
        # File names of google-research/vision_transformer.
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
    assert (f"{name} is taken as {found}" in caplog.text) == (spelled != found)


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
def test_a_name_that_is_not_an_augreg_file_is_refused(name):
    assert augreg(name) is None
    with pytest.raises(UserError, match=f"did you mean .*'{B16}"):
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
    asked = message.partition("; did you mean ")[2].partition("? ")[0]
    assert repr(nearest) in re.split(", | or ", asked)
    assert "hf:OWNER/NAME" in message


def test_mirrors_of_recommended_files_are_the_bucket_and_then_the_hub():
    urls = [mirror.url for mirror in find("B/16").mirrors]
    assert urls == [
        f"{BUCKET}/augreg/{B16}.npz",
        "https://huggingface.co/timm/vit_base_patch16_224.augreg_in21k/resolve/main/"
        "model.safetensors",
    ]
    assert (
        find("vit_base_patch16_224.augreg_in21k").mirrors == find("B/16").mirrors[::-1]
    )


def test_names_of_facebooks_files_give_the_beginning_of_the_checksum():
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


def test_similar_weights_on_other_hosts():
    assert alternatives(find("L/16")) == [
        "imagenet21k/ViT-L_16",
        "vit_large_patch16_224.augreg_in21k",
    ]
    assert alternatives(find("hf:a/b")) == []


CACHED = pathlib.Path("cache/host/model.npz")


def reading(architecture, **fields):
    """Makes the reading of a file with this architecture, except for some fields."""
    found = dataclasses.replace(architecture, **fields)
    return Reading(found, Preprocessing(found.image_size, mean=(0.1,), std=(0.2,)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("B/16", ("tanh", 1e-6, "google", "google", "resize", 0.5, "independent")),
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
                "exclusive",
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
                "exclusive",
            ),
        ),
    ],
)
def test_a_row_adds_facts_that_its_files_do_not_record(name, expected):
    # This is what a mirror in another family's format would give.
    other = "exact" if expected[0] == "tanh" else "tanh"
    row = find(name)
    before = reading(row.architecture, gelu=other, layernorm_epsilon=1e-12)
    after = row.complete(before, CACHED)
    a, p = after.architecture, after.preprocessing
    assert (a.gelu, a.layernorm_epsilon, a.trunk_numerics) == expected[:3]
    assert (after.posemb_resize, p.eval_transform, p.mean[0]) == expected[3:-1]
    assert after.outputs == expected[-1]
    assert p.image_size == a.image_size
    assert a.num_classes == row.architecture.num_classes


def test_facts_that_a_row_has_need_no_assumption():
    row = find("B/16")
    before = reading(row.architecture, num_heads=2)._replace(assumed=("2 heads",))
    assert row.complete(before, CACHED).assumed == ("2 heads",)
    known = before._replace(architecture=row.architecture)
    assert row.complete(known, CACHED).assumed == ()


@pytest.mark.parametrize("name", ["google/vit-base-patch16-224", "hf:a/b"])
def test_companions_take_precedence(name):
    row = find(name)
    architecture = row.architecture or find("S/16").architecture
    before = reading(architecture, gelu="exact", layernorm_epsilon=1e-12)
    assert row.complete(before, CACHED) is before


SMALL = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 1, "num_classes": 10}
SMALL |= {"patch_size": (4, 4), "image_size": (8, 12)}


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_224.augreg_in21k_ft_in1k", "facebook/deit-small-patch16-224"],
)
def test_the_file_of_another_model_is_refused(name):
    row = find(name)
    with pytest.raises(UserError) as caught:
        row.complete(reading(Architecture(**SMALL)), CACHED)
    message = str(caught.value)
    assert message.startswith(f"{CACHED} holds another model than {name}:\n")
    assert message.splitlines()[1:-1] == [
        "  width: 64 in the file, 384 expected",
        "  depth: 2 in the file, 12 expected",
        "  mlp_dim: 128 in the file, 1536 expected",
        "  patch_size: (4, 4) in the file, (16, 16) expected",
        "  grid: (2, 3) in the file, (14, 14) expected",
        "  num_classes: 10 in the file, 1000 expected",
    ]
    assert "Remove the file" in message.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "fields", "difference"),
    [
        ("B/16", {"num_classes": 1000}, "num_classes: 1000 in the file, 21843"),
        ("B/16", {"num_classes": 0}, "num_classes: 0 in the file, 21843"),
        ("B/16", {"image_size": (384, 384)}, "grid: (24, 24) in the file, (14, 14)"),
        ("R26+S/32", {"trunk": (2, 2, 2, 3)}, "trunk: (2, 2, 2, 3) in the file"),
        ("deit_base_patch16_224", {"distillation_token": True}, "distillation_token"),
        (
            "deit_base_patch16_224",
            {"layer_scale": True},
            "layer_scale: True in the fil",
        ),
        ("vit_base_patch14_dinov2", {"registers": 4}, "registers: 4 in the file, 0"),
        ("Mixer-B/16", {"tokens_mlp_dim": 64}, "tokens_mlp_dim: 64 in the file, 384"),
        ("imagenet21k/ViT-B_16", {"width": 384}, "width: 384 in the file, 768"),
    ],
)
def test_one_difference_is_enough(name, fields, difference):
    row = find(name)
    row.complete(reading(row.architecture), CACHED)
    with pytest.raises(UserError) as caught:
        row.complete(reading(row.architecture, **fields), CACHED)
    assert difference in str(caught.value)
    assert str(caught.value).count("\n") == 2


def test_the_file_of_the_other_kind_of_model_is_refused():
    vit, mixer = find("imagenet21k/ViT-B_16"), find("Mixer-B/16")
    with pytest.raises(UserError, match="tokens_mlp_dim: None in the file, 384 exp"):
        mixer.complete(reading(vit.architecture), CACHED)
    same = {"width": 192, "mlp_dim": 768, "patch_size": (32, 32)}
    hybrid = find("R+Ti/16")
    with pytest.raises(
        UserError, match=r":\n  trunk: None in the file, \(\) expected\n"
    ):
        hybrid.complete(reading(mixer.architecture, **same), CACHED)


def test_facts_that_only_the_file_has_are_not_compared():
    small = reading(Architecture(**SMALL))
    assert find("hf:a/b").complete(small, CACHED) is small
    # This row lacks only the layer before the head and the resolution.
    row = find("S_16-i1k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0")
    with pytest.raises(UserError) as caught:
        row.complete(small, CACHED)
    lines = str(caught.value).splitlines()[1:-1]
    assert [line.split(":")[0].strip() for line in lines] == [
        *("width", "depth", "mlp_dim", "patch_size", "num_classes")
    ]
    architecture = Architecture.from_variant(
        "S/16", image_size=(224, 224), num_classes=1000, pre_logits=384
    )
    row.complete(reading(architecture), CACHED)


def test_the_grid_is_not_compared_with_fixed_positions():
    row = find("i1k-s16-90ep")
    completed = row.complete(reading(row.architecture, image_size=(64, 64)), CACHED)
    assert completed.architecture.image_size == (64, 64)


def test_copies_without_a_head_are_accepted():
    row = find("imagenet21k/ViT-B_16")
    assert [mirror.headless for mirror in row.mirrors] == [False, True, True]
    row.complete(reading(row.architecture, num_classes=0), CACHED)
    with pytest.raises(UserError, match="num_classes: 5 in the file"):
        row.complete(reading(row.architecture, num_classes=5), CACHED)


def format_at(url):
    """Returns the format of the files at an address."""
    places = {
        "/big_vision/": "big_vision",
        "googleapis.com/": "google",
        "huggingface.co/timm/": "timm",
        "huggingface.co/": "huggingface",
        "fbaipublicfiles.com/": "timm",
    }
    return next(format for place, format in places.items() if place in url)


def smallest_of_each_kind():
    found = {}
    for row in sorted(MODELS.values(), key=lambda row: row.params):
        for mirror in row.mirrors:
            format = format_at(mirror.url)
            kind = (
                row.family,
                row.classes,
                format,
                "+" in row.variant,
                mirror.headless,
            )
            found.setdefault(kind, (row, format, mirror.headless))
    return found.values()


def test_files_at_every_kind_of_mirror_match_their_rows(shapes_in_file):
    kinds = smallest_of_each_kind()
    assert len(kinds) > 25
    for row, format, headless in kinds:
        classes = 0 if headless else row.architecture.num_classes
        architecture = dataclasses.replace(row.architecture, num_classes=classes)
        shapes = shapes_in_file(FORMATS[format], architecture)
        found = FORMATS[format].read(shapes, Hints())
        row.complete(found._replace(decoder=row.decoder), CACHED)


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
def test_the_address_is_found_by_the_file_name(path, address):
    assert where_published(path) == address


def test_addresses_that_are_not_in_the_table():
    assert published_at("https://example.org/ViT-B_16.npz") is None
    assert published_at(f"{BUCKET}/augreg/index.csv") is None


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        # Pretraining with a sigmoid: the configs of big_vision for ImageNet-21k, AugReg
        # and Mixer on ImageNet-1k, and GSAM.
        ("imagenet21k/ViT-B_16", "independent"),
        ("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "independent"),
        ("B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1", "independent"),
        ("vit_base_patch16_224.augreg_in21k", "independent"),
        ("imagenet21k/Mixer-B_16", "independent"),
        ("imagenet1k/Mixer-B_16", "independent"),
        ("gsam/ViT-B_16", "independent"),
        # Fine-tuning, and S/16 on ImageNet-1k (vit_s16_i1k.py), with a softmax.
        (
            "B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1"
            "--imagenet2012-steps_20k-lr_0.01-res_224",
            "exclusive",
        ),
        ("imagenet21k+imagenet2012/ViT-B_16", "exclusive"),
        ("vit_base_patch16_224.augreg_in1k", "exclusive"),
        ("i1k-s16-90ep", "exclusive"),
        ("google/vit-base-patch16-224", "exclusive"),
    ],
)
def test_what_the_outputs_of_published_heads_mean(name, outputs):
    assert find(name).outputs == outputs
