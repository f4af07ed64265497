"""``latbench table``: look into saved tables and predictors, check, compare and export them."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latbench.cli import lookup
from latbench.cli.console import ms, note, percent, print_json, say, span, table, warn
from latbench.cli.learn import print_curve
from latbench.cli.measure import note_clock, setting_words
from latbench.cli.options import (
    DEFAULT_MODELS,
    Json,
    ModelsFolder,
    Resolution,
    Settings,
    WidthMult,
    make_space,
    named_device,
)

if TYPE_CHECKING:
    from latbench.predictors.table import Table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into saved tables, check and compare them.")

SavedModel = Annotated[str, typer.Argument(metavar="MODEL", help="Folder of any saved predictor, or a bundled name.")]
SavedTable = Annotated[
    str, typer.Argument(metavar="TABLE", help="Folder of a saved table (latbench fit table), or a bundled name.")
]


@app.command("list")
def list_tables(models: ModelsFolder = Path(DEFAULT_MODELS)) -> None:
    """List saved predictors and the bundled ones, newest first."""
    rows = []
    for s in [*lookup.saved(models), *lookup.bundled()]:
        v = s.card.validation
        rmspe = percent(float(v["score"]["rmspe"]), 2) if v else "–"
        space = (s.card.space or {}).get("name", "any")
        of = "" if s.card.metric == "latency_ms" else f" of {s.card.metric}"
        rows.append((str(s.path), s.card.predictor + of, space, s.card.setting.device, rmspe, s.card.created[:10]))
    table(("path", "predictor", "space", "device", "RMSPE", "made"), rows, numbers=("RMSPE",))
    note(
        "--device NAME takes the newest of that device's Setting that knows all Ops (bundled ones, then first "
        "guesses, last); --model PATH takes that very one"
    )


@app.command("show")
def show(
    model: SavedModel,
    most: Annotated[int, typer.Option("--most", min=0, help="Entries to print, the most expensive first.")] = 20,
    as_json: Json = False,
) -> None:
    """Print the card of a table or predictor, and the entries of a table."""
    from latbench import load_predictor
    from latbench.predictors.table import Table
    from latbench.validation import Validation

    found = load_predictor(model)
    card = found.card
    if as_json:
        rows = found.rows() if isinstance(found, Table) else []
        print(json.dumps({"card": card.to_json(), "entries": rows}, indent=2, default=str))
        return
    say(f"{card.predictor} for {(card.space or {}).get('name', 'any network')} on {card.setting.device}", "bold")
    say(setting_words(card.setting))
    note_clock(card.setting)
    what = f"statistic {card.statistic}" if card.statistic else card.metric
    say(f"made {card.created} by latbench {card.latbench}, {what}")
    for name, value in card.data.items():
        if name not in ("learning", "learning_round"):
            say(f"{name}: {_words(value)}")
    if card.data.get("learning"):
        print_curve(card.data["learning"], card.data.get("learning_round"))
    if card.validation is not None:
        say(str(Validation.from_json(card.validation)))
    for text in card.notes:
        warn(text)
    if isinstance(found, Table):
        _print_entries(found, most)


@app.command("check")
def check(
    model: SavedTable,
    space: Annotated[str | None, typer.Option("--space", "-s", help="Must hold the Ops of this space.")] = None,
    settings: Settings = None,
    resolution: Resolution = None,
    width_mult: WidthMult = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Ask this device whether its Setting is still the table's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a table: missing, broken or weak entries, larger Ops that take less time, sums that miss
    networks, another runtime by now, age.

    Exit code 0: no problem (there may be warnings), 1: problems, 2: it could not be checked.
    """
    from latbench.op import Op
    from latbench.predictors.hygiene import check as findings

    wanted = make_space(space, settings, resolution, width_mult) if space else None
    setting = None
    if device is not None:
        with named_device(device) as d:
            setting = d.setting
    found = findings(_table(model), wanted, setting=setting)
    count = {severity: sum(f.severity == severity for f in found) for severity in ("problem", "warning", "note")}
    if as_json:
        print_json({"problems": count["problem"], "warnings": count["warning"], "findings": [asdict(f) for f in found]})
        raise typer.Exit(1 if count["problem"] else 0)
    rows = [(f.severity, f.text, Op.parse(f.key).label if f.key else "") for f in found if f.severity != "note"]
    if rows:
        table(("severity", "what", "Op"), rows)
    for f in found:
        if f.severity == "note":
            note(f.text)
    say(", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity, n in count.items() if severity != "note"), "bold")
    raise typer.Exit(1 if count["problem"] else 0)


@app.command("diff")
def diff(
    a: SavedTable,
    b: SavedTable,
    most: Annotated[int, typer.Option("--most", min=0, help="Changes to print, significant and large first.")] = 20,
    as_json: Json = False,
) -> None:
    """Compare two tables Op by Op: what became slower or faster, and what of it is more than noise.

    Welch's t with Holm's correction over all Ops, and Wilcoxon's signed ranks for the tables as wholes. An Op with a
    single Visit cannot be tested.
    """
    from latbench.metric import METRICS
    from latbench.predictors.table_diff import diff as compare

    first, second = _table(a), _table(b)
    c = compare(first, second)
    significant = sum(d.significant for d in c.differences)
    if as_json:
        print_json({
            "metric": c.metric, "settings": c.settings, "clocks": c.clocks, "ratio": c.ratio, "p_value": c.p_value,
            "spearman": c.spearman, "significant": significant,
            "differences": [{**asdict(d), "significant": d.significant} for d in c.differences],
            "only_first": c.only_a, "only_second": c.only_b, "incomparable": c.incomparable,
        })  # fmt: skip
        return
    for line in c.settings:
        warn(f"their Settings differ: {line}")
    untested = sum(not d.tested for d in c.differences)
    verb = "takes" if METRICS[c.metric].unit == "ms" else "has"
    common = (
        f"{len(c.differences)} common Ops of {len(first.entries)} in the first and {len(second.entries)} in the second"
    )
    if c.clocks:
        alike = "" if isnan(c.spearman) else f"; rank correlation of the common Ops {c.spearman:.3f} (Spearman)"
        say(f"{common}; they cannot be compared as times: clock {c.clocks[0]} in the first, {c.clocks[1]} in the "
            f"second{alike}", "bold")  # fmt: skip
    else:
        as_wholes = "" if isnan(c.p_value) else f" (p = {c.p_value:.2g} that neither is above the other)"
        ratio = "" if isnan(c.ratio) else f"; the second {verb} {c.ratio - 1:+.2%} on average{as_wholes}"
        say(f"{common}; {significant} of them differ significantly{ratio}", "bold")
    rows = [
        (d.label, ms(d.a), ms(d.b), f"{d.ratio - 1:+.1%}", f"{d.p_value:.2g}" if d.tested else "–",
         "yes" if d.significant else "no" if d.tested else "one Visit")
        for d in c.differences[:most]
    ]  # fmt: skip
    columns = (
        "Op",
        f"first {METRICS[c.metric].unit}",
        f"second {METRICS[c.metric].unit}",
        "change",
        "p",
        "significant",
    )
    shown = 3 if c.clocks else len(columns)
    table(columns[:shown], [r[:shown] for r in rows], numbers=columns[1 : min(shown, 5)])
    for setting in dict.fromkeys((first.setting.clock_words, second.setting.clock_words)):
        if setting:
            note(setting)
    if untested and not c.clocks:
        note(f"{untested} Ops rest on a single Visit in one of the two: nothing tells whether they differ")
    for key in c.incomparable:
        pair = {"first": first.entries[key], "second": second.entries[key]}
        refused = [f"the {name} refuses it: {e.reason}" for name, e in pair.items() if not e.supported]
        warn(f"{pair['first'].op.label} cannot be compared: {refused[0] if refused else 'not a positive number'}")
    for name, keys in (("first", c.only_a), ("second", c.only_b)):
        if keys:
            note(f"only in the {name}: {len(keys)} Ops")


@app.command("export")
def export(
    model: SavedTable,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Its ending says the form: .csv, .json or .parquet.")],
) -> None:
    """Write the entries of a table as CSV, JSON or Parquet."""
    say(f"wrote {_table(model).export(out)}")


def _table(name: str) -> Table:
    from latbench import load_predictor
    from latbench.card import device_option, space_options
    from latbench.errors import ConfigError
    from latbench.predictors.table import Table

    found = load_predictor(name)
    if not isinstance(found, Table):
        card = found.card
        device = device_option(str(card.device.get("profile") or card.setting.device))
        raise ConfigError(
            f"{name} holds a predictor named {found.name}, not a table of measured Ops: latbench table show {name} "
            f"prints what it holds; a table of Ops that were measured there: latbench fit table {device}"
            f"{space_options(card.space) if card.space else ''}"
        )
    return found


def _print_entries(found: Table, most: int) -> None:
    from latbench.metric import METRICS

    rows = sorted(found.entries.values(), key=lambda e: -e.value if e.supported else 0.0)
    unit = METRICS[found.metric].unit
    shown = [
        (e.op.label, e.op.level, ms(e.value), span(e.interval.low, e.interval.high), e.visits, e.reason)
        for e in rows[:most]
    ]
    if shown:
        table(("Op", "level", unit, "95 %", "Visits", ""), shown, numbers=(unit, "95 %", "Visits"))
    if len(rows) > most:
        note(f"{len(rows)} entries; --most {len(rows)} prints them all")


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
