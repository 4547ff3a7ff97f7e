import dataclasses
import io
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import model as model_module
from vit_jax import sharding
from vit_jax.api import Model
from vit_jax.config import default_config, to_plain
from vit_jax.data.loading.batches import eval_batches
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.protocol import Example
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import make_eval_step
from vit_jax.evaluators.examples import add_up
from vit_jax.models import MixerArchitecture, abstract_params, build
from vit_jax.models.attention import formulations
from vit_jax.models.positions import resize

NAMES = ("bird", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Returns a folder with three JPEGs of different sizes."""
    path = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(20, 30), (12, 8), (9, 31)]):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path / f"{number}.jpg")
    return path


@pytest.fixture
def workdir(shared, make_workdir):
    path = shared / "run"
    if not path.exists():
        make_workdir(
            path,
            class_names=NAMES,
            image_size=(8, 12),
            registers=2,
            config={"posemb_resize": "google"},
            preprocessing={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
        )
    return path


_LOADED = {}


@pytest.fixture
def model(workdir):
    return _LOADED.setdefault(workdir, vit_jax.load(workdir))


@pytest.fixture
def paths(shared):
    return sorted(shared.glob("*.jpg"))


# Imported only where they are used.
HEAVY = {
    "orbax.checkpoint",
    "grain",
    "tensorflow_datasets",
    "tensorflow",
    "jax.experimental.pallas",
    "sklearn",
}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("vit_jax", {*HEAVY, "jax", "flax"}),
        ("vit_jax.api", HEAVY),
        ("vit_jax.predict", {*HEAVY, "jax", "flax"}),
    ],
)
def test_importing_the_package_imports_nothing_heavy(module, names):
    code = f"import sys, {module}; sys.exit(str({names} & sys.modules.keys() or ''))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=vit_jax.__path__[0] + "/..",
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == ""
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        vit_jax.loda  # noqa: B018


def test_a_model_describes_itself(model):
    assert model.class_names == NAMES
    assert model.architecture.image_size == (8, 12)
    assert model.preprocessing.mean == (0.4, 0.5, 0.6)
    assert model.params["head"]["kernel"].shape == (16, 4)
    assert model.step == 3
    assert repr(model) == (
        "Model(2 blocks of width 16, 2 heads, patches 4×4, images 8×12×3, "
        f"4 classes (bird, cat, …, eel), "
        f"{sum(x.size for x in jax.tree.leaves(model.params)):,} parameters, step 3)"
    )


def test_predictions_are_those_of_the_evaluation_loop(model, paths):
    """Recovers log-probabilities from the loop's loss for each possible label."""
    mesh = sharding.make_mesh()
    step = make_eval_step(model.module, model.preprocessing, mesh, loss="softmax")
    params = jax.device_put(model.params, sharding.replicated(mesh))

    class OneImage:
        class_names, num_classes, multi_label = NAMES, 4, False

        def __init__(self, path, label):
            self.example = Example(path.read_bytes(), label, str(path))

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return self.example

    def log_probability(path, label):
        with eval_batches(
            OneImage(path, label),
            batch_size=8,
            preprocessing=model.preprocessing,
            num_threads=0,
        ) as batches:
            return -add_up(step, params, batches, mesh, examples=1)["loss"]

    logits = model(model.prepare(paths))
    for path, top, row in zip(paths, model.predict(paths), logits, strict=True):
        loop = np.array([log_probability(path, label) for label in range(4)])
        np.testing.assert_allclose(jax.nn.log_softmax(row), loop, rtol=1e-6, atol=1e-6)
        best = np.argsort(-loop)
        assert [name for name, _ in top] == [NAMES[i] for i in best]
        found = [probability for _, probability in top]
        np.testing.assert_allclose(found, np.exp(loop[best]), atol=1e-6)
        assert sum(found) == pytest.approx(1, abs=1e-6)


def test_predict_accepts_common_inputs(model, paths):
    expected = model.predict(paths, top_k=2)
    assert [len(top) for top in expected] == [2, 2, 2]
    pixels = [np.asarray(PIL.Image.open(path)) for path in paths]

    def same(found, wanted):
        assert [[n for n, _ in top] for top in found] == [
            [n for n, _ in top] for top in wanted
        ]
        np.testing.assert_allclose(
            [[p for _, p in top] for top in found],
            [[p for _, p in top] for top in wanted],
            atol=1e-6,
        )

    same(model.predict(list(map(str, paths)), top_k=2), expected)
    same(model.predict(str(paths[1]), top_k=2), expected[1:2])
    same(model.predict(pixels, top_k=2), expected)
    same(model.predict(pixels[2], top_k=2), expected[2:])
    same(model.predict(np.stack([pixels[0]] * 2), top_k=2), expected[:1] * 2)
    # More images than fit into one pass.
    same(model.predict([paths[0]] * 33 + paths, 2), expected[:1] * 33 + expected)
    same(model.predict(paths[0].parent, top_k=2), expected)
    held = (PIL.Image.open(path) for path in paths)
    same(model.predict(held, top_k=2), expected)
    mixed = [paths[0].read_bytes(), io.BytesIO(paths[1].read_bytes()), pixels[2]]
    same(model.predict(mixed, top_k=2), expected)
    same(model.predict(jnp.asarray(pixels[0]), top_k=2), expected[:1])
    np.testing.assert_array_equal(model.prepare(mixed), model.prepare(paths))
    assert len(model.predict(paths[0], top_k=99)[0]) == 4
    assert model.predict([]) == []


def test_all_unreadable_images_are_named_at_once(model, paths, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(paths[0].read_bytes()[:200])
    images = [tmp_path / "broken.jpg", *paths, tmp_path / "absent.jpg"]

    with pytest.raises(UserError) as error:
        model.predict([*images, np.zeros((4, 4, 3))])
    lines = str(error.value).splitlines()
    assert lines[0] == "3 images cannot be read:"
    assert "broken.jpg" in lines[1]
    assert "absent.jpg" in lines[2]
    assert "image 5" in lines[3]
    found = model.predict([*images, None], errors="return")
    assert [isinstance(each, UserError) for each in found] == [True, *[False] * 3] + [
        True
    ] * 2
    assert found[1:4] == model.predict(paths)
    assert str(found[0]) in lines[1]
    assert "image 5: found NoneType, expected a path" in str(found[5])
    with pytest.raises(UserError, match="images: found NoneType, expected"):
        model.predict(None)
    with pytest.raises(UserError, match="errors='ignore': choose raise or return"):
        model.predict(paths, errors="ignore")
    for top_k in (0, "3", 2.0):
        with pytest.raises(UserError, match=f"top_k={top_k!r}: expected a whole"):
            model.predict(paths, top_k=top_k)
    with pytest.raises(UserError, match="batch_size=0: expected a whole"):
        model.stream(paths, batch_size=0)


def test_a_stream_has_no_end_and_takes_no_more_than_it_needs(model, paths, tmp_path):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield from (*paths, tmp_path / "absent.jpg")

    stream = model.stream(endless(), top_k=2, batch_size=2)
    found = [next(stream) for _ in range(20)]
    stream.close()
    assert len(taken) < 12
    expected = model.predict(paths, top_k=2)
    for number, each in enumerate(found):
        if number % 4 == 3:
            assert each.image == str(tmp_path / "absent.jpg")
            assert each.top == []
            assert "absent.jpg cannot be read: No such file" in str(each.error)
        else:
            assert (each.image, each.error) == (str(paths[number % 4]), None)
            wanted = expected[number % 4]
            assert [name for name, _ in each.top] == [name for name, _ in wanted]
            np.testing.assert_allclose(
                [p for _, p in each.top], [p for _, p in wanted], atol=1e-6
            )


def test_sigmoid_models_answer_each_class_separately(shared, paths, make_workdir):
    path = make_workdir(
        shared / "sigmoid", depth=1, num_classes=6, config={"loss": "sigmoid"}
    )
    model = vit_jax.load(path)

    top = model.predict(paths[0], top_k=6)[0]
    logits = np.asarray(model(model.prepare(paths[0])))[0]
    expected = 1 / (1 + np.exp(-np.sort(logits)[::-1]))
    np.testing.assert_allclose([p for _, p in top], expected, atol=1e-6)
    # Their names are unknown.
    assert [name for name, _ in top] == [str(i) for i in np.argsort(-logits)]


def test_a_single_output_answers_yes_or_no(shared, paths, make_workdir):
    path = shared / "one"
    if not path.exists():
        make_workdir(path, depth=1, class_names=("tumour",))
    model = vit_jax.load(path)
    assert model.outputs == "independent"
    logits = np.asarray(model(model.prepare(paths)))[:, 0]
    found = model.predict(paths)
    assert [name for [(name, _)] in found] == ["tumour"] * 3
    np.testing.assert_allclose(
        [p for [(_, p)] in found], 1 / (1 + np.exp(-logits)), atol=1e-6
    )
    with pytest.raises(UserError, match=r"single output, .* choose independent or num"):
        vit_jax.load(path, outputs="exclusive")
    with pytest.raises(UserError, match="outputs='yes': choose from exclusive, indepe"):
        model.outputs = "yes"


def test_plain_numbers_are_returned_in_their_order(workdir, paths):
    model = vit_jax.load(workdir, outputs="numbers")
    found = model.predict(paths, top_k=1)
    logits = np.asarray(model(model.prepare(paths)))
    assert [[name for name, _ in row] for row in found] == [list(NAMES)] * 3
    np.testing.assert_allclose(
        [[value for _, value in row] for row in found], logits, atol=1e-5
    )


@pytest.mark.parametrize("outputs", ["independent", "numbers"])
def test_an_output_is_not_called_by_the_first_of_several_classes(
    outputs, make_workdir, tmp_path, paths
):
    # An objective may train one output on data with many classes, such as ages.
    names = ("18", "30", "65")
    path = make_workdir(tmp_path / "run", depth=1, class_names=names, num_classes=1)
    model = vit_jax.load(path, outputs=outputs)
    assert model.class_names == ()
    assert [[name for name, _ in row] for row in model.predict(paths)] == [["0"]] * 3
    again = vit_jax.load(vit_jax.save(model, tmp_path / "model.safetensors"))
    assert (again.class_names, again.outputs) == ((), outputs)


@pytest.mark.parametrize("outputs", ["exclusive", "independent", "numbers"])
def test_the_meaning_that_was_passed_is_saved(workdir, tmp_path, outputs):
    model = vit_jax.load(workdir, outputs=outputs)
    path = vit_jax.save(model, tmp_path / "model.safetensors")
    assert vit_jax.load(path).outputs == outputs
    noun = {"independent": "independent classes", "numbers": "plain numbers"}
    assert f"4 {noun.get(outputs, 'classes')} (bird, cat, …, eel)" in repr(model)
    with pytest.raises(UserError, match="outputs='softmax': choose from exclusive, in"):
        vit_jax.load(path, outputs="softmax")


def test_a_new_head_chooses_between_classes(workdir):
    numbers = vit_jax.load(workdir, outputs="numbers").outputs
    assert numbers == "numbers"
    assert vit_jax.load(workdir, num_classes=3).outputs == "exclusive"
    assert vit_jax.load(workdir, num_classes=1).outputs == "independent"
    assert vit_jax.load(workdir, num_classes=1, outputs=numbers).outputs == numbers


def test_equal_probabilities_are_ordered_by_the_logits(workdir, paths):
    model = vit_jax.load(workdir)
    # All round to probability 1 in float32.
    model.params["head"]["kernel"] = jnp.zeros_like(model.params["head"]["kernel"])
    model.params["head"]["bias"] = jnp.array([30.0, 50.0, 40.0, 60.0])
    model.outputs = "independent"
    [top] = model.predict(paths[0])
    assert top == [(name, 1.0) for name in ("eel", "cat", "dog", "bird")]


def _intermediates(model, images, *names):
    apply = jax.jit(partial(model.module.apply, intermediates=names))
    return apply({"params": model.params}, images)[1]


def test_features_have_the_shape_of_the_grid(model, paths):
    images = model.prepare(paths)
    found = model.features(images, layers=(0, -1))
    parts = _intermediates(model, images, "tokens", "pooled")

    assert found.patches.shape == (3, 2, 2, 3, 16)
    assert found.prefix.shape == (3, 2, 3, 16)
    for place, layer in ((0, 0), (1, 1)):
        tokens = parts["tokens"][:, layer]
        patches = found.patches[:, place].reshape(3, 6, 16)
        np.testing.assert_allclose(patches, tokens[:, 3:], atol=1e-5)
        np.testing.assert_allclose(found.prefix[:, place], tokens[:, :3], atol=1e-5)
    np.testing.assert_allclose(found.pooled, parts["pooled"], atol=1e-5)
    with pytest.raises(UserError, match=r"layers \[2\]: the model has 2 blocks"):
        model.features(images, layers=(0, 2))
    for layers in (1, "all"):
        with pytest.raises(UserError, match=f"layers={layers!r}: expected a list"):
            model.features(images, layers=layers)
    with pytest.raises(UserError, match=r"layers \['x'\]"):
        model.features(images, layers=["x"])


def test_attention_rows_sum_to_one(model, paths):
    weights = model.attention(model.prepare(paths))

    assert weights.shape == (3, 2, 2, 9, 9)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert float(weights.min()) >= 0
    assert float(weights.std()) > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 12, 3), np.float32), r"shape \(8, 12, 3\); expected \(batch"),
        (np.zeros((1, 8, 8, 3), np.float32), r"shape \(1, 8, 8, 3\); expected"),
        (np.zeros((1, 8, 12, 3), np.uint8), "type uint8; expected floats"),
    ],
)
def test_unsuitable_arrays_are_rejected(model, images, message):
    for use in (model, model.features, model.attention):
        with pytest.raises(UserError, match=message):
            use(images)


