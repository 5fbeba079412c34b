"""What the lens recorded, as lines of a table, as tokens in their context, and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from entropy_rft.evaluation.lens import PARTITIONS, Bucket, Lens, Record, totals
from entropy_rft.reporting.cells import MISSING, number, percent

TITLES = {
    "advantage_phase": "advantage, phase",
    "probability": "probability",
    "discriminant": "decile of S*",
}
HEADER = ("%", "tokens", "loss", "gain", "dropped")
AUDITED_HEADER = ("predicted", "measured")
NOTE = (
    "loss and gain: shares of the sum of the negative and of the positive predicted changes without the rule; dropped: "
    "what the rule removed of this line's loss"
)
AUDITED_NOTE = (
    "predicted (with the rule, for a unit logit step) and measured: thousandths of a nat per token of the batch, over "
    "the audited updates"
)


def header(lens: Lens) -> list[str]:
    """The names of the columns."""
    return [*HEADER, *(AUDITED_HEADER if lens.audited else ())]


def note(lens: Lens) -> str:
    """What the columns mean."""
    return f"{NOTE}. {AUDITED_NOTE}" if lens.audited else NOTE


def title(lens: Lens, label: str) -> str:
    """Which updates of which run a table is about."""
    steps = [record.step for record in lens.records]
    audited = f", {len(lens.audited)} of them audited" if lens.audited else ""
    return f"{label}: {len(steps)} recorded updates, {steps[0]} to {steps[-1]}{audited}"


def partition_lines(lens: Lens, partition: str) -> list[list[str]]:
    """A line for each bucket that has tokens."""
    whole, audited = Bucket.sum([record.total for record in lens.records]), _audited(lens)
    edges = _edge_names(lens.records) if partition == "discriminant" else {}
    return [
        [edges.get(name, name.replace("/", " ")), *_cells(bucket, whole, audited, partition, name)]
        for name, bucket in totals(lens.records)[partition].items()
        if bucket.tokens
    ]


def total_line(lens: Lens) -> list[str]:
    """The line of all tokens."""
    whole, audited = Bucket.sum([record.total for record in lens.records]), _audited(lens)
    return ["all tokens", *_cells(whole, whole, audited, None, "")]


def lens_lines(lens: Lens) -> list[list[str]]:
    """All tokens, then each partition under its title."""
    lines = [total_line(lens)]
    for partition in PARTITIONS:
        blank = [""] * (len(header(lens)) - 1)
        lines.append([TITLES[partition], *blank])
        lines += [[f" {first}", *rest] for first, *rest in partition_lines(lens, partition)]
    return lines


def token_line(token: Mapping[str, Any]) -> str:
    """One stored token in one line: its numbers, and the text around it with the token between ⟦ and ⟧."""
    dropped = ", dropped" if token.get("dropped") else ""
    text = f"{shown(token.get('before'))}⟦{shown(token.get('token'))}⟧{shown(token.get('after'))}"
    return f"{token_numbers(token)}{dropped}: {text}"


def token_numbers(token: Mapping[str, Any]) -> str:
    """Its update, the change and what it is made of."""
    names = (("change", "ΔH"), ("advantage", "A"), ("probability", "π"), ("entropy", "H"), ("discriminant", "S*"))
    values = ", ".join(f"{short} {number(token.get(name))}" for name, short in names)
    return f"update {token['step']}, {shown(token.get('phase'))}, {values}"


def shown(text: Any) -> str:
    """Text of a model for a terminal or a page: characters that are not printable are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text or ""))


def as_json(lens: Lens, label: str) -> dict[str, Any]:
    """Everything that was recorded of a run, summed and update by update."""
    whole = Bucket.sum([record.total for record in lens.records])
    return {
        "run": label,
        "directory": str(lens.directory),
        "steps": [record.step for record in lens.records],
        "audited_steps": [record.step for record in lens.audited],
        "total": asdict(whole),
        "buckets": _plain(totals(lens.records)),
        "audited_buckets": _plain(totals(lens.audited)),
        "updates": [
            {"step": record.step, "total": asdict(record.total), "edges": list(record.edges)} for record in lens.records
        ],
        "tokens": lens.tokens,
        "notes": lens.notes,
    }


def _plain(sums: Mapping[str, Mapping[str, Bucket]]) -> dict[str, dict[str, Any]]:
    return {
        partition: {name: asdict(bucket) for name, bucket in buckets.items()} for partition, buckets in sums.items()
    }


def _audited(lens: Lens) -> tuple[Bucket, dict[str, dict[str, Bucket]]] | None:
    if not lens.audited:
        return None
    return Bucket.sum([record.total for record in lens.audited]), totals(lens.audited)


def _cells(
    bucket: Bucket,
    whole: Bucket,
    audited: tuple[Bucket, dict[str, dict[str, Bucket]]] | None,
    partition: str | None,
    name: str,
) -> list[str]:
    shares = [(bucket.tokens, whole.tokens), (bucket.loss, whole.loss), (bucket.gain, whole.gain)]
    cells = [percent(_ratio(*pair)) for pair in (*shares, (bucket.dropped_loss, bucket.loss))]
    if audited is not None:
        everything, by_partition = audited
        own = everything if partition is None else by_partition[partition][name]
        cells += [_thousandths(own.predicted, everything.tokens), _thousandths(own.measured, everything.tokens)]
    return cells


def _ratio(part: float, whole: float) -> float | None:
    return part / whole + 0.0 if whole else None  # never -0.0


def _thousandths(change: float | None, tokens: float) -> str:
    if change is None or change != change or not tokens:
        return MISSING
    return f"{round(1000 * change / tokens, 3) + 0.0:+.3f}"  # never -0.000


def _edge_names(records: Sequence[Record]) -> dict[str, str]:
    """The deciles with the means of their upper edges over the updates."""
    means = [sum(edges) / len(records) for edges in zip(*(record.edges for record in records), strict=True)]
    ranges = [*(f"to {mean:.2g}" for mean in means), f"above {means[-1]:.2g}"]
    return {str(decile): f"{decile}: {text}" for decile, text in enumerate(ranges, start=1)}
