"""Runs with LoRA adapters: what they train, save, and continue from."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import convert
from vit_jax.checkpoints.description import Description
from vit_jax.checkpoints.reading import load_checkpoint, load_description
from vit_jax.checkpoints.saving import Checkpoints
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, abstract_params
from vit_jax.models.adapters import is_adapter
from vit_jax.plan.flops import count
from vit_jax.train.loop import train_and_evaluate
from vit_jax.train.saved_parts import saved_params, saves_frozen
from vit_jax.train.setup import set_up
from vit_jax.train.start import fit_weights, initial_state, read_weights
from vit_jax.trees import chosen
from vit_jax.weights.loading import load_weights
from vit_jax.weights.saving import save_weights

SMALL = {"mesh.data": 1, "model.depth": 1, "keep_checkpoints": 9, "total_steps": 4}
LORA = {"lora.rank": 3, "lora.targets": "query,mlp", "lora.alpha": 6.0}
TRAINED = {
    *(f"blocks_00/attention/query/lora_{x}" for x in "ab"),
    *(f"blocks_00/mlp/{layer}/lora_{x}" for layer in ("fc1", "fc2") for x in "ab"),
    *("head/kernel", "head/bias"),
}


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(tree)
    }


def same(a, b):
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A file with a random model for the digits."""
    a = Architecture(16, 1, 32, 2, (4, 4), (12, 12), 10)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
        abstract_params(a),
    )
    config = to_plain(default_config())
    about = Description(a, Preprocessing((12, 12)), tuple("0123456789"), config, 0)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    return save_weights(about, params, path)


@pytest.fixture
def adapted(tiny_config, base):
    """Returns a function of overrides that makes the config of a run with adapters."""
    return lambda **values: tiny_config(
        **SMALL | LORA | {"pretrained": str(base), "ema_decay": 0.5} | values
    )


_RUNS = {}


@pytest.fixture
def run(adapted, tmp_path_factory):
    """The work directory of a finished run, with checkpoints at steps 2 and 4."""
    if not _RUNS:
        _RUNS["run"] = tmp_path_factory.mktemp("adapted") / "run"
        train_and_evaluate(adapted(), _RUNS["run"])
    return _RUNS["run"]


def test_checkpoints_hold_what_is_trained_and_name_the_base(run, base):
    about, last, _ = load_checkpoint(run)
    _, averages, averaged = load_checkpoint(run, ema=True)
    assert averaged
    assert leaves(last).keys() == leaves(averages).keys() == TRAINED
    assert not same(last, averages)
    assert about.base["source"] == str(base)
    assert len(about.base["checksum"]) == 64
    record = json.loads(json.dumps(about.to_dict()))
    assert type(about).from_dict(record) == about
    with pytest.raises(UserError, match="base is 'x', expected a source and a check"):
        type(about).from_dict(record | {"base": "x"})


def test_what_is_frozen_is_the_base_on_the_grid_of_the_run(run, base):
    ours, theirs = vit_jax.load(run), vit_jax.load(base, image_size=8)
    assert (ours.architecture.lora_rank, ours.architecture.lora_alpha) == (3, 6.0)
    found = leaves(ours.params)
    frozen = leaves(chosen(theirs.params, lambda path: path not in TRAINED))
    assert found.keys() == frozen.keys() | TRAINED
    for name, x in frozen.items():
        np.testing.assert_array_equal(found[name], x)
    assert np.any(found["blocks_00/mlp/fc1/lora_b"])


def test_a_run_starts_as_its_base(adapted, tmp_path):
    config = adapted(reset_head=False)
    weights, _ = read_weights(config, None)
    setup = set_up(config, pretrained=weights.description)
    params = fit_weights(setup, weights, tuple("0123456789"))
    assert not any(map(is_adapter, leaves(params)))
    with Checkpoints(tmp_path / "run", 1) as checkpoints:
        state = initial_state(setup, checkpoints, params)
    found = leaves(state.params)
    for name, x in leaves(params).items():
        np.testing.assert_array_equal(found[name], x)
    assert {n for n in found if not np.any(found[n])} >= {
        name for name in TRAINED if name.endswith("lora_b")
    }
    a = found["blocks_00/mlp/fc2/lora_a"]
    assert 0.8 / np.sqrt(32) < np.abs(a).max() <= 1 / np.sqrt(32)
    moments = {n.split("/mu/")[1] for n in leaves(state.opt_state) if "/mu/" in n}
    assert moments == TRAINED


