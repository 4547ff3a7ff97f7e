"""Hugging Face's format: models that transformers wrote, against its logits."""

import json
import pathlib

import numpy as np
import pytest

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, MixerArchitecture
from vit_jax.weights.adapt import adapt
from vit_jax.weights.formats.huggingface import FORMAT, companions
from vit_jax.weights.formats.layout import Hints, flatten, unflatten

LABELS = ("abacus", "bagel", "canoe", "daisy", "easel")
ONE_HEAD = {"distillation_token": True, "distillation_head": False}
HEADLESS = {"num_classes": 0}
# A model that transformers wrote → fields of its architecture that differ from `tiny`.
MODELS = {
    "vit": {},
    "vit_sharded": {"layernorm_epsilon": 1e-6},
    "vit_rectangular": {"gelu": "tanh", "image_size": (8, 16), "channels": 1},
    "vit_no_qkv_bias": {"qkv_bias": False},
    "vit_model": {"pre_logits": 8, **HEADLESS},
    "deit": ONE_HEAD,
    "deit_teacher": {"distillation_token": True},
    "deit_model": {"pre_logits": 16, **ONE_HEAD, **HEADLESS},
}
HALF = (0.5,) * 3, (0.5,) * 3
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny(**changes):
    sizes = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 4}
    inputs = {"patch_size": (4, 4), "image_size": (16, 16)}
    numerics = {"gelu": "exact", "layernorm_epsilon": 1e-12}
    return Architecture(**{**sizes, **inputs, **numerics, "num_classes": 5, **changes})


def described(architecture=None, config=None, processor=None, **hints):
    """Reads a model's shapes with the given companions."""
    found = _shapes(architecture or tiny())
    hints = {"num_heads": 4, **hints}
    return FORMAT.read(
        found, Hints(config=config or {}, preprocessor=processor or {}, **hints)
    )


def _shapes(a):
    shapes = {
        "vit.embeddings.patch_embeddings.projection.weight": (
            a.width,
            a.channels,
            *a.patch_size,
        ),
        "vit.embeddings.position_embeddings": (1, a.num_tokens, a.width),
        "classifier.weight": (a.num_classes, a.width),
    }
    for i in range(a.depth):
        layer = f"vit.encoder.layer.{i}."
        shapes |= {
            f"{layer}attention.attention.query.weight": (a.width, a.width),
            f"{layer}attention.attention.query.bias": (a.width,),
            f"{layer}intermediate.dense.weight": (a.mlp_dim, a.width),
        }
    return shapes


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_round_trip(name, golden, read, write, model_logits, assert_same):
    stored = golden(f"huggingface/{name}")
    found, params = read(FORMAT, stored.arrays, **stored.hints)
    assert found.architecture == tiny(**MODELS[name])
    assert found.class_names == (LABELS if found.architecture.num_classes else ())
    assert not found.assumed
    images, expected = stored.reference["images"], stored.reference["logits"]
    assert np.abs(expected).max() > 0.1
    logits = model_logits(found.architecture, params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)

    back = write(FORMAT, found.architecture, params)
    assert_same(back, stored.arrays)
    written = companions(found.architecture, found.preprocessing, found.class_names)
    again, params_again = read(
        FORMAT,
        back,
        config=written["config.json"],
        preprocessor=written["preprocessor_config.json"],
    )
    assert again == found
    assert_same(params_again, params)


@pytest.mark.parametrize("name", MODELS)
def test_companions_equal_those_of_transformers(name, golden, read):
    stored = golden(f"huggingface/{name}")
    found, _ = read(FORMAT, stored.arrays, **stored.hints)
    written = companions(found.architecture, found.preprocessing, found.class_names)
    config, theirs = written["config.json"], dict(stored.hints["config"])
    theirs["torch_dtype"] = theirs.pop("dtype")
    # Another name of the same function.
    theirs["hidden_act"] = theirs["hidden_act"].replace("_new", "_pytorch_tanh")
    assert {key: theirs[key] for key in config} == config
    processor = stored.hints["preprocessor"]
    ours = written["preprocessor_config.json"]
    grey = {"image_mean": [0.5], "image_std": [0.5]}
    if found.architecture.channels == 1:
        processor |= grey
    assert ours == processor


