"""Teachers: what they are recognised by, how classes are matched, what is refused."""

import os
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax.errors import UserError
from vit_jax.models import MixerArchitecture
from vit_jax.objectives.teachers import checksum_of, load_teacher, sources_of
from vit_jax.train.setup import set_up
from vit_jax.train.start import with_class_names
from vit_jax.weights.loading import load_weights

MIXER = MixerArchitecture(
    width=16,
    depth=1,
    tokens_mlp_dim=8,
    mlp_dim=32,
    patch_size=(4, 4),
    image_size=(8, 8),
    num_classes=10,
)


@pytest.fixture
def objective_of(tiny_config):
    def make(values=(), **options):
        base = {"objective": "distillation", "mesh.data": 1, "model.channels": 3}
        config = tiny_config(**{**base, **dict(values)})
        config.objective_options = ConfigDict(options)
        return set_up(config).objective

    return make


def test_names_of_teachers_are_separated_by_semicolons():
    assert sources_of(" runs/a ;B/16, x; ") == ["runs/a", "B/16, x"]
    assert sources_of(("a", "b")) == ["a", "b"]
    assert sources_of("") == []


def test_a_checksum_is_that_of_the_function_wherever_it_lies(make_teacher, tmp_path):
    first = make_teacher()
    moved = shutil.copy(first, tmp_path / "moved.safetensors")
    weights = load_weights(first)
    expected = checksum_of(weights)
    assert len(expected) == 64
    assert checksum_of(load_weights(moved)) == expected
    reordered = weights.params | {}
    reordered = {name: reordered[name] for name in reversed(reordered)}
    assert checksum_of(weights._replace(params=reordered)) == expected
    others = [
        make_teacher("a", seed=1),
        make_teacher("b", preprocessing={"mean": (0.4,)}),
        make_teacher("c", gelu="exact"),
        make_teacher("d", outputs="independent"),
    ]
    found = {checksum_of(load_weights(other)) for other in others}
    assert len(found | {expected}) == 5


def test_one_changed_number_is_another_teacher(make_teacher):
    weights = load_weights(make_teacher())
    before = checksum_of(weights)
    kernel = weights.params["blocks_00"]["mlp"]["fc1"]["kernel"]
    kernel = np.array(kernel)
    kernel[3, 5] = np.nextafter(kernel[3, 5], np.float32(9))
    weights.params["blocks_00"]["mlp"]["fc1"]["kernel"] = kernel
    assert checksum_of(weights) != before


def test_a_teacher_is_read_once_until_its_file_changes(make_teacher):
    path = make_teacher()
    first = load_teacher(path)
    assert load_teacher(path) is first
    make_teacher(seed=5)
    os.utime(path, ns=(1, 1))
    assert load_teacher(path).checksum != first.checksum


def test_outputs_are_ordered_by_the_names_of_the_classes(
    objective_of, make_teacher, caplog
):
    names = ("nine", *"8736451209", "x")
    path = make_teacher(class_names=names, num_classes=12)
    objective = objective_of(teachers=path, kind="matching")
    [params] = objective.extra()
    kept = [names.index(digit) for digit in "0123456789"]
    head = load_weights(path).params["head"]
    np.testing.assert_array_equal(params["head"]["kernel"], head["kernel"][:, kept])
    np.testing.assert_array_equal(params["head"]["bias"], head["bias"][kept])
    assert "matched with the classes by name; 10 of 12 are used" in caplog.text


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ((), {}, "its class names are unknown, so their order is assumed"),
        (tuple("abcdefghij"), {"classes": "order"}, ""),
        (tuple("0123456789"), {}, ""),
    ],
)
def test_the_order_is_kept_where_names_do_not_count(
    objective_of, make_teacher, caplog, names, options, said
):
    path = make_teacher(class_names=names)
    objective = objective_of(teachers=path, kind="matching", **options)
    [params] = objective.extra()
    jax.tree.map(np.testing.assert_array_equal, params, load_weights(path).params)
    assert said in caplog.text
    assert said or "assumed" not in caplog.text


