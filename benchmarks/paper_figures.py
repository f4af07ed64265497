"""The papers' latency figures, on any device.

    python -m benchmarks.paper_figures dense-cells --device local-cpu --device tda2x --html dense.html

| name | figure |
|---|---|
| dense-cells | all 324 dense cells by device (DPP-Net, fig. 9) |
| width-sweep | MobileNetV2 and ProxylessNAS's networks by width (ProxylessNAS, fig. 4) |
| predicted-measured | random networks, predicted and measured (ProxylessNAS, fig. 5) |
| op-shares | shares of the Ops in MoGA's networks (MoGA, fig. 1) |
| device-scatter | random networks on pairs of devices (MoGA, fig. 2) |
| mutation, objectives | ablations of MoGA's search (MoGA, fig. 7) |
| search-path, block-diversity | RCAS's search, and with fewer block types (RCAS, fig. 3) |

A device needs no preparation: its saved predictor is taken, a simulator is asked, anything else that can be reached is
measured first (minutes) and its table saved; what cannot be reached is guessed by its profile's roofline. The searches
train on scikit-learn's digits unless --accuracy says otherwise, in small spaces (16 pixels, width 0.25).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from benchmarks import paper_latency as latency
from benchmarks import paper_searches as searches
from benchmarks.common import finish, parser, table
from benchmarks.measuring import protocol_option
from benchmarks.paper_latency import Picture, Study
from latbench.cli.options import space_params
from latbench.errors import LatbenchError
from latbench.report.html import notices, section
from latbench.report.html import table as html_table
from latbench.report.page import Draw, write_page

FIGURES: dict[str, Callable[[Study], list[Picture]]] = {
    "dense-cells": latency.dense_cells,
    "width-sweep": latency.width_sweep,
    "predicted-measured": latency.predicted_measured,
    "op-shares": latency.op_shares,
    "device-scatter": latency.device_scatter,
    "mutation": searches.mutation,
    "objectives": searches.objectives,
    "search-path": searches.search_path,
    "block-diversity": searches.block_diversity,
}


def main() -> None:
    """Draw what is asked for."""
    from latbench.cli.options import parse_pairs

    p = parser(__doc__)
    p.add_argument("name", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES))
    p.add_argument("--device", "-d", action="append", help="a profile or a path to one; may be repeated (local-cpu)")
    p.add_argument("--set", action="append", metavar="KEY=VALUE", help="parameter of the space, e.g. act=relu6")
    p.add_argument("--resolution", type=int, help="short for --set resolution=…")
    p.add_argument("--width-mult", type=float, help="short for --set width_mult=…")
    p.add_argument("--store", type=Path, default=Path("latbench.db"), help="measurements and evaluations (latbench.db)")
    p.add_argument("--models", type=Path, default=Path("latbench-models"), help="saved predictors (latbench-models)")
    p.add_argument("--networks", type=int, default=24, help="that predicted-measured measures (24)")
    p.add_argument("--accuracy", default="digits", help="as latbench search takes it (digits)")
    p.add_argument("--accuracy-set", action="append", metavar="KEY=VALUE", help="the evaluator's, e.g. epochs=4")
    p.add_argument("--budget", type=int, help="networks that each search may evaluate (MoGA's 60, RCAS's 400)")
    p.add_argument("--seeds", type=int, default=2, help="searches of each kind in MoGA's ablations (2)")
    p.add_argument("--html", type=Path, metavar="FILE", help="also draw the figures into a page")
    protocol_option(p)
    args = p.parse_args()
    try:
        study = Study(
            args.device or ["local-cpu"], space_params(args.set, args.resolution, args.width_mult), args.store,
            args.models, args.seed, args.networks, args.protocol, args.accuracy,
            parse_pairs(args.accuracy_set, "--accuracy-set"), args.budget, args.seeds,
        )  # fmt: skip
        pictures = FIGURES[args.name](study)
    except LatbenchError as e:
        raise SystemExit(f"{args.name}: {e}") from e
    for text in study.warnings:
        print(f"warning: {text}")
    if not pictures:
        raise SystemExit(f"{args.name}: nothing to draw of {', '.join(study.devices)}")
    for picture in pictures:
        table(picture.title, picture.columns, picture.rows)
    if args.html:
        title = f"{args.name} on {', '.join(study.devices)}"
        created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_page(args.html, title, created, lambda draw: _body(title, pictures, study.warnings, draw))
        print(f"wrote {args.html}")
    finish(args, "paper_figures", {x.title: x.numbers for x in pictures}, figure=args.name, devices=list(study.devices))


def _body(title: str, pictures: list[Picture], warnings: list[str], draw: Draw) -> list[str]:
    parts = [f"<header><h1>{escape(title)}</h1></header>", notices(warnings)]
    for x in pictures:
        charts = [draw(chart, x.title) for chart in x.charts]
        numbers = [i for i in range(len(x.columns)) if all(row[i][:1] in "0123456789+-–" for row in x.rows)]
        rows = html_table(x.columns, x.rows, numbers)
        parts.append(
            section(
                [
                    f"<h2>{escape(x.title)}</h2>",
                    f'<p class="why">{escape(x.why)}</p>',
                    *charts,
                    f'<div class="scroll" style="margin-top:16px">{rows}</div>' if x.rows else "",
                ]
            )
        )
    return parts


if __name__ == "__main__":
    main()
