"""``latbench evaluate``: predictors compared on the same networks, from a store or from a file of measured times."""

from __future__ import annotations

import shlex
import time
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latbench.cli.console import ms, note, percent, print_json, say, table, warn
from latbench.cli.estimates import print_validation
from latbench.cli.models import AnySpace, CampaignIds, Statistic, chosen_space
from latbench.cli.options import (
    DEFAULT_STORE,
    DeviceName,
    Json,
    Resolution,
    Seed,
    Settings,
    StoreUrl,
    WidthMult,
    existing_store,
    quoted_space,
)
from latbench.metric import LATENCY

if TYPE_CHECKING:
    from latbench.evaluation import Fitted, Run
    from latbench.report.contest import Contest
    from latbench.space import SearchSpace

COLUMNS = (
    "model", "RMSPE", "MAPE", "±1 %", "±5 %", "±10 %", "Spearman", "Kendall", "90 % held", "width", "fit", "predict",
)  # fmt: skip
#: Figures that are printed with their spread over splits; --json has that of all.
SPREAD = ("rmspe", "within_10", "spearman", "coverage")


#: Options that only say something of a file of measured times, and those that only do of a store.
OF_FILE = ("target", "sources", "pool", "n", "seeds", "order", "level", "json")
OF_STORE = ("device", "store", "statistic", "campaign")


def evaluate(
    ctx: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA.parquet] [PREDICTOR]…", help="All predictors, if none is named."),
    ] = None,
    device: DeviceName = "local-cpu",
    space: AnySpace = None,
    settings: Settings = None,
    resolution: Resolution = None,
    width_mult: WidthMult = None,
    store: StoreUrl = DEFAULT_STORE,
    statistic: Statistic = None,
    campaign: CampaignIds = None,
    target: Annotated[str | None, typer.Option("--target", help="DATA: the column of the new device.")] = None,
    sources: Annotated[
        str | None, typer.Option("--sources", help="DATA: columns of other devices, commas between.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="A:B", help="DATA: rows that may be measured; others are asked.")
    ] = None,
    n: Annotated[
        str, typer.Option("--n", help="DATA: networks measured on the new device; 10,20,40: a learning curve.")
    ] = "20",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="DATA: splits.")] = 10,
    order: Annotated[
        str | None, typer.Option("--order", help="DATA: column that says when a row was measured; row: its number.")
    ] = None,
    level: Annotated[float, typer.Option("--level", help="DATA: level of the intervals.")] = 0.9,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page that compares them, too.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit several predictors to the same measurements and compare them on the same others; saves nothing.

    From a store: on its held-out networks. From DATA.parquet (arch_str or choice_0, choice_1, … and one column of
    milliseconds a device): with n networks of the target from the pool, asked for all rows outside the pool. --report
    draws either as one page that opens with no network.
    """
    from latbench.errors import ConfigError

    chosen = chosen_space(space, settings, resolution, width_mult)
    names = list(what or [])
    given = [k.removeprefix("as_") for k in ctx.params if _on_command_line(ctx, k)]
    if names and names[0].endswith(".parquet"):
        if used := [k for k in OF_STORE if k in given]:
            raise ConfigError(f"--{used[0]} belongs to a store, not to {names[0]}: leave one of them away")
        if chosen is None:
            raise ConfigError(f"{names[0]}: give the space of its architectures: --space NAME")
        if target is None:
            raise ConfigError(f"{names[0]}: say which column is the new device: --target COLUMN")
        _from_file(
            Path(names[0]), chosen, target, [s for s in (sources or "").split(",") if s], names[1:], ns=_counts(n),
            seeds=seeds, pool=pool, order=order, level=level, seed=seed, report=report, as_json=as_json,
        )  # fmt: skip
        return
    if used := [k for k in OF_FILE if k in given]:
        raise ConfigError(f"--{used[0]} belongs to a file of measured times: latbench evaluate DATA.parquet …")
    _from_store(names, device, chosen, store, statistic, campaign, seed, report)


def _on_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether an option was given by who calls, not by its default or an environment variable."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _from_store(
    names: list[str],
    device: str,
    space: SearchSpace | None,
    store: str,
    statistic: Any,
    campaign: list[str] | None,
    seed: int,
    report: Path | None,
) -> None:
    import latbench as lb
    from latbench.errors import ConfigError, NotEnoughDataError
    from latbench.evaluation import Fitted, held_out_runs

    fitted: list[Fitted] = []
    left_out: dict[str, str] = {}
    with existing_store(store) as opened:
        for name in names or _of_latency():
            begun = time.perf_counter()
            try:
                model = lb.fit(
                    name, store=opened, device=device, space=space, statistic=statistic, seed=seed, campaigns=campaign
                )
            except (NotEnoughDataError, ConfigError) as e:  # a roofline needs peaks that not every profile has
                if names:
                    raise
                warn(f"{name} was left out: {e}")
                left_out[name] = str(e).splitlines()[0]
                continue
            fitted.append(Fitted(name, model, time.perf_counter() - begun))
            note(f"{name}: fitted in {fitted[-1].fit_s:.1f} s")
        print_validation([(f.name, f.model) for f in fitted])
        runs = held_out_runs(opened, fitted, device, space, campaign) if report is not None else []
    if report is not None:
        if not runs:
            raise NotEnoughDataError(f"{report} was not written: no predictor and no held-out network to compare it on")
        _write(report, _of_store(fitted, runs, device, store, left_out))


def _of_store(fitted: list[Fitted], runs: list[Run], device: str, store: str, left_out: dict[str, str]) -> Contest:
    """The page's content: who was fitted to what."""
    from latbench.card import space_options
    from latbench.fitting import validation_of
    from latbench.report import words
    from latbench.report.contest import Contest

    card = fitted[0].model.card
    setting, validation = card.setting, validation_of(fitted[0].model)
    facts = {
        "store": store, "device": device, "identity": setting.device, "Setting": setting.hash,
        "runtime": f"{setting.runtime} {setting.runtime_version}", "space": card.space, "statistic": card.statistic,
        "campaigns": card.data.get("campaigns"), "measured": f"{card.data.get('first')} to {card.data.get('last')}",
    }  # fmt: skip
    notes = [setting.clock_words] if setting.clock_words else []
    notes += [f"{name} was left out: {why}" for name, why in left_out.items()]
    floor = validation.noise_floor if validation is not None else nan
    who = ["latbench", "evaluate", *(f.name for f in fitted), "--device", device, "--store", store]
    command = shlex.join(who) + (space_options(card.space) if card.space else "")
    return Contest(device, words.family(card.space or {}), runs, 0.9, facts, notes, command, floor)