def test_a_teacher_may_see_another_size_than_in_its_training(
    objective_of, make_teacher
):
    path = make_teacher()
    objective = objective_of(teachers=path, kind="matching", teacher_size=16)
    [params] = objective.extra()
    assert params["pos_embed"].shape == (1, 4, 4, 16)
    assert objective.inputs["image_16x16"].transform.image_size == (16, 16)


@pytest.mark.parametrize("kind", ["hard", "soft", "matching"])
def test_a_mixer_and_a_hybrid_teach(objective_of, make_teacher, kind):
    hybrid = {"trunk": (), "patch_size": (4, 4), "image_size": (8, 8)}
    paths = make_teacher("m", architecture=MIXER), make_teacher("h", **hybrid)
    objective = objective_of(teachers=";".join(paths), kind=kind)
    images = jax.numpy.zeros((2, 8, 8, 3))
    for teacher, params in zip(objective._teachers, objective.extra(), strict=True):
        assert jax.eval_shape(teacher, params, images).shape == (2, 10)


@pytest.mark.parametrize(
    ("made", "values", "options", "message"),
    [
        ({"class_names": tuple("012345678x")}, {}, {}, "does not know 1 of the data's"),
        (
            {"class_names": tuple("012345678x")},
            {},
            {},
            "in the same order, pass objective_options.classes='order'",
        ),
        (
            {"class_names": ("0", "1"), "num_classes": 2},
            {},
            {},
            r"does not know 8 of the data's 10 classes: 2, 3, .*Only it knows none\.",
        ),
        ({"class_names": (), "num_classes": 7}, {}, {}, "7 outputs, but the data have"),
        ({"num_classes": 0}, {}, {}, "it has no head, so it predicts no classes"),
        ({"channels": 4}, {}, {}, "images of 4 channels, but model.channels=3; set"),
        ({"channels": 1}, {}, {}, "images of 1 channel, but model.channels=3; set"),
        ({"outputs": "numbers"}, {}, {}, "are plain numbers, not classes; name a"),
        (
            {"outputs": "independent"},
            {},
            {"kind": "matching"},
            "so the student's will be too, but loss=softmax .*set loss=sigmoid",
        ),
        ({}, {"loss": "sigmoid"}, {"kind": "matching"}, "set loss=softmax"),
        (
            {"outputs": "independent"},
            {},
            {"kind": "soft"},
            "set loss=sigmoid, or kind=hard",
        ),
        (
            {"outputs": "independent"},
            {"loss": "sigmoid"},
            {"kind": "matching", "distance": "hard"},
            "distance='hard' has no meaning; choose 'kl', 'l2' or 'euclidean'",
        ),
        (
            {},
            {},
            {"teacher_size": 10},
            "image height 10 is not a multiple of the patch",
        ),
        (
            {"architecture": MIXER},
            {},
            {"teacher_size": 16},
            "only images of 8×8 pixels",
        ),
        (
            {"num_heads": 1},
            {"mesh.data": 4, "mesh.tensor": 2},
            {},
            "mesh.tensor=2 must divide the model's num_heads=1; choose another mesh",
        ),
    ],
)
def test_teachers_that_cannot_teach_are_refused_with_the_reason(
    objective_of, make_teacher, made, values, options, message
):
    with pytest.raises(UserError, match=message):
        objective_of(values, teachers=make_teacher(**made), **options)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {"teachers": ""}, "teachers is empty: name the models to learn from"),
        ({}, {"teachers": "no/such"}, "teachers: no/such cannot be read: .*no/such"),
        ({}, {"kind": "sotf"}, "kind='sotf': choose .*did you mean 'soft'"),
        ({}, {"alpha": 1.5}, "alpha=1.5: expected a number from 0 to 1"),
        ({}, {"alpha": True}, "alpha=True: expected a number"),
        ({}, {"alpha": "much"}, "alpha='much': expected a number"),
        ({}, {"teachers": 10}, "teachers: 10 cannot be read"),
        ({}, {"temperature": 2.0}, "temperature=2.0 has no effect with kind='hard'"),
        (
            {},
            {"kind": "soft", "temperature": 0.0},
            "temperature=0.0: expected a number above 0",
        ),
        ({}, {"kind": "matching", "alpha": 0.1}, "alpha=0.1 has no effect with kind"),
        ({}, {"kind": "matching", "distance": "cosine"}, "distance='cosine': choose"),
        (
            {},
            {"kind": "matching", "distance": "l2", "temperature": 2.0},
            "temperature=2.0 has no effect with distance='l2'",
        ),
        (
            {},
            {"kind": "matching", "smoothing": 0.1},
            "smoothing=0.1 has no effect with distance='kl'",
        ),
        ({}, {"teacher_size": "big"}, "teacher_size='big': give a number of pixels"),
        ({}, {"teacher_size": -4}, "teacher_size=-4: give a number of pixels"),
        ({}, {"classes": "known"}, "classes='known': choose 'names' or 'order'"),
        ({}, {"teacher": "x"}, "does not take teacher; it takes teachers, kind"),
        (
            {"label_smoothing": 0.1},
            {"kind": "matching"},
            "label_smoothing=0.1 has no effect: kind='matching' uses no labels",
        ),
        (
            {"mixing.binary_targets": True, "loss": "sigmoid"},
            {"kind": "matching"},
            "mixing.binary_targets=True has no effect",
        ),
        (
            {"model.variant": "Mixer-S/4", "model.num_heads": 0}
            | {"model.distillation_token": True},
            {},
            "MlpMixer does not support model.distillation_token=True",
        ),
        (
            {"model.pooling": "gap", "model.distillation_token": True},
            {},
            "distillation_token needs pooling cls",
        ),
    ],
)
def test_impossible_options_are_refused_before_anything_is_compiled(
    objective_of, make_teacher, values, options, message
):
    given = {"teachers": make_teacher()} | options
    if "teacher" in options:
        del given["teachers"]
    with pytest.raises(UserError, match=message):
        objective_of(values, **given)


