"""Prefixes of names and entries of files: which model of a file is read."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.weights.files.tensors import open_tensors
from vit_jax.weights.formats.known import read_tensors
from vit_jax.weights.formats.layout import Hints, flatten


@pytest.fixture
def load(tmp_path, write_torch):
    """Returns a function: arrays or nested dict, entry, hints → Reading, parameters."""

    def load(saved, entry="", **hints):
        nested = any(isinstance(value, dict) for value in saved.values())
        path = tmp_path / ("weights.pth" if nested else "weights.npz")
        write_torch(path, saved) if nested else np.savez(path, **saved)
        with open_tensors(path) as tensors:
            reading, params = read_tensors(tensors, Hints(**hints), entry)
            return reading, flatten(params)

    return load


@pytest.fixture(scope="module")
def timm(golden):
    stored = golden("timm/vit")
    return dict(stored.arrays), stored.hints


def behind(prefix, arrays):
    return {prefix + name: array for name, array in arrays.items()}


def other(arrays, factor=2.0):
    """Makes another model of the same sizes."""
    return {name: factor * array for name, array in arrays.items()}


PREFIXES = [
    *("net.", "vit.", "teacher.backbone.", "student.module.backbone.", "0."),
    *("a.b.c.d.", "my_model_2.", "_orig_mod.module.encoder.", "deit.", "trunk.visual."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_any_prefix_is_removed(format, prefix, golden, load, assert_same):
    stored = golden(f"{format}/vit")
    expected, params = load(stored.arrays, **stored.hints)
    found, same = load(behind(prefix, stored.arrays), **stored.hints)
    assert found == expected
    assert_same(same, params)


@pytest.mark.parametrize("prefix", ["net/", "params/model/", "opt/target/", "a/b/c/"])
@pytest.mark.parametrize("format", ["google", "big_vision"])
def test_any_prefix_of_flax_is_removed(
    format, prefix, published, random_arrays, load, assert_same
):
    arrays = random_arrays(getattr(published, format)())
    expected, params = load(arrays)
    found, same = load(behind(prefix, arrays))
    assert found == expected
    assert_same(same, params)


def test_wrappers_inside_of_names_are_removed(timm, load, assert_same):
    arrays, hints = timm
    expected, params = load(arrays, **hints)
    wrapped = {
        name.replace(".0.", ".0._checkpoint_wrapped_module.")
        .replace(".attn.", ".attn._orig_mod.")
        .replace("patch_embed.", "_fsdp_wrapped_module.patch_embed."): array
        for name, array in arrays.items()
    }
    assert wrapped.keys().isdisjoint(n for n in arrays if n.startswith("blocks.0"))
    found, same = load(wrapped, **hints)
    assert found == expected
    assert_same(same, params)


@pytest.mark.parametrize("offset", [True, False])
def test_blocks_in_chunks_are_numbered_through(offset, golden, load, assert_same):
    """DINOv2 fills a chunk with empty modules, so that numbers count all blocks."""
    stored = golden("timm/deit3")
    _, params = load(stored.arrays, num_heads=4)
    chunked = {
        name.replace("blocks.0.", "blocks.0.0.").replace(
            "blocks.1.", "blocks.1.1." if offset else "blocks.1.0."
        ): array
        for name, array in stored.arrays.items()
    }
    assert sum(name.startswith("blocks.1.1.") for name in chunked) == 14 * offset
    found, same = load(behind("teacher.backbone.", chunked), num_heads=4)
    assert found.architecture.depth == 2
    assert_same(same, params)


@pytest.mark.parametrize(
    "keys",
    [
        *("ema", "params", "network", "state_dict", "student", "model_ema", "weights"),
        *("anything", "trainer/state/model", "checkpoint/params"),
    ],
)
def test_an_entry_of_any_name_is_found(keys, timm, load, assert_same, caplog):
    arrays, hints = timm
    expected, params = load(arrays, **hints)
    saved = arrays
    for key in reversed(keys.split("/")):
        saved = {key: saved, "epoch": 3, "optimizer": {"exp_avg": other(arrays)}}
    with caplog.at_level("INFO"):
        found, same = load(saved, **hints)
    assert_same(same, params)
    assert found == expected
    assert f"read the entry {keys} of the file" in caplog.text


def test_the_choice_among_several_is_said_and_can_be_made(timm, load, assert_same):
    arrays, hints = timm
    _, params = load(arrays, **hints)
    _, doubled = load(other(arrays), **hints)
    saved = {"ema": arrays, "network": other(arrays), "optimizer": {"state": {}}}
    found, same = load(saved, **hints)
    assert_same(same, params)
    assert found.assumed == (
        "read the entry ema of the file, which also has network; entry=NAME, or "
        "#entry=NAME after the path, chooses another",
    )
    found, same = load(saved, "network", **hints)
    assert_same(same, doubled)
    assert found.assumed == ()
    with pytest.raises(UserError, match="no entry 'nothing' with a model; it has ema,"):
        load(saved, "nothing", **hints)


def test_entries_and_prefixes_together(timm, load, assert_same):
    arrays, hints = timm
    _, params = load(arrays, **hints)
    _, doubled = load(other(arrays), **hints)
    both = behind("teacher.backbone.", arrays) | behind("student.", other(arrays))
    saved = {"state_dict": both, "epoch": 1}
    found, same = load(saved, **hints)
    assert_same(same, params)
    assert any("state_dict/teacher.backbone of the" in s for s in found.assumed)
    assert any("also has state_dict/student" in s for s in found.assumed)
    for entry in ("student", "state_dict/student", "state_dict.student"):
        assert_same(load(saved, entry, **hints)[1], doubled)
    assert_same(load(saved, "teacher", **hints)[1], params)


def test_two_models_of_unknown_names_are_not_guessed(timm, load, assert_same):
    arrays, hints = timm
    _, doubled = load(other(arrays), **hints)
    saved = behind("left_eye.", arrays) | behind("right_eye.vit.", other(arrays))
    with pytest.raises(UserError, match="holds 2 models: left_eye, right_eye") as e:
        load(saved, **hints)
    assert "entry=NAME" in str(e.value)
    assert_same(load(saved, "right_eye", **hints)[1], doubled)
    nested = {"left": arrays, "right": other(arrays)}
    with pytest.raises(UserError, match="holds 2 models: left, right"):
        load(nested, **hints)
    assert_same(load(nested, "right", **hints)[1], doubled)


def test_a_teacher_of_other_sizes_is_not_taken_for_an_average(timm, load):
    arrays, hints = timm
    larger = arrays | {n.replace("s.1.", "s.2."): a for n, a in arrays.items()}
    assert len(larger) == len(arrays) + 12
    saved = behind("teacher.", larger) | behind("student.", arrays)
    with pytest.raises(UserError, match="2 models: teacher, student"):
        load(saved, **hints)
    assert load(saved, "student", **hints)[0].architecture.num_classes == 5


def test_moments_of_an_optimizer_are_not_weights(
    published, random_arrays, timm, load, assert_same
):
    arrays = random_arrays(published.big_vision())
    _, params = load(arrays)
    moments = behind("opt/0/mu/", other(arrays)) | behind("opt/0/nu/", other(arrays))
    assert_same(load(moments | behind("params/", arrays))[1], params)
    arrays, hints = timm
    _, params = load(arrays, **hints)
    moments = behind("optimizer.exp_avg.", other(arrays))
    assert_same(load(moments | behind("net.", arrays), **hints)[1], params)


def test_a_head_beside_its_encoder(timm, load, assert_same):
    arrays, hints = timm
    _, params = load(arrays, **hints)
    head = {k.removeprefix("head."): v for k, v in arrays.items() if "head" in k}
    body = {name: array for name, array in arrays.items() if "head" not in name}
    assert len(head) == 2
    _, same = load({"backbone": body, "classifier": head}, **hints)
    assert_same(same, params)


NAMES = ("ape", "bat", "cat", "dog", "emu")


@pytest.mark.parametrize(
    ("beside", "names", "said"),
    [
        ({"class_to_idx": {name: i for i, name in enumerate(NAMES)}}, NAMES, ""),
        ({"meta": {"dataset_meta": {"classes": NAMES}}}, NAMES, ""),
        ({"classes": list(NAMES[:3])}, (), "names 3 classes, but the head has 5"),
        (
            {"classes": list(NAMES), "labels": list("abcde")},
            (),
            "names the 5 classes in 2 different ways",
        ),
        ({"classes": list(NAMES), "labels": list("abc")}, NAMES, ""),
    ],
)
@pytest.mark.parametrize("entry", ["", "ema"])
def test_class_names_beside_the_weights(beside, names, said, entry, timm, load):
    arrays, hints = timm
    hints = {"config": {k: v for k, v in hints["config"].items() if "label" not in k}}
    found, _ = load({"model": arrays, "ema": arrays} | beside, entry, **hints)
    assert found.class_names == names
    about = [s for s in found.assumed if "classes" in s]
    assert len(about) == bool(said) and all(said in s for s in about)
    # They belong to the head, and a companion file knows better.
    body = {n: a for n, a in arrays.items() if not n.startswith("head.")}
    assert load({"model": body} | beside, num_heads=4)[0].class_names == ()
    hints["config"]["label_names"] = list("vwxyz")
    found, _ = load({"model": arrays} | beside, **hints)
    assert found.class_names == tuple("vwxyz")
