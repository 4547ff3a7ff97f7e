"""The mesh, and where arrays lie on it."""

import jax
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.errors import UserError


@pytest.mark.parametrize(("asked", "devices"), [(-1, 8), (1, 1), (4, 4)])
def test_the_mesh_has_the_devices_that_were_asked_for(asked, devices):
    mesh = sharding.make_mesh(asked)
    assert mesh.axis_names == ("data",)
    assert mesh.size == devices


@pytest.mark.parametrize("asked", [9, 0, -2])
def test_a_mesh_of_more_devices_than_there_are_is_refused(asked):
    with pytest.raises(UserError, match=f"mesh.data={asked}, but there are 8 cpu"):
        sharding.make_mesh(asked)


def test_batches_are_spread_in_order():
    mesh = sharding.make_mesh()
    rows = np.arange(16, dtype=np.int32)
    placed = sharding.place({"label": rows}, mesh)["label"]
    np.testing.assert_array_equal(placed, rows)
    shards = {
        shard.index[0].start or 0: shard.data for shard in placed.addressable_shards
    }
    assert {start: data.tolist() for start, data in shards.items()} == {
        2 * i: [2 * i, 2 * i + 1] for i in range(8)
    }


def test_replicated_arrays_are_whole_on_every_device():
    array = jax.device_put(np.arange(3.0), sharding.replicated(sharding.make_mesh()))
    assert len(array.addressable_shards) == 8
    assert all(shard.data.shape == (3,) for shard in array.addressable_shards)