@pytest.mark.parametrize(
    ("image_size", "method", "expected"),
    [(16, None, "google"), ((16, 8), "bicubic", "bicubic")],
)
def test_another_image_size(workdir, model, paths, image_size, method, expected):
    found = vit_jax.load(workdir, image_size=image_size, posemb_resize=method)
    size = (16, 16) if image_size == 16 else image_size
    grid = (size[0] // 4, size[1] // 4)

    assert found.architecture == dataclasses.replace(
        model.architecture, image_size=size
    )
    assert found.preprocessing == dataclasses.replace(
        model.preprocessing, image_size=size
    )
    moved = resize(model.params["pos_embed"], grid, expected)
    np.testing.assert_array_equal(found.params["pos_embed"], moved)
    np.testing.assert_array_equal(
        found.params["head"]["kernel"], model.params["head"]["kernel"]
    )
    assert found.prepare(paths).shape == (3, *size, 3)
    assert found.class_names == NAMES


def test_other_classes_get_a_new_head(workdir, model, paths):
    found = vit_jax.load(workdir, num_classes=7)
    assert found.class_names == ()
    assert not np.asarray(found.params["head"]["kernel"]).any()
    np.testing.assert_array_equal(found(found.prepare(paths)), np.zeros((3, 7)))
    assert vit_jax.load(workdir, num_classes=4).class_names == NAMES

    headless = vit_jax.load(workdir, num_classes=0)
    images = model.prepare(paths)
    parts = _intermediates(model, images, "pre_logits")
    np.testing.assert_allclose(headless(images), parts["pre_logits"], atol=1e-5)
    with pytest.raises(UserError, match="no head"):
        headless.predict(paths)


def test_dtype_of_activations(workdir, model, paths):
    found = vit_jax.load(workdir, dtype="bfloat16")
    assert model.module.dtype == jnp.float32
    assert found.module.dtype == jnp.bfloat16
    images = model.prepare(paths)
    difference = np.abs(np.asarray(found(images) - model(images)))
    assert 0 < difference.max() < 0.2
    assert found.params["norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 10}, r"height 10 .*nearest: 8 and 12"),
        ({"posemb_resize": "cubic"}, "posemb_resize='cubic': choose from bicubic"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"dtype": "float7"}, "dtype='float7'"),
        ({"dtype": "int32"}, "dtype='int32': choose float32 or bfloat16"),
        ({"image_size": "384"}, "image_size='384': expected a number of pixels, or"),
        ({"image_size": 384.0}, "image_size=384.0: expected"),
        ({"image_size": (8, 12, 3)}, r"image_size=\(8, 12, 3\): expected"),
        ({"patch_size": ()}, r"patch_size=\(\): expected"),
        ({"trained_image_size": "8"}, "trained_image_size='8': expected"),
    ],
)
def test_impossible_values_are_refused(workdir, options, message):
    with pytest.raises(UserError, match=message):
        vit_jax.load(workdir, **options)