def test_weights_have_a_record_where_checkpoints_may_lack_some_of_them(adapted):
    assert read_weights(adapted(), None)[1].keys() == {"source", "checksum"}
    plain = {"lora.rank": 0, "lora.alpha": 0.0, "lora.targets": "query,value"}
    assert read_weights(adapted(**plain, save_frozen="no"), None)[1]
    # The checksum of a large model takes seconds.
    assert not read_weights(adapted(**plain), None)[1]
    assert not read_weights(adapted(save_frozen="yes"), None)[1]


def test_train_only_trains_more_or_less_beside_adapters(adapted):
    def trained(**keys):
        found = set_up(adapted(**keys)).groups.by_path
        return {path for path, group in found.items() if not group.frozen}

    assert trained() == TRAINED
    norms = {f"blocks_00/norm{n}/{x}" for n in "12" for x in ("scale", "bias")}
    only = r"adapters,head,blocks_\d+/norm\d/.*"
    assert trained(train_only=only) == TRAINED | norms
    assert trained(groups=".*: lr=2") == TRAINED
    heads = {"head/kernel", "head/bias"}
    assert trained(groups="head/.*: frozen") == TRAINED - heads
    assert trained(train_only="adapters") == TRAINED - heads
    assert trained(freeze="head") == TRAINED - heads
    setup = set_up(adapted(groups="head/.*: frozen"))
    saved = leaves(saved_params(setup, setup.param_shapes))
    assert saved.keys() == TRAINED


def test_adapters_that_do_not_train_and_rows_of_what_rests_are_refused(adapted):
    with pytest.raises(UserError, match=r"lora has no effect: every .* by train_only"):
        set_up(adapted(train_only="head"))
    with pytest.raises(UserError, match="freeze: 'norms' matches only parameters that"):
        set_up(adapted(freeze="norms"))
    with pytest.raises(UserError, match="or that the rule for adapters freezes"):
        set_up(adapted(groups="norm/.*: lr=2"))


def test_checkpoints_may_hold_everything(adapted, tiny_config):
    for config in (adapted(save_frozen="yes"), tiny_config(**SMALL)):
        setup = set_up(config)
        assert saves_frozen(setup)
        assert saved_params(setup, setup.param_shapes) is setup.param_shapes


def test_freezing_without_adapters_can_leave_out_the_base(tiny_config, base):
    rows = {"groups": "(?!head|.*bias).*: frozen", "pretrained": str(base)}
    setup = set_up(tiny_config(**SMALL | rows | {"save_frozen": "no"}))
    saved = leaves(saved_params(setup, setup.init_params()))
    assert {"head/kernel", "blocks_00/mlp/fc1/bias"} < saved.keys()
    assert all("head" in name or "bias" in name for name in saved)
    assert saves_frozen(set_up(tiny_config(**SMALL | rows)))


def test_a_resumed_run_has_the_same_bits_also_if_its_base_has_moved(
    run, base, adapted, tmp_path, run_command
):
    elsewhere = str(shutil.copy(base, tmp_path / "elsewhere.safetensors"))
    left = shutil.copytree(run, tmp_path / "left")
    config = json.loads((left / "config.json").read_text())
    gone = str(tmp_path / "gone.safetensors")
    (left / "config.json").write_text(json.dumps(config | {"pretrained": gone}))
    shutil.rmtree(left / "checkpoints" / "4")
    (step,) = (left / "checkpoints").iterdir()
    metadata = step / "metadata" / "metadata"
    metadata.write_text(metadata.read_text().replace(str(base), gone))
    (step / "MANIFEST.json").unlink()

    with pytest.raises(UserError, match=f"(?s)cannot be read from {gone}: .*--base=…"):
        vit_jax.load(left)
    whole = tmp_path / "whole.safetensors"
    run_command(convert, left, whole, "--to=vit_jax", f"--base={elsewhere}")
    expected = load_weights(run / "checkpoints" / "2")
    assert same(load_weights(whole).params, expected.params)
    assert same(vit_jax.load(left, base=elsewhere).params, expected.params)

    with pytest.raises(UserError, match=r"(?s)lack the frozen.*pass their place as"):
        train_and_evaluate(adapted(pretrained=gone), left)
    train_and_evaluate(adapted(pretrained=elsewhere), left)
    for ema in (False, True):
        assert same(load_weights(left, ema=ema)[1], load_weights(run, ema=ema)[1])
    written = [(one / "metrics.jsonl").read_text() for one in (run, left)]
    assert written[0] == written[1]
    assert load_description(left).base["source"] == elsewhere


