"""Fitting an ensemble on reference rows, and calibrating it on benign events."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors import registry
from detectors.calibration import clusters, history, pools, repeaters, residual
from detectors.calibration.conformal import ScoreCalibration, surprise_of
from detectors.calibration.decision import THRESHOLD_NAMES, Decision, Yardstick, decide, excuses, proposed
from detectors.calibration.doubts import doubts
from detectors.calibration.evalues import evalue
from detectors.calibration.examination import (
    FUSED,
    Curve,
    Examination,
    LeftOut,
    curve,
    fixed_rates,
    left_out,
    uniformities,
)
from detectors.calibration.fusion import Fusion, equal_weights, learned_weights
from detectors.calibration.history import History
from detectors.calibration.prospects import prospects
from detectors.calibration.rehearsal import fooling, rehearse
from detectors.calibration.report import FitReport
from detectors.calibration.scheme import Scheme
from detectors.calibration.weeks import LEAST_CLIENTS, LEAST_ROWS
from detectors.contract import ANONYMOUS, Batch, Detector, HistoryDetector, Progress, Reference
from detectors.embeddings.space import check_embeddings, embedded_rows, needs_embedding, rarely_embedded
from detectors.errors import FitError, SchemaError
from detectors.queries.codes import Coder
from detectors.queries.intent import IntentTest
from detectors.queries.walk import BINS, PLAIN, Columns, Tables
from detectors.responses.asking import asked
from detectors.responses.contract import Ask
from detectors.responses.escalation import Escalation
from detectors.schema import FeatureSchema
from detectors.scorer import Ensemble
from detectors.signals import client_name
from detectors.single import Single, columns_of, new_past, raw_scores, remembers
from detectors.view import BatchView, ReferenceFrame, correct_rows

__all__ = ["Ensemble", "FitReport", "fit"]

#: Rows that are scored at a time while fitting.
CHUNK_ROWS = 8192
#: Rows of the index, at most; fewer where the benign history is short.
INDEX_ROWS = 10_000
#: Fewest rows of the index that make a table.
LEAST_INDEX_ROWS = 32
#: Larger values of reference rows are refused.
LARGEST_VALUE = 1e30
#: Fewest reference rows, if there are no benign events.
LEAST_REFERENCE = 200
#: Share of the reference that is held out where there are no benign events, and rows of a stand-in client.
HELD_OUT_SHARE = 0.4
STANDIN_CLIENTS, STANDIN_ROWS = 40, (10, 120)
#: Residual scores that the sequential test is calibrated on, at most.
MAX_RESIDUALS = 20_000

#: Share of the clients that set thresholds.
THRESHOLDS_SHARE = 1.0 - pools.SHAPE_SHARE - pools.RANKS_SHARE - pools.FUSION_SHARE

#: Median spreads and weighted -ln p.
DEFAULT_SCHEME = Scheme()


def silent(_what: str, _share: float) -> None:
    """Progress that nobody watches."""


def fit(
    reference: Reference,
    schema: FeatureSchema,
    benign: Batch | None,
    *,
    crafted: Mapping[str, Reference] | None = None,
    budget: int,
    clients_per_week: int | None,
    week_us: int,
    partitions: int,
    rng: np.random.Generator,
    progress: Progress = silent,
    detectors: Sequence[str] = registry.DEFAULT,
    model: Any = None,
    scheme: Scheme = DEFAULT_SCHEME,
    probes: Reference | None = None,
    inquiries: Sequence[str] = (),
    ask: Ask | None = None,
) -> tuple[Ensemble, FitReport]:
    """Fit detectors, the default ones unless others are named, and calibrate what decides.

    Parameters
    ----------
    reference : Reference
        Rows to learn "normal" from.
    schema : FeatureSchema
    benign : Batch or None
        Benign events in the order of the stream, with clients and times: what thresholds are calibrated on. Without
        them the ensemble can only open tickets, calibrated on held-out reference rows.
    crafted : mapping of str to Reference, optional
        Adversarial rows and the model's answers to them, by the name of their attack; they only weigh detectors against
        each other. Of two or more attacks the report says how well each is found by weights learned from the others.
    budget : int
        N, false pages a week at most.
    clients_per_week : int or None
        Clients expected in a week; None takes the most that a week of `benign` saw.
    week_us : int
        Length of a "week", in microseconds.
    partitions : int
        Partitions of the event topic.
    rng : numpy.random.Generator
    progress : callable
        Told what is being done, and the share done.
    detectors : sequence of str
        Names in the registry, each once, in the order of the columns of verdicts.
    model : object, optional
        The watched model, for detectors that read it at their fit.
    scheme : Scheme
        How scores are made comparable and how they become one.
    probes : Reference or None
        Adversarial rows that nothing is learned from; the report says how many of them are found. Without them it says
        that of attacks rehearsed from rows of clients that set no table of single inputs.
    inquiries : sequence of str
        Names in `detectors.responses.escalation.KINDS`: the escalation tier, which no decision depends on.
    ask : callable, optional
        The watched model, for `inquiries`: rows (m, d) in, probabilities (m, k) out.

    Returns
    -------
    Ensemble, FitReport

    Raises
    ------
    FitError
        When the data can't support a fit at all; the message says what would. Data that can't support *paging* make an
        ensemble that tickets, and the report says how many client-weeks are missing.
    """
    _check(reference, schema, benign, crafted, budget, clients_per_week, week_us, partitions)
    _check_rows("probe", probes, schema)
    chosen = _chosen(detectors, model)
    if inquiries and ask is None:
        raise FitError("inquiries ask the watched model at their fit; give it (`--model`)")
    check_embeddings(chosen, schema, benign)
    kept = correct_rows(reference, len(schema.classes), schema.width)
    _check_size(kept, schema)
    doubted = doubts(kept, benign, schema)
    for what, rows in (("reference rows", kept), ("benign events", benign)):
        doubted += [] if rows is None else rarely_embedded(chosen, schema.embedding_width, rows, what)
    if inquiries and ask is not None:
        asked(ask, kept.inputs[:1], len(schema.classes))  # a model that can't be asked is refused before the work
    traffic = benign
    if traffic is None:
        kept, traffic = _stand_in(kept, rng)
    progress("fitting detectors", 0.0)
    frame = ReferenceFrame.fit(kept, len(schema.classes), rng)
    fitted = tuple(detector.fit(kept, schema, rng) for detector in chosen)
    coder = Coder.fit(frame, rng)
    progress("fitting the surrogate of the intent test", 0.1)
    pool = pools.split(traffic.clients, rng)
    intent = IntentTest.fit(kept, schema, frame, rng, traffic.take(~pool.thresholds))

    single, columns, examined = _single(
        frame, fitted, coder, intent, schema, traffic, pool, crafted, probes, scheme, rng, progress
    )
    progress("measuring distances between queries", 0.55)
    tables, index_rows, repeating, between = _tables(single, columns, pool, rng)
    progress("calibrating on client-weeks", 0.7)
    past, others = (
        History.replay(columns, traffic.times, chosen, tables, index_rows, week_us, partitions, repeating)
        for chosen in (pool.thresholds, pool.fusion)
    )
    decision = decide(
        past,
        Yardstick.of(others, budget, clients_per_week or max(1, past.clients_a_week)),
        tables,
        intent,
        real=benign is not None,
        budget=budget,
        clients_per_week=clients_per_week,
        partitions=partitions,
        progress=lambda what, share: progress(what, 0.8 + 0.2 * share),
    )
    escalation = None
    if inquiries and ask is not None:
        # Drawn from a generator of their own, and last: everything else is the same with them and without.
        escalation = Escalation.fit(
            kept,
            schema,
            traffic.inputs,
            traffic.labels,
            ask,
            rng.spawn(1)[0],
            inquiries,
            lambda what, share: progress(what, 0.98 + 0.02 * share),
        )
    untried = [one.name for one in fitted if one.name not in {told.detector for told in examined.curves}]
    if examined.curves and untried:
        doubted.append(
            f"crafted rows carry no embedding and belong to no history, so nothing is known of how well "
            f"{' and '.join(untried)} find them"
        )
    ensemble = Ensemble(
        schema=schema,
        single=single,
        tables=tables._replace(thresholds=decision.thresholds),
        intent=intent,
        policy=decision.policy,
        index_rows=index_rows,
        escalation=escalation,
    )
    counts = {name: int(np.count_nonzero(getattr(pool, name))) for name in ("shape", "ranks", "fusion", "thresholds")}
    counts = {"reference": len(kept), **counts, **clusters.sizes(tables), "index": index_rows}
    learned = "mean" if scheme.fusion == "mean" else "rehearsed" if crafted is None else "logistic"
    report = _report(
        ensemble, decision, past, counts, between, learned, budget, partitions, benign is not None, week_us
    )
    progress("done", 1.0)
    return ensemble, replace(
        report,
        notes=(*report.notes, *doubted),
        data_digest=_data_digest(reference, benign, crafted),
        examination=examined,
    )


def _check(
    reference: Reference,
    schema: FeatureSchema,
    benign: Batch | None,
    crafted: Mapping[str, Reference] | None,
    budget: int,
    clients_per_week: int | None,
    week_us: int,
    partitions: int,
) -> None:
    """Refuse what no fit can be made of, in a sentence."""
    if budget < 0 or week_us < 1 or partitions < 1 or (clients_per_week is not None and clients_per_week < 1):
        raise FitError(
            f"budget {budget} must be >= 0, week {week_us} us, partitions {partitions} and clients a week "
            f"{clients_per_week} >= 1"
        )
    if crafted is not None and not crafted:
        raise FitError("crafted rows name no attack; give rows of one at least, or none at all")
    for attack, rows in (crafted or {}).items():
        _check_rows(f"crafted {attack}", rows, schema)
    if benign is None:
        if len(reference) < LEAST_REFERENCE:
            raise FitError(f"{len(reference)} reference rows alone are too few; give at least {LEAST_REFERENCE}")
        return
    clients = len(np.unique(benign.clients[benign.clients != ANONYMOUS]))
    if clients < LEAST_CLIENTS or len(benign) < LEAST_ROWS:
        raise FitError(
            f"{len(benign)} benign events of {clients} clients are too few to calibrate on; give at least {LEAST_ROWS} "
            f"of {LEAST_CLIENTS} clients, or the reference alone"
        )
    if np.any(np.diff(benign.times) < 0):
        raise FitError("benign events must stand in the order of their times")
    _check_rows("benign", benign, schema)


def _check_rows(what: str, rows: Batch | Reference | None, schema: FeatureSchema) -> None:
    """Refuse rows that do not fit the schema; none are as good as fitting ones."""
    if rows is None:
        return
    inputs, labels = rows.inputs, rows.labels
    if inputs.ndim != 2 or inputs.shape[1] != schema.width or not len(inputs):
        raise FitError(f"{what} inputs have shape {inputs.shape}; the schema needs (n, {schema.width}), n >= 1")
    bad = np.flatnonzero(~np.isfinite(inputs).all(axis=1))
    if len(bad):
        raise FitError(f"{len(bad)} {what} rows hold NaN or infinity, first row {bad[0]}")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(schema.classes)))
    if len(wrong):
        raise FitError(f"{what} row {wrong[0]} has label {labels[wrong[0]]}; labels are 0 to {len(schema.classes) - 1}")
    try:
        embedded_rows(rows, schema.embedding_width)
    except SchemaError as odd:
        raise FitError(f"{what} rows: {odd}") from None


def _check_size(reference: Reference, schema: FeatureSchema) -> None:
    """Refuse values whose squares, or forms in single precision, are none."""
    most = np.abs(reference.inputs).max(axis=0)
    if most.max() > LARGEST_VALUE:
        place = int(most.argmax())
        raise FitError(
            f"feature {schema.features[place].name!r} of the reference reaches {most[place]:.3g}, beyond "
            f"{LARGEST_VALUE:g}, where no distance can be computed; remove such rows, or take another unit"
        )


def _chosen(names: Sequence[str], model: Any) -> tuple[Detector | HistoryDetector, ...]:
    """The detectors of these names, not yet fitted."""
    if not names:
        raise FitError("an ensemble needs at least one detector")
    made = tuple(registry.made(name, model) for name in names)
    found = [detector.name for detector in made]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise FitError(f"detectors are named once; given twice: {', '.join(twice)}")
    return made


def _stand_in(kept: Reference, rng: np.random.Generator) -> tuple[Reference, Batch]:
    """Hold some of the reference out, and let its rows, in any order, stand for the traffic of some clients."""
    order = rng.permutation(len(kept))
    count = round(HELD_OUT_SHARE * len(kept))
    held, rest = order[:count], np.sort(order[count:])
    a_client = int(np.clip(count // STANDIN_CLIENTS, *STANDIN_ROWS))
    place = np.arange(count, dtype=np.int64)
    traffic = Batch(
        inputs=kept.inputs[held],
        labels=kept.labels[held],
        clients=(1 + place % math.ceil(count / a_client)).astype(np.uint64),
        times=place,
        offsets=place,
        rows=np.zeros(count, dtype=np.int32),
        embeddings=None if kept.embeddings is None else kept.embeddings[held],
    )
    outputs = None if kept.outputs is None else kept.outputs[rest]
    embeddings = None if kept.embeddings is None else kept.embeddings[rest]
    return Reference(kept.inputs[rest], kept.labels[rest], outputs, embeddings=embeddings), traffic


def _single(
    frame: ReferenceFrame,
    detectors: tuple[Detector | HistoryDetector, ...],
    coder: Coder,
    intent: IntentTest,
    schema: FeatureSchema,
    traffic: Batch,
    pool: pools.Pools,
    crafted: Mapping[str, Reference] | None,
    probes: Reference | None,
    scheme: Scheme,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[Single, Columns, Examination]:
    """Calibrate scores and their fusion, and examine both; also what the walk reads of every benign row."""
    scores = np.empty((len(traffic), len(detectors)))
    pieces: list[Columns] = []
    past = new_past(detectors, len(np.unique(traffic.clients)))
    unranked = np.zeros(CHUNK_ROWS, dtype=np.int32)
    for start in range(0, len(traffic), CHUNK_ROWS):
        progress("scoring benign rows", 0.2 + 0.35 * start / len(traffic))
        piece = traffic.take(slice(start, start + CHUNK_ROWS))
        view = BatchView(frame, piece)
        scores[start : start + CHUNK_ROWS] = raw_scores(detectors, view, past)
        pieces.append(columns_of(view, coder, np.empty(0), unranked[: len(piece)], np.zeros(len(piece))))
    columns = Columns(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))
    labels = columns.rows["label"]
    calibration = ScoreCalibration.fit(
        scores[pool.shape],
        labels[pool.shape],
        scores[pool.ranks],
        labels[pool.ranks],
        frame.classes,
        scheme.spread,
        evalue if scheme.fusion == "mean" else surprise_of,
    )
    ranks = calibration.ranks(scores, labels)
    benign = calibration.surprise[ranks[pool.ranks]]

    def surprise(rows: Reference) -> NDArray[np.float64]:
        view = BatchView(frame, _as_batch(rows))
        return np.asarray(calibration.surprise[calibration.ranks(raw_scores(detectors, view), view.batch.labels)])

    def without_embeddings(known: Iterable[Reference]) -> bool:
        return not any(len(embedded_rows(rows, schema.embedding_width)) for rows in known)

    bare = without_embeddings((crafted or {}).values())
    alone = np.array([not (remembers(one) or (bare and needs_embedding(one))) for one in detectors])
    learns = scheme.fusion != "mean"
    attacks: list[tuple[str, NDArray[np.float64]]] = []
    if learns and crafted is None:
        progress("rehearsing attacks to weigh detectors", 0.5)
        rehearsed = rehearse(traffic.inputs[pool.shape], labels[pool.shape], intent, schema, rng)
        attacks = [(attack, surprise(rows)) for attack, rows in rehearsed]
    elif learns and crafted is not None:
        attacks = [(attack, surprise(rows)) for attack, rows in crafted.items()]

    def weighed(given: Sequence[tuple[str, NDArray[np.float64]]]) -> NDArray[np.float64]:
        return learned_weights(benign, [odd for _, odd in given], alone, hedge=crafted is None)

    weights = weighed(attacks) if learns else equal_weights(len(detectors))
    fusion = Fusion.fit(weights, calibration, ranks[pool.fusion])
    sums, rank = fusion.fuse(ranks, calibration.surprise)
    edges = np.quantile(columns.rows["density"][pool.ranks], np.arange(1, BINS) / BINS)
    columns.rows["rank"], columns.rows["oddness"] = rank, sums
    columns.rows["bin"] = np.searchsorted(edges, columns.rows["density"])
    single = Single(frame, detectors, calibration, fusion, coder, edges)
    fresh = pool.thresholds
    held: list[tuple[str, Reference]] = []
    if probes is None or (learns and crafted is None):
        progress("rehearsing attacks to judge by", 0.53)
        held = fooling(rehearse(traffic.inputs[fresh], labels[fresh], intent, schema, rng.spawn(1)[0]))
    shown = [rows for _, rows in held] if probes is None else [probes]
    judged = [(attack, surprise(rows)) for attack, rows in held] if crafted is None else attacks
    names = [*(detector.name for detector in detectors), FUSED]
    pvalues = np.column_stack([calibration.pvalues(ranks[fresh]), fusion.pvalues(rank[fresh])])
    examined = Examination(
        uniformity=uniformities(names, pvalues, labels[fresh], single.calibrated),
        curves=_curves(
            single, calibration.normal(scores[fresh], labels[fresh]), sums[fresh], shown, without_embeddings(shown)
        ),
        benign=int(np.count_nonzero(fresh)),
        crafted=sum(map(len, shown)),
        against=int(np.count_nonzero(fresh)),
        source="none" if not shown else "rehearsed" if probes is None else "probes",
        left_out=_left_out(attacks, judged, calibration.surprise[ranks[fresh]], weighed),
        fixed=fixed_rates(len(fusion.values), int(np.count_nonzero(pool.fusion))),
    )
    return single, columns, examined


def _curves(
    single: Single, normal: NDArray[np.float64], sums: NDArray[np.float64], crafted: Sequence[Reference], bare: bool
) -> tuple[Curve, ...]:
    """ROC of each detector and of the fused score: normalised scores (n, D) and sums (n,) of benign rows; crafted.

    Detectors that can't speak of crafted rows have none: those of histories and, where no row carries an embedding
    (`bare`), those of embeddings.
    """
    if not crafted:
        return ()
    found = [single.score(_as_batch(rows)) for rows in crafted]
    odd = np.concatenate([single.scores.normal(one.scores, one.view.batch.labels) for one in found])
    curves = [
        curve(one.name, normal[:, place], odd[:, place])
        for place, one in enumerate(single.detectors)
        if not (remembers(one) or (bare and needs_embedding(one)))
    ]
    return (*curves, curve(FUSED, sums, np.concatenate([one.sums for one in found])))


def _left_out(
    learned: Sequence[tuple[str, NDArray[np.float64]]],
    judged: Sequence[tuple[str, NDArray[np.float64]]],
    benign: NDArray[np.float64],
    weighed: Callable[[Sequence[tuple[str, NDArray[np.float64]]]], NDArray[np.float64]],
) -> tuple[LeftOut, ...]:
    """Each attack, judged by the fusion that the others make; -ln p (n, D) of rows to learn from and to judge by.

    Attacks without rows to judge by are left out of what is told.
    """
    if len({attack for attack, _ in learned}) < 2:
        return ()
    told = []
    for attack in dict.fromkeys(attack for attack, _ in judged):
        weights = weighed([one for one in learned if one[0] != attack])
        odd = np.concatenate([rows for name, rows in judged if name == attack])
        told.append(left_out(attack, benign @ weights, odd @ weights))
    return tuple(told)


def _tables(
    single: Single, columns: Columns, pool: pools.Pools, rng: np.random.Generator
) -> tuple[Tables, int, NDArray[np.bool_], float]:
    """The walk's tables; rows of the index; rows of clients that stay close to their own past; spread of clients."""
    count = min(np.count_nonzero(pool.ranks), np.count_nonzero(pool.fusion)) // 2
    index_rows = int(np.clip(count, LEAST_INDEX_ROWS, INDEX_ROWS))
    repeating = np.zeros(len(columns.rows), dtype=np.bool_)
    tables = clusters.blank_tables(single.coder.grain, len(single.fusion.values))

    rows = history.take(columns, pool.ranks)
    trace = history.measure(rows, tables, index_rows)
    close = repeaters.near(rows.rows["client"], trace["near"])
    repeating[pool.ranks] = close
    tables = clusters.distance_tables(tables, trace, rows.rows["bin"], ~close, ~close & _apart(trace, index_rows))

    rows = history.take(columns, pool.fusion)
    trace = history.measure(rows, tables, index_rows)
    close = repeaters.near(rows.rows["client"], trace["near"])
    repeating[pool.fusion] = close
    first, second = pools.halves(rows.rows["client"], rng)
    tables = clusters.combined_tables(
        tables, trace, rows.rows["bin"], first & ~close, second & ~close, ~close & _apart(trace, index_rows)
    )
    trace = history.measure(rows, tables, index_rows)
    fresh = (trace["kind"] == PLAIN) & (rows.rows["client"] != ANONYMOUS)
    scores, senders = tables.normal[rows.rows["rank"][fresh]], rows.rows["client"][fresh]
    tables = tables._replace(tau=np.array([residual.choose_tau(scores, senders, rng)]))
    trace = history.measure(rows, tables, index_rows)
    tables = clusters.residual_tables(tables, trace["residual"], MAX_RESIDUALS)

    rows = history.take(columns, pool.thresholds)
    trace = history.measure(rows, tables, index_rows)
    repeating[pool.thresholds] = repeaters.near(rows.rows["client"], trace["near"])
    return tables, index_rows, repeating, residual.between_share(scores, senders)