def test_a_source_is_a_path_or_a_name():
    with pytest.raises(UserError, match="source=None: expected a path"):
        vit_jax.load(None)


def test_sizes_may_be_numpy_numbers_or_lists(workdir):
    for size in (np.int64(16), [16], (16, 16)):
        assert vit_jax.load(workdir, image_size=size).architecture.grid == (4, 4)


def test_changes_are_logged_without_logging_being_set_up(workdir):
    script = f"import vit_jax; vit_jax.load({str(workdir)!r}, num_classes=7)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "head replaced by a new one with zeros: 4 classes before" in done.stderr


def test_another_patch_size_and_other_channels(workdir, model):
    found = vit_jax.load(workdir, patch_size=(2, 4), channels=1)
    a = model.architecture
    assert found.architecture == dataclasses.replace(a, patch_size=(2, 4), channels=1)
    assert found.preprocessing.channels == 1
    assert found.params["patch_embed"]["kernel"].shape == (2, 4, 1, a.width)
    # A grey image has the same meaning, although every channel had its own mean.
    grey = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 1), np.uint8)
    single = vit_jax.load(workdir, channels=1)
    np.testing.assert_allclose(
        single(single.prepare(grey)),
        model(model.prepare(np.repeat(grey, 3, axis=-1))),
        atol=1e-5,
    )
    assert found.params["pos_embed"].shape[1] == 2 * model.params["pos_embed"].shape[1]


