"""Execution providers, operator sets, toolchains: what the device does not have is an error before it is a number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from latbench.devices.onnx_lower import lowered
from latbench.devices.onnx_units import plan
from latbench.devices.onnxruntime_versions import NEWEST, default, kept, newest
from latbench.devices.python_runner import cuda_versions
from latbench.devices.runner_package import runner_file
from onnx import helper

from latbench.device import Job
from latbench.errors import ConfigError, ModelError, NotInstalledError, UnsupportedOpError
from latbench.evidence import Evidence
from latbench.identity import device_identity
from latbench.network import Network
from latbench.op import Op, TensorSpec
from latbench.profile import Profile
from latbench.profiled_device import ProfiledDevice
from latbench.protocol import Protocol
from latbench.testing.devices import small_conv, small_network
from latbench.toolchain import Toolchain, check_toolchain, satisfies
from latbench.visit import Visit

QUICK = Protocol(warmup_runs=1, warmup_max_ms=1, min_runs=3, max_runs=3, min_ms=0)
#: A provider that every wheel has, and that leaves every node of ours to the CPU.
AZURE = "AzureExecutionProvider"
Make = Callable[..., ProfiledDevice]
#: The options of the CPU's Setting: one more, and no stored number is found any more.
PLAIN = {"provider", "execution_mode", "opset", "graph_optimization", "ir_version", "nchwc_block", "artefacts"}


def take(device: ProfiledDevice, *subjects: Op | Network) -> list[Visit]:
    jobs = [Job(str(i), s) for i, s in enumerate(subjects)]
    return [v for v in device.visits(jobs, QUICK) if v.role != "control"]


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_a_provider_that_this_build_lacks_is_refused_with_the_package_that_has_it(
    make_device: Make, provider: str
) -> None:
    with pytest.raises(ConfigError, match=rf"runtime\.provider: .* has no '{provider}'.*package onnxruntime-gpu"):
        make_device(provider=provider).open()


def test_a_network_of_which_no_node_runs_on_the_provider_is_not_measured(make_device: Make) -> None:
    with make_device(provider=AZURE) as device:
        (visit,) = take(device, small_network())
    assert visit.failure is not None
    assert visit.failure.kind == "ConfigError"
    assert visit.failure.message == f"no node of it runs on {AZURE}; all are left to CPUExecutionProvider"


def test_where_the_nodes_run_is_known_of_each_unit_and_visit(make_device: Make) -> None:
    with make_device(provider=AZURE, left_to_cpu=["*"]) as device:
        units = device.units(small_network())
        (visit,) = take(device, small_conv())
        assert {u.provider for u in units} == {"CPUExecutionProvider"}
        assert device.units(small_network()) == units
    assert visit.ok
    assert set(visit.environment["providers"]) == {"CPUExecutionProvider"}
    assert sum(visit.environment["providers"].values()) >= 1


def test_an_op_that_is_left_to_the_cpu_is_a_failure_unless_its_kind_is_allowed(make_device: Make) -> None:
    conv, tanh = small_conv(), Op.make("tanh", [TensorSpec((1, 64))])
    with make_device(provider=AZURE, left_to_cpu=["tanh"]) as device:
        refused, allowed = take(device, conv, tanh)
        setting = device.setting
    assert refused.failure is not None
    assert refused.failure.kind == "ConfigError"
    assert f"runs on {AZURE}; all are left to CPUExecutionProvider" in refused.failure.message
    assert f'runtime.left_to_cpu = ["{conv.kind}"]' in refused.failure.message
    assert refused.samples_ns.size == 0
    assert allowed.ok
    (warning,) = [w for w in Evidence([allowed], setting).measurement(tanh.key).warnings if "nodes" in w]
    assert warning == f"1 of its 1 nodes did not run on {AZURE}: 1 on CPUExecutionProvider"
    assert "left_to_cpu" not in setting.options, "what may be measured is no property of the numbers"


def test_control_ops_that_are_left_to_the_cpu_tell_nothing_of_how_the_provider_drifts(make_device: Make) -> None:
    with make_device(provider=AZURE, left_to_cpu=["conv"]) as device:
        often = QUICK.model_copy(update={"control_share": 0.9, "max_runs": 1000, "min_ms": 10.0})
        found = list(device.visits([Job(str(i), small_conv()) for i in range(8)], often))
    by_subject: dict[str, list[Visit]] = {}
    for v in found:
        by_subject.setdefault(v.subject, []).append(v)
    (launch,) = by_subject["control:launch"]
    assert launch.failure is not None
    assert launch.failure.kind == "ConfigError"
    assert launch.failure.message == f"no node of it runs on {AZURE}; all are left to CPUExecutionProvider"
    assert all(v.ok for v in by_subject["control:compute"]), "its kind is allowed"
    assert {*by_subject["control:compute"][0].environment["providers"]} == {"CPUExecutionProvider"}


def test_a_network_that_is_left_in_part_warns_in_its_measurement(make_device: Make) -> None:
    net = small_network()
    with make_device() as device:
        (visit,) = take(device, net)
        setting = replace(device.setting, options={**device.setting.options, "provider": "CUDAExecutionProvider"})
    assert not any("nodes" in w for w in Evidence([visit], setting).measurement(net.key).warnings)
    nodes = {"CUDAExecutionProvider": 12, "CPUExecutionProvider": 2}
    left = replace(visit, environment={**visit.environment, "providers": nodes, "not_finite": "output"})
    warnings = Evidence([left], setting).measurement(net.key).warnings
    assert "2 of its 14 nodes did not run on CUDAExecutionProvider: 2 on CPUExecutionProvider" in warnings
    assert any(w.startswith("output is not finite") for w in warnings)


def test_what_is_given_for_the_cpu_belongs_to_the_setting_and_else_nothing_is_added(
    make_device: Make, tmp_path: Path
) -> None:
    runner = tmp_path / "runner.py"
    runner.write_bytes(runner_file().read_bytes())
    with make_device() as a, make_device(provider_options={"use_arena": 0}) as b, make_device(runner=str(runner)) as c:
        plain = a.setting
        assert set(plain.options) == PLAIN
        assert b.setting.options == {**plain.options, "provider_options": {"use_arena": 0}}
        assert set(c.setting.options) == PLAIN | {"runner"}


@pytest.mark.parametrize("name", ["cuda", "cudnn", "driver"])
def test_versions_of_what_computes_on_a_gpu_are_in_the_setting(make_device: Make, name: str) -> None:
    """The runner's own answer, and what it would be after an update."""
    hello = {"toolchain": {"cuda": "12.4", "cudnn": "9.1.0", "python": "3.11"}, "device": {"driver": "550.1"}}
    later = copy.deepcopy(hello)
    later["device" if name == "driver" else "toolchain"][name] = "later"
    with make_device(provider=AZURE) as device:
        runtime: Any = device.runtime
        found = []
        for told in (hello, later):
            runtime.hello = {**runtime.hello, "toolchain": told["toolchain"]}
            found.append(cuda_versions(told, ("cuda", "cudnn", "tensorrt")))
            assert runtime.setting.options.get("cudnn") == told["toolchain"]["cudnn"]
    assert found[0] == {"cuda": "12.4", "cudnn": "9.1.0", "driver": "550.1"}
    assert found[1] == {**found[0], name: "later"}


