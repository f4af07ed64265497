"""``latbench learn``: a predictor for a device within minutes, with the learning curve as it goes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from latbench.cli import EXIT_INTERRUPTED, lookup
from latbench.cli.console import bar, ms, note, percent, say, warn
from latbench.cli.options import (
    DEFAULT_MODELS,
    DEFAULT_STORE,
    DeviceName,
    ModelsFolder,
    ProtocolSettings,
    Resolution,
    Seed,
    Settings,
    StoreUrl,
    Wait,
    WidthMult,
    make_space,
    named_device,
    parse_pairs,
    patiently,
)
from latbench.cli.subjects import Shapes, read_model
from latbench.errors import ConfigError

if TYPE_CHECKING:
    from latbench.adaptive import Learnt, Round
    from latbench.predictors.kernels import Kernels
    from latbench.protocol import Statistic
    from latbench.rounds import Progress


#: Rounds of a learning curve that are printed of a card.
CURVE_ROWS = 6


def learn(
    models_: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Networks that it is for, if known: .onnx files, SPACE:CHOICES."),
    ] = None,
    device: DeviceName = "local-cpu",
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Time for all of it, over all runs.")] = 30.0,
    space: Annotated[str | None, typer.Option("--space", "-s", help="The search space that it is for, if any.")] = None,
    settings: Settings = None,
    resolution: Resolution = None,
    width_mult: WidthMult = None,
    shapes: Shapes = None,
    store: StoreUrl = DEFAULT_STORE,
    models: ModelsFolder = Path(DEFAULT_MODELS),
    out: Annotated[Path | None, typer.Option("--out", help="Save into this folder instead of the models' one.")] = None,
    statistic: Annotated[
        str | None, typer.Option("--statistic", help="p50, p25, min, …: what sums up a Visit (the profile's).")
    ] = None,
    seed: Seed = 0,
    protocol: ProtocolSettings = None,
    wait: Wait = 0,
) -> None:
    """Build `kernels` for a device: measure, fit, see what is estimated wrongly, measure that, until the time is up.

    The best round's predictor, by its error on held-out networks, is saved as it goes. It can be stopped at any time;
    run again, it goes on with what it has.
    """
    from latbench.adaptive import BRIEF
    from latbench.adaptive import learn as run
    from latbench.profile import parse_section
    from latbench.protocol import Protocol

    if space is None and (settings or resolution is not None or width_mult is not None):
        raise ConfigError("--set, --resolution and --width-mult belong to a --space")
    chosen = None if space is None else make_space(space, settings, resolution, width_mult)
    nets = [read_model(m, shapes=shapes)[0] for m in models_ or ()]
    dev = named_device(device)
    brief = {**dev.profile.protocol.model_dump(), **BRIEF, **parse_pairs(protocol, "--protocol")}
    how = parse_section(Protocol, brief, "--protocol", "")
    kept = _Kept(device, models, out)
    say(f"learning {device} for {minutes:g} minutes, into {store}")
    note("stop it with Ctrl-C at any time; the same command goes on with what was measured")
    _head()
    with bar("learning", lines=False) as b:

        def show(p: Progress) -> None:
            title = {"prepare": "building artefacts", "reconnect": "waiting to reconnect"}.get(p.stage, p.subject[:40])
            b.update(p.done, p.total, title=f"Visits: {title}")

        try:
            learnt: Learnt = patiently(
                lambda: run(
                    dev, nets, minutes=minutes, space=chosen, store=store, out=kept.save, protocol=how,
                    statistic=_statistic(statistic), seed=seed, on_round=_row, on_progress=show,
                ),
                wait,
            )  # fmt: skip
        except KeyboardInterrupt:
            saved = f"; the best predictor so far is {kept.path}" if kept.path else ""
            note(f"stopped{saved}; everything measured is kept: run the same command again to go on")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    for text in learnt.notes[:5]:
        warn(text)
    if learnt.predictor is None:
        why = learnt.rounds[-1].failed if learnt.rounds else "nothing was measured"
        raise ConfigError(f"{minutes:g} minutes were too short for a predictor: {why}; give more with --minutes")
    say(f"{learnt.minutes:.1f} minutes used; saved {kept.path}", "bold")
    if learnt.kept != learnt.rounds[-1].number:
        note(f"it is of round {learnt.kept}: later ones predict the held-out networks less well")
    _left_out(learnt.predictor.card.notes)
    _own(learnt.own)
    note(f"next: latbench predict MODEL.onnx --model {kept.path}")


def _left_out(notes: Sequence[str]) -> None:
    """How many held-out networks the errors leave out because the predictor does not know an Op of theirs."""
    from latbench.gathering import LEFT_OUT

    why = Counter(reason for n in notes for _, found, reason in [n.partition(LEFT_OUT)] if found)
    if why:
        reasons = "; ".join(f"{reason}{f' ({k} networks)' if k > 1 else ''}" for reason, k in why.items())
        n = why.total()
        warn(f"{n} held-out network{'s' * (n > 1)} could not be predicted and {'are' if n > 1 else 'is'} in no error "
             f"above: {reasons}")  # fmt: skip


def _own(networks: Sequence[tuple[str, float, float]]) -> None:
    """The networks that it is for: measured, predicted, and how far apart these are."""
    for name, measured, predicted in networks:
        if isnan(predicted):
            warn(f"{name}: cannot be predicted, an Op of it is unknown or unsupported")
        elif isnan(measured):
            say(f"{name}: predicted {ms(predicted)} ms; not measured as a whole yet")
        else:
            say(f"{name}: measured {ms(measured)} ms, predicted {ms(predicted)} ms, off by "
                f"{predicted / measured - 1:+.1%} (it is one of those that the predictor learnt from)")  # fmt: skip


def _statistic(name: str | None) -> Statistic | None:
    from latbench.protocol import Statistic

    known = get_args(Statistic)
    if name is not None and name not in known:
        raise ConfigError(f"--statistic {name}: known: {', '.join(known)}")
    return cast("Statistic | None", name)


class _Kept:
    """The best predictor on disk; the one that was saved before makes way for it."""

    def __init__(self, device: str, models: Path, out: Path | None) -> None:
        self.device, self.models, self.out = device, models, out
        self.path: Path | None = None

    def save(self, model: Kernels) -> None:
        """Save under ``--out``, or under the models' folder."""
        before = self.path
        self.path = model.save(self.out) if self.out else lookup.save(model, self.models, self.device)
        if before is not None and before != self.path:
            shutil.rmtree(before, ignore_errors=True)


