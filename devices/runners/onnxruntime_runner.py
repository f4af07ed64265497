"""The measuring program for onnxruntime: one file, numpy and onnxruntime, Python 3.6 or newer.

It reads commands as JSON lines from standard input and answers with events as JSON lines, each with a schema number:

``hello``     -> ``hello``: who the machine is, its environment, the versions of its runtime
``optimize``  -> ``optimized`` or ``failed`` for each model, then ``done``: writes the graphs that are really run
``profile``   -> ``profile``: mean microseconds of each runtime node
``visits``    -> ``started``, ``visit`` for each job (and for control ops in between), then ``done`` with the time spent

In ``visits`` every visit is first appended to the log, if there is one, then written out; the next one is loaded
meanwhile, but not timed before the host has acknowledged (``{"ack": uid}``; with ``"any": true``, whatever it was,
because it could not be read), so that at most one visit is in flight and the host rests while times are taken.
``alive`` and ``note`` may be said at any time: they show that the program lives. It ends with its standard input.
"""

# ruff: noqa: B905, UP031
import gc
import hashlib
import json
import os
import platform
import queue
import resource
import sys
import tempfile
import threading
import time

SCHEMA = 1
CONTROL_INTERVAL_S = 0.3
#: A control visit: warm-up runs, fewest runs, fewest and most milliseconds, most runs.
CONTROL_RUNS = (1, 4, 3.0, 40.0, 100)

_clock = time.perf_counter_ns if hasattr(time, "perf_counter_ns") else lambda: int(time.perf_counter() * 1e9)


class JobError(Exception):
    """A job that cannot be measured. ``kind`` names latbench's error class; ``unsupported``: a layer is missing."""

    def __init__(self, kind, message, unsupported=False):
        Exception.__init__(self, message)
        self.kind, self.unsupported = kind, unsupported


# -- the machine ----------------------------------------------------------------------------------------------------


def read(path, default=""):
    """The text of a small file, stripped."""
    try:
        with open(path) as f:
            return f.read().strip()
    except (OSError, UnicodeDecodeError):
        return default


def number(text):
    """The first number in a text, or None."""
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None


def cpu_model():
    """Name of the CPU as the kernel tells it."""
    fields = {}
    for line in read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if fields.get("model name"):
        return fields["model name"]
    tree = read("/proc/device-tree/model").strip("\0")
    part = "-".join(fields[k] for k in ("CPU implementer", "CPU part") if k in fields)
    return tree or fields.get("Hardware") or part or platform.processor() or platform.machine()


def machine_hash():
    """A hash that stays with the machine: of its machine id where it has one, else of its host name."""
    seed = read("/etc/machine-id") or read("/var/lib/dbus/machine-id") or platform.node()
    return hashlib.sha256(("latbench:" + seed).encode()).hexdigest()


def caches():
    """KiB of each cache of the first core, by level name such as ``L2``."""
    sizes = {}
    for i in range(8):
        folder = "/sys/devices/system/cpu/cpu0/cache/index%d/" % i
        kind, size = read(folder + "type"), read(folder + "size")
        if size.endswith("K") and kind in ("Data", "Unified"):
            sizes["L" + read(folder + "level")] = int(size[:-1])
    return sizes


def memory():
    """MemTotal, MemAvailable, SwapTotal, SwapFree in KiB."""
    names = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    lines = (line.split(":") for line in read("/proc/meminfo").splitlines() if ":" in line)
    return {n: int(v.split()[0]) for n, v in lines if n in names}


def cpu_times():
    """(steal, all) seconds of all cores since boot."""
    first = read("/proc/stat").split("\n", 1)[0].split()[1:]
    ticks = [int(t) for t in first]
    hertz = os.sysconf("SC_CLK_TCK")
    return (ticks[7] / hertz if len(ticks) > 7 else 0.0), sum(ticks[:8]) / hertz


