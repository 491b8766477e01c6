"""From the parts of a campaign to its report: plain data, the same for the same campaign but for `timings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attacks.threat import ThreatModel
from streams.redteam.campaign import Campaign, Part, digest
from streams.redteam.intervals import Share, share

FORMAT = "vedette-redteam/1"
#: A row is called seen when its fused p-value is at most this; bundles of few reference rows resolve no smaller ones.
SEEN = 0.05
#: Where the threat model has no bound, robust accuracy is told at these quantiles of the distances found.
DISTANCE_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


class Joined:
    """All parts of one attack as one, over the n rows of the field.

    Attributes
    ----------
    crafted : float64 (r, n, d)
    success : bool (r, n)
    scores : float64 (r, n, k)
    queries : int64 (r, n)
    distances : float64 (r, n)
        Infinite where nothing was found.
    pvalues : float64 (r, n)
        Of the bundle; NaN without one.
    ticket, page : int64 (n,)
    seconds : float
    """

    def __init__(self, campaign: Campaign, parts: Sequence[Part]) -> None:
        field, radii = campaign.field, campaign.radii
        n, r = len(field), len(radii)
        self.crafted = np.tile(field.inputs, (r, 1, 1))
        self.success = np.zeros((r, n), dtype=np.bool_)
        self.scores = np.tile(field.scores, (r, 1, 1))
        self.queries = np.zeros((r, n), dtype=np.int64)
        self.pvalues = np.full((r, n), np.nan)
        self.ticket, self.page = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.seconds = 0.0
        for part in parts:
            rows = part.rows
            self.crafted[:, rows], self.success[:, rows] = part.crafted, part.success
            self.scores[:, rows], self.queries[:, rows] = part.scores, part.queries
            if part.pvalues.shape[1]:
                self.pvalues[:, rows] = part.pvalues
                self.ticket[rows], self.page[rows] = part.ticket, part.page
            self.seconds += part.seconds
        distances = [campaign.threat.distances(field.inputs, crafted) for crafted in self.crafted]
        self.distances = np.where(self.success, np.array(distances), np.inf)


def report(campaign: Campaign, found: Mapping[str, Sequence[Part]], source: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a finished campaign; `source` tells of model and data."""
    field, threat, own = campaign.field, campaign.threat, campaign.own
    counted = np.ones(len(field), dtype=np.bool_) if threat.goal == "any" else field.truth != threat.goal
    right, attacked = field.right[counted], campaign.attacked
    joined = {name: Joined(campaign, parts) for name, parts in found.items()}
    fooled = np.any([one.success[own] for one in joined.values()], axis=0)
    robust = (field.right & ~fooled)[counted]
    distances = np.min([one.distances[own] for one in joined.values()], axis=0)
    entries = {entry.name: entry for entry in campaign.lineup.entries}
    watched = campaign.witness is not None
    benign = np.empty(0)
    if campaign.witness is not None:
        benign = campaign.witness.pvalues(field.inputs[attacked], field.scores[attacked])
    return {
        "format": FORMAT,
        **source,
        "classes": list(campaign.schema.classes),
        "features": campaign.schema.width,
        "image_shape": None if campaign.schema.image_shape is None else list(campaign.schema.image_shape),
        "threat": told(threat),
        "seed": campaign.seed,
        "rows": int(counted.sum()),
        "attacked": len(attacked),
        "clean_accuracy": share(right).to_dict(),
        "robust_accuracy": share(robust).to_dict(),
        "withstood": share(~fooled[attacked]).to_dict(),
        "strongest": _strongest(joined, own, attacked),
        "distance": _spread(distances[attacked][np.isfinite(distances[attacked])]),
        "curve": _curve(campaign, list(joined.values()), counted),
        "attacks": [
            {
                "name": name,
                "reads": entries[name].access,
                "of": entries[name].target,
                "parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in entries[name].parameters.items()},
                "fooled": share(one.success[own][attacked]).to_dict(),
                "robust_accuracy": share((field.right & ~one.success[own])[counted]).to_dict(),
                "distance": _spread(one.distances[own][one.success[own]]),
                "queries": _queries(one, own, attacked),
                "curve": _curve(campaign, [one], counted),
                **({"detection": _detection(campaign, one)} if watched else {}),
            }
            for name, one in joined.items()
        ],
        "detection": _summary(campaign, joined, benign) if watched else None,
        "confusion": _confusion(campaign, joined),
        "outcomes": {
            "row": field.places.tolist(),
            "digest": [digest(field.inputs[i], field.truth[i : i + 1])[:16] for i in range(len(field))],
            "truth": field.truth.tolist(),
            "counted": counted.tolist(),
            "right": field.right.tolist(),
            "robust": (field.right & ~fooled).tolist(),
            "fooled_by": {name: np.flatnonzero(one.success[own]).tolist() for name, one in joined.items()},
        },
        "left_out": [{"name": name, "because": reason} for name, reason in campaign.lineup.left_out],
        "surrogate_rows": len(campaign.spare[0]) if any(e.target == "surrogate" for e in entries.values()) else 0,
        "timings": {
            "seconds": {name: round(one.seconds, 3) for name, one in joined.items()},
            "milliseconds_a_row": {
                name: round(1e3 * one.seconds / max(1, len(attacked)), 3) for name, one in joined.items()
            },
        },
    }


