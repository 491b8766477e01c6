"""Sudden loss of sight, objectives, and regressions between model versions: pure functions of outcomes."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from streams.config import ObjectiveSettings
from streams.errors import EndpointError
from streams.probes.answers import AnswerTally, bucket
from streams.probes.objectives import breaches
from streams.probes.outcome import answer_ms, beyond_chance, blindness, seen_by, together
from streams.probes.regression import LOOKS, compare, exact, sentence, versions
from streams.probes.sight import THRESHOLD, lost_sight
from streams.store.messages import Answers, ProbeOutcome

ATTACK = "hop_skip_jump"


def outcome(detected: bool = True, attack: str = ATTACK, **changes: Any) -> ProbeOutcome:
    plain = ProbeOutcome(
        campaign="0" * 16, attack=attack, kind="campaign", threat="L2", inputs=20, arrived=20, detected=detected,
        ticketed=detected, queries_to_ticket=1, queries_to_page=2, latency_ms=100.0 if detected else None, finished=1,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


# Sight ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [3, 5, 12, 100, 1000])
def test_two_misses_of_an_attack_that_was_always_seen_tell_the_loss(before: int) -> None:
    seen = [outcome()] * before
    assert lost_sight(seen) is None
    assert lost_sight([*seen, outcome(False)]) is None
    said = lost_sight([*seen, outcome(False), outcome(False)])
    assert said is not None
    assert "the last 2 hop_skip_jump probes were missed" in said
    assert blindness([*seen, outcome(False), outcome(False)], 0.5, 3) == said


def test_one_miss_of_each_of_several_attacks_tells_the_loss_too() -> None:
    attacks = ["transfer_pgd", "square", ATTACK]
    seen = [outcome(attack=attack) for _ in range(10) for attack in attacks]
    missed = [outcome(False, attack) for attack in attacks]
    assert lost_sight([*seen, missed[0]]) is None
    assert "of all attacks" in str(lost_sight([*seen, *missed]))


def test_sight_comes_back_with_two_detected_probes() -> None:
    course = [outcome()] * 20 + [outcome(False)] * 50
    assert lost_sight(course) is not None
    assert lost_sight([*course, outcome(), outcome()]) is None


def test_an_attack_that_never_was_seen_says_nothing_of_a_loss() -> None:
    assert lost_sight([outcome(False)] * 100) is None
    rng = np.random.default_rng(1)
    assert lost_sight([outcome(bool(hit)) for hit in rng.random(400) < 0.4]) is None


def test_chance_alone_tells_the_loss_as_rarely_as_was_said() -> None:
    """Lorden's bound: at the recall so far, at least exp(THRESHOLD) probes to a false alarm on average."""
    rng = np.random.default_rng(2)
    alarms, probes = 0, 0
    for _ in range(6):
        hits = rng.random(1500) < 0.95
        course = [outcome(bool(hit)) for hit in hits]
        for place in range(100, 1500):
            if not hits[place] and lost_sight(course[max(0, place - 250) : place + 1]) is not None:
                alarms += 1
        probes += 1400
    # Every look while an alarm lasts counts here, so this is more than the number of alarms.
    assert alarms <= 4 * probes / np.exp(THRESHOLD)


# Detectors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (1, 20), (3, 60), (7, 1000)])
def test_beyond_chance_is_the_binomial_tail(hits: int, n: int) -> None:
    assert beyond_chance(hits, n, 0.01) == pytest.approx(stats.binom.sf(hits - 1, n, 0.01), rel=1e-9, abs=1e-12)


def test_a_detector_sees_a_probe_when_it_speaks_more_often_than_chance() -> None:
    one = outcome(records=20, spoke={"often": 3, "once": 1, "never": 0})
    assert seen_by(one) == {"often"}
    assert seen_by(outcome(records=1, spoke={"once": 1})) == {"once"}


# The model's side -----------------------------------------------------------------------------------------------------


