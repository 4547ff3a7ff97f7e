"""The evaluation that a training run repeats."""

from collections.abc import Callable, Iterable
from typing import Any

from vit_jax import sharding
from vit_jax.data.loading.batches import eval_batches
from vit_jax.data.sources.protocol import Source
from vit_jax.errors import UserError
from vit_jax.evaluators.classification import evaluate
from vit_jax.train.out_of_memory import EVALUATION, out_of_memory_explained
from vit_jax.train.setup import Setup


class Evaluation:
    """Measures parameters on all held-out examples."""

    def __init__(self, setup: Setup, source: Source):
        """Compiles it: what cannot work is known before the first step is made.

        Raises:
          UserError: a device has too little memory for it.
        """
        self._setup, self._source = setup, source
        with out_of_memory_explained(setup, EVALUATION):
            self._eval_step = setup.lower_eval().compile()

    def __call__(
        self, params: Any, watch: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> dict[str, Any]:
        """loss, top1, top5, examples, bad_images; with `per_class` "top1/NAME" too.

        Args:
          params: on the devices of the mesh.
          watch: wraps the batches; may end the evaluation by an exception.
        """
        rows = self._setup.eval_rows
        batches = eval_batches(
            self._source,
            batch_size=rows,
            preprocessing=self._setup.preprocessing,
            bad_images=self._setup.config.eval_bad_images,
            rows=sharding.local_rows(self._setup.mesh, rows),
        )
        with out_of_memory_explained(self._setup, EVALUATION):
            numbers = evaluate(
                self._eval_step,
                params,
                watch(batches),
                self._setup.mesh,
                examples=len(self._source),
            )
        if not numbers["examples"]:
            raise UserError(
                f"none of the {len(self._source)} images to evaluate on can be read; "
                "check that the dataset was copied completely"
            )
        examples = numbers.pop("class_examples", ())
        right = numbers.pop("class_right", ())
        by_class = zip(self._source.class_names, examples, right, strict=False)
        return numbers | {
            f"top1/{name}": float(hits / count)
            for name, count, hits in by_class
            if count
        }