def test_equal_gpus_are_told_apart_by_their_own_number_and_else_by_the_machine() -> None:
    def identity(unique: str, machine: str) -> str:
        device = {"kind": "cuda", "name": "NVIDIA H200", "unique": unique}
        return device_identity({"environment": {}, "device": device, "machine_hash": machine}, "here")

    assert identity("a", "one").startswith("cuda-nvidia-h200-")
    assert identity("a", "one") == identity("a", "two"), "a GPU that moved is the same GPU"
    assert identity("a", "one") != identity("b", "one")
    assert identity("", "one") != identity("", "two")


def test_another_provider_and_its_options_are_another_setting(make_device: Make) -> None:
    hashes = set()
    for options in ({}, {"provider": AZURE}, {"provider": AZURE, "provider_options": {"x": 1}}):
        with make_device(**options) as device:
            hashes.add(device.setting.hash)
    assert len(hashes) == 3


def test_units_of_a_provider_that_this_host_lacks_cannot_be_planned_here(make_device: Make) -> None:
    from latbench.devices.onnx_units import optimise_here

    model = small_network().to_onnx().SerializeToString()
    with pytest.raises(NotInstalledError, match="onnxruntime with CUDAExecutionProvider"):
        optimise_here(model, "all", "CUDAExecutionProvider")


def test_a_network_is_the_one_unit_of_a_provider_that_compiles_it() -> None:
    from latbench.devices.onnx_optimise import whole_unit

    net = small_network()
    unit = whole_unit(net, "TensorrtExecutionProvider")
    assert unit.op.macs == net.macs
    assert set(unit.nodes) == {n.name for n in net.nodes}
    assert Op.parse(unit.op.key) == unit.op


# -- operator sets --------------------------------------------------------------------------------------------------


def test_what_each_onnxruntime_reads_only_grows() -> None:
    versions = sorted(NEWEST)
    assert [NEWEST[v] for v in versions] == sorted(NEWEST[v] for v in versions)
    assert newest("1.10.0") == (15, 8)
    assert newest("1.10.2+cu102") == (15, 8)
    assert newest("99.0") == NEWEST[versions[-1]]
    assert newest("0.5") == NEWEST[versions[0]]


