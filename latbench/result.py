"""What a search found: the front, every candidate, and where the numbers come from; saved as JSON and Parquet."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latbench import pareto
from latbench.cheap import COUNTS
from latbench.errors import ConfigError, FileFormatError
from latbench.problem import Candidate, Objective, Problem
from latbench.space import Arch, SearchSpace, arch_name

if TYPE_CHECKING:
    from latbench.validate import Validated

FORMAT, SCHEMA = "latbench-search-result", 1
RESULT_JSON, CANDIDATES_PARQUET = "result.json", "candidates.parquet"
#: The store of a search that has only a folder.
SEARCH_DB = "search.db"
#: Why a search ended without a result: nothing keeps its limits.
ENDED_TXT = "ended.txt"


@dataclass
class SearchResult:
    """``candidates`` in order of evaluation, ``problem`` as it was posed, ``provenance`` as plain JSON values.

    ``provenance`` holds the searcher with its options and seed, the budget, the recipe of the evaluator, for each
    latency model its predictor, Setting and card's checksum, and how many evaluations were paid for and how many came
    from the store. A result that was loaded has a problem without ``cheap_values``. ``validated`` is what
    :func:`latbench.validate.validate` measured. ``course`` is what the searcher told of its own work, a row a piece.
    """

    problem: Problem
    candidates: list[Candidate]
    provenance: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    validated: list[Validated] = field(default_factory=list)
    course: list[dict[str, float]] = field(default_factory=list)

    @cached_property
    def front(self) -> list[Candidate]:
        """The Pareto set among candidates that keep all hard limits, the best of the first objective first."""
        found = self.problem.front(self.candidates)
        return [found[i] for i in np.lexsort(self.problem.matrix(found).T[::-1])]

    def pick(self, k: int) -> list[Candidate]:
        """``k`` candidates (fewer where there are not so many), the best of the first objective first.

        Those that the searcher singled out (:attr:`picks`) and that keep the limits, also where others dominate them;
        then candidates of the front at equal distance along it, see :func:`pareto.spread`.
        """
        own = {c.arch: c for c in self.picks.values() if c.feasible and c.evaluated}
        spread = (self.front[int(i)] for i in pareto.spread(self.problem.matrix(self.front), k))
        chosen = list((own | {c.arch: c for c in spread if c.arch not in own}).values())[: max(k, 0)]
        return sorted(chosen, key=lambda c: float(self.problem.matrix([c])[0, 0]))

    @property
    def picks(self) -> dict[str, Candidate]:
        """The networks that the searcher singled out, by the name that its method has for each; most single out none.

        E.g. DPP-Net's ``device``, ``panacea`` and ``pnas``.
        """
        by_number = {c.number: c for c in self.candidates}
        return {name: by_number[number] for name, number in self.provenance.get("picks", {}).items()}

    @property
    def pick_texts(self) -> dict[str, str]:
        """For each of :attr:`picks` its name, with what it is where the searcher says so."""
        words = self.provenance.get("pick_words", {})
        return {n: f"{n} ({w})" if (w := words.get(n.partition("@")[0])) else n for n in self.picks}

    def final(self, top: int | None = None) -> list[Candidate]:
        """The networks to go on with, by what was measured: ``top`` of them along the front (None: all of it).

        Those that keep a limit in place of others come first; those that broke a hard limit when they were measured, or
        did not run on the device that it is on, are left out.
        """
        kept = [k for k in self.provenance.get("kept_limits", {}).values() if k]
        known = {c.arch: c for c in self.candidates}
        broke = {tuple(a) for k in kept for a in (*k["replaced"], *k.get("tried", ()))}
        broke |= {v.arch for v in self.validated if not all(v.kept.get(n, True) for n in self.problem.limits)}
        winners = [known[tuple(k["winner"])] for k in kept if k["winner"]]
        along = self.front if top is None else self.pick(top + len(broke))
        found = {c.arch: c for c in (*winners, *along) if c.arch not in broke}
        return list(found.values())[:top]

    def hypervolume(self, reference: Sequence[float]) -> list[float]:
        """Hypervolume of the front after each candidate, by a reference point in the objectives as minimised."""
        points, ref = self.problem.matrix(self.candidates), np.asarray(reference, float)
        ok = np.asarray([c.feasible for c in self.candidates], bool) & np.isfinite(points).all(axis=1)
        best, volume, out = points[:0], 0.0, []
        for p, feasible in zip(points, ok, strict=True):
            if feasible and (p < ref).all() and not (best <= p).all(axis=1).any():
                best = np.vstack([best[~(p <= best).all(axis=1)], p])
                volume = pareto.hypervolume(best, ref)
            out.append(volume)
        return out

    def kept_limits(self) -> list[str]:
        """For each limit on a latency that was validated, in a sentence: the network that keeps it as measured, and
        those that it replaces because they broke it."""
        out = []
        for name, kept in self.provenance.get("kept_limits", {}).items():
            if not kept:
                continue
            broke = " and ".join(arch_name(a) for a in kept["replaced"])
            more, factor = f"{kept['measured']} further measured", kept["interval_factor"]
            if kept.get("tried"):
                more += f"; {' and '.join(arch_name(a) for a in kept['tried'])}, better but in doubt, broke it"
            if factor > 1:
                more += f"; measured networks reached {factor:.3g} times the upper end of their interval"
            limit = f"{name} ≤ {kept['limit_ms']:g}"
            if kept["winner"] is None:
                out.append(f"{limit}: no network was found that keeps it when measured ({more})")
            elif broke:
                winner = arch_name(kept["winner"])
                out.append(f"{limit}: kept by {winner}, in place of {broke}, which broke it ({more})")
            elif kept.get("tried"):
                out.append(f"{limit}: kept by {arch_name(kept['winner'])} ({more})")
            else:
                out.append(f"{limit}: kept by the best network, {arch_name(kept['winner'])}")
        return out

    @cached_property
    def twins(self) -> dict[Arch, Arch]:
        """Architectures of the front that become the same network as one before them on it → that one."""
        alike: dict[tuple[float, ...], list[Arch]] = {}
        for c in self.front:
            # The same network costs the same: only of those that do are networks built.
            told = [c.values[n] for n in sorted(c.values) if n.startswith(("latency_", *COUNTS))]
            alike.setdefault(tuple(float(f"{v:.9g}") for v in told), []).append(c.arch)
        out: dict[Arch, Arch] = {}
        for group in (g for g in alike.values() if len(g) > 1):
            first: dict[str, Arch] = {}
            for arch in group:
                other = first.setdefault(self.problem.space.network(arch).key, arch)
                if other != arch:
                    out[arch] = other
        return out

    def ties(self) -> list[str]:
        """What the front's latencies cannot tell apart, in sentences: architectures that are the same network, where
        networks that are next to each other differ by less than measuring the same networks twice does, and where
        measured intervals overlap."""
        out = [f"{arch_name(a)} is the same network as {arch_name(b)}" for a, b in self.twins.items()]
        for suffix, floor in self.provenance.get("noise_floors", {}).items():
            name = f"latency_ms{suffix}"
            values = sorted(c.values[name] for c in self.front if name in c.values and c.arch not in self.twins)
            close = sum(b < a * (1 + floor) for a, b in pairwise(values))
            if close:
                out.append(
                    f"{name}: differences below the noise floor of {floor:.1%} (the same networks measured twice) "
                    f"from a network of the front to the next slower one: {close} of {len(values) - 1}; which of such "
                    "two is faster cannot be told"
                )
        for name in dict.fromkeys(v.value for v in self.validated):
            seen = sorted((m.latency_ms, m.low_ms, m.high_ms, arch_name(v.arch)) for v in self.validated
                          if v.value == name and v.arch not in self.twins and (m := v.measured) is not None
                          )  # fmt: skip
            tied = [f"{a[3]} and {b[3]}" for a, b in pairwise(seen) if b[1] <= a[2]]
            if tied:
                out.append(f"{name}: ties, since their intervals overlap: {'; '.join(tied)}")
        return out

    def limits_by_prediction(self) -> list[str]:
        """The limits on what is predicted that no measurement has checked: no network was measured there."""
        checked = {v.value for v in self.validated if v.measured is not None}
        predicted = {f"latency_ms{s}" for s in self.provenance.get("latency", {})}
        predicted |= set(self.provenance.get("models", {}))
        return [n for n in self.problem.limits if n in predicted and n not in checked]

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (a ``.json`` file, or a folder that gets ``result.json``); gives the JSON file's path.

        Where pyarrow is installed the candidates are written beside it as Parquet too, one column a value.
        """
        p = Path(path)
        file = p if p.suffix == ".json" else p / RESULT_JSON
        file.parent.mkdir(parents=True, exist_ok=True)
        body = {
            "latbench": _version(),
            "problem": problem_to_json(self.problem),
            "provenance": self.provenance,
            "warnings": self.warnings,
            "candidates": [c.to_json() for c in self.candidates],
            "front": [c.number for c in self.front],
            "validated": [v.to_json() for v in self.validated],
            "course": self.course,
        }
        head = {"format": FORMAT, "schema": SCHEMA, "sha256": _sha256(body)}
        write_atomically(file, json.dumps({**head, **body}, allow_nan=False, indent=1).encode())
        self._write_parquet(file.with_name(CANDIDATES_PARQUET if p.suffix != ".json" else f"{p.stem}.parquet"))
        return file

    @classmethod
    def load(cls, path: str | Path, *, space: SearchSpace | None = None) -> SearchResult:
        """Read what :meth:`save` wrote, from its file or folder.

        ``space`` is needed for spaces that are not installed as plugins. Raises :class:`FileFormatError` for a missing,
        truncated, changed or newer file, :class:`ConfigError` for a space that is not installed or not the result's.
        """
        from latbench.validate import Validated

        p = Path(path)
        file = p / RESULT_JSON if p.is_dir() else p
        body = _read(file)
        try:
            return cls(
                problem_from_json(body["problem"], space),
                [Candidate.from_json(c) for c in body["candidates"]],
                dict(body["provenance"]),
                list(body["warnings"]),
                [Validated.from_json(v) for v in body["validated"]],
                [dict(row) for row in body.get("course", [])],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise FileFormatError(f"{file}: not a search result of schema {SCHEMA}: {e!r}") from e

    def _write_parquet(self, file: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            return
        names = sorted({n for c in self.candidates for n in c.values})
        on_front = {c.number for c in self.front}
        columns: dict[str, Any] = {
            "number": [c.number for c in self.candidates],
            "arch": [list(c.arch) for c in self.candidates],
            **{n: [c.values.get(n) for c in self.candidates] for n in names},
            "violation": [c.violation for c in self.candidates],
            "soft_violation": [c.soft_violation for c in self.candidates],
            "front": [c.number in on_front for c in self.candidates],
            "evaluated": [c.evaluated for c in self.candidates],
            "failed": [c.info.get("failed") for c in self.candidates],
        }
        types = {"number": pa.int64(), "arch": pa.list_(pa.int64()), "front": pa.bool_(), "evaluated": pa.bool_()}
        types["failed"] = pa.string()
        arrays = {n: pa.array(v, types.get(n, pa.float64())) for n, v in columns.items()}
        table = pa.table(arrays).replace_schema_metadata({"format": FORMAT, "schema": str(SCHEMA)})
        part = file.with_name(f".{file.name}.{os.getpid()}")
        pq.write_table(table, part)
        os.replace(part, file)


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """A problem as plain JSON values, without its models."""
    return {
        "space": problem.space.spec,
        "objectives": [[str(o), o.weight] for o in problem.objectives],
        "limits": dict(problem.limits),
        "soft_limits": dict(problem.soft_limits),
        "limit_on": problem.limit_on,
        "level": problem.level,
    }


def problem_from_json(d: Mapping[str, Any], space: SearchSpace | None = None) -> Problem:
    """The inverse of :func:`problem_to_json`. Raises KeyError, TypeError or ValueError for anything else.

    Raises :class:`ConfigError` for a ``space`` that is not the problem's.
    """
    from latbench.load import load_space

    if space is not None and json.dumps(space.spec, sort_keys=True) != json.dumps(d["space"], sort_keys=True):
        raise ConfigError(f"this result is of the space {d['space']}, not of {space.spec}")
    objectives = [Objective.parse(str(text)) for text, _ in d["objectives"]]
    weights = [float(w) for _, w in d["objectives"]]
    return Problem(
        space or load_space(**d["space"]),
        tuple(Objective(o.name, o.maximise, w) for o, w in zip(objectives, weights, strict=True)),
        {str(n): float(v) for n, v in d["limits"].items()},
        {str(n): float(v) for n, v in d["soft_limits"].items()},
        limit_on=d["limit_on"],
        level=float(d.get("level", 0.9)),  # earlier versions did not write it
    )


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file so that after a crash it holds either the old or the new content."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, file)


def _read(file: Path) -> dict[str, Any]:
    try:
        d = json.loads(file.read_bytes())
    except FileNotFoundError:
        if (ended := file.with_name(ENDED_TXT)).exists():
            why = ended.read_text("utf-8")
            raise FileFormatError(f"{file.parent}: the search there ended without a network: {why}") from None
        if (file.parent / SEARCH_DB).exists():
            raise FileFormatError(
                f"{file.parent}: the search there has not ended: run its command again, it goes on"
            ) from None
        raise FileFormatError(f"{file}: no such search result") from None
    except (ValueError, RecursionError) as e:
        raise FileFormatError(f"{file}: truncated or not JSON: {e}") from e
    if not isinstance(d, dict) or d.get("format") != FORMAT or not isinstance(d.get("schema"), int):
        raise FileFormatError(f"{file}: not a search result (format {FORMAT!r} is missing)")
    if d["schema"] > SCHEMA:
        raise FileFormatError(
            f"{file}: newer version: schema {d['schema']}, written by latbench {d.get('latbench')}; this latbench "
            f"{_version()} reads schemas up to {SCHEMA}: run `pip install -U latbench`"
        )
    body = {k: v for k, v in d.items() if k not in ("format", "schema", "sha256")}
    if d.get("sha256") != _sha256(body):
        raise FileFormatError(f"{file}: changed after it was written: its checksum is not that of its content")
    return body


def _sha256(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _version() -> str:
    from latbench import __version__

    return __version__
