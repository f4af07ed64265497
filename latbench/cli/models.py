"""``latbench fit`` and ``predict``: latency models from a store, and what they say."""

from __future__ import annotations

import inspect
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latbench.cli import lookup
from latbench.cli.console import print_json, say, warn
from latbench.cli.estimates import add_breaches, estimate_json, explanation_json, print_estimate, print_validation
from latbench.cli.measure import measure_now
from latbench.cli.options import (
    DEFAULT_MODELS,
    DEFAULT_STORE,
    DeviceName,
    Json,
    ModelsFolder,
    ProtocolSettings,
    Resolution,
    RuntimeSettings,
    Seed,
    Settings,
    StoreUrl,
    WidthMult,
    existing_store,
    make_device,
    make_space,
    named_device,
    parse_pairs,
    plugin_options,
)
from latbench.cli.subjects import Model, Shapes, read_model
from latbench.cli.unit_rows import Units
from latbench.metric import LATENCY

if TYPE_CHECKING:
    from latbench.network import Network
    from latbench.predictor import Predictor
    from latbench.space import SearchSpace
    from latbench.visit import Estimate, Measurement


class Unknown(StrEnum):
    """What a predictor does with an Op of a kind that was never measured."""

    error = "error"
    estimate = "estimate"


AnySpace = Annotated[str | None, typer.Option("--space", "-s", help="Use networks of this space only.")]
Statistic = Annotated[
    str | None,
    typer.Option(
        "--statistic", help="p50, p25, min, …; auto: cross-validation chooses among them. Default: the protocol's."
    ),
]
Pool = Annotated[
    bool,
    typer.Option("--pool", help="Use the Visits of all devices of this model, by an offset from their control Ops."),
]
Metric = Annotated[
    str | None, typer.Option("--metric", help="What to predict: latency_ms, energy_mj, peak_memory_bytes (memory).")
]
CampaignIds = Annotated[list[str] | None, typer.Option("--campaign", help="Use these campaigns only (id).")]


def fit(
    predictor: Annotated[str, typer.Argument(metavar="PREDICTOR", help="table, kernels, … or a plugin's.")],
    device: DeviceName = "local-cpu",
    space: AnySpace = None,
    settings: Settings = None,
    resolution: Resolution = None,
    width_mult: WidthMult = None,
    store: StoreUrl = DEFAULT_STORE,
    models: ModelsFolder = Path(DEFAULT_MODELS),
    out: Annotated[Path | None, typer.Option("--out", help="Save into this folder instead of the models' one.")] = None,
    statistic: Statistic = None,
    level: Annotated[float, typer.Option("--level", help="Level of the estimates' intervals.")] = 0.9,
    campaign: CampaignIds = None,
    pool: Pool = False,
    metric: Metric = None,
    option: Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="The predictor's.")] = None,
    seed: Seed = 0,
) -> None:
    """Fit a latency model to what the store holds, check it on held-out networks, and save it.

    A roofline needs no store: it is made of the device's profile where nothing was measured. --metric energy_mj fits to
    what was measured of energy, and memory to peak memory.
    """
    import latbench as lb
    from latbench import plugins
    from latbench.errors import NotEnoughDataError, StoreError

    chosen = chosen_space(space, settings, resolution, width_mult)
    options = plugin_options(option, lb.fit, "data", "cls")
    ask = {"device": device, "space": chosen, "level": level, "seed": seed, "metric": metric, **options}
    try:
        with existing_store(store) as opened:
            model = lb.fit(
                predictor, store=opened, statistic=_statistic(statistic), campaigns=campaign, pool=pool, **ask
            )
    except (StoreError, NotEnoughDataError):
        # A first guess needs no store: the profile is enough.
        if plugins.load("predictors", predictor).needs_data or campaign or pool:
            raise
        model = lb.fit(predictor, **ask)
    path = model.save(out) if out else lookup.save(model, models, device)
    print_validation([(predictor, model)])
    for text in model.card.notes:
        warn(text)
    say(f"saved {path}", "bold")