def affinity():
    """Cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def clock_mhz(core):
    """Clock of a core in MHz, or None where the kernel does not tell."""
    khz = number(read("/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq" % core))
    return khz / 1000 if khz else None


def temperature_c():
    """The hottest thermal zone in degrees Celsius, or None."""
    found = []
    for i in range(16):
        value = number(read("/sys/class/thermal/thermal_zone%d/temp" % i))
        if value is None:
            break
        found.append(value / 1000 if value > 1000 else value)
    return max(found) if found else None


def turbo(root="/sys/devices/system/cpu/"):
    """ "1" where cores may run above their nominal clock, "0" where not, None where the kernel does not tell."""
    boost = read(root + "cpufreq/boost")
    return boost or {"0": "1", "1": "0"}.get(read(root + "intel_pstate/no_turbo"))


def power():
    """ "battery" or "mains" for a machine with a battery, else None."""
    root = "/sys/class/power_supply/"
    names = os.listdir(root) if os.path.isdir(root) else []
    kinds = {n: read(root + n + "/type") for n in names}
    if "Battery" not in kinds.values():
        return None
    mains = any(read(root + n + "/online") == "1" for n, k in kinds.items() if k in ("Mains", "USB"))
    return "mains" if mains else "battery"


def snapshot():
    """The environment in full."""
    core = affinity()[-1]
    freq = "/sys/devices/system/cpu/cpu%d/cpufreq/" % core
    steal, total = cpu_times()
    load = os.getloadavg()
    return {
        "cpu": cpu_model(), "cores": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release(),
        "python": platform.python_version(), "affinity": affinity(), "caches_kib": caches(), "memory_kib": memory(),
        "governor": read(freq + "scaling_governor") or None, "clock_mhz": clock_mhz(core),
        "clock_max_mhz": (number(read(freq + "cpuinfo_max_freq")) or 0) / 1000 or None,
        "turbo": turbo(),
        "temperature_c": temperature_c(), "load": list(load), "power": power(), "steal_s": steal, "cpu_s": total,
        "schedstat": os.path.exists("/proc/self/schedstat"), "unix_time": time.time(),
    }  # fmt: skip


def counters():
    """(steal seconds, all CPU seconds, involuntary context switches)."""
    return (*cpu_times(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


def wait_files(threads):
    """Open files that tell for how long this process was ready but had no core; None where the kernel does not.

    With several threads there is one for each thread that there is now.
    """
    paths = ["/proc/self/schedstat"]
    if threads > 1:
        paths = ["/proc/self/task/%s/schedstat" % t for t in sorted(os.listdir("/proc/self/task"), key=int)]
    files = []
    try:
        for p in paths:
            files.append(os.open(p, os.O_RDONLY))
        if all(len(os.pread(f, 100, 0).split()) == 3 for f in files):
            return files
    except OSError:
        pass
    for f in files:
        os.close(f)
    return None


def waits_of(files):
    """Nanoseconds of waiting so far, of each thread."""
    return [int(os.pread(f, 100, 0).split()[1]) for f in files]


# -- talking --------------------------------------------------------------------------------------------------------


class Talk:
    """Commands in, events out. Whatever libraries print goes to standard error."""

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.lines = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            self.lines.put(line)

    def next(self):
        """The next command."""
        return json.loads(self.lines.get())

    def forget(self):
        """Drop what has been said and not been read."""
        while True:
            try:
                self.lines.get_nowait()
            except queue.Empty:
                return

    def say(self, event, **values):
        """Write an event."""
        values.update(schema=SCHEMA, event=event)
        self.out.write(json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n")
        self.out.flush()


# -- the runtime ----------------------------------------------------------------------------------------------------


def import_runtime():
    """onnxruntime, or None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime


def session_options(o, level):
    """SessionOptions from the profile's options and an optimisation level's name."""
    import onnxruntime as ort

    so = ort.SessionOptions()
    so.intra_op_num_threads = o["threads"]
    so.inter_op_num_threads = 1 if o["execution_mode"] == "sequential" else o["threads"]
    so.execution_mode = getattr(ort.ExecutionMode, "ORT_" + o["execution_mode"].upper())
    levels = {"none": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}
    so.graph_optimization_level = getattr(ort.GraphOptimizationLevel, "ORT_" + levels[level])
    so.log_severity_level = 4
    return so


