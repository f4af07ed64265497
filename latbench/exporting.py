"""A search's networks as files that other programs read: the front as tables, each network as ONNX and for torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latbench.errors import ConfigError
from latbench.network import Network
from latbench.problem import Candidate
from latbench.space import Arch, arch_name, file_stem

if TYPE_CHECKING:
    from latbench.result import SearchResult

FRONT_JSON, FRONT_PARQUET = "front.json", "front.parquet"
FORMATS = ("onnx", "torch", "svg")


def export(
    result: SearchResult,
    folder: str | Path,
    *,
    archs: Sequence[Arch] | None = None,
    trained: Mapping[Arch, Network] | None = None,
    formats: Sequence[str] = FORMATS,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the Pareto set as far as it kept its limits when it was measured (:meth:`SearchResult.final`), or these
    ``archs``, candidates of the search, into ``folder``; gives its path.

    ``front.json`` and ``front.parquet`` have a row a network: choices, every value, measured latency with its interval
    where it was validated (milliseconds), and the names of its files. Each network becomes ``NAME.onnx``, ``NAME.pt2``
    (for ``torch.export.load``, any batch size; no latbench needed to run it) and ``NAME.svg`` (its blocks). Weights are
    those of ``trained``; of a network that is not in it they are seeded, random ones, and the row says so.

    Raises :class:`ConfigError` for a format that there is not, for an empty front, and for an architecture that is no
    candidate; :class:`~latbench.errors.NotInstalledError` without torch.
    """
    if unknown := [f for f in formats if f not in FORMATS]:
        raise ConfigError(f"export: no format {unknown[0]!r}; there are {', '.join(FORMATS)}")
    chosen = _chosen(result, archs)
    to = Path(folder)
    to.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, c in enumerate(chosen):
        net = (trained or {}).get(c.arch)
        row = _row(result, c, "trained" if net is not None else "random, seed 0")
        row["files"] = _write(to, net or result.problem.space.network(c.arch), result, c.arch, formats)
        rows.append(row)
        if progress:
            progress(number + 1, len(chosen))
    objectives = [str(o) for o in result.problem.objectives]
    body = {"space": result.problem.space.spec, "objectives": objectives, "networks": rows}
    (to / FRONT_JSON).write_text(json.dumps(body, indent=1, allow_nan=False), "utf-8")
    _write_parquet(to / FRONT_PARQUET, rows)
    return to


def _chosen(result: SearchResult, archs: Sequence[Arch] | None) -> list[Candidate]:
    if archs is None:
        if not (found := result.final()):
            raise ConfigError("the search found nothing that keeps its limits: name architectures to export")
        return found
    known = {c.arch: c for c in result.candidates}
    if missing := [a for a in archs if a not in known]:
        raise ConfigError(f"{list(missing[0])} is no candidate of this search")
    return [known[a] for a in dict.fromkeys(archs)]


def _row(result: SearchResult, c: Candidate, weights: str) -> dict[str, Any]:
    space = result.problem.space
    measured: dict[str, list[float]] = {}
    for v in result.validated:
        if v.arch == c.arch and v.measured is not None:
            measured[v.value] = [v.measured.latency_ms, v.measured.low_ms, v.measured.high_ms]
    return {
        "name": arch_name(c.arch),
        "arch": list(c.arch),
        "choices": [space.choice_label(i, choice) for i, choice in enumerate(c.arch)],
        "values": dict(c.values),
        "measured": measured,
        "weights": weights,
    }


def _write(to: Path, net: Network, result: SearchResult, arch: Arch, formats: Sequence[str]) -> list[str]:
    from latbench.report.diagrams import diagram, standalone

    name, space, files = file_stem(arch), result.problem.space, []
    if "onnx" in formats:
        (to / f"{name}.onnx").write_bytes(net.to_onnx().SerializeToString())
        files.append(f"{name}.onnx")
    if "torch" in formats:
        _write_torch(to / f"{name}.pt2", net)
        files.append(f"{name}.pt2")
    if "svg" in formats:
        drawn = diagram(net, {}, [space.choice_label(i, c) for i, c in enumerate(arch)], arch_name(arch))
        (to / f"{name}.svg").write_text(standalone(drawn), "utf-8")
        files.append(f"{name}.svg")
    return files


def _write_torch(file: Path, net: Network) -> None:
    """As a program that torch runs by itself, with any batch size: for that it is traced with more than one image."""
    from latbench.with_torch import torch

    inputs = tuple(torch.zeros(2, *net.tensors[t].shape[1:]) for t in net.inputs)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net.to_torch(), inputs, dynamic_shapes={"inputs": (batch,) * len(inputs)})
    torch.export.save(program, file)


def _write_parquet(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        return
    names = sorted({n for r in rows for n in r["values"]})
    seen = sorted({n for r in rows for n in r["measured"]})
    columns: dict[str, Any] = {k: [r[k] for r in rows] for k in ("name", "arch", "choices", "weights", "files")}
    columns |= {n: [r["values"].get(n) for r in rows] for n in names}
    for n in seen:
        for i, end in enumerate(("", " low", " high")):
            columns[f"measured {n}{end}"] = [r["measured"][n][i] if n in r["measured"] else None for r in rows]
    pq.write_table(pa.table(columns), file)