def told(threat: ThreatModel) -> dict[str, Any]:
    """A threat model as plain data."""
    domain = threat.domain
    return {
        "name": threat.name,
        "norm": threat.norm,
        "eps": threat.eps,
        "knowledge": threat.knowledge,
        "budget": int(threat.budget),
        "goal": threat.goal,
        "scaled": threat.scale is not None,
        "movable": int(domain.movable.sum()),
        "relations": 0 if domain.relations is None else len(domain.relations.constant),
    }


def sentence(threat: Mapping[str, Any], classes: Sequence[str] = ()) -> str:
    """A threat model in words."""
    norm = {"l0": "L0", "l1": "L1", "l2": "L2", "linf": "Linf"}[threat["norm"]]
    far = "any distance" if threat["eps"] is None else f"within {threat['eps']:.4g}"
    goal = threat["goal"]
    aim = "to any other class" if goal == "any" else f"to class {classes[goal] if classes else goal}"
    return f"{norm} {far}, {threat['knowledge']}, {threat['budget']:,} queries a row, {aim}"


def timings(milliseconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Latencies of the model, by kind of row: median and 95th percentile of rows that were asked alone."""
    return {
        kind: {
            "n": len(values),
            "median_ms": round(float(np.median(values)), 4),
            "p95_ms": round(float(np.percentile(values, 95)), 4),
        }
        for kind, values in milliseconds.items()
        if len(values)
    }


def examples(campaign: Campaign, found: Mapping[str, Sequence[Part]]) -> pa.Table:
    """A row for each attack and attacked row at the threat model's own distance."""
    field, attacked, own = campaign.field, campaign.attacked, campaign.own
    tables = []
    for name, parts in found.items():
        one = Joined(campaign, parts)
        labels = np.argmax(one.scores[own][attacked], axis=1)
        columns: dict[str, Any] = {
            "attack": pa.array([name] * len(attacked), pa.string()),
            "row": field.places[attacked],
            "truth": field.truth[attacked],
            "label": labels.astype(np.int64),
            "success": one.success[own][attacked],
            "distance": pa.array(one.distances[own][attacked], mask=~one.success[own][attacked]),
            "queries": one.queries[own][attacked],
            "original": _lists(field.inputs[attacked]),
            "crafted": _lists(one.crafted[own][attacked]),
        }
        if campaign.witness is not None:
            columns["p"] = one.pvalues[own][attacked]
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def shown(campaign: Campaign, found: Mapping[str, Sequence[Part]], most: int) -> list[dict[str, Any]]:
    """The fooled rows for the page, one a class in turn, each with its nearest crafted row over all attacks."""
    field, own = campaign.field, campaign.own
    joined = {name: Joined(campaign, parts) for name, parts in found.items()}
    names = list(joined)
    distances = np.array([one.distances[own] for one in joined.values()])
    best = np.argmin(distances, axis=0)
    fooled = np.flatnonzero(np.isfinite(distances.min(axis=0)))
    turn = dict.fromkeys(np.unique(field.truth).tolist(), 0)
    order = []
    for row in fooled.tolist():
        cls = int(field.truth[row])
        order.append((turn[cls], cls, row))
        turn[cls] += 1
    picked = []
    for _, _, row in sorted(order)[:most]:
        one = joined[names[best[row]]]
        picked.append(
            {
                "row": int(field.places[row]),
                "attack": names[best[row]],
                "before": int(field.truth[row]),
                "after": int(np.argmax(one.scores[own, row])),
                "distance": float(one.distances[own, row]),
                "queries": int(one.queries[own, row]),
                "original": field.inputs[row].tolist(),
                "crafted": one.crafted[own, row].tolist(),
                "p": float(one.pvalues[own, row]),
            }
        )
    return picked


def changed_most(campaign: Campaign, found: Mapping[str, Sequence[Part]], most: int) -> list[dict[str, Any]]:
    """The features that the nearest successful rows changed most often, with how far, in units of distance."""
    field, own = campaign.field, campaign.own
    joined = [Joined(campaign, parts) for parts in found.values()]
    distances = np.array([one.distances[own] for one in joined])
    fooled = np.flatnonzero(np.isfinite(distances.min(axis=0)))
    if len(fooled) == 0:
        return []
    best = np.argmin(distances, axis=0)
    rows = np.array([joined[best[row]].crafted[own, row] for row in fooled])
    delta = (rows - field.inputs[fooled]) / campaign.threat.unit
    size = np.abs(delta)
    often, far = (delta != 0).mean(axis=0), size.mean(axis=0)
    return [
        {
            "name": campaign.schema.features[column].name,
            "changed": round(float(often[column]), 4),
            "mean_size": float(far[column]),
            "up": round(float((delta[:, column] > 0).mean()), 4),
        }
        for column in np.lexsort((-often, -far))[:most].tolist()
        if often[column] > 0
    ]


def _lists(rows: NDArray[np.float64]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), rows.shape[1])