def load(path, o, level, so=None):
    """A fresh session. Raises JobError, also when the runtime falls back to another provider."""
    import onnxruntime as ort

    try:
        session = ort.InferenceSession(path, so or session_options(o, level), providers=[o["provider"]])
    except Exception as e:  # onnxruntime's exceptions have no common base
        text = str(e).strip()
        missing = any(s in text for s in ("NOT_IMPLEMENTED", "not a registered function/op", "No Op registered"))
        raise JobError("UnsupportedOpError" if missing else "ModelError", text[:2000], missing) from None
    if session.get_providers()[0] != o["provider"]:
        raise JobError("ConfigError", "asked for %s, got %s" % (o["provider"], session.get_providers()[0]))
    return session


def feeds(session, seed=0):
    """Seeded inputs: normal numbers, small whole numbers, booleans, by what the model declares."""
    import numpy as np

    rng = np.random.RandomState(seed)
    kinds = {
        "float": "f4", "double": "f8", "float16": "f2", "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1",
        "uint8": "u1", "bool": "?",
    }  # fmt: skip
    made = {}
    for i in session.get_inputs():
        kind = kinds.get(i.type[len("tensor(") : -1])
        if kind is None or not all(isinstance(d, int) for d in i.shape):
            raise JobError("DynamicShapeError", "input %s: %s %s is not of fixed shape" % (i.name, i.type, i.shape))
        if kind[0] == "f":
            # Large inputs repeat a block of numbers: drawing millions of them would take longer than the visit.
            count = int(np.prod(i.shape, dtype="i8"))
            block = rng.standard_normal(min(count, 65521)).astype(kind)
            values = np.empty(count, kind)
            for start in range(0, count, 65521):
                values[start : start + 65521] = block[: count - start]
            made[i.name] = values.reshape(i.shape)
        else:
            made[i.name] = rng.randint(0, 2, i.shape).astype(kind)
    return made


def shifted(x):
    """The same inputs, real ones above zero: for what has no value for negative numbers, as roots and logarithms."""
    import numpy as np

    return {name: np.abs(v) + v.dtype.type(0.125) if v.dtype.kind == "f" else v for name, v in x.items()}


def not_finite(session, outputs):
    """Name of the first output that is not finite, or None."""
    import numpy as np

    for info, y in zip(session.get_outputs(), outputs):
        # A sum is quick to look at; only one that overflows needs a closer look.
        is_real = isinstance(y, np.ndarray) and y.dtype.kind == "f"
        if is_real and not np.isfinite(y.sum()) and not np.isfinite(y).all():
            return info.name
    return None


def runner(session, how, strict=False):
    """``(run, first_ns, note)``: a function that runs the model once, how long the first run took, what is odd.

    ``how`` is "feeds" (``session.run`` with numpy feeds, as a user would call it) or "bound" (inputs and outputs bound
    to buffers, so that nothing is copied, as between the layers of a network). The first run's outputs are checked:
    where they are not finite it is tried again with inputs above zero, and if that does not help it is an error if
    ``strict``, else noted, since not-a-number may take another time than numbers.
    """
    import numpy as np
    import onnxruntime as ort

    x, note = feeds(session), {}
    try:
        a = _clock()
        outputs = session.run(None, x)
        first = _clock() - a
        odd = not_finite(session, outputs)
        if odd and not strict:
            above = shifted(x)
            a = _clock()
            again = session.run(None, above)
            took = _clock() - a
            if not_finite(session, again):
                note = {"not_finite": odd}
            else:
                x, outputs, first, note = above, again, took, {"inputs": "above zero"}
    except Exception as e:  # as above
        text = str(e).strip()
        raise JobError("UnsupportedOpError" if "NOT_IMPLEMENTED" in text else "ModelError", text[:2000]) from None
    if odd and strict:
        raise JobError("ModelError", "output %s is not finite" % odd)
    if how == "feeds" or not all(isinstance(y, np.ndarray) for y in outputs):
        return (lambda: session.run(None, x)), first, note
    binding = session.io_binding()
    for name, value in x.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    for info, y in zip(session.get_outputs(), outputs):
        binding.bind_ortvalue_output(info.name, ort.OrtValue.ortvalue_from_numpy(y))
    return (lambda: session.run_with_iobinding(binding)), first, note


