"""``latbench search`` and ``latbench validate``: find networks, and measure what was found."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from latbench.card import device_option
from latbench.cli import EXIT_INTERRUPTED, lookup
from latbench.cli.console import bar, count, ms, note, percent, quantity, say, span, table, warn
from latbench.cli.measure import note_clock, taken_how
from latbench.cli.options import (
    DEFAULT_MODELS,
    DEFAULT_STORE,
    ModelsFolder,
    ProtocolSettings,
    Resolution,
    Seed,
    Settings,
    SpaceName,
    StoreUrl,
    WidthMult,
    make_device,
    make_space,
    named_device,
    parse_pairs,
    plugin_options,
    quoted_space,
)
from latbench.cli.report import device_of
from latbench.cli.subjects import arch_text, parse_arch
from latbench.metric import ASKABLE, LATENCY, METRICS
from latbench.telling import Pace

if TYPE_CHECKING:
    from latbench.predictor import Predictor
    from latbench.problem import AccuracyEvaluator, Candidate, LimitOn
    from latbench.result import SearchResult
    from latbench.search_driver import Progress
    from latbench.space import SearchSpace
    from latbench.validate import Validated

DEFAULT_RUNS = "latbench-runs"

ACCURACY = (
    "By training: digits, cifar10:FOLDER, cifar100:FOLDER, images:FOLDER, voc:FOLDER; by one supernet for all: "
    "supernet:digits, supernet:cifar10:FOLDER, …; or FILE.parquet:COLUMN, or none."
)

RunPath = Annotated[Path, typer.Argument(metavar="RESULT", help="Folder or result.json that a search wrote.")]


def search(
    searcher: Annotated[str, typer.Argument(metavar="SEARCHER", help="random, moga, … or a plugin's.")],
    space: SpaceName,
    device: Annotated[list[str], typer.Option("--device", "-d", help="May be repeated: every one counts.")] = [  # noqa: B006
        "local-cpu"
    ],
    settings: Settings = None,
    resolution: Resolution = None,
    width_mult: WidthMult = None,
    objective: Annotated[
        list[str] | None, typer.Option("--objective", help="error, latency_ms, -params, …; may be repeated.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", metavar="NAME=MOST", help="Hard limit, e.g. latency_ms=8.")
    ] = None,
    soft_limit: Annotated[
        list[str] | None, typer.Option("--soft-limit", metavar="NAME=MOST", help="Counts among equals only.")
    ] = None,
    limit_on: Annotated[
        str, typer.Option("--limit-on", help="What must keep a limit on what is predicted: high, value or low end.")
    ] = "high",
    accuracy: Annotated[str, typer.Option("--accuracy", help=ACCURACY)] = "digits",
    accuracy_set: Annotated[
        list[str] | None, typer.Option("--accuracy-set", metavar="KEY=VALUE", help="The evaluator's, e.g. epochs=4.")
    ] = None,
    budget: Annotated[int, typer.Option("--budget", min=1, help="Architectures to evaluate.")] = 100,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Evaluations at once.")] = 1,
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the result.")] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Where evaluations and weights are kept, for several searches; else in --run."),
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Start anew instead of going on with the same search.")] = False,
    predictor: Annotated[str | None, typer.Option("--predictor", help="Only a table, only kernels, …")] = None,
    path: Annotated[list[str] | None, typer.Option("--model", help="Saved predictor of each device, in order.")] = None,
    models: ModelsFolder = Path(DEFAULT_MODELS),
    option: Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="The searcher's.")] = None,
    seed: Seed = 0,
) -> None:
    """Search a space for networks that are accurate and fast on a device; goes on where the same search stopped."""
    import latbench as lb
    from latbench.errors import InfeasibleError

    s = make_space(space, settings, resolution, width_mult)
    options, judge = plugin_options(option, lb.search, "problem"), evaluator(accuracy, s, accuracy_set)
    latency = _latency(device, path, models, s, predictor)
    asked = [*(o.lstrip("-") for o in objective or ()), *_numbers(limit, "--limit"), *_numbers(soft_limit, "")]
    further = _further(asked, device, models, s, latency, judge)
    folder = run or Path(DEFAULT_RUNS) / f"{s.name}-{searcher}-{seed}"
    with kept_when_stopped("every evaluation and every finished epoch so far", threads=True), bar(searcher) as b:
        pace = Pace()

        def show(p: Progress) -> None:
            left_s = pace.left_s(p.done, p.budget)
            b.update(p.done, p.budget, left_s=left_s, title=f"{searcher}: {_values(p.candidate)}")

        try:
            result = lb.search(
                searcher, space=s, latency=latency, models=further, accuracy=judge,
                objectives=objective or ["error", "latency_ms"], limits=_numbers(limit, "--limit"),
                soft_limits=_numbers(soft_limit, "--soft-limit"), limit_on=cast("LimitOn", limit_on), budget=budget,
                seed=seed, run=folder,
                store=store, resume=not new, workers=workers, progress=show, report=note, **options,
            )  # fmt: skip
        except InfeasibleError as e:
            raise InfeasibleError(str(e) + _refused_by(device, s)) from None
    print_front(result)
    if weights := result.provenance.get("accuracy", {}).get("weights"):
        trained = result.provenance["accuracy"]["epochs_trained_by_this_search"]
        what = f"{trained} epochs of it were trained by this search" if trained else "nothing had to be trained for it"
        note(f"errors are of one supernet's shared weights, {weights}; {what}")
    for model in latency.values() if isinstance(latency, dict) else [latency]:
        note_clock(model.setting)
    say(f"saved {folder}", "bold")
    for name in device:
        note(f"next: latbench validate {folder} {device_option(name)}")
    note(f"then: latbench report {folder}")


def validate(
    result: RunPath,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Profile, or a path to a TOML file; else the search's own.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Networks, at equal distance along the front.")] = 5,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", help="These instead, e.g. 3,0,11,…; may be repeated.")
    ] = None,
    extra: Annotated[
        int, typer.Option("--extra", min=0, help="Most networks measured in place of one that breaks a limit.")
    ] = 3,
    store: StoreUrl = DEFAULT_STORE,
    seed: Seed = 0,
    protocol: ProtocolSettings = None,
) -> None:
    """Measure the found networks on the device, and their test error; writes it into the result."""
    from latbench.evaluators import DigitsEvaluator
    from latbench.result import SearchResult
    from latbench.validate import validate as measure_found

    found = SearchResult.load(result)
    archs = [parse_arch(found.problem.space, a) for a in arch] if arch else None
    accuracy = DigitsEvaluator.from_recipe(found.provenance.get("recipe"))
    if accuracy is None and found.provenance.get("recipe"):
        note("errors on test data: none, as only plain digits are judged anew here; latbench retrain gives them")
    dev, how = make_device(device or _searched(found), protocol)
    with dev, bar("validating") as b, kept_when_stopped("every Visit so far"):
        validated = measure_found(
            found, dev, protocol=how, top=top, archs=archs, store=store, seed=seed, accuracy=accuracy,
            extra=extra, progress=lambda p: b.update(p.done, p.total, left_s=p.eta_s), report=note,
        )  # fmt: skip
    found.save(result)
    print_validated(validated, level_of(found))
    for text in (*found.kept_limits(), *found.ties()):
        say(text)
    for limit in found.limits_by_prediction():
        name, at, where = limit.partition("@")
        todo = f"; latbench validate {result} {device_option(where)} does" if at and name == LATENCY else ""
        say(f"{limit} ≤ {found.problem.limits[limit]:g}: by prediction only, no measurement has checked it{todo}")
    say(f"saved {result}", "bold")


@contextmanager
def kept_when_stopped(what: str, *, threads: bool = False) -> Iterator[None]:
    """Ctrl-C ends the command with a line that says what is kept.

    ``threads`` that evaluate cannot be stopped, and Python would wait for the trainings that they are in: it is left
    without.
    """
    try:
        yield
    except KeyboardInterrupt:
        note(f"stopped; {what} is kept: run the same command again to go on")
        if threads and any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread()):
            sys.stdout.flush()
            os._exit(EXIT_INTERRUPTED)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def evaluator(name: str, space: SearchSpace, settings: list[str] | None) -> AccuracyEvaluator | None:
    """The accuracy evaluator that an option names. Raises :class:`ConfigError`."""
    from latbench.evaluators import load_evaluator

    return load_evaluator(name, space, parse_pairs(settings, "--accuracy-set"))


# -- printing -----------------------------------------------------------------------------------------------------


def print_front(result: SearchResult) -> None:
    """The Pareto set of a search."""
    front = result.front
    asked = [*(o.name for o in result.problem.objectives), *result.problem.limits]
    names = list(dict.fromkeys([*asked, "error", "latency_ms", "params", "macs"]))
    columns = [n for n in names if any(n in c.values for c in front)]
    rows = [[arch_text(c.arch), *(_value(n, c.values.get(n)) for n in columns)] for c in front]
    title = f"{len(front)} network{'s' * (len(front) != 1)} that none of {len(result.candidates)} beats"
    table(("architecture", *columns), rows, title=title, numbers=columns)
    for name, c in result.picks.items():
        told = ", ".join(f"{n} {_value(n, c.values.get(n))}" for n in columns)
        say(f"{result.pick_texts[name]}: {arch_text(c.arch)}, {told}")
    for text in result.ties():
        say(text)
    for text in result.warnings:
        warn(text)


def print_validated(validated: list[Validated], level: float) -> None:
    """Predicted, with intervals at ``level``, beside measured."""
    rows = []
    tested = any(v.test_error is not None for v in validated)
    for v in sorted(validated, key=lambda v: v.predicted.value):
        told = [arch_text(v.arch)]
        told += [] if not tested else ["–" if v.test_error is None else percent(v.test_error)]
        told += [ms(v.predicted.value), span(v.predicted.low, v.predicted.high)]
        if v.measured is None:
            rows.append([*told, "–", v.failure, "–", "–"])
            continue
        m = v.measured
        off = f"{round(v.ratio - 1, 3) + 0.0:+.1%}"
        seen = [ms(m.latency_ms), span(m.low_ms, m.high_ms), off, "yes" if v.covered else "no"]
        rows.append([*told, *seen])
        for limit in (name for name, kept in v.kept.items() if not kept):
            warn(f"{arch_text(v.arch)} does not keep the limit on {limit} when it is {taken_how(m.setting)}")
    settings = {v.measured.setting.hash: v.measured.setting for v in validated if v.measured is not None}
    how = {taken_how(s): None for s in settings.values()} or {"measured": None}
    levels = sorted({v.measured.level for v in validated if v.measured is not None})
    seen_at = "/".join(f"{x:.0%}" for x in levels) or "–"
    title = " and ".join(dict.fromkeys(f"on {at[1:]}" for v in validated if (at := v.value.removeprefix(LATENCY))))
    columns = [
        "architecture", *["test error"] * tested, "predicted ms", f"{level:.0%} interval", f"{'/'.join(how)} ms",
        f"its {seen_at}", "off by", "inside",
    ]  # fmt: skip
    table(columns, rows, numbers=columns[1:-1], title=title)
    for setting in settings.values():
        note_clock(setting)


def level_of(result: SearchResult) -> float:
    """The level of the intervals that a search's latency model gave."""
    return float(result.provenance.get("level", 0.9))