def _write(path: Path, contest: Contest) -> None:
    from latbench.report.predictors import write_predictors

    written = write_predictors(path, contest)
    say(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB, opens with no network)", "bold")
    note(f"open it: {written.resolve().as_uri()}")


def _of_latency() -> list[str]:
    from latbench import plugins

    return [p for p in plugins.names("predictors") if plugins.load("predictors", p).can_predict(LATENCY)]


def _from_file(
    path: Path,
    space: SearchSpace,
    target: str,
    sources: list[str],
    names: list[str],
    *,
    ns: list[int],
    seeds: int,
    pool: str | None,
    order: str | None,
    level: float,
    seed: int,
    report: Path | None,
    as_json: bool,
) -> None:
    from latbench.evaluation import BASELINES, means, suspicious
    from latbench.evaluation import evaluate as run
    from latbench.report import words
    from latbench.report.contest import Contest
    from latbench.times_file import read_times

    rows = _rows(pool)
    times = read_times(path, space, [target, *sources], order)
    skipped: dict[str, str] = {}

    def skip(name: str, why: Exception) -> None:
        skipped[name] = str(why).splitlines()[0]

    def ended(r: Run) -> None:
        if r.name not in BASELINES:
            note(f"{target}, {r.n} networks, split {r.seed - seed + 1} of {seeds}: {r.name}: "
                 f"RMSPE {percent(r.score.rmspe)}, fitted in {r.fit_s:.1f} s")  # fmt: skip

    below_ms, odd = suspicious(times.values[target])
    by_n = {
        n: run(
            times, target, sources, names or _of_latency(), n=n, seeds=seeds, pool=rows, level=level, seed=seed,
            skip=None if names else skip, on_run=ended,
        )
        for n in ns
    }  # fmt: skip
    facts = {
        "file": path.name, "space": space.spec, "target": target, "sources": sources, "seeds": seeds, "pool": pool,
        "order": order, "level": level,
    }  # fmt: skip
    plain_by_n = {n: [r.without(below_ms) for r in runs] for n, runs in by_n.items()} if len(odd) else {}
    odd_words = ""
    if len(odd):
        facts["suspicious"] = {"below_ms": below_ms, "rows": odd.tolist()}
        odd_words = _odd_words(target, below_ms, odd.tolist(), int((times.values[target] > 0).sum()))
    if as_json:
        found = [
            {**facts, "n": n, "asked": runs[0].score.n, "means": means(runs), "runs": [r.to_json() for r in runs],
             **({"means_without_suspicious": means(plain_by_n[n])} if plain_by_n else {}),
             "left_out": skipped}
            for n, runs in by_n.items()
        ]  # fmt: skip
        print_json(found if len(found) > 1 else found[0])
    else:
        _print(by_n, target, seeds, level, skipped)
        if plain_by_n:
            warn(odd_words)
            _print(plain_by_n, f"{target} without these rows", seeds, level, {})
    if report is not None:
        given = {"--target": target, "--sources": ",".join(sources), "--pool": pool, "--order": order}
        said = [x for k, v in given.items() if v for x in (k, v)]
        said += ["--n", ",".join(map(str, ns)), "--seeds", str(seeds), "--level", f"{level:g}", "--seed", str(seed)]
        who = shlex.join(["latbench", "evaluate", str(path), *names])
        command = f"{who} {quoted_space(space)} {shlex.join(said)}"
        every = [r for runs in by_n.values() for r in runs]
        notes = [f"{name} was left out: {why}" for name, why in skipped.items()]
        if any(r.picked == "chosen" for r in every):
            notes.append("chosen: it measures the networks that it chose from the pool; others are drawn at random")
        for n, runs in plain_by_n.items():
            both = [(name, m["rmspe"], means(by_n[n])[name]["rmspe"]) for name, m in means(runs).items()]
            without = ", ".join(f"{name} {percent(a)} (with them {percent(b)})" for name, a, b in both)
            notes.append(f"{odd_words} Without them, {n} networks measured, RMSPE: {without}")
        facts.pop("suspicious", None)
        _write(report, Contest(target, words.family(space.spec), every, level, facts, notes, command))