def _apart(trace: NDArray[Any], index_rows: int) -> NDArray[np.bool_]:
    """Rows that met a full index, without those that accounts have in common."""
    full = np.arange(len(trace["kind"])) >= index_rows
    return full & ~repeaters.in_common(np.where(full, trace["index_near"], np.nan))


def _as_batch(rows: Reference) -> Batch:
    nothing = np.zeros(len(rows), dtype=np.int64)
    return Batch(
        inputs=np.ascontiguousarray(rows.inputs, dtype=np.float64),
        labels=rows.labels.astype(np.int32),
        clients=nothing.astype(np.uint64),
        times=nothing,
        offsets=nothing,
        rows=nothing.astype(np.int32),
        outputs=rows.outputs,
        embeddings=rows.embeddings,
    )


def _report(
    ensemble: Ensemble,
    decision: Decision,
    past: History,
    counts: dict[str, int],
    between: float,
    learned: str,
    budget: int,
    partitions: int,
    real: bool,
    week_us: int,
) -> FitReport:
    thresholds, share, count = decision.thresholds, decision.split, decision.count
    names = np.unique(past.weeks.clients[past.repeating])
    pages = decision.policy.mode != "tickets"
    return FitReport(
        mode=decision.policy.mode,
        reason=decision.reason,
        budget=budget,
        budget_clients=share.clients,
        budget_index=share.index,
        budget_population=share.population,
        risk=share.clients_risk + share.index_risk,
        client_weeks=len(past.weeks) if real else 0,
        clients_per_week=decision.coming,
        client_weeks_needed=decision.needed,
        rank=count.rank if pages else 0,
        expected_pages=count.expected if pages else 0.0,
        excess=count.excess if pages else 0.0,
        expected_tickets=decision.expected_tickets,
        partition_weeks=len(past.index) if real else 0,
        partition_weeks_needed=decision.index_needed,
        thresholds={
            **dict(zip(THRESHOLD_NAMES, thresholds.tolist(), strict=True)),
            "page_score": decision.policy.page_score,
        },
        fastest=decision.fastest,
        repeaters=tuple(client_name(int(name)) for name in names) if real else (),
        proposed_repeaters=proposed(past, decision) if pages else (),
        would_page=int(np.count_nonzero(decision.beyond)),
        detectors=ensemble.detectors,
        fusion=learned,
        weights=tuple(float(weight) for weight in ensemble.single.fusion.weights),
        between_clients=between,
        tau=float(ensemble.tables.tau[0]),
        rows=counts,
        notes=tuple(_notes(decision, past, real, week_us)),
        data_digest="",
        more=prospects(decision, len(past.weeks), len(past.index), partitions, THRESHOLDS_SHARE) if real else (),
    )