def test_positions_resized_as_transformers_does(golden, read, model_logits):
    stored = golden("huggingface/vit")
    found, params = read(FORMAT, stored.arrays, **stored.hints)
    images = stored.resized["images"]
    target = tiny(image_size=images.shape[1:3])
    assert target.grid == (6, 3)
    resized = adapt(
        unflatten(params),
        found.architecture,
        target,
        source_class_names=LABELS,
        target_class_names=LABELS,
        posemb_resize=found.posemb_resize,
    )
    logits = model_logits(target, flatten(resized), images)
    np.testing.assert_allclose(logits, stored.resized["logits"], atol=1e-5, rtol=0)


def test_names_of_version_5_in_memory(golden, read, assert_same):
    stored = golden("huggingface/vit")
    _, params = read(FORMAT, stored.arrays, **stored.hints)
    renames = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    in_memory = {}
    for name, array in stored.arrays.items():
        for file, memory in renames.items():
            name = name.replace(file, memory)
        in_memory[name] = array
    directory = pathlib.Path(__file__).parents[2] / "golden" / "huggingface" / "vit"
    names = json.loads((directory / "state_dict.json").read_text())
    assert sorted(in_memory) == sorted(names)
    found, same = read(FORMAT, in_memory, **stored.hints)
    assert found.architecture == tiny()
    assert_same(same, params)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_an_encoder_without_its_head(kind, golden, read):
    name = {"vit": "vit", "deit": "deit_teacher"}[kind]
    stored = golden(f"huggingface/{name}")
    encoder = {k: v for k, v in stored.arrays.items() if k.startswith(f"{kind}.")}
    bare = {k.removeprefix(f"{kind}."): v for k, v in encoder.items()}
    fields = HEADLESS if kind == "vit" else ONE_HEAD | HEADLESS
    for arrays in (encoder, bare):
        found, _ = read(FORMAT, arrays, **stored.hints)
        assert found.architecture == tiny(**fields)
        assert found.class_names == ()


def test_a_prefix_is_removed_and_remains_of_pretraining_are_ignored(
    golden, read, assert_same
):
    stored = golden("huggingface/vit")
    _, params = read(FORMAT, stored.arrays, **stored.hints)
    rest = {
        "vit.embeddings.mask_token": (1, 1, 16),
        "vit.pooler.dense.weight": (16, 16),
        "vit.pooler.dense.bias": (16,),
        "decoder.0.weight": (48, 16, 1, 1),
    }
    arrays = stored.arrays | {k: np.ones(s, np.float32) for k, s in rest.items()}
    wrapped = {f"module.{name}": array for name, array in arrays.items()}
    for variant in (arrays, wrapped):
        _, same = read(FORMAT, variant, **stored.hints)
        assert_same(same, params)


def test_numerics_and_sizes_come_from_the_config():
    config = {
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "num_attention_heads": 8,
    }
    wide = tiny(image_size=(8, 32))
    found = described(wide, config | {"image_size": [8, 32]}, num_heads=None)
    assert found.architecture.layernorm_epsilon == 1e-5
    assert found.architecture.gelu == "tanh"
    assert found.architecture.num_heads == 8
    assert found.architecture.image_size == (8, 32)
    square = described(wide, {"image_size": 16}).architecture
    assert square.image_size == (16, 16)
    # image_size may be the size to resize to, so a square takes precedence.
    found = described(wide, image_size=(32, 8))
    assert found.architecture.image_size == (16, 16)
    assert described().outputs == "exclusive"
    several = {"problem_type": "multi_label_classification"}
    assert described(config=several).outputs == "independent"
    assert described(num_heads=2).architecture.num_heads == 2


def test_without_a_config_the_defaults_of_the_library_are_used():
    found = described()
    assert found.architecture.layernorm_epsilon == 1e-12
    assert found.architecture.gelu == "exact"
    assert any("epsilon: assumed 1e-12" in sentence for sentence in found.assumed)
    with pytest.raises(UserError, match="width 16 is not a multiple of 64: pass num_h"):
        described(num_heads=None)
    found = described(tiny(width=128), num_heads=None)
    assert found.architecture.num_heads == 2
    assert any("assumed 2 attention heads of 64" in s for s in found.assumed)


def test_numbered_labels_are_not_class_names():
    def names(table):
        return described(config={"id2label": table}).class_names

    assert names({str(i): label for i, label in enumerate(LABELS)}) == LABELS
    shuffled = {str(i): LABELS[i] for i in (3, 1, 0, 4, 2)}
    assert names(shuffled) == LABELS
    assert names({str(i): f"LABEL_{i}" for i in range(5)}) == ()
    assert names({"0": "abacus"}) == ()
    assert names({str(i): i for i in range(5)}) == ()


