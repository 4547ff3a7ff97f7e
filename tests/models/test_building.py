import jax
import jax.numpy as jnp
import pytest

from vit_jax.models import MlpMixer, VisionTransformer, abstract_params, blocks, build


def test_each_kind_of_architecture_has_a_module(tiny, tiny_mixer):
    how = {"dtype": jnp.bfloat16, "scan": True, "attention": "xla"}
    vit = build(tiny(), **how, layer_scale_init=0.1)
    assert vit == VisionTransformer(tiny(), **how, layer_scale_init=0.1)
    mixer = build(tiny_mixer(), **how, layer_scale_init=0.1)
    assert mixer == MlpMixer(tiny_mixer(), jnp.bfloat16, scan=True)


@pytest.mark.parametrize("kind", ["vit", "mixer"])
def test_a_field_that_no_module_has_is_an_error(kind, tiny, tiny_mixer):
    architecture = {"vit": tiny, "mixer": tiny_mixer}[kind]()
    with pytest.raises(TypeError, match="colour"):
        build(architecture, colour="red")


@pytest.fixture
def compiled():
    """Records the names of programs that are compiled."""
    names = []

    def note(name, seconds, **_):
        if "backend_compile" in name:
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def test_abstract_parameters_compile_nothing_and_trace_one_block(
    tiny, monkeypatch, compiled
):
    calls, attention = [], blocks.Attention.__call__

    def record(module, *arguments):
        calls.append(module)
        return attention(module, *arguments)

    monkeypatch.setattr(blocks.Attention, "__call__", record)
    # Sizes that no other test uses, so that nothing is compiled yet.
    abstract_params(tiny(width=34, depth=2))
    few = len(calls)
    params = abstract_params(tiny(width=34, depth=40))
    assert "blocks_39" in params
    assert len(calls) == 2 * few > 0
    assert compiled == []
    jax.jit(lambda x: x + 34)(jnp.zeros(34))
    assert compiled


def test_abstract_parameters_belong_to_the_caller(tiny):
    params = abstract_params(tiny())
    params["norm"].clear()
    assert set(abstract_params(tiny())["norm"]) == {"scale", "bias"}
