"""Mutation test: breaks the code in twenty-five ways, each of which tests must notice.

    python benchmarks/mutations.py [NAME ...]

Every mutation changes one line of the step, the order of the examples, the masks, the
sharding, the manifest or the formats in the way that a slip would, in a copy of the
working tree. If all of its tests still pass, they have a gap: exit status 1. With
names, only these mutations are tried.

Takes about a quarter of an hour on two cores.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """One change of the code, and the tests, at least one of which has to fail."""

    file: str
    code: str  # must occur in the file exactly once
    instead: str
    tests: str


MUTATIONS = {
    # --- The optimiser and its schedule
    "choice_without_optimizer": Mutation(
        "vit_jax/train/choices.py",
        '"optimizer": OPTIMIZERS',
        '"optimizer": (*OPTIMIZERS, "adan")',
        "tests/train/test_choices.py",
    ),
    "decay_matches_part_of_a_path": Mutation(
        "vit_jax/optim/groups.py",
        "decays.fullmatch(path)",
        "decays.search(path)",
        "tests/optim/test_groups.py",
    ),
    "warm_up_starts_late": Mutation(
        "vit_jax/optim/schedules.py",
        "jnp.minimum(step / warmup, 1.0)",
        "jnp.minimum((step + 1) / warmup, 1.0)",
        "tests/optim/test_schedules.py",
    ),
    "nothing_is_clipped": Mutation(
        "vit_jax/optim/chain.py",
        "optax.clip_by_global_norm(config.grad_clip_norm)",
        "optax.identity()",
        "tests/optim/test_chain.py",
    ),
    "lamb_scales_every_parameter": Mutation(
        "vit_jax/optim/rules.py",
        "given.groups[path].decay > 0",
        "given.groups[path].decay >= 0",
        "tests/optim/test_chain.py",
    ),
    "query_key_and_value_have_norms_of_their_own": Mutation(
        "vit_jax/optim/units.py",
        r"\1qkv/\3",
        r"\1\2/\3",
        "tests/optim/test_published.py",
    ),
    # --- The step
    "mean_over_all_rows": Mutation(
        "vit_jax/objectives/classification.py",
        "weight = jnp.sum(mask)",
        "weight = jnp.float32(mask.size)",
        "tests/train/test_step.py::test_skipped_examples_do_not_count",
    ),
    "rate_of_the_next_step": Mutation(
        "vit_jax/train/step.py",
        "rate = schedule(state.step)",
        "rate = schedule(state.step + 1)",
        "tests/end_to_end/test_golden_losses.py::test_every_loss_equals_the_golden_one[google_npz]",
    ),
    "average_of_the_old_parameters": Mutation(
        "vit_jax/train/step.py",
        "averaged(groups.trained(ema), trained, decay)",
        "averaged(groups.trained(ema), groups.trained(state.params), decay)",
        "tests/end_to_end/test_old_runs.py::test_a_run_is_continued_by_its_own_command[ema]",
    ),
    "microbatches_share_their_dropout": Mutation(
        "vit_jax/train/step.py",
        "jax.random.fold_in(key, index)",
        "jax.random.fold_in(key, 0 * index)",
        "tests/end_to_end/test_golden_losses.py::test_every_loss_equals_the_golden_one[ema_accum]",
    ),
    "every_step_drops_alike": Mutation(
        "vit_jax/train/step.py",
        "jax.random.fold_in(jax.random.key(config.seed), state.step)",
        "jax.random.fold_in(jax.random.key(config.seed), 0 * state.step)",
        "tests/train/test_step.py::test_dropout_differs_from_step_to_step_and_not_from_run_to_run",
    ),
    "compute_dtype_ignores_the_devices": Mutation(
        "vit_jax/train/model_from_config.py",
        'name = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"',
        'name = "float32"',
        "tests/train/test_step.py::test_compute_dtype_follows_the_devices",
    ),
    "skipped_update_changes_the_state": Mutation(
        "vit_jax/optim/guard.py",
        "chosen(inner, state.inner),",
        "inner,",
        "tests/optim/test_guard.py::test_a_non_finite_update_leaves_no_trace",
    ),
    "partner_of_timm_is_the_next": Mutation(
        "vit_jax/objectives/mixing.py",
        '"timm": Form(draw_timm, lambda rows: jnp.flip(rows, axis=0))',
        '"timm": Form(draw_timm, lambda rows: jnp.roll(rows, 1, axis=0))',
        "tests/objectives/test_mixing.py::test_mixing_equals_timm",
    ),
    # --- The order of the examples
    "neighbouring_seeds_overlap": Mutation(
        "vit_jax/data/loading/order.py",
        "return int(np.random.SeedSequence(seed).generate_state(1)[0])",
        "return seed",
        "tests/data/loading/test_order.py",
    ),
    "every_epoch_alike": Mutation(
        "vit_jax/data/loading/order.py",
        "return int(self._shuffled(self._count, epoch)[rank])",
        "return int(self._shuffled(self._count, 0)[rank])",
        "tests/data/loading/test_order.py",
    ),
    "repeats_lie_together": Mutation(
        "vit_jax/data/loading/order.py",
        "self.order[batch * distinct + row % distinct]",
        "self.order[batch * distinct + row // self.repeats]",
        "tests/data/loading/test_order.py",
    ),
    # --- Masks
    "padding_is_evaluated": Mutation(
        "vit_jax/evaluators/classification.py",
        'counts = batch["mask"] > 0',
        'counts = batch["mask"] > -1',
        "tests/evaluators/test_classification.py::test_every_example_counts_once",
    ),
    "masked_image_is_mixed_in": Mutation(
        "vit_jax/objectives/mixing.py",
        "apart = (weights == 0) | (others == 0)",
        "apart = weights == 0",
        "tests/objectives/test_mixing.py::test_examples_without_weight_reach_no_other",
    ),
    # --- Sharding
    "second_projection_is_whole": Mutation(
        "vit_jax/sharding.py",
        '(r"(out|fc2)/kernel", ("tensor", "fsdp"))',
        '(r"(out|fc2)/kernel", ("tensor", None))',
        "tests/test_sharding.py::test_every_large_parameter_has_a_sharding",
    ),
    "batch_is_not_spread_over_fsdp": Mutation(
        "vit_jax/sharding.py",
        'BATCH = ("data", "fsdp")',
        'BATCH = ("data",)',
        "tests/test_sharding.py::test_batches_are_spread_over_data_and_fsdp",
    ),
    # --- Manifest and retention
    "only_lengths_are_compared": Mutation(
        "vit_jax/checkpoints/manifest.py",
        "elif tuple(found) != expected[name]:",
        "elif tuple(found)[:1] != expected[name][:1]:",
        "tests/checkpoints/test_manifest.py",
    ),
    "only_the_first_chunk_is_summed": Mutation(
        "vit_jax/checkpoints/manifest.py",
        "while chunk := stream.read(_CHUNK):",
        "for chunk in [stream.read(_CHUNK)]:",
        "tests/checkpoints/test_manifest.py",
    ),
    "smallest_accuracy_is_best": Mutation(
        "vit_jax/checkpoints/retention.py",
        "self.sign * float(",
        "-self.sign * float(",
        "tests/checkpoints/test_retention.py",
    ),
    # --- Formats
    "queries_and_keys_change_places": Mutation(
        "vit_jax/weights/formats/timm.py",
        '_QKV = ("query", "key", "value")',
        '_QKV = ("key", "query", "value")',
        "tests/weights/formats/test_timm.py::test_logits_and_round_trip",
    ),
    "convolutions_are_mirrored": Mutation(
        "vit_jax/weights/formats/layout.py",
        "OIHW = one(lambda x: x.transpose(2, 3, 1, 0)",
        "OIHW = one(lambda x: x.transpose(3, 2, 1, 0)",
        "tests/weights/formats/test_timm.py::test_logits_and_round_trip",
    ),
    "names_of_0_1_are_forgotten": Mutation(
        "vit_jax/train/workdir_name.py",
        "if locate(earlier).exists():",
        "if False:",
        "tests/train/test_workdir_name.py",
    ),
}


def main() -> None:
    """Runs the command."""
    names = sys.argv[1:] or list(MUTATIONS)
    if unknown := set(names) - set(MUTATIONS):
        sys.exit(f"{', '.join(unknown)}: choose from {', '.join(MUTATIONS)}")
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        _copy_to(tree)
        tests = {test for name in names for test in MUTATIONS[name].tests.split()}
        status, output = _tests(tree, sorted(tests))
        if status:
            sys.exit(f"without any mutation:\n{output}")
        outcomes = {name: _outcome(tree, MUTATIONS[name], name) for name in names}
    killed = sum(outcomes.values())
    print(f"{killed} of {len(names)} killed")
    sys.exit(killed < len(names))


def _outcome(tree: pathlib.Path, mutation: Mutation, name: str) -> bool:
    """Returns whether the tests kill the mutation; prints which one did."""
    path = tree / mutation.file
    before = path.read_text(encoding="utf-8")
    if before.count(mutation.code) != 1:
        sys.exit(f"{name}: {mutation.code!r} must occur once in {mutation.file}")
    path.write_text(before.replace(mutation.code, mutation.instead), encoding="utf-8")
    try:
        status, output = _tests(tree, [*mutation.tests.split(), "-x"])
    finally:
        path.write_text(before, encoding="utf-8")
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    # Code that cannot be imported, for example, fails any test and proves nothing.
    killed = bool(failed)
    verdict = f"killed by {failed[0].split()[1]}" if killed else "SURVIVED"
    print(f"{name}: {verdict}", flush=True)
    if not killed and status:
        print(output)
    return killed


def _tests(tree: pathlib.Path, arguments: list[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist=worksteal"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _copy_to(tree: pathlib.Path) -> None:
    """Copies the working tree, without the files that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tree / name)


if __name__ == "__main__":
    main()