def predict(
    model: Model,
    device_: Annotated[
        str | None,
        typer.Option(
            "--device",
            "-d",
            help="A bundled profile's name or a TOML file. Default: local-cpu; with --model, "
            "and nothing to measure, the model's own.",
        ),
    ] = None,
    settings: Settings = None,
    resolution: Resolution = None,
    width_mult: WidthMult = None,
    shapes: Shapes = None,
    predictor: Annotated[str | None, typer.Option("--predictor", help="Only a table, only kernels, …")] = None,
    path: Annotated[str | None, typer.Option("--model", help="A saved predictor's folder, or a bundled name.")] = None,
    models: ModelsFolder = Path(DEFAULT_MODELS),
    level: Annotated[float, typer.Option("--level", help="Level of the interval.")] = 0.9,
    metric: Metric = None,
    unknown: Annotated[
        Unknown, typer.Option("--unknown", help="An Op of unknown kind is an error, or estimated from its work alone.")
    ] = Unknown.error,
    max_uncertainty: Annotated[
        float | None,
        typer.Option("--max-uncertainty", metavar="SHARE", help="Refuse an interval wider than ± this, e.g. 0.2."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure it too, and print both.")] = False,
    protocol: ProtocolSettings = None,
    runtime: RuntimeSettings = None,
    decompose: Annotated[
        bool,
        typer.Option("--decompose", help="Short for --runtime decompose=true: split large kernels (TDA2x)."),
    ] = False,
    peak_mac: Annotated[
        bool, typer.Option("--peak-mac", help="Short for --runtime mode=peak-mac: peak arithmetic (TDA2x).")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="The report of every layer, where the device knows it.")
    ] = True,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", metavar="FILE", help="Draw who does what when: .html or .svg.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict a network's latency, unit by unit; --measure puts the device's answer and its profiler's beside it.

    A simulator (tda2x, am5749, …) predicts by itself, and reports every layer.
    """
    from latbench.errors import ConfigError
    from latbench.uncertainty import require

    net, space, _ = read_model(model, settings, resolution, width_mult, shapes)
    overrides = _overrides(runtime, decompose, peak_mac)
    device = device_ or "local-cpu"
    if path is not None:
        named = device if device_ or measure or overrides else None
        source, latency_model, on = lookup.named(path, named, overrides)
        estimate = _ask(latency_model, net, level, unknown)
    else:
        on = device
        source, latency_model, estimate = _estimate(
            model, net, space, device, predictor, models, level, unknown, overrides, metric or LATENCY
        )
    require(estimate, max_uncertainty, latency_model.card)
    explained = latency_model.explain(net) if layers or timeline else None
    if timeline is not None:
        if explained is None:
            raise ConfigError(f"--timeline: {latency_model.name} knows no timeline; a simulator does (--device tda2x)")
        explained.write_picture(timeline)
    statistic = latency_model.card.statistic
    if measure and estimate.metric != LATENCY:
        raise ConfigError(f"--measure compares latencies; latbench measure … --metric {estimate.metric} measures this")
    measured: Measurement | None = None
    if measure:
        measured, units = _measured(net, device, protocol, statistic, overrides)
    else:
        units = Units.of_estimate(estimate, net)
    if as_json:
        out = estimate_json(estimate, statistic, measured, units)
        print_json({**out, **explanation_json(explained)} if explained and layers else out)
        return
    print_estimate(net.name, on, latency_model, estimate, measured, units, explained if layers else None, source=source)
    if timeline is not None:
        say(f"saved {timeline}", "bold")


# -- parts --------------------------------------------------------------------------------------------------------


def chosen_space(
    name: str | None, settings: list[str] | None, resolution: int | None, width_mult: float | None
) -> SearchSpace | None:
    from latbench.errors import ConfigError

    if name is not None:
        return make_space(name, settings, resolution, width_mult)
    if settings or resolution is not None or width_mult is not None:
        raise ConfigError("--set, --resolution and --width-mult belong to a space: give --space too")
    return None


def _statistic(text: str | None) -> Any:
    """None stands for the statistic of the campaign's protocol; :func:`latbench.fit` refuses names that are none."""
    return text


def _estimate(
    text: str,
    net: Network,
    space: SearchSpace | None,
    device: str,
    predictor: str | None,
    root: Path,
    level: float,
    unknown: Unknown,
    overrides: dict[str, Any],
    metric: str = LATENCY,
) -> tuple[str, Predictor, Estimate]:
    """The estimate of the device itself if it is a simulator, or of the newest saved model that knows all of the
    network's Ops; with the model, and where it comes from."""
    from latbench.errors import NotAdditiveError, UnknownOpError, UnsupportedOpError

    setting, own = lookup.asked(device, overrides)
    if own is not None and predictor in (None, own.name) and metric in own.known_metrics:
        try:
            return "", own, own.predict(net, level=level)
        except UnsupportedOpError as e:
            with named_device(device, overrides) as d:
                add_breaches(e, d, net)
            raise
    first: Exception | None = None
    passed: list[tuple[str, Exception]] = []
    for source, model in lookup.candidates(root, device, setting, space, predictor, metric):
        try:
            estimate = _ask(model, net, level, unknown)
            for over, why in passed:
                lookup.passed_over(over, why)
            lookup.note_bundled(source, model, root, device)
            return source, model, estimate
        except (UnknownOpError, UnsupportedOpError, NotAdditiveError) as e:
            passed.append((source, e))
            # One that could estimate it if it were asked to says so: that helps more than one that cannot.
            if first is None or (model.name == "kernels" and not isinstance(first, UnsupportedOpError)):
                first = e
    if first is not None:
        lookup.add_asked(first, passed, text, device)
    raise first or lookup.none_found(root, device, setting, space, predictor, "" if space else text, metric)


def _ask(model: Predictor, net: Network, level: float, unknown: Unknown) -> Estimate:
    """Predictors that cannot estimate what they do not know (tables) are asked as ever."""
    ask: Any = model.predict
    if unknown == Unknown.estimate and "unknown" in inspect.signature(ask).parameters:
        return ask(net, level=level, unknown="estimate")  # type: ignore[no-any-return]
    return model.predict(net, level=level)


def _overrides(runtime: list[str] | None, decompose: bool, peak_mac: bool) -> dict[str, Any]:
    """What overrides the profile's ``[runtime]``. Raises :class:`ConfigError` where a key is given twice."""
    from latbench.errors import ConfigError

    given = parse_pairs(runtime, "--runtime")
    short: dict[str, Any] = {"decompose": True} if decompose else {}
    short |= {"mode": "peak-mac"} if peak_mac else {}
    if clash := sorted(set(given) & set(short)):
        raise ConfigError(
            f"--runtime {clash[0]}=… and --{clash[0] if clash[0] != 'mode' else 'peak-mac'} are both given"
        )
    return {**given, **short}


def _measured(
    net: Network, device: str, protocol: list[str] | None, statistic: str, overrides: dict[str, Any]
) -> tuple[Measurement, Units]:
    """The measurement by the model's own statistic, and the execution units with the times of the runtime's profiler
    where it has one. Raises :class:`ConfigError` for a protocol that asks for another statistic."""
    from latbench.errors import ConfigError

    asked = parse_pairs(protocol, "--protocol").get("statistic", statistic)
    if asked != statistic:
        raise ConfigError(
            f"--protocol statistic={asked}: the model predicts {statistic}, and only the same statistic can be compared"
        )
    dev, how = make_device(device, protocol, overrides)
    how = how.model_copy(update={"statistic": statistic})
    with dev:
        return measure_now(dev, net, how), Units.of_device(dev, net, statistic)
