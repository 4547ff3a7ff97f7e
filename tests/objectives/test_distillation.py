"""Distillation: the published losses and curves, on any devices, for any teachers."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vit_jax import sharding
from vit_jax.checkpoints.reading import load_description, load_params
from vit_jax.errors import UserError
from vit_jax.models import abstract_params, build
from vit_jax.objectives.distillation import Outputs
from vit_jax.objectives.protocol import Context
from vit_jax.objectives.teachers import checksum_of
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.setup import set_up
from vit_jax.weights.loading import load_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "distillation.npz"
CONFIG = {
    "objective": "distillation",
    "model.channels": 3,
    "model.depth": 1,
    "model.distillation_token": True,
    "eval_every": 0,
    "mesh.data": 1,
}


@pytest.fixture
def setup_of(tiny_config):
    def make(values=(), **options):
        config = tiny_config(**{**CONFIG, **dict(values)})
        config.objective_options = ConfigDict(options)
        return set_up(config)

    return make


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def context(extra):
    return Context(extra, (), jnp.int32(0), None)


def batch_of(setup, seed=0, mask=1.0):
    """Makes a random batch; images of other sizes are the same image, enlarged."""
    rng = np.random.default_rng(seed)
    columns = setup.abstract_batch()
    rows, height, width, channels = columns["image"].shape
    small = rng.integers(0, 256, (rows, height, width, channels), np.uint8)
    batch = {}
    for name, column in columns.items():
        if name.startswith("image"):
            by = column.shape[1] // height, column.shape[2] // width
            batch[name] = small.repeat(by[0], axis=1).repeat(by[1], axis=2)
        else:
            batch[name] = np.zeros(column.shape, column.dtype)
    if "label" in batch:
        batch["label"] = rng.integers(0, 10, rows).astype(np.int32)
    batch["mask"] = np.ones(rows, np.float32) * mask
    return batch


def on_device(arrays):
    return jax.tree.map(jnp.asarray, arrays)


KINDS = {
    "hard": {"kind": "hard"},
    "hard_bce": {"kind": "hard", "alpha": 0.5},
    "soft": {"kind": "soft", "alpha": 0.1, "temperature": 3.0},
    "matching": {"kind": "matching", "distance": "kl", "temperature": 2.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_gradients_and_curves_are_those_of_pytorch(
    setup_of, make_teacher, golden, tmp_path, kind, tree
):
    five = tuple("01234")
    images = np.zeros((40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "five.npz", images=images, labels=np.arange(40) % 5)
    teacher = make_teacher(
        **{"params": tree(golden, "teacher/"), "class_names": five, "num_classes": 5},
        gelu="exact",
        preprocessing={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    )
    values = {"model.gelu": "exact", "batch_size": 8}
    values["dataset"] = str(tmp_path / "five.npz")
    if kind != "matching":
        values["label_smoothing"] = 0.1
    if kind == "hard_bce":
        values["loss"] = "sigmoid"
    options = {"teachers": teacher, "classes": "order", **KINDS[kind]}
    objective = setup_of(values, **options).objective
    batch = {
        "image": golden["images"],
        "label": golden["labels"].astype(np.int32),
        "mask": np.ones(8, np.float32),
    }
    batch, extra = on_device((batch, objective.extra()))

    def loss(params):
        sums, _ = objective.loss(params, batch, jax.random.key(0), context(extra))
        return sums["loss"][0] / sums["loss"][1]

    step = jax.jit(jax.value_and_grad(loss))
    params = tree(golden, "student/")
    momentum = jax.tree.map(np.zeros_like, params)
    for number, expected in enumerate(golden[f"{kind}/losses"]):
        value, grads = step(params)
        if not number:
            theirs = tree(golden, f"{kind}/gradients/")
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, theirs
            )
        assert float(value) == pytest.approx(expected, abs=1e-4 if number else 2e-6)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        params = jax.tree.map(lambda p, m: p - 0.02 * m, params, momentum)


PLAIN = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "grad_clip_norm": 0.0,
    "schedule": "constant",
}
ONE, EIGHT = (
    {"mesh.data": 1},
    {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "accum_steps": 2},
)
MIXED = {"mixing.form": "timm", "mixing.mixup_alpha": 0.8, "mixing.cutmix_alpha": 1.0}


def test_devices_and_microbatches_do_not_change_what_is_learned(setup_of, make_teacher):
    large = {"image_size": (16, 16), "seed": 1, "preprocessing": {"mean": (0.3,)}}
    teachers = f"{make_teacher('a')};{make_teacher('b', **large)}"
    counted = np.where(np.arange(16) % 5 == 3, 0.0, 1.0).astype(np.float32)
    losses, grads, ends = [], [], []
    for way in (ONE, EIGHT):
        values = {**PLAIN, **MIXED, "learning_rate": 0.1, "total_steps": 30, **way}
        setup = setup_of(values, teachers=teachers, **KINDS["soft"])
        rng = np.random.default_rng(7)
        abstract = setup.abstract_state()
        params = jax.tree.map(
            lambda x, rng=rng: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
            abstract.params,
        )
        where = jax.tree.map(lambda x: x.sharding, abstract)
        state = jax.device_put(setup.new_state(params), where)
        step, extra = setup.lower().compile(), setup.extra()
        batches = [
            sharding.place(batch_of(setup, number, counted), setup.mesh)
            for number in range(3)
        ]
        found = []
        for number in range(30):
            state, metrics = step(state, batches[number % 3], extra)
            found.append(float(metrics["loss"]))
            if not number:
                first = jax.device_get(state.params)
                grads.append(jax.tree.map(lambda p, q: 10 * (p - q), params, first))
        losses.append(found)
        ends.append(jax.device_get(state.params))
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-6)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    # Gradients are differences of rounded parameters, divided by the rate.
    rounding = 10 * np.finfo(np.float32).eps
    for pair, share, rounded in ((grads, 1e-6, rounding), (ends, 1e-5, 0.0)):
        largest = max(np.abs(x).max() for x in jax.tree.leaves(pair[0]))
        pairs = zip(*map(jax.tree.leaves, pair), jax.tree.leaves(params), strict=True)
        for one, eight, before in pairs:
            error = share * largest + rounded * np.abs(before).max()
            np.testing.assert_allclose(eight, one, rtol=0, atol=error)
    assert losses[0][-1] < losses[0][0]


def test_teachers_are_sharded_like_models(setup_of, make_teacher):
    setup = setup_of(EIGHT, teachers=make_teacher(), kind="matching")
    [params] = setup.extra()
    query = params["blocks_00"]["attention"]["query"]["kernel"]
    assert query.sharding.spec == jax.sharding.PartitionSpec(("fsdp",), ("tensor",))
    assert query.addressable_shards[0].data.shape == (8, 8)


def test_teachers_of_other_sizes_see_the_same_images(setup_of, make_teacher):
    """Checks the images that reach each teacher against a computation in NumPy."""
    nothing = jnp.zeros((16, 10))
    ranges = {"mean": (0.2, 0.4, 0.6), "std": (0.1, 0.2, 0.4)}
    large = make_teacher("b", image_size=(16, 8), preprocessing=ranges)
    teachers = make_teacher("a"), large
    for values in ({}, MIXED | {"mixing.erasing_prob": 0.5}):
        setup = setup_of(values, teachers=";".join(teachers), kind="matching")
        objective = setup.objective
        assert [x.column for x in objective._teachers] == ["image", "image_16x8"]
        assert setup.aligned == ("image_16x8",)
        seen = []
        for teacher in objective._teachers:
            teacher._model = lambda _, images, seen=seen: seen.append(images) or nothing
        objective._student = lambda *_: Outputs(nothing, nothing, nothing)
        batch = on_device(batch_of(setup))

        def views(batch, seen=seen, objective=objective):
            mixed, key = objective.prepare(jax.random.key(3), batch, None)
            objective.loss((), mixed, key, context(((), ())))
            return mixed, seen

        mixed, seen = jax.jit(views)(batch)
        own, large = map(np.asarray, seen)
        if values:
            assert not np.array_equal(mixed["image"], batch["image"])
            pixels = np.asarray(mixed["image"]) * 0.5 + 0.5
        else:
            pixels = np.asarray(batch["image"]) / 255.0
        np.testing.assert_allclose(own, (pixels - 0.5) / 0.5, atol=1e-5)
        expected = (pixels - [0.2, 0.4, 0.6]) / [0.1, 0.2, 0.4]
        np.testing.assert_allclose(large, expected.repeat(2, axis=1), atol=1e-5)


def sums_of(objective, logits, answers, labels):
    """Returns the sums of a loss for these outputs of student and teachers."""
    objective._student = lambda *_: Outputs(*map(jnp.asarray, logits))
    for teacher, found in zip(objective._teachers, answers, strict=True):
        teacher._model = lambda *_, found=found: jnp.asarray(found)
    rows = len(labels)
    batch = {
        "image": jnp.zeros((rows, 8, 8, 3), jnp.uint8),
        "label": jnp.asarray(labels),
        "mask": jnp.arange(rows, dtype=jnp.float32),  # the first does not count
    }
    extra = ((),) * len(answers)
    sums, _ = objective.loss((), batch, jax.random.key(0), context(extra))
    return {name: (float(total), float(w)) for name, (total, w) in sums.items()}


@pytest.mark.parametrize("kind", ["soft", "matching"])
def test_several_teachers_are_added_up_or_averaged(setup_of, make_teacher, kind):
    paths = make_teacher("a"), make_teacher("b", seed=1)
    objective = setup_of(teachers=";".join(paths), **KINDS[kind]).objective
    rng = np.random.default_rng(0)
    heads = rng.normal(size=(3, 4, 10)).astype(np.float32)
    answers = rng.normal(size=(2, 4, 10)).astype(np.float32)
    labels = np.array([3, 1, 4, 1], np.int32)
    found = sums_of(objective, heads, answers, labels)
    t = KINDS[kind]["temperature"]

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(answers / t), softmax(heads[1] / t)
    each = t**2 * (p * np.log(p / q)).sum(-1) @ np.arange(4)
    agree = (heads[2].argmax(-1) == answers.argmax(-1)) @ np.arange(4)
    if kind == "matching":
        expected = {"loss": each.sum()}
    else:
        each = each / 10
        chosen = softmax(heads[0])[np.arange(4), labels]
        of_labels = -np.log(chosen) @ np.arange(4)
        expected = {
            "loss": 0.9 * of_labels + 0.1 * each.mean(),
            "label_loss": of_labels,
            "teacher_loss": each.mean(),
            "accuracy": (heads[2].argmax(-1) == labels) @ np.arange(4),
        }
    expected |= {"agreement": agree.mean()}
    for number in range(2):
        expected[f"teacher_loss_{number + 1}"] = each[number]
        expected[f"agreement_{number + 1}"] = agree[number]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, rel=1e-5, abs=1e-6), name
        assert found[name][1] == 6


@pytest.mark.parametrize("kind", ["hard", "soft", "matching"])
def test_a_yes_or_no_for_each_class_is_compared_class_by_class(
    setup_of, make_teacher, tmp_path, kind
):
    labels = np.eye(3, dtype=np.uint8)[np.arange(40) % 3]
    labels[::2, 0] = 1
    images = np.zeros((40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "several.npz", images=images, labels=labels)
    several = {"dataset": str(tmp_path / "several.npz"), "loss": "sigmoid"}
    classes = {"num_classes": 3, "class_names": ()}
    path = make_teacher(outputs="independent", **classes)
    objective = setup_of(several, teachers=path, kind=kind).objective
    rng = np.random.default_rng(0)
    heads = rng.normal(size=(3, 4, 3)).astype(np.float32)
    answers = rng.normal(size=(1, 4, 3)).astype(np.float32)
    found = sums_of(objective, heads, answers, labels[:4].astype(np.float32))
    yes, ours = (1 / (1 + np.exp(-x)) for x in (answers[0], heads[1]))
    if kind == "hard":
        yes = (yes > 0.5).astype(np.float32)
    entropy = -yes * np.log(ours) - (1 - yes) * np.log(1 - ours)
    if kind != "hard":
        entropy += yes * np.log(yes) + (1 - yes) * np.log(1 - yes)
    expected = entropy.sum(-1) @ np.arange(4) / (1 if kind == "matching" else 3)
    name = "loss" if kind == "matching" else "teacher_loss"
    assert found[name][0] == pytest.approx(expected, rel=1e-5)
    agree = ((heads[2] > 0) == (answers[0] > 0)).mean(-1) @ np.arange(4)
    assert found["agreement"][0] == pytest.approx(agree)
    exclusive = make_teacher("exclusive", **classes)
    with pytest.raises(UserError, match="but an image of these data can have several"):
        setup_of(several, teachers=exclusive, kind=kind)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_student_drops_out_and_its_teachers_do_not(setup_of, make_teacher, rate):
    values = {"model.dropout_rate": rate}
    setup = setup_of(values, teachers=make_teacher(), kind="matching")
    objective, extra = setup.objective, on_device(setup.objective.extra())
    batch = on_device(batch_of(setup))
    params = jax.eval_shape(setup.init_params)

    def loss(params, key):
        return objective.loss(params, batch, key, context(extra))[0]["loss"][0]

    traced = str(jax.make_jaxpr(loss)(params, jax.random.key(0)))
    assert traced.count("random_bits") == (4 if rate else 0)


def test_loaded_views_show_the_same_crop(setup_of, make_teacher):
    teacher = make_teacher(image_size=(16, 16))
    values = {"augment.train": "resize_small(12)|random_crop|flip_lr"}
    setup = setup_of(values, teachers=teacher, kind="matching")
    small, large = setup.train_transforms.values()
    assert large.text == "resize_small(24)|random_crop|flip_lr"
    assert (small.image_size, large.image_size) == ((8, 8), (16, 16))


def test_a_grey_student_has_a_teacher_of_colours(setup_of, make_teacher):
    setup = setup_of({"model.channels": 1}, teachers=make_teacher(), kind="matching")
    objective = setup.objective
    batch, extra = on_device((batch_of(setup), objective.extra()))
    shapes = jax.eval_shape(setup.init_params)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    loss = jax.jit(
        lambda *given: objective.loss(*given[:-1], context(given[-1]))[0]["loss"][0]
    )(params, batch, jax.random.key(0), extra)
    [teacher] = objective._teachers
    coloured = np.asarray(batch["image"]).repeat(3, axis=3)
    logits = jax.jit(build(teacher.architecture).apply)(
        {"params": extra[0]}, teacher.preprocessing.normalize(coloured)
    )
    # The student's outputs are all zero: log K less the entropy.
    p = jax.nn.softmax(logits)
    expected = np.log(10) + np.sum(p * np.log(p), axis=-1)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


def test_memory_does_not_grow_with_the_depth_of_the_teacher(setup_of, make_teacher):
    """Compares the temporary memory beside the parameters, of two depths."""
    taken = []
    for depth in (2, 6):
        teacher = make_teacher(f"{depth}", depth=depth, image_size=(32, 32))
        values = {"batch_size": 64, "model.distillation_token": False}
        setup = setup_of(values, teachers=teacher, kind="matching")
        objective = setup.objective

        def loss(params, extra, batch, objective=objective):
            sums, _ = objective.loss(params, batch, jax.random.key(0), context(extra))
            return sums["loss"][0]

        state, batch, extra = setup.abstract_arguments()
        program = jax.jit(jax.grad(loss)).lower(state.params, extra, batch).compile()
        taken.append(program.memory_analysis().temp_size_in_bytes)
    activations = 64 * 65 * 16 * 4  # one array of tokens of the teacher
    assert taken[1] - taken[0] < activations


def test_a_run_resumes_with_its_teacher_wherever_it_lies_and_with_no_other(
    tiny_config, make_teacher, tmp_path
):
    first, other = make_teacher("a", image_size=(16, 16)), make_teacher("b", seed=1)
    moved = str(shutil.copy(first, tmp_path / "moved.safetensors"))

    def run(workdir, teacher, steps):
        values = {"schedule": "constant", "total_steps": steps, "eval_batch_size": 40}
        split = {"eval_split": "test[:40]", "model.distillation_token": False}
        config = tiny_config(**{**CONFIG, **values, **split})
        config.objective_options = ConfigDict({"teachers": teacher, "kind": "soft"})
        return train_and_evaluate(config, str(tmp_path / workdir))

    whole = run("whole", first, 4)
    run("parts", first, 2)
    facts = load_description(tmp_path / "parts").objective
    assert facts == {"teachers": [checksum_of(load_weights(first))]}
    with pytest.raises(
        UserError, match=r"has read other things .*: teachers"
    ) as raised:
        run("parts", other, 4)
    assert str(raised.value).count("\n") <= 2
    assert run("parts", moved, 4) == whole
    both = [
        (tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")
    ]
    lines = [json.loads(line) for line in both[0].splitlines()]
    assert {"agreement", "label_loss", "teacher_loss", "accuracy"} <= lines[0].keys()
    splits = [
        [x for x in map(json.loads, text.splitlines()) if x["split"] == "train"]
        for text in both
    ]
    assert splits[0] == splits[1]
    # The teacher is in no checkpoint.
    student = abstract_params(load_description(tmp_path / "parts").architecture)
    assert load_params(tmp_path / "parts").keys() == student.keys()
    names = [path.name for path in (tmp_path / "parts/checkpoints/4").iterdir()]
    assert "objective" not in names