def test_labels_that_do_not_fit_the_head_are_reported():
    def notes(table):
        found = described(config={"id2label": table})
        assert found.class_names == ()
        return [sentence for sentence in found.assumed if "id2label" in sentence]

    (few,) = notes({"0": "abacus"})
    assert "has 1 labels" in few and "the 5 outputs of the head" in few
    (gap,) = notes({str(i): "x" for i in (0, 1, 2, 3, 5)})
    assert "has 5 labels (id2label), 4 of them for the 5 outputs" in gap
    assert not notes({}) + notes({str(i): f"LABEL_{i}" for i in range(5)})


@pytest.mark.parametrize("kind", ["vit", "deit", "vit_mae", "vit_msn"])
def test_model_types_of_the_same_encoder(kind):
    assert described(config={"model_type": kind}).architecture.width == 16


def test_a_config_of_another_model_is_refused():
    config = {
        "model_type": "beit",
        "hidden_size": 32,
        "num_hidden_layers": 12,
        "intermediate_size": 25,
        "num_channels": 1,
        "patch_size": [4, 8],
    }
    message = r"config\.json does not match the weights"
    with pytest.raises(UserError, match=message) as error:
        described(config=config)
    for difference in (
        "model_type is 'beit' there but 'vit or deit' in the weights",
        "hidden_size is 32 there but 16 in the weights",
        "num_hidden_layers is 12 there but 2 in",
        "intermediate_size is 25 there but 24 in",
        "num_channels is 1 there but 3 in",
        "patch_size is (4, 8) there but (4, 4) in",
        "Correct it, or remove it",
    ):
        assert difference in str(error.value)
    # Each value alone is refused too, and only that one is named.
    for name, value in config.items():
        with pytest.raises(UserError, match=f": {name} is [^;]*$"):
            described(config={name: value})


USUAL = "resize(interpolation='bilinear_antialias')"
SIZE_20 = {"height": 20, "width": 20}
SIZE_16 = {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("processor", "chain"),
    [
        ({"size": SIZE_16}, USUAL),
        ({"size": 16, "resample": 3}, "resize(interpolation='bicubic_antialias')"),
        (
            {"size": 20, "crop_size": 16},
            "resize(20, 'bilinear_antialias')|central_crop",
        ),
        (
            {"size": SIZE_20, "crop_size": SIZE_16, "resample": 3},
            "resize(20, 'bicubic_antialias')|central_crop",
        ),
        (
            {"image_processor_type": "DeiTImageProcessor"},
            "resize(interpolation='bicubic_antialias')",
        ),
        (
            {"size": {"shortest_edge": 20}, "do_center_crop": True, "resample": 0},
            "resize_small(20, 'nearest', 'down')|central_crop",
        ),
        (
            {
                "feature_extractor_type": "CLIPFeatureExtractor",
                "size": 20,
                "crop_size": 16,
            },
            "resize_small(20, 'bilinear_antialias', 'down')|central_crop",
        ),
        ({"do_resize": False}, ""),
        ({"do_resize": False, "crop_size": SIZE_16}, "central_crop"),
        ({"size": SIZE_20, "do_center_crop": False, "crop_size": 16}, USUAL),
        ({"size": {"shortest_edge": 16}}, USUAL),
    ],
)
def test_the_processors_geometry(processor, chain):
    found = described(processor={"do_normalize": True, **processor})
    assert found.preprocessing == Preprocessing((16, 16), 3, chain, *HALF)


def test_a_processor_of_another_size_is_reported():
    found = described(processor={"size": SIZE_20})
    assert found.preprocessing.eval_transform == USUAL
    assert any("20×20, but the model takes 16×16" in s for s in found.assumed)


def test_the_processors_arithmetic():
    told = {"size": 16, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3), np.uint8)
    mean, std = (np.array(told[name]) for name in ("image_mean", "image_std"))
    for options, expected in (
        ({}, (pixels / 255 - mean) / std),
        ({"rescale_factor": 1 / 127.5}, (pixels / 127.5 - mean) / std),
        ({"do_rescale": False}, (pixels - mean) / std),
        ({"do_normalize": False}, pixels / 255),
    ):
        found = described(processor=told | options).preprocessing
        np.testing.assert_allclose(
            found.normalize(pixels), expected, rtol=1e-5, atol=1e-5
        )