def test_a_range_of_the_input_can_be_folded_into_the_weights(tmp_path, make_workdir):
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)
    path = make_workdir(tmp_path / "run", preprocessing={"mean": mean, "std": std})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    plain, folded = vit_jax.load(path), vit_jax.load(path, fold_normalization=True)
    assert folded.preprocessing.mean == folded.preprocessing.std == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(
        folded(folded.prepare(pixels)), plain(plain.prepare(pixels)), atol=1e-4
    )


def test_the_tanh_layer_can_be_removed(tmp_path, make_workdir):
    path = make_workdir(tmp_path / "run", pre_logits=6, depth=1)
    kept, dropped = vit_jax.load(path), vit_jax.load(path, pre_logits=False)
    assert kept.architecture.pre_logits == 6
    assert dropped.architecture.pre_logits == 0
    assert dropped.params["head"]["kernel"].shape == (16, 10)
    assert not np.asarray(dropped.params["head"]["kernel"]).any()
    features = vit_jax.load(path, pre_logits=False, num_classes=0)
    assert features(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 16)


def test_a_mixer_gives_features_and_no_attention(tmp_path):
    architecture = MixerArchitecture(
        width=8,
        depth=2,
        tokens_mlp_dim=4,
        mlp_dim=16,
        patch_size=(4, 4),
        image_size=(8, 12),
        num_classes=3,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        abstract_params(architecture),
    )
    config = to_plain(default_config())
    made = Model(
        build(architecture), params, Preprocessing((8, 12)), ("a", "b", "c"), config, 0
    )
    model = vit_jax.load(
        vit_jax.save(made, tmp_path / "mixer.npz", "google"), image_size=(8, 12)
    )
    assert model.architecture == architecture
    images = np.zeros((1, 8, 12, 3), np.float32)
    np.testing.assert_array_equal(model(images), made(images))
    features = model.features(images, layers=[0, 1])
    assert features.patches.shape == (1, 2, 2, 3, 8)
    assert features.prefix.shape == (1, 2, 0, 8)
    with pytest.raises(UserError, match="has no attention"):
        model.attention(images)
    assert "4 channels across tokens" in repr(model)


def test_a_model_trained_with_cudnn_works_on_the_cpu(tmp_path, make_workdir):
    path = make_workdir(tmp_path / "run", config={"model": {"attention": "cudnn"}})
    model = vit_jax.load(path)
    assert model.module.attention == formulations.FASTEST_ON_CPU
    assert model(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 10)


def test_predictions_of_a_few_images_are_one_program(model):
    images = [np.full((8, 12, 3), 20 * i, np.uint8) for i in range(8)]
    model_module._logits.clear_cache()
    expected = model.predict(images)
    for count in (5, 7, 8):
        assert model.predict(images[:count]) == expected[:count]
    assert model_module._logits._cache_size() == 1
    # More images make full batches, and a rest.
    many = images * 9
    found = model.predict(many)
    assert len(found) == 72
    assert model_module._logits._cache_size() == 2
