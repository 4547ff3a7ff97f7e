"""Freezing by patterns and named sets, the phase of the head, and what is refused."""

import jax
import pytest

from vit_jax.config import default_config
from vit_jax.errors import UserError
from vit_jax.models import abstract_params
from vit_jax.models.architecture import Architecture, MixerArchitecture
from vit_jax.optim.freezing import SETS
from vit_jax.optim.groups import Group, make_groups
from vit_jax.optim.paths import matching, paths_of, split_patterns
from vit_jax.optim.rules import OPTIMIZERS

SIZES = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "num_classes": 5}
SIZES |= {"patch_size": (4, 4), "image_size": (8, 8)}
PARAMS = abstract_params(Architecture(**SIZES, registers=2, layer_scale=True))
PATHS = paths_of(PARAMS)
HEAD = {"head/kernel", "head/bias"}


def groups_of(own=(), params=PARAMS, **values):
    config = default_config()
    config.update({"total_steps": 100} | values)
    return make_groups(config, params, OPTIMIZERS, dict(own)).by_path


def trained(**values):
    return {path for path, group in groups_of(**values).items() if not group.frozen}


def refused(**values):
    with pytest.raises(UserError) as error:
        groups_of(**values)
    return str(error.value).splitlines()


def test_train_only_leaves_what_it_names():
    assert trained(train_only="head") == HEAD
    assert trained(train_only="head, norm/.*") == HEAD | {"norm/scale", "norm/bias"}
    assert trained(train_only="bitfit") == HEAD | {p for p in PATHS if "bias" in p}
    assert trained(train_only=r"blocks_0[1-3]/.*") == {
        path for path in PATHS if path.startswith("blocks_01/")
    }


def test_freeze_takes_what_it_names():
    assert trained(freeze="backbone") == HEAD
    found = trained(freeze="blocks,patches,pos_embed")
    assert found == {
        *HEAD,
        *("cls", "registers", "pos_embed_prefix", "norm/scale", "norm/bias"),
    }
    assert not any("scale" in path for path in trained(freeze="norms,layer_scale"))


def test_frozen_parameters_have_no_other_settings_and_rows_set_those_of_the_rest():
    found = groups_of(
        train_only="head,norms",
        weight_decay=0.1,
        groups=".*/scale: lr=3; head/b.*: lr=5",
    )
    assert found["blocks_00/mlp/fc1/kernel"] == Group(frozen=True)
    assert found["head/kernel"] == Group(decay=0.1)
    assert found["head/bias"] == Group(lr=5.0)
    assert found["blocks_00/norm1/scale"] == Group(lr=3.0)


def test_factors_of_layers_count_frozen_layers():
    found = groups_of(train_only=r"blocks_\d+/norm1/.*,head", layer_decay=0.5)
    assert found["blocks_00/norm1/scale"].lr == 0.25
    assert found["blocks_01/norm1/scale"].lr == 0.5


def test_patterns_may_contain_commas_inside_brackets():
    text = r"blocks_\d{1,2}/.*, (cls|a{1,2},b) ,[x,y]"
    assert split_patterns(text) == [r"blocks_\d{1,2}/.*", "(cls|a{1,2},b)", "[x,y]"]
    assert split_patterns(" , ") == []
    assert trained(train_only=r"blocks_0\d{0,1}/mlp/.*,cls") == {
        "cls",
        *(path for path in PATHS if "/mlp/" in path),
    }


# Kinds of models that together have every subtree.
KINDS = {
    "tokens": Architecture(
        **SIZES, registers=2, distillation_token=True, layer_scale=True
    ),
    "map": Architecture(
        **SIZES, pooling="map", class_token=False, class_token_position=False
    ),
    "layer": Architecture(**SIZES, pre_logits=8),
    "hybrid": Architecture(**SIZES, trunk=(1,)),
    "mixer": MixerArchitecture(
        **{key: x for key, x in SIZES.items() if key != "num_heads"}, tokens_mlp_dim=4
    ),
}


def test_every_parameter_belongs_to_head_or_backbone_and_every_set_is_used():
    used = set()
    for kind, architecture in KINDS.items():
        paths = paths_of(abstract_params(architecture))
        sets = {name: {*matching(p, paths)} for name, p in SETS.items()}
        assert sets["head"] | sets["backbone"] == {*paths}, kind
        assert not sets["head"] & sets["backbone"], kind
        used |= {name for name, found in sets.items() if found}
        # The parts of the backbone overlap only where sets are meant to.
        parts = ("trunk", "patches", "positions", "tokens", "blocks", "map_head")
        rest = sets["backbone"].difference(*(sets[name] for name in parts))
        assert {path.partition("/")[0] for path in rest} == {"norm"}, kind
    assert used == set(SETS)


def test_named_sets_of_blocks():
    paths = paths_of(abstract_params(KINDS["mixer"]))
    assert {p.split("/")[1] for p in matching(SETS["mlp"], paths)} == {
        "mlp",
        "tokens_mlp",
    }
    hybrid = matching(SETS["norms"], paths_of(abstract_params(KINDS["hybrid"])))
    assert "trunk/gn_root/scale" in hybrid
    assert all(path.endswith(("scale", "bias")) for path in hybrid)


