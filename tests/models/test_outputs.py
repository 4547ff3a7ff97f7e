import math

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from vit_jax.command import define_outputs
from vit_jax.models import outputs
from vit_jax.objectives.losses import LOSSES

LOGITS = [[math.log(1), math.log(3), math.log(4)], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("meaning", "shown"),
    [
        ("exclusive", [[1 / 8, 3 / 8, 4 / 8], [1 / 3, 1 / 3, 1 / 3]]),
        ("independent", [[1 / 2, 3 / 4, 4 / 5], [1 / 2, 1 / 2, 1 / 2]]),
        ("numbers", LOGITS),
    ],
)
def test_outputs_are_shown_by_their_meaning(meaning, shown):
    found = outputs.show(meaning, jnp.array(LOGITS))
    np.testing.assert_allclose(found, shown, rtol=1e-6, atol=0)
    assert outputs.is_probability(meaning) == (meaning != "numbers")


def test_half_precision_outputs_are_shown_in_full_precision():
    found = outputs.show("independent", jnp.array([[-12.0, 12.0]], jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0, 0], 1 / (1 + math.exp(12)), rtol=1e-6)


def test_the_flag_has_every_meaning():
    values = flags.FlagValues()
    define_outputs(values)
    for meaning in outputs.MEANINGS:
        values(["", f"--outputs={meaning}"])
        assert values.outputs == meaning
    with pytest.raises(flags.IllegalFlagValueError, match="exclusive"):
        values(["", "--outputs=softmax"])


def test_every_loss_has_its_meaning():
    assert {loss: outputs.of_loss(loss) for loss in LOSSES} == {
        "softmax": "exclusive",
        "sigmoid": "independent",
        "softmax_focal": "exclusive",
        "sigmoid_focal": "independent",
        "asymmetric": "independent",
    }
    assert outputs.of_loss("") == "exclusive"  # a run of another program


def test_a_single_output_never_chooses_between_classes():
    assert outputs.readable("exclusive", 1) == "independent"
    assert outputs.readable("independent", 1) == "independent"
    assert outputs.readable("numbers", 1) == "numbers"
    assert outputs.readable("exclusive", 2) == "exclusive"
