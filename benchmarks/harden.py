"""Adversarial training of the digits perceptron: robust accuracy up by 20 points, accuracy down by at most 2.

    python -m benchmarks.harden --json --check [--quick]

Each seed deals the pictures anew, trains the demo's perceptron and its adversarially trained copy on the same rows, and
attacks both on pictures that neither has met, nor turned or shifted copies of them: Linf .1 with features in 0 to 1,
the worst of white-box PGD (40 steps, 5 restarts), Square and HopSkipJump with 1,000 queries a row. The hardened one is
also shown what fooled the other. Intervals of one seed are Newcombe's for paired rows, those over seeds Student's;
without --quick the other mitigations are measured too.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from attacks.threat import ThreatModel
from benchmarks.report import Figure, Target, Told, arguments, finish, progress
from streams import threats
from streams.config import ThreatSettings
from streams.demo import digits
from streams.demo.model import architecture, learning_rows
from streams.hardening.command import MITIGATIONS, Task, harden
from streams.hardening.measure import Measured, Trial
from streams.redteam.intervals import Change, mean_interval

#: The threat model of the target.
EPS, BUDGET = 0.1, 1000
ATTACKS = ("pgd", "square", "hop_skip_jump")
#: Seeds and attacked rows of a run, and of a quick one.
SEEDS, ROWS = 5, 600
QUICK_SEEDS, QUICK_ROWS = 3, 300
LEVELS, MEMBERS = 4, 3
#: Targets in points of a share.
LEAST_GAIN, MOST_LOST = 0.20, -0.02


def task(seed: int, rows: int) -> Task:
    """Rows to learn from, and held-out pictures of which `rows` are attacked."""
    pools = digits.split(seed)
    rest = (pools.reference, pools.history, pools.live, pools.hostile, pools.probe)
    inputs = np.concatenate([pool.inputs for pool in rest])
    truth = np.concatenate([pool.truth for pool in rest])
    learned, answers = learning_rows(pools.model, np.random.default_rng(seed))
    attacked = np.sort(np.random.default_rng([seed, 1]).permutation(len(inputs))[:rows])
    trial = Trial(inputs, truth, attacked, threat(learned), seed, ATTACKS, digits.schema().image_shape)
    return Task(learned, answers, trial)


def threat(rows: Any) -> ThreatModel:
    """Linf within a tenth of the range, everything known."""
    declared = ThreatSettings(eps=EPS, knowledge="white-box", budget=BUDGET)
    return threats.model("digits, Linf .1", declared, digits.schema(), rows)


def figures(name: str, changes: list[tuple[Change, Change]], after: list[Measured]) -> list[Figure]:
    """A mitigation over all seeds: robust and clean accuracy, and their changes."""
    out = [
        over(f"{name}.robust_accuracy", [one.robust_accuracy.value for one in after]),
        over(f"{name}.accuracy", [one.accuracy.value for one in after]),
        over(f"{name}.robust_gain", [robust.value for _, robust in changes]),
        over(f"{name}.accuracy_change", [clean.value for clean, _ in changes]),
    ]
    out.append(Figure(f"{name}.robust_gain.least", min(robust.low for _, robust in changes)))
    out.append(Figure(f"{name}.accuracy_change.least", min(clean.low for clean, _ in changes)))
    return out


def over(name: str, values: list[float]) -> Figure:
    """The mean over seeds with its interval."""
    mean, low, high = mean_interval(values)
    return Figure(name, mean, low, high)


def main() -> int:
    """Entry point of the module."""
    options = arguments(__doc__ or "").parse_args()
    seeds, rows = (QUICK_SEEDS, QUICK_ROWS) if options.quick else (SEEDS, ROWS)
    wanted = MITIGATIONS[:1] if options.quick else MITIGATIONS
    before: list[Measured] = []
    after: dict[str, list[Measured]] = {name: [] for name in wanted}
    changes: dict[str, list[tuple[Change, Change]]] = {name: [] for name in wanted}
    each: list[dict[str, Any]] = []
    with threadpool_limits(1):
        for seed in range(options.seed, options.seed + seeds):
            progress(f"seed {seed}")
            done = harden(architecture(0), task(seed, rows), wanted, LEVELS, MEMBERS, seed, Told(1))
            before.append(done.before[1])
            line: dict[str, Any] = {"seed": seed, "before": done.before[1].to_dict()}
            for name, (_, measured, found) in done.after.items():
                after[name].append(measured)
                changes[name].append((found.accuracy, found.robust))
                line[name] = {
                    **measured.to_dict(),
                    "robust_change": found.robust.to_dict(),
                    "accuracy_change": found.accuracy.to_dict(),
                }
            each.append(line)
    shown = [
        over("before.robust_accuracy", [one.robust_accuracy.value for one in before]),
        over("before.accuracy", [one.accuracy.value for one in before]),
    ]
    for name in wanted:
        shown += figures(name, changes[name], after[name])
    first = MITIGATIONS[0]
    targets = [
        Target(f"{first}.robust_gain", ">=", LEAST_GAIN),
        Target(f"{first}.robust_gain.least", ">=", LEAST_GAIN),
        Target(f"{first}.accuracy_change", ">=", MOST_LOST),
        Target(f"{first}.accuracy_change.least", ">=", MOST_LOST),
    ]
    context = {
        "threat": f"Linf {EPS}, features in 0 to 1; worst of PGD 40 steps x 5 restarts, Square, HopSkipJump",
        "queries": BUDGET,
        "seeds": seeds,
        "attacked_rows_a_seed": rows,
        "least": "smallest lower end of a seed's 95 % interval",
        "each": each,
    }
    return finish(options, shown, targets, context)


if __name__ == "__main__":
    sys.exit(main())
