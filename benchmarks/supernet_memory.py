"""Memory of a training step of the over-parameterised ProxylessNAS network, and its time: one path, not all of them.

Cai, Zhu and Han (ICLR 2019) keep one path in memory where a relaxed network (DARTS) keeps all of them. Activation
memory is the step's peak minus what lies there before it (weights, optimiser state) and minus the gradients that it
leaves: the allocator's own account of every allocation (on a GPU ``max_memory_allocated``), workspace included. Each
way runs in a process of its own, with the same images. The baseline is a plain training step of the compact network
with the largest choices everywhere (kernel 7, expansion 6); "all at once" and "two at once" keep the outputs and
activations of all, or two, choices, as without binarisation. Targets: weight step, REINFORCE and recompute ≤ 1.2 × the
largest path.

All ways are measured at ``--batch`` (16: all choices kept take seven GiB), those that keep one path at
``--large-batch`` too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import finish, parser, table, verdict

TARGET = 1.2
LARGEST, SECOND, POSITIONS = 5, 3, 21
WAYS = {
    "largest path": "the compact network, a training step",
    "weight step": "proxyless: the weights of one sampled path",
    "recompute": "proxyless: an α step, all gates",
    "two-path": "proxyless: an α step, a pair of gates",
    "reinforce": "proxyless: an α step, ten networks",
    "two at once": "both choices of a pair kept",
    "all at once": "all choices kept",
}
MIB = 1 << 20


def step_of(way: str, args: argparse.Namespace) -> tuple[Callable[[], None], Any]:
    """One step of a way, ready to run, and the module whose weights it uses."""
    import torch
    import torch.nn.functional as F
    from latbench.searchers import binary_paths as paths

    from latbench import load_space

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    space = load_space("proxyless", resolution=args.resolution, width_mult=args.width_mult, num_classes=args.classes)
    x = torch.randn(args.batch, 3, args.resolution, args.resolution, device=device)
    y = torch.arange(args.batch, device=device) % args.classes
    largest = (LARGEST,) * POSITIONS
    compact = way == "largest path"
    module = space.network(largest).to_torch() if compact else space.supernet()
    module.train().to(device)
    sgd = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.9, nesterov=True)
    every: list[Iterable[int]] = [range(n) for n in space.num_choices]
    pairs: list[Iterable[int]] = [(LARGEST, SECOND)] * POSITIONS

    def weights() -> None:
        sgd.zero_grad(set_to_none=True)
        F.cross_entropy(module(x) if compact else module(x, largest), y).backward()
        sgd.step()

    def gates(candidates: list[Iterable[int]]) -> None:
        with paths.only_architecture(module):
            g = paths.Gates(largest, [list(c) for c in candidates], space.num_choices)
            F.cross_entropy(module(x, largest, mix=g.mixers()), y).backward()

    def kept(candidates: list[Iterable[int]]) -> None:
        sgd.zero_grad(set_to_none=True)
        g = paths.AllPaths(largest, [list(c) for c in candidates], space.num_choices)
        g.gates = [t.detach().to(device).requires_grad_() for t in g.gates]
        F.cross_entropy(module(x, largest, mix=g.mixers()), y).backward()
        sgd.step()

    def rewards() -> None:
        with paths.only_architecture(module), torch.no_grad():
            for _ in range(10):
                (module(x, largest).argmax(1) == y).double().mean().item()

    steps: dict[str, Callable[[], None]] = {
        "largest path": weights, "weight step": weights, "recompute": lambda: gates(every),
        "two-path": lambda: gates(pairs), "reinforce": rewards, "two at once": lambda: kept(pairs),
        "all at once": lambda: kept(every),
    }  # fmt: skip
    return steps[way], module


def measure(way: str, args: argparse.Namespace) -> dict[str, float]:
    """Bytes of a way's step, after one that makes the optimiser's state where it has some, and seconds of another.

    The step that is timed comes last: warm in every way, and without the account of allocations, which takes time.
    """
    import torch

    torch.set_num_threads(args.threads)
    step, module = step_of(way, args)
    if way in ("largest path", "weight step") or "at once" in way:
        step()
        for p in module.parameters():
            p.grad = None
    on_gpu = torch.cuda.is_available()
    peak = _peak_on_gpu(step) if on_gpu else _peak_on_cpu(step)
    gradients = sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    found = {
        "activations": peak - gradients,
        "gradients": gradients,
        "weights": sum(t.nbytes for t in module.state_dict().values()),
        "total": torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return {**found, "seconds": seconds(step)}


def seconds(step: Callable[[], None]) -> float:
    """Wall-clock time of a step, the GPU's queue drained before and after."""
    import torch

    drain = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    drain()
    started = time.perf_counter()
    step()
    drain()
    return time.perf_counter() - started


def _peak_on_cpu(step: Callable[[], None]) -> float:
    """The largest sum of what the allocator gave out and got back during a step, bytes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        now += e.nbytes()
        peak = max(peak, now)
    return float(peak)


def _peak_on_gpu(step: Callable[[], None]) -> float:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def in_a_process(way: str, args: argparse.Namespace, batch: int) -> dict[str, float]:
    """:func:`measure` in a process of its own. Raises SystemExit with what it said where it fails."""
    options = ["--batch", batch, "--resolution", args.resolution, "--width-mult", args.width_mult]
    options += ["--classes", args.classes, "--threads", args.threads]
    argv = [sys.executable, "-m", "benchmarks.supernet_memory", "--way", way, *map(str, options)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise SystemExit(f"{way}, batch {batch}: ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure each way, print; 1 where the target is missed."""
    p = parser(__doc__)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--large-batch", type=int, default=32, help="batch of what keeps one path; 0: none (default 32)")
    p.add_argument("--resolution", type=int, default=224)
    p.add_argument("--width-mult", type=float, default=1.0)
    p.add_argument("--classes", type=int, default=1000)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--way", choices=list(WAYS), help="measure one way in this process and print its figures as JSON")
    args = p.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args)))
        return 0
    figures: dict[str, Any] = {}
    missed = False
    batches = {args.batch: list(WAYS)}
    if args.large_batch and args.large_batch != args.batch:
        batches[args.large_batch] = [w for w in WAYS if "at once" not in w]
    for batch, ways in batches.items():
        found = {way: in_a_process(way, args, batch) for way in ways}
        base = found["largest path"]["activations"]
        rows = []
        for way, f in found.items():
            f["ratio"] = f["activations"] / base
            goal = way in ("weight step", "recompute", "reinforce")
            missed |= goal and f["ratio"] > TARGET
            rows.append((
                way, WAYS[way], *(f"{f[n] / MIB:.0f}" for n in ("activations", "gradients", "weights", "total")),
                f"{f['ratio']:.2f}", f"≤ {TARGET}: {verdict(f['ratio'] <= TARGET)}" if goal else "",
                f"{f['seconds']:.1f}",
            ))  # fmt: skip
        columns = ("way", "", "activations MiB", "gradients", "weights", "total", "ratio", "target", "s")
        table(f"A step at {args.resolution}, width {args.width_mult:g}, batch {batch}", columns, rows)
        figures[f"batch {batch}"] = found
    finish(args, "supernet_memory", figures)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
