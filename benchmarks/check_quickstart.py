"""A check that the quickstart learned what it promises; run after `make quickstart`.

    python benchmarks/check_quickstart.py [runs/quickstart]

Exit status 1 unless the fine-tuned model is right on 97 % of the held-out digits and 5
points above the control. It takes minutes, so it is not a test; `.ci/run` calls it.
"""

import json
import pathlib
import sys

LEAST_ACCURACY = 0.97
LEAST_GAIN = 0.05


def main(workdir: str = "runs/quickstart") -> None:
    """Runs the command."""
    found = json.loads(pathlib.Path(workdir, "quickstart.json").read_text())
    accuracy, gain = found["finetuned"], found["finetuned"] - found["control"]
    print(f"fine-tuned {accuracy:.1%}, {gain:+.1%} over the control: {found}")
    if accuracy < LEAST_ACCURACY or gain < LEAST_GAIN:
        sys.exit(f"expected at least {LEAST_ACCURACY:.0%}, and {LEAST_GAIN:+.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
