"""The rows of README's table of figures: what each benchmark with a target claims, and what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Row = tuple[str, str, str, str]


def _of_additivity(d: Mapping[str, Any]) -> Iterator[Row]:
    score = {k: v["rmspe"] for k, v in d["scores"].items()}
    half = "kernels, half of the units never measured"
    plain, affine = (next(v for k, v in score.items() if form in k) for form in ("plain sum", "affine"))
    macs, floor = share(score["MACs regression"]), share(d["noise_floor"])
    beside = (
        f"MACs {macs}, one pass of 10 + 50 {share(plain)}, the same calibrated {share(affine)}, noise floor {floor}"
    )
    yield (
        f"table: RMSPE on {d['held_out']} held-out networks",
        share(score["table"]),
        beside,
        f"≤ {share(d['limit'])}",
    )
    yield half, share(score[half]), f"all units measured {share(score['kernels, all units measured'])}", "≤ 4 %"


def _of_drift(d: Mapping[str, Any]) -> Iterator[Row]:
    for name, e in d.get("contention", {}).get("errors", {}).items():
        beside = f"uncorrected {share(e['rmspe as measured'])}, quiet {share(e['noise_rmspe'])}"
        target = f"≤ {e['target']} × quiet"
        yield f"contention of the {name}: RMSPE", share(e["rmspe corrected"]), beside, target
    shares = [v["within_10"] for v in d.get("rows", {}).values() if isinstance(v, dict) and "within_10" in v]
    if shares:
        yield (
            "gold_6240 within ±10 %, time-interpolated",
            share(shares[-1]),
            f"without time {share(shares[-2])}",
            "≥ 98 %",
        )


def _of_onnx_zoo(d: Mapping[str, Any]) -> Iterator[Row]:
    score, macs = d["scores"]["kernels"], d["scores"]["MACs regression"]
    name = f"kernels, {d['architectures']} architectures as ONNX: RMSPE"
    yield name, share(score["rmspe"]), f"MACs {share(macs['rmspe'])}", "≤ 6 %"
    yield "the same, within ±10 %", share(score["within_10"]), f"MACs {share(macs['within_10'])}", "≥ 92 %"


def _of_budget(d: Mapping[str, Any]) -> Iterator[Row]:
    v = d["verdicts"]["mean"]
    beside = f"error {share(v['rmspe'])} beside {share(v['rmspe_fixed'])} of fixed 10 + 50"
    yield "device time to that error", f"{v['ratio']:.1f} × less", beside, "≥ 3 ×"


def _of_throughput(d: Mapping[str, Any]) -> Iterator[Row]:
    a, p = d["predict_archs"], d["predict"]
    loop = f"loop {a['loop_per_s'] / 1e6:.2f} M"
    yield "architectures a second, one core", f"{a['table_per_s'] / 1e6:.1f} M", loop, "≥ 5 M"
    cold = f"never planned {p['table, cold']['median_ms']:.0f} ms"
    yield "one network from ONNX, planned before", f"{p['table, planned']['median_ms']:.1f} ms", cold, "≤ 5 ms"
    if c := d.get("campaign"):
        yield "campaign: wall beyond device time", share(c["overhead"]), f"{c['visits']} Visits", "≤ 10 %"


def _of_kill_resume(d: Mapping[str, Any]) -> Iterator[Row]:
    lost = f"{d['committed Visits lost']} lost, {d['plan slots committed twice']} twice"
    yield f"{d['kills']} × kill -9 and resume", lost, f"{d['in flight']} in flight, repeated", "0, 0"


def _of_remote_overhead(d: Mapping[str, Any]) -> Iterator[Row]:
    for f in d.values():
        if f["target_ms"] is not None:
            beside = (
                f"a round trip each {f['way_ms']:.0f} ms, with a runner started for each {f['round_trip_ms']:.0f} ms"
            )
            yield f"{f['transport']}: wall time an Op", f"{f['batch_ms']:.2f} ms", beside, f"≤ {f['target_ms']:g} ms"


def _of_same_number(d: Mapping[str, Any]) -> Iterator[Row]:
    found, base = (
        f"{share(d[k]['median'])}, {share(d[k]['p95'])}" for k in ("remote against local", "local against local")
    )
    what = f"{d['way']} against local, {d['ops']} Ops: median and 95th percentile apart"
    more = " … ".join(f"{100 * d[e]['p95']:+.2f}" for e in ("worse, at least", "worse, at most") if e in d)
    beside = f"local against local {base}" + (f"; the latter worse by {more} points" if more else "")
    yield what, found, beside, "≤ 0.5 points more"


def _of_opencl_exact(d: Mapping[str, Any]) -> Iterator[Row]:
    beside = f"largest difference {d['largest difference']:.1e}, onnxruntime from itself {d['onnxruntime itself']:.1e}"
    yield "OpenCL kernels that agree with onnxruntime", f"{d['agree']} of {d['subjects']}", beside, "all, to 1e-4"


def _of_arm_exact(d: Mapping[str, Any]) -> Iterator[Row]:
    for name, f in d.items():
        what = f"emulated Cortex-A53, {name}:"
        within = f"95 % within {share(f['p95'])}"
        yield f"{what} an Op in two fresh starts, at most", share(f["worst"]), within, "≤ 0.1 %"
        plain = f"plain sum {share(f['plain_worst'])}"
        yield f"{what} a sum from each of {f['networks']} networks", share(f["table_worst"]), plain, "≤ 2 %"


def _of_faults(d: Mapping[str, Any]) -> Iterator[Row]:
    def said(f: Mapping[str, Any]) -> str:
        counts = (
            f"{f['committed Visits lost']} lost, {f['items done twice']} twice, {f['wrong results accepted']} wrong"
        )
        return f"{counts}, {f['other Ops given up']} given up"

    yield f"a fleet under {d['faults']} faults", said(d), f"without faults {said(d['without faults'])}", "0 of each"


def _of_tda2x_fit(d: Mapping[str, Any]) -> Iterator[Row]:
    what = f"TDA2x simulator, {d['fitted numbers']} fitted numbers: off TI's frame times of topologies left out"
    too = f"{share(d['form_too_share'])}, worst {share(d['form_too_worst'])}"
    of = f"worst {share(d['held_out_worst'])}; form chosen without it, too, {too}"
    yield f"{what}, mean", share(d["held_out_share"]), of, "≤ 12 %, worst ≤ 30 %"
    rates = f"worst {share(d['rates_worst'])}; not fitted"
    yield "TDA2x simulator: off TI's frame rates of several cores, mean", share(d["rates_share"]), rates, "–"


def _of_tda2x_vs_zigzag(d: Mapping[str, Any]) -> Iterator[Row]:
    took = f"zigzag-dse {share(d['zigzag_share'])}, {d['zigzag_s']:.0f} s a network"
    what = f"TDA2x simulator: off TI's frame times of {len(d['networks'])} networks left out, one EVE"
    yield what, share(d["simulator_share"]), took, "–"


def _of_tda2x_speed(d: Mapping[str, Any]) -> Iterator[Row]:
    cold = f"a cold network {d['cold_ms']:.0f} ms"
    yield "TDA2x simulator: networks a second", f"{d['networks_per_s']:,.0f}", cold, "≥ 1,000, ≤ 20 ms"


def _of_fixed_point(d: Mapping[str, Any]) -> Iterator[Row]:
    exact, beside = (
        f"{d['agree']} of {d['layers']}",
        f"{d['reach 40 bits']} of them fill 40 bits; not verified on silicon",
    )
    yield "TDA2x fixed point: layers exact to the plain reference", exact, beside, "all"
    yield "TDA2x fixed point: MobileNetV2 at 224, one core", f"{d['speed']['image_s']:.2f} s", "", "≤ 2 s"
    if rows := d.get("trained"):
        eight, dynamic, four = (rows[f"{k} ranges"]["lost"] for k in (
            "8-bit weights, frozen", "8-bit weights, dynamic", "4-bit weights, frozen"
        ))  # fmt: skip
        beside = f"ranges that follow the images {share(dynamic)}, 4-bit weights {share(four)}; E-DNAS paper 3 %"
        yield "TDA2x fixed point: accuracy lost on the digits", share(eight), beside, "–"


def _of_nb201_900(d: Mapping[str, Any]) -> Iterator[Row]:
    timed, plain = d["means"]["time-interpolated"], d["means"]["without time"]
    for key, reported, name in (("within_5", 0, "5"), ("within_10", 1, "10")):
        low, high = (d["reported"][k][reported] for k in ("smoother", "12,500 rows"))
        beside = f"without time {share(plain[key])}; smoother {share(low)}, 12,500 rows {share(high)}"
        what = f"network: 900 of NAS-Bench-201, within ±{name} %, time-interpolated"
        yield what, share(timed[key]), beside, f"≥ {share((low + high) / 2)}"


def _of_nb201_transfer(d: Mapping[str, Any]) -> Iterator[Row]:
    for n, spearman, within in ((10, ".948", "78 %"), (20, ".970", "86 %")):
        m, gap = d[f"n = {n}"]["mean"], d[f"gap closed, n = {n}"]
        beside = f"quick baseline {gap['baseline spearman']:.3f}, {share(gap['baseline within 10 %'])}"
        here = f"Spearman {m['spearman']:.4f}; {share(m['within 10 %'])} within ± 10 %"
        yield f"NAS-Bench-201: a new device from {n} chosen networks, mean", here, beside, f"{spearman}; {within}"


def _of_coverage(d: Mapping[str, Any]) -> Iterator[Row]:
    for n in (10, 20):
        f = d[f"n = {n}"]
        here = f"{share(f['transfer']['coverage'])}; selected {share(f['selected, recalibrated']['coverage'])}"
        flat = f["one percentage, left out"]
        beside = f"one percentage: {share(flat['coverage'])}"
        yield f"90 % intervals of a new device, {n} networks: held", here, beside, "88–92 %"


def _of_phones(d: Mapping[str, Any]) -> Iterator[Row]:
    for name, f in d.items():
        beside = f"nn-Meter {share(f['published'])}, MACs {share(f['MACs']['rmspe'])}"
        what = f"network: RMSPE on {name} from 200 networks"
        yield what, share(f["network"]["rmspe"]), beside, f"≤ {share(f['target'])}"


def _of_predictor_speed(d: Mapping[str, Any]) -> Iterator[Row]:
    first, later = (min(f[when] for f in d.values()) for when in ("first", "warm"))
    what = f"network: architectures a second of processor time, the slowest of {len(d)} fits"
    yield what, f"{first:,.0f}", f"{later:,.0f} in later calls", "≥ 50,000"


def _of_nb201_search(d: Mapping[str, Any]) -> Iterator[Row]:
    share = {n: list(v.values()) for n, v in d["imagenet16_120"]["share"].items()}
    if "surrogate" not in share:
        return
    pymoo = share.get("NSGA-II (pymoo)")
    beside = f"NSGA-II (pymoo) {' / '.join(f'{x:.3f}' for x in pymoo)}, " if pymoo else ""
    name = f"surrogate: share of the true hypervolume after 50 / 100 / 200 evaluations, {d['seeds']} seeds"
    told = " / ".join(f"{x:.3f}" for x in share["surrogate"])
    yield name, told, f"{beside}TPE .907 / .938 / .965", "≥ .95 / .970 / .982"


def _of_nb201_limit(d: Mapping[str, Any]) -> Iterator[Row]:
    told = f"{d['broken_before']} before, {d['broken_after']} after"
    extra = f"{d['extra_per_limit']:.1f} extra measurements a limit"
    what = f"{len(d['limits'])} limits on latency, 20 measurements: broken when measured, worst of {d['seeds']} seeds"
    yield what, told, extra, "≤ 1, 0"
    yield (
        "the same: accuracy lost to the best that keeps the limit, mean",
        f"{d['regret_points']:.2f} points",
        "",
        "≤ 0.3",
    )


def _of_moga_speed(d: Mapping[str, Any]) -> Iterator[Row]:
    beside = f"NSGA-II (pymoo) {d['pymoo_s']:.2f} s"
    yield "moga: 120 generations of 70, three objectives", f"{d['moga_s']:.2f} s", beside, "≤ 3 s"


def _of_supernet_memory(d: Mapping[str, Any]) -> Iterator[Row]:
    batch, ways = next((n, w) for n, w in d.items() if isinstance(w, dict) and "recompute" in w)
    ratio = {n: w["ratio"] for n, w in ways.items()}
    worst = max(ratio[n] for n in ("weight step", "recompute", "reinforce"))
    others = ", ".join(f"{n} {r:.2f}" for n, r in ratio.items() if n not in ("weight step", "recompute", "reinforce"))
    yield f"proxyless at 224, {batch}: activations beside the largest path's", f"× {worst:.2f}", others, "≤ × 1.2"


def _of_fairness(d: Mapping[str, Any]) -> Iterator[Row]:
    told = {n: f"{f['tau']:.2f}" for n, f in d["Kendall's tau"].items()}
    beside = f"uniform sampling {told['uniform sampling']}, one stand-alone training {told['one stand-alone training']}"
    spread = d["strict"]["count_spread"]
    yield (
        "supernet, strict fairness: most − least trained choice",
        f"{spread:.0f}",
        "uniform sampling " + (f"{d['uniform']['count_spread']:.0f}"),
        "0",
    )
    yield "the same: Kendall's τ with stand-alone trainings on the digits", told["strict fairness"], beside, "–"


def _of_lazy(d: Mapping[str, Any]) -> Iterator[Row]:
    runs = [r for oracle in d["oracles"] for r in oracle.values()]
    lazy, eager = (sum(r[n] for r in runs) for n in ("lazy", "eager"))
    same = f"{sum(r['same'] for r in runs):.0f} of {len(runs)}"
    beside = f"{share(1 - lazy / eager)} of the evaluations saved"
    if digits := d.get("digits"):
        beside += f", on the digits, params ≤ {digits['params_limit']:,}, {share(1 - digits['lazy'] / digits['eager'])}"
        beside += "" if "random search" in digits["networks"] else "; without random search"
    what = f"rcas, lazy: searches on {len(d['oracles'])} submodular oracles that pick what eager greedy picks"
    yield what, same, beside, "all"


def _of_gpu_throughput(d: Mapping[str, Any]) -> Iterator[Row]:
    rows = {n: f for n, f in d.items() if isinstance(f, Mapping)}
    for name, f in rows.items():
        if not name.startswith("plain"):
            plain = rows[f"plain training, {name.rpartition(', ')[2]}"]["passes_per_s"]
            beside = f"plain training {plain:,.0f}, batch {d['batch_size']}, {d['hardware']}"
            here = f"{f['passes_per_s']:,.0f} of {f['images_per_s']:,.0f}"
            yield f"{name}: passes a second of images at 32 × 32", here, beside, "–"


def _of_specialise(d: Mapping[str, Any]) -> Iterator[Row]:
    told = f"{d['fastest_at_home']} of {d['comparisons']}"
    low, high = min(d["spearman"].values()), max(d["spearman"].values())
    beside = f"{d['ties']} ties; tables agree by ρ = {low:.2f} … {high:.2f}"
    yield "networks searched for a device that are fastest there, at equal MACs", told, beside, "all"


def share(x: float) -> str:
    return f"{100 * x:.3g} %"


#: Benchmark → the maker of its rows.
ROWS: dict[str, Callable[[Mapping[str, Any]], Iterator[Row]]] = {
    "additivity": _of_additivity,
    "drift": _of_drift,
    "budget": _of_budget,
    "throughput": _of_throughput,
    "kill_resume": _of_kill_resume,
    "remote_overhead": _of_remote_overhead,
    "same_number": _of_same_number,
    "opencl_exact": _of_opencl_exact,
    "arm_exact": _of_arm_exact,
    "faults": _of_faults,
    "tda2x_fit": _of_tda2x_fit,
    "tda2x_vs_zigzag": _of_tda2x_vs_zigzag,
    "tda2x_speed": _of_tda2x_speed,
    "fixed_point": _of_fixed_point,
    "onnx_zoo": _of_onnx_zoo,
    "nb201_900": _of_nb201_900,
    "nb201_transfer": _of_nb201_transfer,
    "coverage": _of_coverage,
    "phones": _of_phones,
    "predictor_speed": _of_predictor_speed,
    "nb201_search": _of_nb201_search,
    "nb201_limit": _of_nb201_limit,
    "moga_speed": _of_moga_speed,
    "supernet_memory": _of_supernet_memory,
    "fairness": _of_fairness,
    "lazy": _of_lazy,
    "specialise": _of_specialise,
    "gpu_throughput": _of_gpu_throughput,
}