# -- parts --------------------------------------------------------------------------------------------------------


def _latency(
    devices: list[str], paths: list[str] | None, root: Path, space: SearchSpace, predictor: str | None
) -> Predictor | dict[str, Predictor]:
    from latbench import load_predictor
    from latbench.errors import ConfigError

    if paths and len(paths) != len(devices):
        raise ConfigError(f"--model is given {len(paths)} times for {len(devices)} devices")
    models = [load_predictor(p) for p in paths or ()] or [lookup.find(root, d, space, predictor) for d in devices]
    return models[0] if len(models) == 1 else dict(zip(devices, models, strict=True))


def _further(
    names: list[str],
    devices: list[str],
    root: Path,
    space: SearchSpace,
    latency: Predictor | dict[str, Predictor],
    accuracy: AccuracyEvaluator | None,
) -> dict[str, Predictor]:
    """The newest saved model of each further metric among objectives and limits, of the device after the ``@`` or of
    the first one; what the latency models or the evaluator give themselves needs none."""
    own = {m for model in (latency.values() if isinstance(latency, dict) else [latency]) for m in model.known_metrics}
    own |= set(accuracy.values if accuracy else ())
    out = {}
    for name in dict.fromkeys(names):
        metric, _, of = name.partition("@")
        if metric in ASKABLE and metric != LATENCY and metric not in own:
            out[name] = lookup.find(root, of or devices[0], space, metric=metric)
    return out