def test_answers_are_counted_by_their_fault_and_add_up() -> None:
    now = itertools.count(step=0.002)
    tally = AnswerTally(clock=lambda: float(next(now)))

    def fails(fault: Any) -> Any:
        def ask() -> None:
            raise EndpointError("no", fault)

        return ask

    assert tally.call(lambda: 7) == 7
    for fault in ("refused", "crash", "timeout", "not-finite", "unusable"):
        with pytest.raises(EndpointError):
            tally.call(fails(fault))
    tally.wrong()
    said = tally.message()
    assert (said.calls, said.refused, said.crashes, said.timeouts, said.not_finite, said.unusable, said.wrong) == (
        6, 1, 1, 1, 1, 1, 1,
    )  # fmt: skip
    assert said.times == {bucket(0.002): 6}
    both = together([said, said])
    assert (both.calls, both.crashes, both.times) == (12, 2, {bucket(0.002): 12})
    p50 = answer_ms(both.times, 0.5)
    assert p50 is not None
    assert 2.0 <= p50 <= 2.0 * 10 ** (1 / 20)
    assert answer_ms({}, 0.5) is None


# Objectives -----------------------------------------------------------------------------------------------------------


def missed(outcomes: list[ProbeOutcome], **wanted: float) -> dict[str, str]:
    return {str(name): said for name, said in breaches(outcomes, ObjectiveSettings(**wanted), 3).items()}


def test_nothing_is_missed_where_nothing_is_wanted() -> None:
    bad = outcome(latency_ms=1e9, fooled=20, answers=Answers(calls=10, crashes=10, times={200: 10}))
    assert missed([bad] * 20) == {}


def test_latency_is_missed_when_most_alerts_are_late() -> None:
    late, soon = outcome(latency_ms=900.0), outcome(latency_ms=100.0)
    assert missed([late] * 2, latency_ms=500) == {}
    assert missed([late, soon] * 5, latency_ms=500) == {}
    assert (
        "6 of the last 10 detected probes took longer than 500 ms"
        in missed([late] * 6 + [soon] * 4, latency_ms=500)["latency"]
    )


def test_robust_accuracy_is_missed_when_its_whole_interval_is_below() -> None:
    held = outcome(attack="transfer_pgd", kind="burst", threat="image-linf", fooled=10)
    assert missed([held] * 10, robust_accuracy=0.55) == {}, "50 % of 200 rows may well be 55 %"
    said = missed([held] * 10, robust_accuracy=0.6)["robust-accuracy"]
    assert "50% of 200 rows crafted by transfer_pgd under 'image-linf'" in said
    assert missed([held] * 2, robust_accuracy=0.9) == {}


def test_errors_and_slowness_of_the_model_are_missed_objectives() -> None:
    fine = outcome(answers=Answers(calls=100, refused=50, times={60: 100}))
    bad = outcome(answers=Answers(calls=100, timeouts=3, not_finite=2, times={60: 90, 130: 10}))
    assert missed([fine] * 5, model_error_rate=0.0, model_latency_ms=5) == {}
    said = missed([bad] * 5, model_error_rate=0.01, model_latency_ms=1000)
    assert "the model failed 25 of 500 calls" in said["model-errors"]
    assert said.keys() == {"model-errors", "model-latency"}
    abandoned = outcome(abandoned="crash", answers=Answers(calls=1, crashes=1))
    assert "model-errors" in missed([abandoned] * 5, model_error_rate=0.1), "what was abandoned for it counts too"


def test_false_alarms_are_judged_on_controls_alone() -> None:
    control = outcome(False, "control_direct", kind="control")
    paged = msgspec.structs.replace(control, detected=True)
    assert missed([control] * 30 + [outcome()] * 30, false_alarm_rate=0.01) == {}
    assert (
        "6 of the last 36 benign controls were paged"
        in missed([control] * 30 + [paged] * 6, false_alarm_rate=0.01)["false-alarms"]
    )