def test_another_base_is_refused(run, base, make_teacher, adapted, tmp_path):
    other = make_teacher(seed=3, image_size=(12, 12))
    message = r"trained beside other weights: .*teacher.* has the SHA-256 \w{12}…, but "
    with pytest.raises(UserError, match=message):
        vit_jax.load(run, base=other)
    left = shutil.copytree(run, tmp_path / "left")
    shutil.rmtree(left / "checkpoints" / "4")
    with pytest.raises(UserError, match=message):
        train_and_evaluate(adapted(pretrained=other), left)
    with pytest.raises(UserError, match=r"base='x', but .* holds all parameters"):
        load_weights(base, base="x")


def test_weights_with_adapters(run, base, adapted, tiny_config, caplog):
    """Their adapters are continued, merged, or in the way of others."""
    again = adapted(pretrained=str(run))
    weights, record = read_weights(again, None)
    assert record["source"] == f"{run}/checkpoints/4"
    setup = set_up(again, pretrained=weights.description)
    params = fit_weights(setup, weights, tuple("0123456789"))
    ours, theirs = leaves(params), leaves(weights.params)
    assert all(np.array_equal(ours[n], theirs[n]) for n in TRAINED if "lora" in n)

    whole = tiny_config(**SMALL | {"pretrained": str(run)})
    setup = set_up(whole, pretrained=weights.description)
    with caplog.at_level(logging.WARNING):
        params = fit_weights(setup, weights, tuple("0123456789"))
    assert "their LoRA adapters are merged" in caplog.text
    fc1 = weights.params["blocks_00"]["mlp"]["fc1"]
    expected = fc1["kernel"] + 2.0 * np.float64(fc1["lora_a"]) @ fc1["lora_b"]
    found = leaves(params)
    np.testing.assert_allclose(found["blocks_00/mlp/fc1/kernel"], expected, atol=1e-7)
    assert not any(map(is_adapter, found))

    with pytest.raises(UserError) as error:
        read_weights(adapted(**{"pretrained": str(run), "lora.rank": 2}), None)
    assert "already have LoRA adapters, with other settings" in str(error.value)
    assert "--config.lora.rank=3 --config.lora.alpha=6.0" in str(error.value)
    assert f"convert {run} MERGED.safetensors --to=vit_jax --merge" in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora.targets": "query,fc3"}, "lora.targets='query,fc3': no layer 'fc3'"),
        ({"lora.targets": ""}, "lora.targets='': no layer is named: choose from query"),
        ({"lora.rank": 17}, "lora.rank=17 exceeds .* of query, which is 16×16: use at"),
        ({"pretrained": ""}, "lora.rank=3 without pretrained weights"),
        ({"lora.alpha": -1.0}, "lora.alpha=-1.0: must be at least 0"),
        ({"lora.dropout": 1.0}, "lora.dropout=1.0: must be from 0.0 to 0.99"),
        (
            {"lora.rank": 0},
            "lora.alpha=6.0, lora.targets=query,mlp without lora.rank has no effect",
        ),
        (
            {"model.variant": "Mixer-S/4", "model.num_heads": 0, "model.width": 16},
            "only a Vision Transformer can have adapters",
        ),
        ({"save_frozen": "never"}, "save_frozen='never': choose from auto, yes, no"),
        ({"groups": ".*lora_.: frozen"}, "lora has no effect: every parameter"),
        (
            {"lora.rank": 0, "lora.alpha": 0.0, "lora.targets": "query,value"}
            | {"save_frozen": "no"},
            "save_frozen=no has no effect: every parameter is trained",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_compiled(adapted, values, message):
    with pytest.raises(UserError, match=message):
        set_up(adapted(**values))


def test_what_adapters_cost(adapted, tiny_config):
    with_, without = set_up(adapted()), set_up(tiny_config(**SMALL))
    sizes = [
        sum(x.size for x in jax.tree.leaves(one.param_shapes))
        for one in (with_, without)
    ]
    adapters = 3 * (16 + 16) + 2 * 3 * (16 + 32)
    assert sizes[0] - sizes[1] == adapters
    tokens = with_.architecture.num_tokens
    flops = [count(one.architecture).total for one in (with_, without)]
    assert flops[0] - flops[1] == 2 * tokens * adapters
