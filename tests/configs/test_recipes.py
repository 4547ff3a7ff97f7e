"""Every shipped recipe: resolved, checked, lowered, and trained small."""

import pathlib

import jax
import numpy as np
import pytest

from vit_jax.config.recipes import load_recipe
from vit_jax.data.sources.datasets import PRESETS, open_dataset
from vit_jax.errors import UserError
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.programs import build
from vit_jax.train.setup import set_up

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

# Every recipe with the arguments it knows; the first is its default.
ARGUMENTS = {
    "augreg": [
        "",
        "Ti/16,imagenet21k",
    ],
    "b16": ["", *(name for name in PRESETS if "imagenet21k" != name != "jft300m")],
    "deit3": [
        "",
        "pretrain,S,400",
        "pretrain,H,800",
        "finetune,B,224",
        "finetune,S,384",
        "finetune,L,384",
        "pretrain,digits",
        "finetune,digits",
        "pretrain,fashion,,digits",
        "finetune,fashion,,digits",
    ],
    "mae": [
        "finetune,B",
        "",
        "pretrain,H",
        "finetune,L",
        "probe,B",
        "probe,H",
        "pretrain,digits",
        "finetune,digits",
        "probe,digits",
        "pretrain,fashion,digits",
        "finetune,fashion,digits",
        "probe,fashion,digits",
    ],
    "deit": [
        "",
        "S/16,imagenet2012,384",
        "B/16,imagenet2012,teacher=runs/large",
        "S/16,imagenet2012,teacher=runs/large,384",
        "digits",
        "digits,,32",
        "digits,,teacher=runs/large",
        "fashion,digits",
        "fashion,digits,28",
    ],
    "distill": [
        "",
        "S/16,imagenet2012,bit",
        "B/16,oxford_flowers102",
        "Ti/16,oxford_iiit_pet,long",
        "teacher,digits",
        "student,digits",
        "control,digits",
    ],
    "dino": ["", "B/16", "S/8,imagenet21k", "digits"],
    "cifar": ["", "cifar10", "cifar100", "digits"],
    "pretrain": [
        "",
        "B/16,imagenet21k",
        "B/32,jft300m",
        "L/32,jft300m",
        "L/16,jft300m",
        "H/14,jft300m",
        "L/16,imagenet21k",
        "S/16,imagenet2012",
        "B/16,digits",
    ],
    "probe": ["", "oxford_iiit_pet", "digits"],
    "quickstart": ["pretrain", "finetune", "control"],
}
# Recipes that learn without labels, with what makes their options small.
UNLABELLED = {
    "dino": [
        "--config.objective_options.out_dim=64",
        "--config.objective_options.freeze_last_layer=0",
        "--config.objective_options.warmup_teacher_temp_epochs=0",
    ],
}
ALL = [(name, argument) for name, some in ARGUMENTS.items() for argument in some]

# What makes any recipe small enough to train here.
REDUCED = (
    "--config.dataset=digits",
    "--config.train_split=train",
    "--config.eval_split=test",
    "--config.pretrained=",
    "--config.image_size=8",
    "--config.batch_size=16",
    "--config.accum_steps=2",
    "--config.eval_batch_size=360",
    "--config.mesh.data=1",
    "--config.total_steps=2",
    "--config.warmup_steps=1",
    "--config.augment.eval=resize",
    "--config.augment.train=resize(10)|random_crop",
    "--config.augment.repeats=2",
    "--config.model.variant=Ti/4",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.mlp_dim=32",
    "--config.model.num_heads=2",
)


def load(name, argument="", *overrides):
    suffix = f":{argument}" if argument else ""
    return load_recipe(["main", f"--config={CONFIGS / name}.py{suffix}", *overrides])[0]


