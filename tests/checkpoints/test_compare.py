import jax
import jax.numpy as jnp
import optax

from vit_jax.checkpoints.compare import compare_trees


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def blocks(depth):
    return {f"blocks_{i:02d}": {"w": array(4, 4), "b": array(4)} for i in range(depth)}


def test_equal_trees():
    assert compare_trees(blocks(3), blocks(3)) == ""
    assert compare_trees({}, {}) == ""


def test_classes_and_empty_nodes_do_not_count():
    state = optax.sgd(0.1, momentum=0.9).init({"w": jnp.zeros((4, 4))})
    read = [{"trace": {"w": array(4, 4)}}, None]
    assert compare_trees(state, read) == ""
    assert compare_trees(state, [None, read[0]]) == (
        "1 missing: 0/trace/w\n1 unexpected: 1/trace/w"
    )


def test_at_most_ten_names_of_each_kind_are_listed_with_the_count():
    lines = compare_trees(blocks(4) | {"head": array(2)}, blocks(9)).splitlines()
    assert lines[0] == "1 missing: head"
    names = [f"blocks_{i:02d}/{x}" for i in range(4, 9) for x in ("b", "w")]
    assert lines[1] == f"10 unexpected: {', '.join(names)}"
    deep = compare_trees(blocks(16), blocks(4))
    assert deep.startswith("24 missing: blocks_04/b, blocks_04/w, ")
    assert deep.endswith("blocks_08/w, … and 14 more")
    assert deep.count("/") == 10


def test_shapes_and_optionally_dtypes_are_compared():
    expected = {"head": {"kernel": array(8, 10)}, "b": array(3, dtype=jnp.bfloat16)}
    found = {"head": {"kernel": array(8, 5)}, "b": array(3)}
    shape = "head/kernel (expected [8, 10], found [8, 5])"
    assert compare_trees(expected, found) == f"1 different: {shape}"
    assert compare_trees(expected, found, dtypes=True) == (
        "2 different: b (expected bfloat16[3], found float32[3]), "
        "head/kernel (expected float32[8, 10], found float32[8, 5])"
    )