def test_this_onnxruntime_reads_what_the_table_says() -> None:
    import onnxruntime as ort

    opset, ir_version = newest(ort.__version__)
    x, y = (helper.make_tensor_value_info(n, 1, [1, 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def old_device(**runtime: Any) -> ProfiledDevice:
    """A device whose runner says that its onnxruntime is 1.10.0."""
    from pathlib import Path

    env = {"REAL_RUNNER": str(runner_file()), "FAULT": "old-runtime"}
    section = {"kind": "onnxruntime", "runner": str(Path(__file__).with_name("faulty_runner.py")), **runtime}
    return ProfiledDevice(Profile(name="old", transport={"kind": "local", "env": env}, runtime=section))


@pytest.mark.parametrize(("key", "value", "limit"), [("opset", 17, 15), ("ir_version", 10, 8)])
def test_an_operator_set_that_the_device_cannot_read_is_refused(
    artefact_cache: object, key: str, value: int, limit: int
) -> None:
    with pytest.raises(
        ConfigError, match=rf"runtime\.{key}: onnxruntime 1\.10\.0 .* at most, not {value}; .*= {limit}"
    ):
        old_device(**{key: value}).open()


def test_without_one_models_are_written_for_what_the_device_reads(artefact_cache: object) -> None:
    net = small_network()
    with old_device() as device:
        assert (device.setting.options["opset"], device.setting.options["ir_version"]) == (15, 8)
        (artefact,) = device.runtime.artefacts([net])  # type: ignore[attr-defined]
        assert onnx.load(artefact.path).opset_import[0].version == 15


def test_operators_that_came_later_are_written_with_older_ones(make_device: Make) -> None:
    op = Op.make("hardswish", [TensorSpec((1, 16, 8, 8))])
    with make_device(opset=13, graph_optimization="none") as device:
        (artefact,) = device.runtime.artefacts([op.expand()])  # type: ignore[attr-defined]
        assert {n.op_type for n in onnx.load(artefact.path).graph.node} == {"HardSigmoid", "Mul"}
        assert take(device, op)[0].ok


def file_with(op_type: str, opset: int, ir_version: int = 8, **attributes: Any) -> bytes:
    """A user's file: one operator between two of old age."""
    x, y = (helper.make_tensor_value_info(n, 1, [1, 4, 8, 8]) for n in "xy")
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node(op_type, ["a"], ["b"], name="middle", **attributes),
        helper.make_node("Relu", ["b"], ["y"], name="last"),
    ]
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=imports, ir_version=ir_version)
    return bytes(model.SerializeToString())


def test_a_users_file_is_written_in_the_older_operator_set(make_device: Make) -> None:
    net = Network.from_onnx(file_with("Sigmoid", 18, ir_version=9))
    with make_device(opset=14, ir_version=7) as device:
        (visit,) = take(device, net)
        (artefact,) = device.runtime.artefacts([net])  # type: ignore[attr-defined]
    assert visit.ok
    assert visit.environment["lowered_from_opset"] == 18
    assert visit.environment["lowered_from_ir_version"] == 9
    assert onnx.load(artefact.path).opset_import[0].version == 14


def test_a_users_file_that_the_device_reads_stays_as_it_is() -> None:
    source = file_with("Sigmoid", 15)
    assert lowered(source, 15, 8, "net") == (source, {})


def test_a_file_newer_than_what_is_written_stays_as_it_is_where_the_device_reads_it(make_device: Make) -> None:
    """Files are not limited by the operator set that networks are written for, unless the profile names one."""
    net = Network.from_onnx(file_with("Gelu", 20, ir_version=9))
    with make_device() as device:
        assert device.setting.options["opset"] == 17
        (visit,) = take(device, net)
        (artefact,) = device.runtime.artefacts([net])  # type: ignore[attr-defined]
        units = device.units(net)
        planned = plan(device.setting, net.replace(name="planned"))
    assert visit.ok
    assert not any(k.startswith("lowered") for k in visit.environment)
    assert onnx.load(artefact.path).opset_import[0].version == 20
    assert [u.op.kind for u in units] == [u.op.kind for u in planned] == ["relu", "gelu", "relu"]


def test_an_operator_that_came_after_what_is_written_is_measured_alone_where_the_device_reads_it(
    make_device: Make,
) -> None:
    net = Network.from_onnx(file_with("Mish", 18))
    op = net.nodes[1].op
    assert op["op_type"] == "Mish"
    with make_device() as device:
        assert take(device, op)[0].ok
    with make_device(opset=17) as device:
        refused = take(device, op)[0].unsupported
    assert refused is not None
    assert "needs operator set 18, and 17 is the newest allowed" in refused.message


def test_files_are_kept_up_to_what_the_runtime_reads_or_the_profile_names() -> None:
    def most(opset: int, ir_version: int, version: str, *named: str) -> tuple[int, int]:
        return kept({"opset": opset, "ir_version": ir_version, **({"limits": named} if named else {})}, version)

    assert default("1.31.1") == (17, 8)
    assert most(17, 8, "1.31.1") == newest("1.31.1")
    assert most(14, 8, "1.31.1") == (14, newest("1.31.1")[1])
    assert most(17, 7, "1.31.1") == (newest("1.31.1")[0], 7)
    assert most(17, 8, "1.31.1", "opset") == (17, newest("1.31.1")[1])
    assert most(17, 8, "1.31.1", "opset", "ir_version") == (17, 8)
    assert default("1.10.0") == most(15, 8, "1.10.0") == (15, 8)


def test_a_limit_that_the_profile_names_belongs_to_the_setting_and_a_plan_keeps_to_it(make_device: Make) -> None:
    """Two profiles of one Setting would measure and plan the same file differently."""
    with make_device() as free, make_device(opset=17) as limited, make_device(opset=16) as older:
        assert "limits" not in free.setting.options
        assert "limits" not in older.setting.options  # 16 is not the default: the Setting tells it as it is
        assert limited.setting.hash != free.setting.hash
        settings = {free: free.setting, limited: limited.setting, older: older.setting}
        for device, setting in settings.items():
            target = device.runtime._target()["kept"]  # type: ignore[attr-defined]
            assert target == kept(setting.options, setting.runtime_version)
    net = Network.from_onnx(file_with("Gelu", 20, ir_version=9))
    assert [u.op.kind for u in plan(settings[free], net)] == ["relu", "gelu", "relu"]
    with pytest.raises(ModelError, match="operator set"):
        plan(settings[limited], net)


def test_the_node_that_is_in_the_way_is_named(make_device: Make) -> None:
    net = Network.from_onnx(file_with("Gelu", 20, ir_version=9))
    with make_device(opset=17) as device:
        good, bad = take(device, small_conv(), net)
    assert good.ok
    assert bad.unsupported is not None
    assert bad.unsupported.layer == "middle"
    assert "came with operator set 20; the device reads 17 at most" in bad.unsupported.message


def test_what_the_converter_cannot_do_is_told_with_its_node() -> None:
    source = file_with("CastLike", 15)
    with pytest.raises(UnsupportedOpError, match=r"'middle'.*operator set 15; the device reads 14 at most"):
        lowered(source, 14, 8, "net")


# -- toolchains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "versions", "holds"),
    [
        ("10.2", "10.2", True), ("10.2.89", "10.2", True), ("10.20", "10.2", False), ("1.10.0", ">=1.10,<1.11", True),
        ("1.11.0", ">=1.10,<1.11", False), ("3.6.9", "<3.7", True), ("2.1.0+cu118", ">=2.0", True),
        ("8.2.1", "==8.2.*", True), ("8.2.1", "==8.2", False), ("8.2", "==8.2.0", True), ("1.9", "!=1.9", False),
        ("10.2.89", "<=10.2", True), ("10.3", "<=10.2", False), ("10.2", ">10.2", False), ("1.13.0rc1", "1.13", True),
    ],
)  # fmt: skip
def test_version_ranges_read_as_people_read_them(version: str, versions: str, holds: bool) -> None:
    assert satisfies(version, versions) is holds