def test_options_at_their_defaults_do_no_harm(objective_of, make_teacher):
    ignored = {"alpha": 0.5, "temperature": 1.0, "smoothing": 0.0}
    path = make_teacher()
    for kind, distance in (("matching", "l2"), ("hard", "kl")):
        found = objective_of(teachers=path, kind=kind, distance=distance, **ignored)
        assert len(found.facts()["teachers"]) == 1


def test_all_problems_of_all_teachers_are_one_message(objective_of, make_teacher):
    paths = make_teacher("a", num_classes=0), make_teacher("b", channels=2)
    with pytest.raises(UserError) as raised:
        objective_of(teachers=";".join(paths), kind="matching", alpha=0.25)
    text = str(raised.value)
    assert "a.safetensors: it has no head" in text
    assert "b.safetensors: it takes images of 2 channels" in text
    assert "alpha=0.25 has no effect" in text


def test_data_that_cannot_be_opened_are_not_blamed_on_the_teacher(
    objective_of, make_teacher
):
    with pytest.raises(UserError, match="has 1 problem") as raised:
        objective_of({"dataset": "no/such"}, teachers=make_teacher())
    assert "teacher" not in str(raised.value)


def test_names_that_only_opened_data_tell_are_matched(tiny_config, make_teacher):
    config = tiny_config(**{"objective": "distillation", "mesh.data": 1})
    config.dataset, config.model.channels = "cifar10", 3
    names = ("x", *reversed("abcdefghij"))
    path = make_teacher(class_names=names, num_classes=11)
    config.objective_options = ConfigDict({"teachers": path, "kind": "matching"})
    setup = set_up(config)  # a preset, which is planned without data
    [planned] = setup.objective.extra()
    assert planned["head"]["bias"].shape == (10,)

    class Opened:
        class_names = tuple("abcdefghij")

    opened = with_class_names(setup, Opened())
    [params] = opened.objective.extra()
    bias = load_weights(path).params["head"]["bias"]
    np.testing.assert_array_equal(params["head"]["bias"], bias[:0:-1])
    Opened.class_names = tuple("abcdefghik")
    with pytest.raises(UserError, match="does not know 1 of the data's 10 classes: k"):
        _ = with_class_names(setup, Opened()).objective
