"""``latbench compare``: the same networks on several devices, and what another device's numbers would cost."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latbench.cli.console import note, say, table, warn
from latbench.cli.options import DEFAULT_STORE, Json, existing_store, profile_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latbench.setting import Setting
    from latbench.store import Store

    Column = tuple[str, Setting | None, Mapping[str, float]]


def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Compare these searches (folders), and no devices.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            "-d",
            help="Profile, identity or Setting's hash; default: all that are measured. Of a profile or an identity "
            "the most recently used Setting.",
        ),
    ] = None,
    store: Annotated[
        list[str] | None, typer.Option("--store", help="A path (SQLite) or a URL; may be repeated.")
    ] = None,
    macs: Annotated[bool, typer.Option("--macs/--no-macs", help="Compare the multiply-accumulates, too.")] = True,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("latbench-comparison.html"),
    as_json: Json = False,
) -> None:
    """Compare devices on the networks that were measured on all of them: rank correlation, and one HTML page.

    Profile each device with the same --space, its parameters and --seed first. With RUNs, compare these searches: their
    hypervolume over evaluations, their fronts, and how their networks came out when they were measured.
    """
    if runs:
        _compare_runs(runs, out, as_json)
        return
    from latbench.comparison import compare as compared
    from latbench.network import Network
    from latbench.report.comparison import summary, write_comparison

    networks: dict[str, Network] = {}
    with ExitStack() as open_stores:
        stores = [open_stores.enter_context(existing_store(a)) for a in store or [DEFAULT_STORE]]
        columns, left_out = _columns(stores, [profile_name(d) for d in device or ()])
        for opened in stores:
            keys = {k for _, _, v in columns for k in v} - networks.keys()
            networks |= {k: n for k, n in opened.subjects(keys).items() if isinstance(n, Network)}
    for line in left_out:
        warn(line)
    if macs:
        columns.append(("multiply-accumulates", None, {k: float(n.macs) for k, n in networks.items()}))
    result = compared(columns, {k: n.name for k, n in networks.items()})
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        rows = [(c.name, *(f"{v:.3f}" for v in row)) for c, row in zip(result.columns, result.spearman, strict=True)]
        say(summary(result), "bold")
        names = [c.name for c in result.columns]
        table(("Spearman ρ", *names), rows, numbers=names)
    for name, setting, _ in columns:
        if setting and setting.clock != "wall" and not as_json:
            warn(f"{name}: its clock is {setting.clock}, not wall time")
    written = write_comparison(out, result)
    if not as_json:
        say(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB, opens with no network)", "bold")
        note(f"open it: {written.resolve().as_uri()}")


def _compare_runs(runs: Sequence[Path], out: Path, as_json: bool) -> None:
    from latbench.errors import ConfigError
    from latbench.report.runs import COLUMNS, explained, groups, rows, ties, title, unchecked, write_runs
    from latbench.result import RESULT_JSON, SearchResult

    if len(set(runs)) < len(runs):
        raise ConfigError("compare: a run is named twice")
    short = {
        r: r.stem if r.is_file() and r.name != RESULT_JSON else (r.parent if r.is_file() else r).name for r in runs
    }
    names = {r: short[r] if list(short.values()).count(short[r]) == 1 else str(r) for r in runs}
    results = {names[r]: SearchResult.load(r) for r in runs}
    found = groups(results)
    if as_json:
        print(json.dumps([[dict(zip(COLUMNS, row, strict=True)) for row in rows(g)] for g in found], indent=2))
    else:
        say(explained(found))
        for group in found:
            table(COLUMNS, rows(group), numbers=COLUMNS[2:], title=title(group))
            for text in (*unchecked(group), *ties(group)):
                say(text)
    written = write_runs(out, results)
    if not as_json:
        say(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB, opens with no network)", "bold")
        note(f"open it: {written.resolve().as_uri()}")


def _columns(stores: Sequence[Store], wanted: Sequence[str]) -> tuple[list[Column], list[str]]:
    """Name, Setting and latencies of networks, drift removed, and a line for each column that was left out.

    Of each device under each profile it is the most recently used Setting that has networks, and every one that
    ``wanted`` names by its hash. A Setting that several stores have is one column of all their Visits.
    """
    from latbench.errors import NotEnoughDataError
    from latbench.evidence import Evidence

    found: dict[str, Setting] = {}
    where: dict[str, list[Store]] = {}
    name_of: dict[str, str] = {}
    for store in stores:
        for name, hashes in store.profiles().items():
            for h in hashes:
                name_of.setdefault(h, name)
        for setting in store.settings():
            found[setting.hash] = setting
            where.setdefault(setting.hash, []).append(store)
    names = {h: {name_of.get(h, x.device), x.device, h} for h, x in found.items()}
    if unknown := [w for w in wanted if not any(w in n for n in names.values())]:
        known = ", ".join(sorted({x for h, n in names.items() for x in n - {h}})) or "no device"
        raise NotEnoughDataError(f"--device {unknown[0]}: nothing was measured on it (known: {known})")
    columns: list[Column] = []
    left_out: list[str] = []
    newest: dict[tuple[str, str], str] = {}
    for h in sorted(found, key=lambda h: -max(x.used(found[h]) for x in where[h])):
        setting, name = found[h], name_of.get(h, found[h].device)
        if wanted and not names[h] & set(wanted):
            continue
        evidence = Evidence((v for x in where[h] for v in x.visits(setting)), setting)
        is_network = {v.subject for v in evidence.visits if v.role == "network"}
        if not is_network:
            left_out.append(f"left out: {name} with Setting {h}: no network was measured with it")
            continue
        later = newest.setdefault((name, setting.device), h)
        if later != h and h not in wanted:
            left_out.append(
                f"left out: {name} with Setting {h} ({len(is_network)} networks), since {later} was used later: "
                f"name it by --device {h} to compare it"
            )
            continue
        columns.append(
            (name, setting, {k: m.latency_ms for k, m in evidence.measurements().items() if k in is_network})
        )
    again = [n for n, _, _ in columns]
    return [(f"{n} {s.hash[:6]}" if s and again.count(n) > 1 else n, s, v) for n, s, v in columns], left_out