def _searched(found: SearchResult) -> str:
    """The device that a search was for. Raises :class:`ConfigError` where only its user knows which that is."""
    from latbench.errors import ConfigError
    from latbench.profile import profile_paths

    name = device_of(found)
    if name is None or name in profile_paths() or (name.endswith(".toml") and Path(name).exists()):
        return name or "local-cpu"
    raise ConfigError(f"the search was for the device {name}, a profile of your own: say {device_option(name)}")


def _refused_by(devices: list[str], space: SearchSpace) -> str:
    """The command that lists what devices refuse of a space by rule, where one refuses anything; "" where none does."""
    from latbench.refusals import refusals

    lines = []
    for name in devices:
        with named_device(name) as d:
            refused = d.setting.simulated and bool(refusals(d, space))
        if refused:
            lines.append(f"\n  what it refuses, by rule: latbench check {shlex.quote(name)} {quoted_space(space)}")
    return "".join(lines)


def _numbers(pairs: list[str] | None, option: str) -> dict[str, float]:
    from latbench.errors import ConfigError

    out = parse_pairs(pairs, option)
    for name, value in out.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{option} {name}={value}: expected a number")
    return out


def _values(c: Candidate) -> str:
    return ", ".join(f"{n} {_value(n, v)}" for n, v in c.values.items() if n in ("error", "latency_ms"))


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.startswith(("latency", "interval")):
        return ms(value)
    if name.partition("@")[0] in METRICS:
        return quantity(value, name.partition("@")[0])
    if name == "error":
        return percent(value)
    return count(value) if abs(value) >= 1000 else f"{value:.4g}"