def _strongest(joined: Mapping[str, Joined], own: int, attacked: NDArray[np.intp]) -> str | None:
    """The attack that fooled most rows by itself; the nearer one on a tie."""
    ranks = {
        name: (int(one.success[own][attacked].sum()), -float(np.minimum(one.distances[own][attacked], 1e300).sum()))
        for name, one in joined.items()
    }
    best = max(ranks, key=lambda name: ranks[name])
    return best if ranks[best][0] else None


def _spread(values: NDArray[np.float64]) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    low, middle, high = np.percentile(values, [10, 50, 90])
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def _queries(one: Joined, own: int, attacked: NDArray[np.intp]) -> dict[str, Any] | None:
    """Queries of the rows that were fooled; None where no row was asked."""
    if not one.queries[own][attacked].any():
        return None
    spent = np.sort(one.queries[own][one.success[own]])
    told = _spread(spent.astype(np.float64)) or {}
    return {**told, "spent": int(one.queries[own][attacked].sum()), "to_success": spent.tolist()}


def _curve(campaign: Campaign, joined: Sequence[Joined], counted: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Robust accuracy by distance, worst case over these attacks."""
    field = campaign.field
    points: list[tuple[float, NDArray[np.bool_]]]
    if campaign.threat.eps is None:
        distances = np.min([one.distances[0] for one in joined], axis=0)
        finite = distances[np.isfinite(distances)]
        told_at = np.unique(np.quantile(finite, DISTANCE_QUANTILES)).tolist() if len(finite) else []
        points = [(eps, distances <= eps) for eps in told_at]
    else:
        points = [
            (float(eps or 0.0), np.any([one.success[place] for one in joined], axis=0))
            for place, eps in enumerate(campaign.radii)
        ]
    clean = {"eps": 0.0, **share(field.right[counted]).to_dict()}
    return [clean, *({"eps": eps, **share((field.right & ~hit)[counted]).to_dict()} for eps, hit in points)]


def _confusion(campaign: Campaign, joined: Mapping[str, Joined]) -> list[list[int]]:
    """[true class][class after the nearest successful attack] -> rows."""
    own, k = campaign.own, max(len(campaign.schema.classes), campaign.field.scores.shape[1])
    counts = np.zeros((k, k), dtype=np.int64)
    distances = np.array([one.distances[own] for one in joined.values()])
    best = np.argmin(distances, axis=0)
    everyone = list(joined.values())
    for row in np.flatnonzero(np.isfinite(distances.min(axis=0))).tolist():
        reached = int(np.argmax(everyone[best[row]].scores[own, row]))
        counts[campaign.field.truth[row], reached] += 1
    return [[int(count) for count in line] for line in counts]


def _detection(campaign: Campaign, one: Joined) -> dict[str, Any]:
    """Of the successful rows: how many a bundle sees, by distance; of the trails: how many it reports."""
    own = campaign.own
    recall = [
        {"eps": eps, **share(one.pvalues[place][one.success[place]] <= SEEN).to_dict()}
        for place, eps in enumerate(campaign.radii)
    ]
    asked = one.queries[own] > 0
    before = asked & one.success[own] & (one.ticket > 0) & (one.ticket <= one.queries[own])
    tickets = one.ticket[asked & (one.ticket > 0)]
    return {
        "recall": recall,
        "trails": None
        if not asked.any()
        else {
            "ticketed": share(one.ticket[asked] > 0).to_dict(),
            "paged": share(one.page[asked] > 0).to_dict(),
            "before_success": Share(int(before.sum()), int((asked & one.success[own]).sum())).to_dict(),
            "median_queries": float(np.median(tickets)) if len(tickets) else None,
        },
    }


def _summary(campaign: Campaign, joined: Mapping[str, Joined], benign: NDArray[np.float64]) -> dict[str, Any]:
    own = campaign.own
    pooled = np.concatenate([one.pvalues[own][one.success[own]] for one in joined.values()])
    return {
        "bundle": None if campaign.witness is None else campaign.witness.path,
        "digest": None if campaign.witness is None else campaign.witness.ensemble.digest,
        "level": SEEN,
        "crafted_seen": share(pooled <= SEEN).to_dict(),
        "benign_seen": share(benign <= SEEN).to_dict(),
    }


__all__ = ["FORMAT", "Joined", "changed_most", "examples", "report", "sentence", "shown", "timings", "told"]
