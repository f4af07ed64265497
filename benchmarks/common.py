"""What all benchmarks share: options, where the data lie, tables on the terminal, and a line that says what ran where.

Every benchmark is one command, ``python -m benchmarks.<name>``, prints its figures beside their baseline from the same
run and beside the target, and with ``--json FILE`` writes them too. Times are milliseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have: ``--seed``, ``--json``."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=0, help="seed of every random choice (default 0)")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return p


def data_file(name: str) -> Path:
    """A file of the measured data: in the folder ``LATBENCH_DATA``, else ``../shared/data`` beside the repository.

    Ends the program with a clear message where it is absent.
    """
    path = Path(os.environ.get("LATBENCH_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.exists():
        raise SystemExit(f"{path} is absent: set LATBENCH_DATA to the folder that holds {name}")
    return path


def provenance(**more: Any) -> dict[str, Any]:
    """Machine, date, commit and versions, for the line under every table."""
    import numpy
    import onnxruntime

    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "load": ", ".join(f"{x:.2f}" for x in os.getloadavg()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        **more,
    }


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers should come formatted."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, c in enumerate(columns):
        out.add_column(c, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        out.add_row(*map(str, row))
    # A pipe has no width: figures must not be folded there.
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(out)


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction as text, e.g. ``1.50 %``."""
    return f"{100 * fraction:.{digits}f} %"


def verdict(ok: bool) -> str:
    """How a figure compares with its target."""
    return "met" if ok else "missed"


def finish(args: argparse.Namespace, name: str, figures: Mapping[str, Any], **more: Any) -> None:
    """Print the provenance line and write ``--json``."""
    where = provenance(seed=args.seed, **more)
    print(f"{name}: " + " · ".join(f"{k} {v}" for k, v in where.items()))
    if args.json:
        content = _plain({"benchmark": name, "figures": figures, "provenance": where})
        text = json.dumps(content, indent=1, allow_nan=False)
        args.json.write_text(text + "\n", "utf-8")


def _plain(x: Any) -> Any:
    # JSON knows neither numpy's numbers nor NaN and infinity: what is undefined becomes null.
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if x is None or isinstance(x, (str, bool, int)):
        return x
    number = float(x)
    return number if math.isfinite(number) else None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    argv = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