@pytest.fixture
def taught(make_teacher):
    """Returns a function that gives a small teacher to a recipe that needs one."""

    def give(config):
        if config.objective == "distillation":
            classes = open_dataset(config.dataset).info.num_classes
            channels = config.model.channels
            config.objective_options.teachers = make_teacher(
                class_names=(), num_classes=classes, channels=channels
            )
        return config

    return give


def test_every_recipe_is_listed_here():
    assert sorted(ARGUMENTS) == sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize(("name", "argument"), ALL)
def test_resolves_without_weights_or_data(name, argument, taught):
    # The digits stand for Fashion-MNIST, of which as many epochs are 40 times as long.
    longer = ["--config.total_epochs=40"] if "fashion,digits" in argument else []
    setup = set_up(taught(load(name, argument, *longer)))
    assert setup.config.total_steps > setup.config.warmup_steps
    state = setup.abstract_state()
    if name in UNLABELLED or setup.config.objective == "masked_autoencoding":
        assert "head" not in state.params
    else:
        assert state.params["head"]["kernel"].shape[-1] == setup.info.num_classes


@pytest.mark.parametrize("name", ARGUMENTS)
def test_lowers_at_full_size(name, taught):
    config = taught(load(name, ARGUMENTS[name][0]))
    mesh = set_up(config).mesh
    step, arguments = build(config, mesh)
    text = step.lower(*arguments).as_text()
    assert "stablehlo.dot_general" in text
    assert f"tensor<{config.batch_size}x" in text


@pytest.mark.parametrize("name", ARGUMENTS)
def test_trains_small(name, tmp_path, taught):
    flags = [*REDUCED, *UNLABELLED.get(name, ())]
    config = taught(load(name, ARGUMENTS[name][0], *flags))
    numbers = train_and_evaluate(config, str(tmp_path / "run"))
    if name in UNLABELLED:
        assert numbers["knn/examples"] == 360
        return
    assert numbers["examples"] == 360
    assert 0 < numbers["loss"] < 100


@pytest.mark.parametrize(
    ("argument", "epochs", "rate", "schedule", "decay", "dropout", "clip"),
    [
        # ViT paper, table 3.
        ("B/32,jft300m", 7, 8e-4, "linear", 0.1, 0.0, 0.0),
        ("L/32,jft300m", 7, 6e-4, "linear", 0.1, 0.0, 0.0),
        ("L/16,jft300m", 14, 4e-4, "linear", 0.1, 0.0, 0.0),
        ("H/14,jft300m", 14, 3e-4, "linear", 0.1, 0.0, 0.0),
        ("R50+B/16,jft300m", 7, 8e-4, "linear", 0.1, 0.0, 0.0),
        ("R50+L/32,jft300m", 7, 2e-4, "linear", 0.1, 0.0, 0.0),
        ("B/16,imagenet21k", 90, 1e-3, "linear", 0.03, 0.1, 0.0),
        ("L/16,imagenet21k", 90, 1e-3, "linear", 0.03, 0.1, 0.0),
        ("B/16,imagenet2012", 300, 3e-3, "cosine", 0.3, 0.1, 1.0),
    ],
)
def test_pretraining_rows_of_the_paper(
    argument, epochs, rate, schedule, decay, dropout, clip
):
    config = load("pretrain", argument)
    assert config.total_epochs == epochs
    assert config.learning_rate == rate
    assert config.schedule == schedule
    assert config.weight_decay == decay
    assert config.model.dropout_rate == dropout
    assert config.grad_clip_norm == clip
    assert (config.batch_size, config.warmup_steps) == (4096, 10_000)
    assert (config.loss, config.model.head_bias) == ("sigmoid", -10.0)
    assert (config.b1, config.b2) == (0.9, 0.999)
    architecture = set_up(config).architecture
    assert architecture.pre_logits == architecture.width