@pytest.mark.parametrize("key", ["freeze", "train_only"])
def test_patterns_that_match_nothing_are_named_with_the_nearest(key):
    *lines, last = refused(**{key: "haed, blocks_12/.*, norm, blocks_(0, positon"})
    assert lines[0].startswith(
        f"{key}: 'haed' matches no parameter; did you mean 'head'?; it must match a "
        "whole path, and parameter paths look like 'blocks_00/attention/key/bias'; "
        "named sets are head, backbone"
    )
    assert "'blocks_12/.*' matches no parameter; did you mean 'blocks_" in lines[1]
    assert "'norm' matches no parameter; did you mean 'norms'?" in lines[2]
    assert f"{key}: 'blocks_(0, positon' is not a regular expression" in last


def test_a_set_that_this_model_lacks_is_named():
    [line] = refused(freeze="trunk,head")
    assert line == "freeze: this model has no parameters in the set 'trunk'"


def test_keys_that_contradict_or_change_nothing_are_refused():
    [line] = refused(freeze="blocks", train_only="head,blocks_00/norm1/.*")
    assert line.startswith("freeze='blocks' and train_only='head,blocks_00/norm1/.*'")
    assert "both match blocks_00/norm1/bias, blocks_00/norm1/scale; set" in line
    [line] = refused(freeze="blocks", train_only="head")
    assert line.startswith("freeze='blocks' has no effect beside train_only='head'")
    [line] = refused(train_only="head,backbone")
    assert "train_only='head,backbone' freezes nothing more" in line
    [line] = refused(freeze=".*")
    assert line == "freeze: every parameter is frozen; leave some to train"
    [line] = refused(train_only="norms", weight_decay=0.1)
    assert line.startswith("weight_decay=0.1, but weight_decay_on='.*kernel' matches")
    assert "no parameter that is trained" in line


def test_rows_that_are_hidden_are_refused():
    [first, second] = refused(
        train_only="head", groups="blocks_00/.*: lr=2; head/.*: lr=3; head/bias: lr=4"
    )
    assert first.startswith("groups: 'blocks_00/.*' matches no parameter, or only ")
    assert "or that train_only freezes; such as 'blocks_00/attention/key/bias'" in first
    assert second.startswith("groups: 'head/bias' matches no parameter, or only those")
    assert "here 'head/.*' comes first: put the narrower pattern before" in second
    [line] = refused(groups="haed/.*: lr=2")
    assert "groups: 'haed/.*' matches no parameter; did you mean 'head/.*'?" in line


def test_rows_that_freeze_what_train_only_names_are_refused():
    [line] = refused(train_only="head,norms", groups="norm/.*: frozen")
    assert line == (
        "groups: 'norm/.*' freezes norm/bias, norm/scale, which "
        "train_only='head,norms' names; take them from one of the two"
    )
    # Beside `freeze` a row may freeze more.
    assert trained(freeze="backbone", groups="head/bias: frozen") == {"head/kernel"}


def test_what_the_objective_freezes_stays_frozen_and_is_named():
    own = {r"(?!head/).*": {"frozen": True}}
    assert trained(own=own, freeze="head/bias") == {"head/kernel"}
    [line] = refused(own=own, train_only="head")
    assert "freezes nothing more" in line
    [line] = refused(own=own, train_only="head/bias,norm/.*")
    assert line == (
        "train_only: 'norm/.*' matches only parameters that the objective freezes in "
        "any case; leave it out"
    )


def test_problems_of_rows_and_of_freezing_are_reported_together():
    first, second = refused(freeze="haed", groups="head/.*: lr=x")
    assert first.startswith("groups: 'head/.*: lr=x': lr=x: expected")
    assert second.startswith("freeze: 'haed'")


def test_the_backbone_waits_for_the_head():
    added = PARAMS | {"projection": {"kernel": PARAMS["head"]["kernel"]}}
    found = groups_of(params=added, head_only_steps=7, groups="cls: begin=9")
    waiting = {path for path, group in found.items() if group.start or group.begin}
    assert waiting == set(PATHS) - HEAD
    assert found["blocks_00/mlp/fc1/kernel"] == Group(start=7, begin=7)
    assert found["projection/kernel"] == found["head/kernel"] == Group()
    assert found["cls"] == Group(start=7, begin=9)
    # What is frozen does not wait, and a head may be of biases alone.
    found = groups_of(head_only_steps=7, train_only="bitfit")
    assert found["blocks_00/mlp/fc1/bias"] == Group(start=7, begin=7)
    assert found["blocks_00/mlp/fc1/kernel"] == Group(frozen=True)


def test_phases_of_the_head_that_cannot_be_are_refused():
    [line] = refused(head_only_steps=7, train_only="head")
    assert line.startswith("head_only_steps=7 has no effect: no parameter of the back")
    [line] = refused(head_only_steps=7, freeze="head")
    assert line.startswith("head_only_steps=7: there is no head to train")
    headless = {name: x for name, x in PARAMS.items() if name != "head"}
    assert refused(head_only_steps=7, params=headless) == [line]
    [line] = refused(head_only_steps=7, groups="blocks_.*|head/.*: start=5, begin=8")
    assert line.startswith("groups: 'blocks_.*|head/.*' has start=5, but the backbone")


def test_the_defaults_leave_every_group_as_it_was():
    assert set(groups_of().values()) == {Group()}
    assert len(jax.tree.leaves(PARAMS)) == len(groups_of())