def test_a_range_that_is_none_is_an_error_in_the_profile() -> None:
    with pytest.raises(ValueError, match=r"'~>1' is no version or range"):
        Toolchain(cuda="~>1")


def test_every_pin_that_does_not_hold_is_named_with_what_is_there() -> None:
    toolchain = Toolchain(cuda="10.2", tensorrt="8.2", python="3.6")
    with pytest.raises(ConfigError) as e:
        check_toolchain(toolchain, {"cuda": "12.4", "tensorrt": "8.6.1", "python": "3.6.9"}, "tx1.toml")
    assert "toolchain.cuda: the profile is for cuda 10.2, the device has 12.4" in str(e.value)
    assert "toolchain.tensorrt: the profile is for tensorrt 8.2, the device has 8.6.1" in str(e.value)
    assert "python" not in str(e.value)


def test_a_device_with_another_toolchain_is_refused_and_what_it_does_not_tell_is_unknown(
    artefact_cache: object,
) -> None:
    def device(**toolchain: str) -> ProfiledDevice:
        section = {"kind": "onnxruntime"}
        profile = Profile(name="p", transport={"kind": "local"}, runtime=section, toolchain=Toolchain(**toolchain))
        return ProfiledDevice(profile)

    with pytest.raises(ConfigError, match=r"toolchain\.onnxruntime: the profile is for onnxruntime <1\.0, the device"):
        device(onnxruntime="<1.0").open()
    with device(python=">=3.6", cuda="10.2") as d:
        checks = {c.what: c for c in d.checks()}
    assert checks["toolchain cuda"].state == "unknown"
    assert "toolchain python" not in checks