@pytest.mark.parametrize(
    ("argument", "chain", "mixup", "bias"),
    [
        ("B/16,imagenet2012", "|randaugment(2, 15)", 0.5, -6.9),
        ("Ti/16,imagenet2012", "|randaugment(2, 0)", 0.0, -6.9),
        ("Ti/16,imagenet21k", "", 0.0, -10.0),
        ("B/16,imagenet21k", "|randaugment(2, 10)", 0.2, -10.0),
        ("B/16,imagenet21k,strong2", "|randaugment(2, 20)", 0.8, -10.0),
    ],
)
def test_augmentation_levels_of_augreg(argument, chain, mixup, bias):
    config = load("augreg", argument)
    assert config.augment.train == "inception_crop|flip_lr" + chain
    assert (config.mixing.form, config.mixing.mixup_alpha) == ("big_vision", mixup)
    assert (config.model.head_bias, config.loss) == (bias, "sigmoid")
    with pytest.raises(UserError, match="level 'heavy': choose from none, light1"):
        load("augreg", "B/16,imagenet2012,heavy")


def test_augmentation_of_deit():
    setup = set_up(load("deit"))
    mixing = setup.config.mixing
    assert (mixing.form, mixing.mixup_alpha, mixing.cutmix_alpha) == ("timm", 0.8, 1.0)
    assert (mixing.erasing_prob, setup.config.augment.repeats) == (0.25, 3)
    assert "timm_randaugment('rand-m9-mstd0.5-inc1')" in setup.config.augment.train
    image = np.zeros((300, 400, 3), np.uint8)
    chain = setup.train_transforms["image"]
    assert chain(image, np.random.default_rng(0)).shape[:2] == (224, 224)


def test_distillation_and_fine_tuning_of_deit(taught):
    plain, tuned = load("deit", "B/16"), load("deit", "B/16,imagenet2012,384")
    config = load("deit", "B/16,imagenet2012,teacher=runs/a;runs/b,384")
    options = config.objective_options
    assert (config.name, plain.objective) == (
        "deit-B16-distilled-384",
        "classification",
    )
    assert options.kind == "hard"
    assert options.teachers == "runs/a;runs/b"
    # DeiT-B with two tokens and heads has 87,338,192 parameters at 224.
    distilled = load("deit", "B/16,imagenet2012,teacher=x")
    state = set_up(taught(distilled)).abstract_state()
    assert sum(x.size for x in jax.tree.leaves(state.params)) == 87_338_192
    assert (tuned.learning_rate, tuned.weight_decay) == (5e-6, 1e-8)
    assert (tuned.schedule, tuned.image_size) == ("constant", (384,))
    assert (tuned.total_epochs, tuned.reset_head) == (30.0, False)
    assert tuned.warmup_steps == round(5 * 1_281_167 / tuned.batch_size)
    with pytest.raises(
        UserError, match=r"option '385': choose from teacher=MODEL, 384"
    ):
        load("deit", "B/16,imagenet2012,385")
    with pytest.raises(UserError, match=r"option '384': choose from .*MODEL, 32"):
        load("deit", "digits,,384")


def test_small_rows_of_deit():
    small, tuned = load("deit", "digits"), load("deit", "digits,,32")
    assert (small.image_size, tuned.image_size) == ((24,), (32,))
    assert (tuned.total_epochs, tuned.reset_head) == (10.0, False)
    assert small.mixing == load("deit", "S/16").mixing


def test_the_small_student_of_fashion_mnist_sees_no_mixed_images():
    student = load("distill", "student,elsewhere/fashion-mnist")
    assert student.mixing.mixup_alpha == 0.0
    assert load("distill", "student,digits").mixing.mixup_alpha == 1.0
    assert (student.model.width, student.image_size) == (48, (28,))


