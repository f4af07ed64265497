"""``latbench.search``: pose the problem, drive a searcher, pay for each evaluation once, survive a crash.

The driver asks, evaluates and tells. After a ``tell`` the searcher's state and all candidates go into the store;
every answer of the evaluator goes there as soon as it is given. A search that is started again with the same arguments
goes on where it was, and ends bit-equal to one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from latbench import plugins
from latbench.cheap import COUNTS, SpaceValues, check_feasible, further_models, latency_models
from latbench.errors import ConfigError, DeviceBusyError, InfeasibleError, SearchError
from latbench.metric import ASKABLE
from latbench.problem import AccuracyEvaluator, LimitOn, Objective, Problem
from latbench.result import ENDED_TXT, SEARCH_DB, SearchResult, problem_to_json, write_atomically
from latbench.search_driver import Driver, Progress
from latbench.searcher import Searcher
from latbench.space import SearchSpace

if TYPE_CHECKING:
    from latbench.predictor import Predictor
    from latbench.store import Store


def search(
    name: str | type[Searcher],
    *,
    space: SearchSpace,
    latency: Predictor | Mapping[str, Predictor] | None = None,
    accuracy: AccuracyEvaluator | None = None,
    objectives: Sequence[str | Objective] = ("error", "latency_ms"),
    limits: Mapping[str, float] | None = None,
    soft_limits: Mapping[str, float] | None = None,
    budget: int = 100,
    seed: int = 0,
    store: Store | str | Path | None = None,
    run: str | Path | None = None,
    resume: bool = True,
    executor: Executor | None = None,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
    report: Callable[[str], None] | None = None,
    limit_on: LimitOn = "high",
    level: float = 0.9,
    max_failures: int = 20,
    models: Mapping[str, Predictor] | None = None,
    **options: Any,
) -> SearchResult:
    """Search ``space`` with the searcher ``name`` until ``budget`` architectures are evaluated.

    ``latency`` is one model, whose values are ``latency_ms``, ``latency_low_ms``, ``latency_high_ms``, or a mapping
    device → model, whose values are ``latency_ms@device`` and so on; a plain ``latency_ms`` among objectives and limits
    then stands for all of them. ``models`` maps names of further metrics to their models, e.g. ``{"peak_memory_bytes":
    memory, "energy_mj@tx1": energy}``; what a model of latency knows besides, such as the ``interval_ms`` of a
    pipeline, may be asked for without. ``params`` and ``macs`` are known too. ``limits`` are hard, upper limits; those
    on what is predicted are checked against the upper end of the interval at ``level`` (``limit_on="value"``: against
    the value; ``"low"``: against the lower end, for those who measure afterwards, see
    :func:`~latbench.keep_limits.keep_limit`; ``surrogate`` then weighs the chance). An architecture that a device does
    not support, or that breaks a hard limit on a value known without evaluation, is never evaluated and costs no
    budget.

    ``store`` keeps evaluations (by recipe, space and architecture) and the search's state; ``run`` is a folder that
    gets the result, and a store of its own where none is given. With either, the same call goes on after a crash or
    with a larger budget; ``resume=False`` starts anew (evaluations that were paid for stay). ``executor`` or
    ``workers`` > 1 (threads) evaluate in parallel: up to ``workers`` architectures of one batch of the searcher,
    which is told the whole batch in the order of asking, so that the same seed gives the same candidates with any
    number of workers if the evaluator repeats itself. An asynchronous searcher (evolution, local, surrogate) is told
    each answer as it comes instead, so that no worker waits; the order of answers is kept with the search
    (:func:`latbench.search_driver.replay`). An
    evaluation that fails (NaN, a network that cannot be built) is a candidate with infinite violation;
    ``max_failures`` of them in a row end the search. ``report`` is told in a line how far the searcher's and the
    evaluator's own training is, where they have any. ``options`` are the searcher's.

    Raises :class:`ConfigError` (unknown searcher, option, objective or limit), :class:`InfeasibleError` (no
    architecture can keep the limits; proved before anything is evaluated where the space is additive),
    :class:`SearchError`.
    """
    of_latency, further = latency_models(latency), further_models(models)
    problem = pose(
        space, of_latency, accuracy, objectives, limits or {}, soft_limits or {}, limit_on=limit_on, level=level,
        further=further,
    )  # fmt: skip
    for what, n in (("budget", budget), ("workers", workers), ("max_failures", max_failures)):
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigError(f"{what} must be a whole number of at least 1, got {n!r}")
    if accuracy is not None:
        accuracy.check(space)
    check_feasible(problem)
    searcher = make_searcher(name, problem, seed, options, accuracy)
    recipe = accuracy.recipe if accuracy else None
    plan = {
        "searcher": searcher.name,
        "options": {k: _plain(k, v) for k, v in options.items()},
        "seed": seed,
        "problem": problem_to_json(problem),
        "recipe": recipe,
        "latency": {suffix: _model_facts(m) for suffix, m in of_latency.items()},
        "level": level,
        **({"models": {name: _model_facts(m) for name, m in further.items()}} if further else {}),
    }
    identity = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
    started = time.time()
    with ExitStack() as stack:
        kept = _open_store(stack, store, run)
        if kept is not None:
            _lock(stack, kept, identity)
            searcher.folder = _folder(kept, run, f"searcher/{identity}")
            if searcher.folder is not None:
                searcher.folder.mkdir(parents=True, exist_ok=True)
            if accuracy is not None:
                what = json.dumps([accuracy.recipe, space.spec], sort_keys=True)
                shared = f"evaluator/{hashlib.sha256(what.encode()).hexdigest()[:16]}"
                accuracy.folder = _folder(kept, run if store is None else None, shared)
        driver = Driver(
            problem, searcher, accuracy, budget=budget, store=kept, identity=identity, plan=plan,
            resume=resume and (accuracy is None or accuracy.resumes),
            executor=executor, workers=workers, progress=progress, report=report, max_failures=max_failures,
        )  # fmt: skip
        ended = Path(run) / ENDED_TXT if run is not None else None
        if ended is not None:
            ended.unlink(missing_ok=True)
        try:
            driver.run()
        except InfeasibleError as e:
            if ended is not None:
                write_atomically(ended, str(e).encode())
            raise
    provenance = {
        **plan,
        "profiles": {suffix: m.card.device.get("profile") for suffix, m in of_latency.items()},
        **({"accuracy": origin} if accuracy is not None and (origin := dict(accuracy.origin)) else {}),
        "id": identity,
        "budget": budget,
        "workers": workers,
        "evaluations": {"paid": driver.paid, "from_store": driver.reused, "resumed": driver.resumed},
        "picks": {name: c.number for name, c in searcher.picks(driver.candidates).items()},
        "pick_words": dict(searcher.pick_words),
        "noise_floors": {suffix: floor for suffix, m in of_latency.items() if (floor := _noise_floor(m)) is not None},
        "started": started,
        "wall_s": driver.wall_s,
    }
    result = SearchResult(problem, driver.candidates, provenance, driver.warnings, course=searcher.course)
    if run is not None:
        result.save(run)
    return result


def pose(
    space: SearchSpace,
    models: Mapping[str, Predictor],
    accuracy: AccuracyEvaluator | None,
    objectives: Sequence[str | Objective],
    limits: Mapping[str, float],
    soft_limits: Mapping[str, float],
    *,
    limit_on: LimitOn = "high",
    level: float = 0.9,
    further: Mapping[str, Predictor] | None = None,
) -> Problem:
    """The problem of these arguments of :func:`search`; ``models`` by suffix, as :func:`latency_models` gives them,
    ``further`` by name.

    Raises :class:`ConfigError` for a name that nothing gives, naming those that exist.
    """
    if isinstance(objectives, str) or not objectives:
        raise ConfigError(f"objectives must be a list of names that is not empty, got {objectives!r}")
    if limit_on not in get_args(LimitOn):
        raise ConfigError(f"limit_on is one of {', '.join(get_args(LimitOn))}, not {limit_on!r}")
    parsed = [o for text in objectives for o in _each_device(Objective.parse(text), models)]
    hard, soft = (_limits(d, models, which) for d, which in ((limits, "limits"), (soft_limits, "soft_limits")))
    wanted = {o.name for o in parsed} | set(hard) | set(soft)
    more = dict(further or {})
    for suffix, model in models.items():
        known_too = {f"{metric}{suffix}" for metric in model.known_metrics if metric != model.metric}
        more |= dict.fromkeys(sorted(known_too & {_value_of(w) for w in wanted} - set(more)), model)
    values = SpaceValues(space, models, counts=bool(wanted & set(COUNTS)), level=level, further=more)
    known = [*values.names, *(accuracy.values if accuracy else ())]
    for n in sorted(wanted):
        if n not in known:
            hint = "; give an evaluator: --accuracy (accuracy= in Python), or an --objective without it"
            hint = hint if accuracy is None else ""
            hint += "; give a latency model: --device or --model (latency= in Python)" if not models else ""
            if n.partition("@")[0] in ASKABLE:
                hint += f"; give a model of it: models={{{n!r}: …}}, from lb.fit(…, metric={n.partition('@')[0]!r})"
            raise ConfigError(f"nothing gives the value {n!r}; known: {', '.join(known) or 'none'}{hint}")
    if len({o.name for o in parsed}) < len(parsed):
        raise ConfigError(f"an objective is given twice: {', '.join(map(str, parsed))}")
    return Problem(space, tuple(parsed), hard, soft, values, limit_on, level)


def make_searcher(
    name: str | type[Searcher],
    problem: Problem,
    seed: int,
    options: Mapping[str, Any],
    accuracy: AccuracyEvaluator | None = None,
) -> Searcher:
    """The searcher of an entry point's name, or a class; one that has the option ``data``, images that it trains on
    itself, gets those that ``accuracy`` is of.

    Raises :class:`ConfigError` for an option that it does not have, and for ``data`` that accuracy is not of.
    """
    cls = plugins.load("searchers", name) if isinstance(name, str) else name
    if not (isinstance(cls, type) and issubclass(cls, Searcher)):
        raise ConfigError(f"{name!r} is not a searcher: {cls!r} does not derive from latbench.searcher.Searcher")
    parameters = [p for n, p in inspect.signature(cls).parameters.items() if n not in ("problem", "seed")]
    known = [p.name for p in parameters]
    unknown = sorted(set(options) - set(known))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ConfigError(
            f"searcher {cls.name!r} has no option {', '.join(unknown)}; its options: {', '.join(known) or 'none'}"
        )
    if "data" in known and accuracy is not None:
        options = {**options, **_images(cls.name, options.get("data"), accuracy)}
    return cls(problem, seed=seed, **options)


def _images(searcher: str, asked: str | None, accuracy: AccuracyEvaluator) -> dict[str, Any]:
    """``data`` for a searcher, where accuracy is of images."""
    from latbench.image_data import same_images

    if accuracy.images is not None:
        return {"data": same_images(searcher, asked, accuracy.images)}
    if asked is None and getattr(accuracy, "replaces", False):
        raise ConfigError(
            f"{searcher} trains networks that tell classes apart, and accuracy is that of detectors: name images for "
            "it with the option data (--option data=cifar10:FOLDER)"
        )
    return {}


def _value_of(name: str) -> str:
    """The value that a name is, or is an end of the interval of."""
    return re.sub(r"_(?:low|high)(?=_[a-z]+(?:@|$))", "", name)


def _each_device(o: Objective, models: Mapping[str, Predictor]) -> list[Objective]:
    told = o.name.startswith("latency_") or any(_value_of(o.name) in m.known_metrics for m in models.values())
    if "" in models or "@" in o.name or not told:
        return [o]
    return [Objective(o.name + s, o.maximise, o.weight / len(models)) for s in models] or [o]


def _limits(given: Mapping[str, float], models: Mapping[str, Predictor], which: str) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, limit in given.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < float("inf"):
            raise ConfigError(f"{which}.{name}: expected a positive number, got {limit!r}")
        for o in _each_device(Objective(name), models):
            out[o.name] = min(float(limit), out.get(o.name, float("inf")))
    return out


def _model_facts(model: Predictor) -> dict[str, Any]:
    """What identifies a latency model: its card's checksum, its Setting, and the statistic that it predicts."""
    card = model.card.to_json()
    return {
        "predictor": model.name,
        "card": card["checksum"],
        "setting": model.setting.to_json(),
        "setting_hash": model.setting.hash,
        "statistic": model.card.statistic,
    }