def test_unknown_preprocessing_is_that_of_the_family(golden, read):
    found = described()
    assert found.preprocessing == Preprocessing((16, 16), 3, USUAL, *HALF)
    assert any("no preprocessor_config.json" in sentence for sentence in found.assumed)
    stored = golden("huggingface/deit")
    deit, _ = read(FORMAT, stored.arrays, config=stored.hints["config"])
    chain = "resize(18, 'bicubic_antialias')|central_crop"
    assert deit.preprocessing == Preprocessing((16, 16), 3, chain, *IMAGENET)
    published = Preprocessing((8, 8), 3, "resize", *IMAGENET)
    known = described(preprocessing=published)
    assert known.preprocessing == Preprocessing((16, 16), 3, "resize", *IMAGENET)


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("vit.encoder.layer.0.attention.attention.relative_position_bias", "relative"),
        ("vit.encoder.layer.0.lambda_1", "LayerScale"),
        ("vit.encoder.layer.0.norm1.weight", "DINOv2"),
        ("vit.embeddings.register_tokens", "register tokens"),
        ("vit.embeddings.detection_tokens", "detection tokens"),
        ("vit.rope_embeddings.inv_freq", "rotary"),
    ],
)
def test_features_that_are_refused_by_name(name, feature):
    with pytest.raises(UserError, match="vit_jax does not support") as error:
        FORMAT.read(_shapes(tiny()) | {name: (1,)}, Hints(num_heads=4))
    assert feature in str(error.value)


@pytest.mark.parametrize(
    ("config", "processor", "complaint"),
    [
        ({"hidden_act": "quick_gelu"}, {}, "(hidden_act) is 'quick_gelu'"),
        ({"hidden_act": 3}, {}, "hidden_act is 3, expected a text"),
        ({"layer_norm_eps": -1}, {}, "layer_norm_eps is -1, expected between 0 and 1"),
        ({"num_attention_heads": 5}, {}, "config.json says 5 attention heads"),
        ({"image_size": [1, 2, 3]}, {}, "image_size is [1, 2, 3], expected a number"),
        ({"id2label": ["a"]}, {}, "id2label is ['a'], expected an object"),
        ({}, {"size": {"width": 3}}, "{'width': 3}, expected a number of pixels"),
        ({}, {"image_mean": []}, "image_mean is [], expected a list of numbers, one"),
        ({"hidden_size": "16"}, {}, "hidden_size is '16', expected a whole number"),
        ({}, {"resample": [2]}, "resample is [2], expected the number of a filter"),
        ({}, {"do_resize": 1}, "do_resize is 1, expected true or false"),
        ({}, {"size": 16, "image_std": [0, 1, 1]}, "std"),
        ({}, {"size": 16, "rescale_factor": 0}, "rescale_factor is 0, expected a numb"),
        ({}, {"size": 8, "crop_size": 16}, "cannot cut 16×16 out of 8×8"),
    ],
)
def test_unsupported_companion_files_are_refused(config, processor, complaint):
    heads = None if "num_attention_heads" in config else 4
    with pytest.raises(UserError) as error:
        described(config=config, processor=processor, num_heads=heads)
    assert complaint in str(error.value)


def test_a_pooler_must_be_a_tanh(golden, read):
    stored = golden("huggingface/vit_model")
    config = stored.hints["config"] | {"pooler_act": "relu"}
    with pytest.raises(UserError, match="pooler_act\\) is 'relu'"):
        read(FORMAT, stored.arrays, config=config)


def test_everything_that_does_not_match_is_reported(golden, read):
    stored = golden("huggingface/vit")
    arrays = dict(stored.arrays)
    del arrays["vit.layernorm.bias"]
    arrays["vit.encoder.layer.1.gain"] = np.ones(3, np.float32)
    arrays["classifier.bias"] = np.ones(4, np.float32)
    # A second name for a tensor, from another version.
    arrays["vit.layers.0.mlp.fc1.bias"] = np.ones(24, np.float32)
    with pytest.raises(UserError) as error:
        read(FORMAT, arrays, **stored.hints)
    message = str(error.value)
    assert "1 missing: vit.layernorm.bias" in message
    assert "vit.encoder.layer.1.gain, vit.layers.0.mlp.fc1.bias" in message
    assert "classifier.bias (expected (5,), found (4,))" in message


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"posemb": "sincos2d", "class_token_position": False}, "sin-cos"),
        ({"trunk": (), "patch_size": (8, 8)}, "a trunk"),
        ({"registers": 2}, "register tokens"),
        ({"layer_scale": True}, "LayerScale"),
        ({"pooling": "gap"}, "mean of the patches"),
        ({"pooling": "map"}, "attention pooling"),
        ({"class_token_position": False}, "class token without a position"),
        ({"norm": "after_pool"}, "the norm after pooling"),
        ({"pre_logits": 3}, "a tanh layer before a head"),
        ({"distillation_token": True, "num_classes": 0}, "whose head is missing"),
    ],
)
def test_features_that_transformers_cannot_express_are_named(fields, phrase):
    assert phrase in "; ".join(FORMAT.inexpressible(tiny(**fields)))