@pytest.mark.parametrize(
    ("argument", "epochs", "batch", "temperature", "rate", "decay"),
    [
        ("B/16,imagenet2012,bit", 1200, 4096, 1.0, 0.03, 3e-4),
        ("B/16,imagenet2012,90", 90, 1024, 1.0, 1e-4, 1e-5),
        ("B/16,oxford_flowers102,fast", 10_000, 512, 10.0, 0.003, 3e-4),
        ("B/16,oxford_iiit_pet,long", 30_000, 512, 2.0, 0.003, 1e-5),
        ("B/16,sun397,medium", 1000, 512, 10.0, 0.001, 1e-4),
    ],
)
def test_rows_of_function_matching(argument, epochs, batch, temperature, rate, decay):
    config = load("distill", argument)
    options = config.objective_options
    assert (options.kind, options.distance) == ("matching", "kl")
    assert (config.total_epochs, config.batch_size) == (epochs, batch)
    assert (options.temperature, config.learning_rate) == (temperature, rate)
    assert config.weight_decay * rate == pytest.approx(decay)
    assert config.mixing.mixup_alpha == 1.0
    with pytest.raises(UserError, match="length 'soon': choose from"):
        load("distill", "B/16,imagenet2012,soon")


@pytest.mark.parametrize(
    ("argument", "normalised", "temperature", "warmup"),
    [("S/16", False, 0.07, 30), ("B/16", True, 0.04, 0)],
)
def test_self_distillation_of_the_paper(argument, normalised, temperature, warmup):
    setup = set_up(load("dino", argument))
    config, options = setup.config, setup.config.objective_options
    assert (options.norm_last_layer, options.teacher_temp) == (normalised, temperature)
    assert options.warmup_teacher_temp_epochs == warmup
    assert (config.learning_rate, config.min_learning_rate) == (2e-3, 1e-6)
    assert (config.weight_decay, config.weight_decay_end) == (0.04, 0.4)
    assert (config.grad_clip_norm, config.grad_clip_parameter_norm) == (0.0, 3.0)
    assert (config.model.stochastic_depth, config.batch_size) == (0.1, 1024)
    assert config.total_steps == round(100 * 1_281_167 / 1024)
    assert config.warmup_steps == round(10 * 1_281_167 / 1024)
    sizes = [chain.image_size for chain in setup.train_transforms.values()]
    assert sizes == [(224, 224)] * 2 + [(96, 96)] * 8
    head = setup.abstract_state().params["projection_head"]
    assert head["fc1"]["kernel"].shape == (setup.architecture.width, 2048)
    assert head["fc2"]["kernel"].shape == (2048, 2048)
    assert head["last_layer"]["kernel"].shape == (256, 65_536)
    assert ("scale" in head["last_layer"]) != normalised
    [begin] = setup.groups.values("begin") - {0}
    assert begin == -(-1_281_167 // 1024)


def test_fine_tuning_of_the_paper():
    config = load("b16")
    assert (config.optimizer, config.momentum, config.weight_decay) == ("sgd", 0.9, 0)
    assert (config.batch_size, config.grad_clip_norm) == (512, 1.0)
    assert (config.schedule, config.image_size) == ("cosine", (384,))
    assert config.posemb_resize == "google"
    assert config.reset_head
    steps = {name: load("b16", name).total_steps for name in ARGUMENTS["b16"] if name}
    assert steps == {
        "cifar10": 10_000,
        "cifar100": 10_000,
        "imagenet2012": 20_000,
        "oxford_iiit_pet": 500,
        "oxford_flowers102": 500,
        "digits": 500,
    }
    setup = set_up(config)
    assert setup.architecture.grid == (24, 24)
    # Published: 86,859,496 parameters at 384 with a thousand classes; here are ten.
    params = sum(x.size for x in jax.tree.leaves(setup.abstract_state().params))
    assert params == 86_859_496 - 990 * 769


def test_the_small_model_has_64_and_one_tokens():
    architecture = set_up(load("cifar")).architecture
    assert (architecture.width, architecture.num_tokens) == (128, 65)


def test_another_folder_gets_the_documented_default(tmp_path):
    config = load("b16", str(tmp_path))
    assert (config.dataset, config.total_steps) == (str(tmp_path), 500)