def _print(by_n: dict[int, list[Run]], target: str, seeds: int, level: float, skipped: dict[str, str]) -> None:
    from latbench.evaluation import means

    columns = tuple(c.replace("90 %", f"{level:.0%}".replace("%", " %")) for c in COLUMNS)
    for n, runs in by_n.items():
        picked = {r.name: r.picked for r in runs}
        lines = [_line(name, picked[name], m, seeds > 1) for name, m in means(runs).items()]
        title = f"{target}: {n} measured networks, {runs[0].score.n} asked, {seeds} splits"
        table(columns, lines, numbers=columns[1:], title=title)
    if seeds > 1:
        note(f"means over {seeds} splits, ± their standard deviation over them")
    if any(r.picked == "chosen" for runs in by_n.values() for r in runs):
        note("chosen: it measures the networks that it chose from the pool; the others are drawn at random")
    for name, why in skipped.items():
        note(f"{name} was left out: {why}")


def _line(name: str, picked: str, m: dict[str, float], spread: bool) -> tuple[str, ...]:
    def cell(key: str, scale: float = 100.0, digits: int = 1) -> str:
        mean = percent(m[key]) if scale == 100.0 else f"{m[key]:.{digits}f}"
        told = spread and key in SPREAD and isfinite(m[key])
        return f"{mean} ±{scale * m[f'{key}_spread']:.{digits}f}" if told else mean

    shares = [cell(k) for k in ("rmspe", "mape", "within_1", "within_5", "within_10")]
    ranks = [cell(k, 1.0, 3) for k in ("spearman", "kendall")]
    label = f"{name}, chosen" if picked == "chosen" else name
    predict = f"{1e3 * m['predict_s']:.0f} ms" if m["predict_s"] else ""
    return (label, *shares, *ranks, cell("coverage"), cell("width"), f"{m['fit_s']:.2f} s", predict)


def _odd_words(target: str, below_ms: float, odd: list[int], rows: int, most: int = 5) -> str:
    named = ", ".join(map(str, odd[:most])) + (", …" if len(odd) > most else "")
    return (
        f"{len(odd)} of {rows} measured rows of {target} (row{'s' * (len(odd) > 1)} {named}) are below {ms(below_ms)} "
        "ms, a hundredth of the median: suspicious, and what makes up most of an RMSPE."
    )


def _rows(text: str | None) -> tuple[int, int] | None:
    """``0:900`` as two numbers. Raises :class:`ConfigError`."""
    from latbench.errors import ConfigError

    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise ConfigError(f"--pool: rows as FIRST:END, e.g. 0:900, not {text!r}")
    return int(first), int(last)


def _counts(text: str) -> list[int]:
    """``10,20`` as numbers in rising order. Raises :class:`ConfigError`."""
    from latbench.errors import ConfigError

    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and int(p) for p in parts):
        raise ConfigError(f"--n: a number of networks, or several with commas between, e.g. 10,20,40, not {text!r}")
    return sorted({int(p) for p in parts})