def _head() -> None:
    say("round  minutes     Ops  networks    held-out Ops   held-out networks  ±10 %  most wrong")


def _row(r: Round) -> None:
    kinds = ", ".join(f"{k} {percent(e, 0)}" for k, e in r.kinds.items())
    say(
        f"{r.number:5d}  {r.minutes:7.1f}  {r.ops:6d}  {r.networks:8d}  {_error(r.op_rmspe, r.held_out_ops):>14}  "
        f"{_error(r.rmspe, r.held_out_networks):>18}  {'' if isnan(r.within_10) else percent(r.within_10, 0):>5}  "
        f"{r.failed or kinds}"
    )


def print_curve(rows: Sequence[Mapping[str, Any]], kept: int | None) -> None:
    """A card's learning curve, as many of its rounds as :data:`CURVE_ROWS`; ``kept`` is the round of the predictor."""
    from latbench.adaptive import Round

    names = [f.name for f in fields(Round)]
    told: list[dict[str, Any]] = [{k: nan if (v := r.get(k)) is None else v for k in names} for r in rows]
    rounds = [Round(**t) for t in told]
    step = max(1, -(-(len(rounds) - 1) // (CURVE_ROWS - 1)))
    shown = [x for i, x in enumerate(rounds) if i % step == 0 or x is rounds[-1] or x.number == kept]
    say(f"learning curve, {len(shown)} of {len(rounds)} rounds" if len(shown) < len(rounds) else "learning curve")
    _head()
    for x in shown:
        _row(x)
    if kept not in (None, rounds[-1].number):
        note(f"the predictor is of round {kept}")


def _error(rmspe: float, n: int) -> str:
    return f"– of {n}" if isnan(rmspe) else f"{percent(rmspe)} of {n}"
