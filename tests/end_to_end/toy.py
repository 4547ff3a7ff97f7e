"""An objective and an evaluator that use nothing but the protocols.

Self-distillation: the student sees a small crop and has to predict the output of an
averaged copy of itself for a large crop, and is drawn to the features of a frozen
teacher. The teacher has its own normalisation, and the loss its own denominator.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.transforms.chains import parse_chain
from vit_jax.evaluators.protocol import Evaluator
from vit_jax.models import build
from vit_jax.objectives.classification import init_model
from vit_jax.objectives.inputs import normalised
from vit_jax.objectives.protocol import Images, Objective
from vit_jax.sharding import PlacedModel, place

OUTPUTS = 12


class SelfDistillation(Objective):
    """Distillation with a student, its averaged copy, a centre and a frozen teacher."""

    sharding_rules = (("projection", ("fsdp", None)),)
    choices = (False, True)  # whether the large view is flipped

    def __init__(self, given, momentum=0.9, temperature=0.5, teacher_seed=7):
        self.given, self.momentum = given, momentum
        self.temperature, self.teacher_seed = temperature, teacher_seed
        channels = given.architecture.channels
        # Two sizes of the same image; the model takes the smaller.
        self.small = given.architecture.image_size
        self.large = tuple(2 * side for side in self.small)
        self.inputs = {
            "image": Images(given.train_chain, channels),
            "large": Images(parse_chain("inception_crop", self.large), channels),
        }
        self.teacher_range = Preprocessing(
            self.small, channels, mean=(0.3,), std=(0.2,)
        )
        self.student = given.placed_model
        self.teacher = PlacedModel(build(given.architecture), given.mesh)

    def init(self, key):
        key, projection_key = jax.random.split(key)
        shape = (self.given.architecture.width, OUTPUTS)
        projection = 0.1 * jax.random.normal(projection_key, shape)
        return {**init_model(self.given, key), "projection": projection}

    def extra(self):
        params = init_model(self.given, jax.random.key(self.teacher_seed))
        return jax.tree.map(np.asarray, params)

    def init_state(self, params):
        return {"average": params, "centre": jnp.zeros(OUTPUTS)}

    def choice(self, step):
        return step % 3 == 1

    def prepare(self, key, batch, choice):
        # Every second pixel of the large view: the copy sees more of the image.
        large = batch["large"][:, ::2, ::2]
        flipped = large[:, :, ::-1] if choice else large
        return {**batch, "large": flipped}, key

    def loss(self, params, batch, key, context):
        small, large = batch["image"], batch["large"]
        average, centre = context.state["average"], context.state["centre"]
        ours = self.given.preprocessing
        features = self.student(params, normalised(small, ours), train=True, key=key)
        guesses = jax.nn.log_softmax(features @ params["projection"])
        seen = self.student(average, normalised(large, ours)) @ average["projection"]
        wanted = jax.nn.softmax((seen - centre) / self.temperature)
        wanted = jax.lax.stop_gradient(wanted)
        entropy = -jnp.sum(wanted * guesses, axis=-1)
        taught = self.teacher(context.extra, self.teacher_range.normalize(large))
        distance = jnp.mean((features - taught) ** 2, axis=-1)
        mask = batch["mask"]
        # Bright images count twice.
        weights = mask * jnp.where(small.mean((1, 2, 3)) > 40, 2.0, 1.0)
        outputs = jnp.sum(wanted * mask[:, None], axis=0)
        return {
            "loss": (jnp.sum((entropy + 0.1 * distance) * weights), jnp.sum(weights)),
            "distance": (jnp.sum(distance * mask), jnp.sum(mask)),
        }, {"outputs": outputs, "count": jnp.sum(mask)}

    def after(self, state, additive, params, step):
        m = jnp.minimum(self.momentum, (1.0 + step) / (10.0 + step))
        mean = additive["outputs"] / jnp.maximum(additive["count"], 1.0)
        return {
            "average": jax.tree.map(
                lambda old, new: m * old + (1 - m) * new, state["average"], params
            ),
            "centre": 0.9 * state["centre"] + 0.1 * jnp.log(mean + 1e-6),
        }

    def models(self, params, state):
        names = params.keys()
        average = {name: state["average"][name] for name in names}
        return {"": params, "average": average}


class NearestMean(Evaluator):
    """Accuracy by the nearest class mean of the training examples' features."""

    better = {"accuracy": 1.0}  # noqa: RUF012

    def __init__(self, subject, data, metric="euclid"):
        if metric not in ("euclid", "cosine"):
            raise ValueError(metric)
        self.metric, self.mesh = metric, subject.mesh
        model, ours = subject.placed_model, subject.preprocessing
        self.features = jax.jit(lambda p, images: model(p, ours.normalize(images)))
        self.train = data.examples(subject, data.train_split)
        self.held_out = data.examples(subject)

    def __call__(self, params, watch=iter):
        (x, labels), (y, expected) = (
            self._features(params, examples, watch)
            for examples in (self.train, self.held_out)
        )
        classes = np.unique(labels)
        means = np.stack([x[labels == c].mean(0) for c in classes])
        nearest = ((y[:, None] - means[None]) ** 2).sum(-1).argmin(1)
        return {"accuracy": float(np.mean(classes[nearest] == expected))}

    def _features(self, params, examples, watch):
        features, labels = [], []
        with examples.batches() as batches:
            for rows in watch(batches):
                counts = rows["mask"] > 0
                images = place({"image": rows["image"]}, self.mesh)["image"]
                found = np.asarray(self.features(params, images))[counts]
                if self.metric == "cosine":
                    found /= np.linalg.norm(found, axis=-1, keepdims=True)
                features.append(found)
                labels.append(rows["label"][counts])
        return np.concatenate(features), np.concatenate(labels)
