"""``latbench retrain``: the final stage, networks that a search found trained by a paper's recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from latbench.cli.console import bar, count, ms, note, percent, say, table, warn
from latbench.cli.options import DEFAULT_STORE, ProtocolSettings, Seed, StoreUrl, make_device, parse_pairs
from latbench.cli.searching import RunPath, kept_when_stopped
from latbench.cli.subjects import arch_text, parse_arch

if TYPE_CHECKING:
    from latbench.result import SearchResult
    from latbench.retraining import Retrained
    from latbench.training_evaluators import TrainingEvaluator


def retrain(
    result: RunPath,
    data: Annotated[
        str | None,
        typer.Option("--data", help="digits, cifar10:FOLDER, cifar100:FOLDER, images:FOLDER or voc:FOLDER."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="plain, or a searcher's: dppnet, proxyless, moga, ednas. Default: the run's own."
        ),
    ] = None,
    recipe_set: Annotated[
        list[str] | None,
        typer.Option("--recipe-set", metavar="KEY=VALUE", help="Changes it, e.g. epochs=100, precision=bf16."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Networks, at equal distance along the front.")] = 5,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", help="These instead, e.g. 3,0,11,…; may be repeated.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Measure them there too; else as `latbench validate` has.")
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
    seed: Seed = 0,
    protocol: ProtocolSettings = None,
) -> None:
    """Train found networks from scratch, test them on unseen images, and measure them; goes on where it stopped."""
    from latbench.errors import ConfigError
    from latbench.result import SearchResult
    from latbench.retraining import keep, with_latency, with_own_latency
    from latbench.retraining import retrain as train_found
    from latbench.training_setup import processes, share_of_batches, training_device
    from latbench.validate import validate

    found = SearchResult.load(result)
    archs = [parse_arch(found.problem.space, a) for a in arch] if arch else None
    wanted = data or _searched_on(found)
    if wanted is None:
        raise ConfigError("the search's own data lie in a folder of yours: say --data cifar10:FOLDER, images:FOLDER, …")
    chosen = archs or [c.arch for c in found.final(top)]
    options = parse_pairs(recipe_set, "--recipe-set")
    folder = result if result.is_dir() else result.parent
    with processes(training_device(str(options.pop("train_on", "auto")))) as where:
        judge = _evaluator(found, wanted, recipe, {**options, "seed": seed, "train_on": str(where)})
        first, each = share_of_batches()[0] == 0, judge.training.epochs
        with bar("retraining") as b, kept_when_stopped("every finished epoch so far"):
            done = train_found(
                found, judge, folder, top=top, archs=archs,
                on_epoch=lambda a, row: b.update(_done(chosen, a, row, each), len(chosen) * each, title=_title(a, row)),
            )  # fmt: skip
    if not first:
        return
    if device is not None:
        dev, how = make_device(device, protocol)
        with dev, bar("measuring") as b:
            if judge.replaces:
                done = [with_own_latency(r, folder, dev, how) for r in done]
            else:
                validate(
                    found, dev, protocol=how, archs=[r.arch for r in done], store=store, seed=seed, extra=0,
                    progress=lambda p: b.update(p.done, p.total, left_s=p.eta_s),
                )  # fmt: skip
                done = [with_latency(r, found) for r in done]
        keep(found, done)
    found.save(result)
    print_retrained(found, done)
    if device is None and not any(r.measured for r in done):
        note(f"not measured: say --device, or run latbench validate {result} first")
    say(f"saved {result}, weights in {folder / 'retrained'}", "bold")


def print_retrained(found: SearchResult, done: list[Retrained]) -> None:
    """A row a network: test error, top-5 or mean average precision, counts, measured latency."""
    names = [n for n in ("error", "top5_error", "map", "map_all") if any(n in r.values for r in done)]
    before = {c.arch: c.values.get("error") for c in found.candidates}
    devices = list(dict.fromkeys(d for r in done for d in r.measured))
    rows = []
    for r in done:
        if not r.values:
            warn(f"{arch_text(r.arch)}: its training diverged; try a lower lr with --recipe-set lr=…")
        told = [percent(r.values[n]) if n in r.values else "–" for n in names]
        searched = before.get(r.arch)
        seen = [ms(r.measured[d][0]) if d in r.measured else "–" for d in devices]
        was = "–" if searched is None else percent(searched)
        rows.append([arch_text(r.arch), was, *told, count(r.params), count(r.macs), *seen])
    titles = {"error": "test error", "top5_error": "top-5 error", "map": "mAP (11 points)", "map_all": "mAP"}
    of = [f"measured {d.removesuffix('_ms').replace('latency_ms', 'latency')} ms" for d in devices]
    columns = ("architecture", "search's error", *(titles[n] for n in names), "params", "macs", *of)
    table(columns, rows, numbers=columns[1:])


def _evaluator(found: SearchResult, data: str, recipe: str | None, options: dict[str, Any]) -> TrainingEvaluator:
    from latbench.evaluators import training_evaluator
    from latbench.recipes import of_paper

    searcher = str(found.provenance.get("searcher", "plain"))
    named = of_paper(data, recipe or searcher, known=recipe is None)
    changed = ", ".join(f"{k}={v}" for k, v in options.items() if k not in ("seed", "train_on"))
    note(f"recipe: {named.source}" + (f"; with {changed}" if changed else ""))
    made = training_evaluator(data, options, named.recipe)
    for text in made.notes:
        note(text)
    return made


def _searched_on(found: SearchResult) -> str | None:
    """The data that the search's evaluator was made with, where its recipe tells where they are."""
    recipe = str(found.provenance.get("recipe") or "")
    return "digits" if "digits" in recipe.split()[0:2] or recipe.startswith("digits-") else None


def _done(chosen: list[tuple[int, ...]], arch: tuple[int, ...], row: dict[str, float], each: int) -> int:
    """Epochs behind us, of all networks: those that stopped early or were there already count as whole."""
    return chosen.index(arch) * each + int(row["epoch"])


def _title(arch: tuple[int, ...], row: dict[str, float]) -> str:
    return f"{arch_text(arch)}: loss {row['loss']:.3f}"
