import pytest

from vit_jax.models.variants import HYBRIDS, MIXERS, VARIANTS, parse_variant


def test_a_name_gives_size_and_patch():
    base = {"width": 768, "depth": 12, "mlp_dim": 3072, "num_heads": 12}
    assert parse_variant("B/16") == base | {"patch_size": (16, 16)}
    assert parse_variant("So400m/7")["patch_size"] == (7, 7)
    assert parse_variant("R50+B/16") == base | {
        "patch_size": (16, 16),
        "trunk": (3, 4, 9),
    }
    assert parse_variant("Mixer-B/32") == {
        "width": 768,
        "depth": 12,
        "tokens_mlp_dim": 384,
        "mlp_dim": 3072,
        "patch_size": (32, 32),
    }


def test_a_root_without_stages_turns_a_name_with_16_into_patches_of_32():
    assert parse_variant("R+Ti/16")["patch_size"] == (32, 32)
    assert parse_variant("R+Ti/16")["trunk"] == ()


def test_upper_and_lower_case_differ():
    assert parse_variant("g/14") != parse_variant("G/14")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ViT-B/16", "B/16"),
        ("ViT-B_32", "B/32"),
        ("b/8", "B/8"),
        ("L16", "L/16"),
        ("T/16", "Ti/16"),
        ("So400/14", "So400m/14"),
        ("B/", "B/16"),
        ("B/0", "B/16"),
        ("B/016", "B/16"),
        ("B/16\n", "B/16"),
        ("R50+B/32", "R50+L/32"),
        ("R_Ti_16", "R+Ti/16"),
        ("ViT-R50-B_16", "R50+B/16"),
        ("Mixer_B16", "Mixer-B/16"),
        ("mixer-l/8", "Mixer-L/8"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match="expected SIZE/PATCH") as error:
        parse_variant(name)
    message = str(error.value)
    assert repr(name) in message
    assert message.split("did you mean ")[1].split(", ")[0] == repr(nearest)
    assert all(known in message for known in (*VARIANTS, *MIXERS, *HYBRIDS))


@pytest.mark.parametrize("name", ["", "/", "resnet", "16", "🙂/16", "B/1²"])
def test_nonsense_is_refused_too(name):
    with pytest.raises(ValueError, match="expected SIZE/PATCH"):
        parse_variant(name)