def test_a_mixer_is_inexpressible():
    mixer = MixerArchitecture(8, 1, 4, 8, (4, 4), (8, 8), 2)
    assert FORMAT.inexpressible(mixer) == ["an MLP-Mixer"]


def test_differences_of_transformers_are_named():
    usual = Preprocessing((16, 16), 3, USUAL, *HALF)
    assert FORMAT.lost(tiny(), usual) == []
    assert "untrained pooler" in FORMAT.lost(tiny(num_classes=0), usual)[0]
    assert FORMAT.lost(tiny(num_classes=0, pre_logits=8), usual) == []
    cut = Preprocessing((16, 16), 3, "central_crop", *HALF)
    (sentence,) = FORMAT.lost(tiny(), cut)
    assert (
        f"preprocess images with {USUAL!r}, where this model was evaluated with "
        "'central_crop'" in sentence
    )
    processor = companions(tiny(), cut)["preprocessor_config.json"]
    assert processor["size"] == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("chain", "theirs"),
    [
        ("resize", USUAL),
        ("resize(18, 'bicubic')|central_crop", "resize(18, 'bicubic_antialias')"),
        ("resize_small(18)|central_crop", "resize_small(18, rounding='down')"),
        (
            "resize((19, 18), 'area')|central_crop(rounding='nearest')",
            "resize((19, 18)",
        ),
    ],
)
def test_images_that_transformers_resizes_differently(chain, theirs):
    images = Preprocessing((16, 16), 3, chain, *HALF)
    (sentence,) = FORMAT.lost(tiny(), images)
    in_library, _, here = sentence.partition(", where this model was evaluated with ")
    assert theirs in in_library.partition("transformers will preprocess images ")[2]
    assert chain in here


def test_a_processor_cannot_keep_the_aspect_for_a_rectangle():
    chain = "resize_small((10, 20), 'bicubic_antialias', 'down')|central_crop"
    images = Preprocessing((8, 16), 3, chain, *HALF)
    a = tiny(image_size=(8, 16))
    processor = companions(a, images)["preprocessor_config.json"]
    assert processor["size"] == {"height": 8, "width": 16}
    assert "crop_size" not in processor
    (sentence,) = FORMAT.lost(a, images)
    assert "resize(interpolation='bicubic_antialias')" in sentence


def test_a_processor_that_keeps_the_aspect():
    chain = "resize_small(18, 'bicubic_antialias', 'down')|central_crop"
    images = Preprocessing((16, 16), 3, chain, *HALF)
    assert FORMAT.lost(tiny(), images) == []
    written = companions(tiny(), images)
    processor = written["preprocessor_config.json"]
    assert processor["image_processor_type"] == "CLIPImageProcessor"
    assert processor["size"] == {"shortest_edge": 18}
    config = written["config.json"]
    assert config["id2label"]["4"] == "LABEL_4"
    assert described(config=config, processor=processor).preprocessing == images


@pytest.mark.parametrize("name", ["classifier", "fc"])
def test_a_head_beside_a_pooler_is_an_assumption(name, golden, read):
    """A module of one's own may read `pooler_output`, those of transformers do not."""
    stored = golden("huggingface/vit")
    arrays = {n.replace("classifier", name): a for n, a in stored.arrays.items()}
    for leaf, shape in (("weight", (16, 16)), ("bias", (16,))):
        arrays[f"vit.pooler.dense.{leaf}"] = np.ones(shape, np.float32)
    told = [s for s in read(FORMAT, arrays, num_heads=4)[0].assumed if "pooler" in s]
    assert len(told) == 1 and "assumed that the head reads the class token" in told[0]
    told = [s for s in read(FORMAT, arrays, **stored.hints)[0].assumed if "pooler" in s]
    assert told == []
    del arrays[f"{name}.weight"], arrays[f"{name}.bias"]
    arrays = {n.removeprefix("vit."): a for n, a in arrays.items()}
    found = read(FORMAT, arrays, num_heads=4)[0]
    assert found.architecture.pre_logits == 16
    assert not [s for s in found.assumed if "assumed that the head" in s]