def _noise_floor(model: Predictor) -> float | None:
    """RMSPE between two measurements of the networks that a model was validated on, where they were measured twice."""
    floor = (model.card.validation or {}).get("noise_floor")
    return float(floor) if floor is not None and isfinite(floor) and not model.setting.simulated else None


def _plain(option: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise ConfigError(f"option {option}: only plain JSON values can be stored, got {value!r}") from e


def _open_store(stack: ExitStack, store: Store | str | Path | None, run: str | Path | None) -> Store | None:
    if store is None and run is None:
        return None
    from latbench.store import Store

    if isinstance(store, Store):
        return store
    if store is None:
        folder = Path(str(run))
        folder.mkdir(parents=True, exist_ok=True)
        store = folder / SEARCH_DB
    return stack.enter_context(Store.open(store))


def _folder(store: Store, run: str | Path | None, part: str) -> Path | None:
    """A folder for files of one ``part``: in the run's, else beside the store's file; None for a database server."""
    if run is not None:
        return Path(run) / part
    if store.address.startswith("postgres"):
        return None
    return Path(f"{store.address.removeprefix('sqlite:///')}.files") / part


def _lock(stack: ExitStack, store: Store, identity: str) -> None:
    try:
        stack.enter_context(store.lease(f"search {identity}", f"search {identity}"))
    except DeviceBusyError as e:
        raise SearchError(f"search {identity} is being run by {e.holder}; wait for it, or stop it") from e