def test_extractions_are_judged_where_they_have_an_objective() -> None:
    theft = outcome(False, "random_extraction", kind="extraction")
    assert blindness([theft] * 10, 0.8, 3) is None
    assert "0 of the last 10 random_extraction" in str(blindness([theft] * 10, 0.8, 3, {"random_extraction": 0.5}))
    assert blindness([outcome(False, "fuzz", kind="fuzz", inputs=0, arrived=0)] * 10, 0.8, 3) is None
    half = [outcome(bool(number % 2)) for number in range(10)]
    assert blindness(half, 0.8, 3) is not None
    assert blindness(half, 0.8, 3, {ATTACK: 0.4}) is None


# Regressions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (8, 0), (3, 9), (30, 12), (5, 5)])
def test_exact_is_the_two_sided_binomial_test(lost: int, gained: int) -> None:
    wanted = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert exact(lost, gained) == pytest.approx(wanted)


def burst(number: int, version: str, fooled: list[bool], detected: bool = True) -> ProbeOutcome:
    return outcome(
        detected, "transfer_pgd", kind="burst", threat="image-linf", number=number, model_version=version,
        inputs=len(fooled), fooled=sum(fooled), fooled_rows=np.packbits(fooled).tobytes().hex(),
    )  # fmt: skip


def test_a_worse_version_is_named_with_its_significance() -> None:
    rng = np.random.default_rng(3)
    before = [burst(n + 1, "3", list(rng.random(20) < 0.2)) for n in range(10)]
    after = [
        burst(n + 1, "4", [bool(a or b) for a, b in zip(bits_of(one), rng.random(20) < 0.3, strict=True)])
        for n, one in enumerate(before)
    ]
    robust = next(found for found in compare([*before, *after], 0.01) if found.measure == "robust accuracy")
    assert (robust.before, robust.after, robust.probes, robust.n) == ("3", "4", 10, 200)
    assert robust.lost > 30
    assert robust.gained == 0
    assert robust.pvalue == exact(robust.lost, 0)
    assert robust.worse
    said = sentence(robust)
    assert "version 4 against version 3: robust accuracy under transfer_pgd (image-linf) went from" in said
    assert f"{robust.lost} lost and 0 gained (exact McNemar p = {robust.pvalue:.2g})" in said
    seen = next(found for found in compare([*before, *after], 0.01) if found.measure == "detection")
    assert (seen.lost, seen.gained, seen.pvalue, seen.worse) == (0, 0, 1.0, False)
    better = next(found for found in compare([*after, *before], 0.01) if found.measure == "robust accuracy")
    assert better.before == "4"
    assert not better.worse, "a better version is no regression"


def bits_of(one: ProbeOutcome) -> list[bool]:
    digits = np.frombuffer(bytes.fromhex(one.fooled_rows), dtype=np.uint8)
    return [bool(bit) for bit in np.unpackbits(digits)[: one.inputs]]


def test_only_probes_of_equal_numbers_are_compared() -> None:
    fooled = [True] * 8
    before = [burst(number, "1", fooled) for number in (1, 2, 3, 4)]
    after = [burst(number, "2", [False] * 8) for number in (3, 4, 5, 0)]
    abandoned = msgspec.structs.replace(burst(1, "2", fooled), abandoned="away")
    unknown = burst(2, "", fooled)
    found = compare([*before, *after, abandoned, unknown], 0.01)
    assert {(each.measure, each.probes, each.n) for each in found} == {("detection", 2, 2), ("robust accuracy", 2, 16)}
    assert compare(before, 0.01) == []
    assert versions([*before, *after]) == ("1", "2")
    assert versions([*before, *after, before[0]]) == ("2", "1"), "a version that was rolled back to is the newest"


def test_equal_versions_are_hardly_ever_told_apart() -> None:
    """All looks, attacks and measures together: the chance stays below the significance."""
    rng = np.random.default_rng(4)
    named = 0
    trials = 150
    for _ in range(trials):
        before, after = [], []
        worse = False
        for number in range(1, 41):
            for version, into in (("1", before), ("2", after)):
                into.append(burst(number, version, list(rng.random(10) < 0.3), bool(rng.random() < 0.8)))
            if number in LOOKS:
                worse |= any(found.worse for found in compare([*before, *after], 0.1))
        named += worse
    assert named / trials <= 0.1