def _notes(decision: Decision, past: History, real: bool, week_us: int) -> list[str]:
    """What weakens the promise, and what would help."""
    notes = []
    if not real:
        return ["give benign events (--benign) to calibrate thresholds on real clients"]
    distinct = len(np.unique(past.weeks.clients))
    notes.append(
        f"the promise holds for client-weeks that are exchangeable with those of the {distinct} clients seen in "
        f"{past.weeks_seen} weeks; clients of a new kind are outside it"
    )
    notes += excuses(decision, past, week_us)
    return notes


def _data_digest(reference: Reference, benign: Batch | None, crafted: Mapping[str, Reference] | None) -> str:
    """32 hex digits over the rows that were given."""
    total = hashlib.blake2b(digest_size=16)
    parts: list[NDArray[Any]] = [reference.inputs, reference.labels]
    if benign is not None:
        parts += [benign.inputs, benign.labels, benign.clients, benign.times]
    odd = (crafted or {}).values()
    for rows in odd:
        parts += [rows.inputs, rows.labels]
    parts += [one.embeddings for one in (reference, benign, *odd) if one is not None and one.embeddings is not None]
    for part in parts:
        total.update(f"{part.dtype.str}{part.shape}".encode())
        total.update(np.ascontiguousarray(part).data)
    return total.hexdigest()