# -- one visit ------------------------------------------------------------------------------------------------------


def median(values):
    """Upper median."""
    return sorted(values)[len(values) // 2]


def warm_up(run, first_ns, runs, tolerance, max_ms):
    """Run until the medians of two consecutive windows agree; gives the times in ns, the very first run included.

    A window is ``runs`` runs. At least one window is run, and no more once ``max_ms`` are spent.
    """
    times, spent = [first_ns], first_ns
    while len(times) < runs or spent < max_ms * 1e6:
        if len(times) >= 2 * runs:
            before, now = median(times[-2 * runs : -runs]), median(times[-runs:])
            if abs(now - before) <= tolerance * before:
                break
        a = _clock()
        run()
        times.append(_clock() - a)
        spent += times[-1]
    return times


def repeat(run, files, min_runs, min_ms, max_ms, max_runs):
    """Timed runs: (wall ns, waited ns or None) until both floors are met or one ceiling is."""
    samples, waits, spent = [], [], 0
    clock = _clock
    before = waits_of(files) if files else None
    while True:
        a = clock()
        run()
        t = clock() - a
        if files:
            after = waits_of(files)
            waited = max(y - x for x, y in zip(before, after))
            # A wait longer than the run fell between two runs, where the clock is not looked at.
            waits.append(waited if waited < t else 0)
            before = after
        samples.append(t)
        spent += t
        n = len(samples)
        if n >= max_runs or spent >= max_ms * 1e6 or (n >= min_runs and spent >= min_ms * 1e6):
            return samples, (waits if files else None)


class Visits:
    """Takes the visits of one ``visits`` command."""

    def __init__(self, talk, command):
        self.talk, self.o, self.p = talk, command["options"], command["protocol"]
        self.run, self.jobs, self.controls = command["run"], command["jobs"], command["controls"]
        log = command.get("log") or os.environ.get("LATBENCH_RUNNER_LOG")
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if log else None
        self.spent = dict.fromkeys(("load", "warmup", "timed", "control", "acknowledge"), 0)
        self.count, self.pending = 0, None
        self.ready, self.cost, self.last = {}, {}, {}
        self.counted = counters()

    def all(self):
        """Every job in order, control ops in between."""
        import_runtime()
        # No garbage collection while times are taken: sessions and buffers are freed by their last reference.
        gc.collect()
        gc.disable()
        self.talk.say("started", run=self.run, environment=snapshot())
        self.begun = _clock()
        for job in self.jobs:
            loaded = self.prepare(job)
            for c in self.due():
                self.acknowledged()
                self.control(c)
            self.acknowledged()
            self.visit(job, loaded)
        for c in self.due():
            self.acknowledged()
            self.control(c)
        self.acknowledged()
        gc.enable()
        self.talk.say("done", run=self.run, spent_ns=self.spent, wall_ns=_clock() - self.begun)

    def acknowledged(self):
        """Wait until the host has taken the last visit."""
        a = _clock()
        while self.pending is not None:
            answer = self.talk.next()
            if answer.get("ack") == self.pending or answer.get("any"):
                self.pending = None
        self.spent["acknowledge"] += _clock() - a

    def prepare(self, job):
        """Load a job's model and run it once: (run, first_ns, load_ns, note), or why not."""
        a = _clock()
        try:
            session = load(job["path"], self.o, job["level"])
            took = _clock() - a
            run, first, note = runner(session, job["io"], job.get("finite", False))
            return run, first, took, note
        except JobError as e:
            return e
        except MemoryError:
            return JobError("ModelError", "not enough memory on the device")
        finally:
            self.spent["load"] += _clock() - a

    def visit(self, job, loaded):
        """Warm up, time, write."""
        if isinstance(loaded, JobError):
            kind = "unsupported" if loaded.unsupported else "failure"
            self.write(job, time.time(), {kind: {"kind": loaded.kind, "message": str(loaded)}})
            return
        run, first, load_ns, note = loaded
        p, started, a = self.p, time.time(), _clock()
        warm = warm_up(run, first, p["warmup_runs"], p["warmup_tolerance"], p["warmup_max_ms"])
        b = _clock()
        samples, waits = self.repeat(run, p["min_runs"], p["min_ms"], p["max_ms"], p["max_runs"])
        self.spent["warmup"] += b - a
        self.spent["timed"] += _clock() - b
        self.write(job, started, {
            "samples_ns": samples, "wait_ns": waits, "warmup_ns": warm, "load_ns": load_ns,
            "environment": dict(self.light(), **note),
        })  # fmt: skip

    def repeat(self, run, *floors):
        """``repeat`` with the reader of waiting times; threads come and go with sessions, so it is made each time."""
        files = wait_files(self.o["threads"])
        try:
            return repeat(run, files, *floors)
        finally:
            for f in files or ():
                os.close(f)

    def light(self):
        """What may have changed since the last visit."""
        before, self.counted = self.counted, counters()
        steal, seconds, switches = (y - x for x, y in zip(before, self.counted))
        return {
            "load": os.getloadavg()[0], "clock_mhz": clock_mhz(affinity()[-1]), "temperature_c": temperature_c(),
            "steal": round(steal / seconds, 4) if seconds > 0 else 0.0, "involuntary_switches": switches,
        }  # fmt: skip

    def device_ns(self):
        """Device time so far: all but waiting for the host."""
        return sum(ns for what, ns in self.spent.items() if what != "acknowledge")

    def due(self):
        """Control ops whose turn it is and that the share of device time allows, the longest waiting first."""
        now = _clock()
        for c in sorted(self.controls, key=lambda c: self.last.get(c["subject"], 0)):
            late = now - self.last.get(c["subject"], 0) >= CONTROL_INTERVAL_S * 1e9
            share = self.spent["control"] + self.cost.get(c["subject"], c["first_ms"] * 1e6)
            if late and share <= self.p["control_share"] * self.device_ns():
                yield c

    def control(self, c):
        """One control visit; its model stays loaded."""
        key, a = c["subject"], _clock()
        warmup, min_runs, min_ms, max_ms, max_runs = CONTROL_RUNS
        started, load_ns = time.time(), 0
        if key not in self.ready:
            try:
                session = load(c["path"], self.o, c["level"])
                load_ns = _clock() - a
                self.ready[key] = runner(session, c["io"])[0]
            except JobError as e:
                self.controls = [x for x in self.controls if x["subject"] != key]
                self.write(c, started, {"failure": {"kind": e.kind, "message": str(e)}})
                return
        run, b = self.ready[key], _clock()
        warm = []
        for _ in range(warmup):
            t = _clock()
            run()
            warm.append(_clock() - t)
        samples, waits = self.repeat(run, min_runs, min_ms, max_ms, max_runs)
        now = _clock()
        self.last[key], self.cost[key] = now, now - b
        self.spent["control"] += now - a
        self.write(c, started, {
            "samples_ns": samples, "wait_ns": waits, "warmup_ns": warm, "load_ns": load_ns,
            "environment": self.light(),
        })  # fmt: skip

    def write(self, job, started, values):
        """Log the visit, then tell the host."""
        self.count += 1
        uid = "%s-%d" % (self.run, self.count)
        ended = time.time()
        if self.log is not None:
            entry = {"uid": uid, "slot": job.get("slot", ""), "run": self.run, "subject": job["subject"], "time": ended}
            os.write(self.log, (json.dumps(entry, separators=(",", ":")) + "\n").encode())
            os.fsync(self.log)
        # What the host has said before cannot be meant for this visit.
        self.talk.forget()
        self.pending = uid
        self.talk.say(
            "visit", uid=uid, slot=job.get("slot", ""), subject=job["subject"], role=job["role"], run=self.run,
            started=started, ended=ended, **values
        )  # fmt: skip


# -- the other commands ---------------------------------------------------------------------------------------------


def busy(seconds):
    """Share of one core that each other process used, the busiest first: [(name, share)]."""

    def times():
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            text = read("/proc/%s/stat" % pid)
            name, _, rest = text[text.find("(") + 1 :].rpartition(") ")
            fields = rest.split()
            if len(fields) > 12 and int(pid) not in (os.getpid(), os.getppid()):
                found[pid] = (name, int(fields[11]) + int(fields[12]))
        return found

    before, begun = times(), time.time()
    time.sleep(seconds)
    hertz, took = os.sysconf("SC_CLK_TCK"), time.time() - begun
    shares = [(n, (t - before[p][1]) / hertz / took) for p, (n, t) in times().items() if p in before]
    return sorted(((n, round(s, 3)) for n, s in shares if s > 0.02), key=lambda x: -x[1])[:8]


def hello(talk, command):
    """Who is here; with ``busy_s``, also which other processes are busy."""
    ort = import_runtime()
    talk.say(
        "hello", machine_hash=machine_hash(), environment=snapshot(), executable=sys.executable,
        busy=busy(command["busy_s"]) if command.get("busy_s") else None,
        runtime_version=ort.__version__ if ort else None, providers=ort.get_available_providers() if ort else [],
    )  # fmt: skip


def optimize(talk, command):
    """Write the optimised graph of each model."""
    for m in command["models"]:
        so = session_options(command["options"], m["level"])
        so.optimized_model_filepath = m["out"]
        a = _clock()
        try:
            load(m["path"], command["options"], m["level"], so)
        except JobError as e:
            talk.say("failed", id=m["id"], kind=e.kind, message=str(e))
        else:
            talk.say("optimized", id=m["id"], ns=_clock() - a)
    talk.say("done")


def profile(talk, command):
    """Median time of each runtime node, by onnxruntime's own profiler."""
    so = session_options(command["options"], command["level"])
    so.enable_profiling = True
    # In the work folder, which goes whatever becomes of this program.
    folder = tempfile.mkdtemp(prefix="profile-", dir=os.getcwd())
    so.profile_file_prefix = os.path.join(folder, "profile")
    try:
        session = load(command["path"], command["options"], command["level"], so)
        run = runner(session, "feeds")[0]
        for _ in range(command["warmup"] + command["runs"]):
            run()
        name = session.end_profiling()
        with open(name) as f:
            events = json.load(f)
        os.remove(name)
    except JobError as e:
        talk.say("failed", id="", kind=e.kind, message=str(e))
        return
    finally:
        os.rmdir(folder)
    durations = {}
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
            durations.setdefault(e["name"][: -len("_kernel_time")], []).append(e["dur"])
    # The first run is the check in runner(), the next ones warm up.
    kept = {n: d[1 + command["warmup"] :] for n, d in durations.items()}
    talk.say("profile", nodes={n: median(d) for n, d in kept.items() if d}, runs=command["runs"])


def main():
    """Answer commands until standard input closes."""
    talk = Talk()
    if hasattr(os, "sched_setaffinity"):
        full = os.sched_getaffinity(0)
    while True:
        command = talk.next()
        if "ack" in command:
            continue
        o = command.get("options", {})
        if o.get("affinity") and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, o["affinity"])
        elif hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, full)
        if command.get("schema") != SCHEMA:
            talk.say("error", message="schema %r; this runner speaks %d" % (command.get("schema"), SCHEMA))
        elif command["cmd"] == "visits":
            Visits(talk, command).all()
        else:
            {"hello": hello, "optimize": optimize, "profile": profile}[command["cmd"]](talk, command)


if __name__ == "__main__":
    main()
