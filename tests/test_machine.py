"""What is read of machines that are not here: their /proc and /sys as files; and the machine's own values."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfsuite import detect, gpus
from perfsuite.machine import MACHINE_ISA, Environment, Gpu, Machine

RYZEN = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 23
model\t\t: 113
model name\t: AMD Ryzen 9 3900X 12-Core Processor
flags\t\t: fpu sse sse2 ssse3 fma sse4_2 avx f16c avx2 clzero

processor\t: 1
model name\t: another
"""
XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz
flags\t\t: fma f16c avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16
"""
GUEST = """\
cpu family\t: 6
model\t\t: 85
model name\t: Intel Xeon Processor (Skylake, IBRS)
flags\t\t: hypervisor avx2
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd sve asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def isas(flags: frozenset[str]) -> set[str]:
    return {isa for isa, needed in MACHINE_ISA.items() if flags.issuperset(needed)}


def test_avx2_cpu() -> None:
    name, flags = detect.read_cpuinfo(RYZEN, {})
    assert name == "AMD Ryzen 9 3900X Processor"
    assert isas(flags) == {"avx2"}


def test_amx_without_int8_is_not_amx_int8() -> None:
    name, flags = detect.read_cpuinfo(XEON, {})
    assert name == "Intel Xeon Platinum 8480+"
    assert isas(flags) == {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx", "amx_bf16"}


def test_name_without_a_number_gets_family_and_model() -> None:
    name, flags = detect.read_cpuinfo(GUEST, {})
    assert name == "Intel Xeon Processor (Skylake, IBRS) (family 6, model 85)"
    assert isas(flags) == set()  # AVX2 kernels need FMA and F16C too
    assert detect.hypervisor(flags, {}) == "unknown"
    assert detect.hypervisor(flags, {"Hypervisor vendor": "KVM"}) == "kvm"


def test_arm_takes_its_name_from_lscpu() -> None:
    name, flags = detect.read_cpuinfo(ARM, {"Model name": "Neoverse-V1"})
    assert name == "Neoverse-V1"
    assert "sve" in flags
    assert isas(flags) == set()


def test_no_proc_at_all(tmp_path: Path) -> None:
    name, flags = detect.read_cpuinfo("", {})
    assert name and flags == frozenset()
    assert detect.read_caches(tmp_path) == ()
    assert detect.cpu_quota(tmp_path) is None
    assert detect.governor([0, 1], tmp_path) == "unknown"
    assert detect.turbo(tmp_path) == "unknown"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/app/inner", "sys/fs/cgroup/app/inner/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/app/inner",
                "sys/fs/cgroup/app/inner/cpu.max": "max 100000",
                "sys/fs/cgroup/app/cpu.max": "50000 25000",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n0::/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",  # the container sees its own group as the root
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        ({"proc/self/cgroup": "5:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    assert detect.cpu_quota(write(tmp_path, files)) == cores


def test_memory_is_the_smaller_of_ram_and_limit_in_whole_gib(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/meminfo": "MemTotal:       24684084 kB\nMemFree: 1 kB"})
    assert detect.usable_memory(root) == 24 * 2**30
    write(root, {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/memory.max": "max"})
    assert detect.usable_memory(root) == 24 * 2**30
    write(root, {"sys/fs/cgroup/memory.max": str(3 * 2**30 + 5)})
    assert detect.usable_memory(root) == 3 * 2**30


def test_caches_are_counted_once_per_group_of_cores(tmp_path: Path) -> None:
    files = {}
    for core in range(4):
        pair = core // 2 * 2
        kinds = (
            ("1", "Data", "32K", f"{core}"),
            ("1", "Instruction", "32K", f"{core}"),
            ("2", "Unified", "1024K", f"{core}"),
            ("3", "Unified", "16M", f"{pair}-{pair + 1}"),
        )
        for index, values in enumerate(kinds):
            for field, value in zip(("level", "type", "size", "shared_cpu_list"), values):
                files[f"sys/devices/system/cpu/cpu{core}/cache/index{index}/{field}"] = value
    caches = detect.read_caches(write(tmp_path, files))
    assert caches == (("L1d", 4 * 2**15, 4), ("L2", 4 * 2**20, 4), ("L3", 2 * 2**24, 2))


def test_governor_and_turbo(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = write(tmp_path, {f"{cpu}/cpu{n}/cpufreq/scaling_governor": g for n, g in enumerate(("powersave", "x", "y"))})
    assert detect.governor([0], root) == "powersave"
    assert detect.governor([2, 1], root) == "x+y"
    assert detect.turbo(write(root, {f"{cpu}/cpufreq/boost": "0"})) == "off"
    assert detect.turbo(write(root, {f"{cpu}/cpufreq/boost": "1"})) == "on"
    assert detect.turbo(write(root, {f"{cpu}/intel_pstate/no_turbo": "1"})) == "off"


def test_core_times_are_of_the_cores_asked_for() -> None:
    text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 10 20 30 40 50 60 70 80 0 0\nintr 5"
    assert detect.read_core_times(text, [1, 7]) == [[10, 20, 30, 40, 50, 60, 70, 80]]


H200 = Gpu("NVIDIA H200", "sm_90", 143771 * 2**20, "570.86.15")
A100 = Gpu("NVIDIA A100", "sm_80", 81920 * 2**20, "570.86.15")


def test_nvidia_smi() -> None:
    text = "GPU-aa, NVIDIA H200, 9.0, 143771, 570.86.15\nGPU-bb, NVIDIA A100, 8.0, 81920, 570.86.15\n"
    assert gpus.read_nvidia_smi(text) == [("GPU-aa", H200), ("GPU-bb", A100)]
    assert gpus.read_nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the driver.") == []


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        (None, (H200, A100)),
        ("1", (A100,)),
        ("1,0", (A100, H200)),
        ("GPU-bb", (A100,)),
        ("", ()),
        ("0,-1,1", (H200,)),
        ("7", ()),
    ],
)
def test_cuda_visible_devices(chosen: str | None, seen: tuple[Gpu, ...]) -> None:
    assert gpus.visible([("GPU-aa", H200), ("GPU-bb", A100)], chosen) == seen


def test_amd_gpu_from_the_kernels_topology(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    write(nodes, {"0/properties": "cpu_cores_count 64\ngfx_target_version 0"})
    write(nodes, {"1/properties": "simd_count 304\ngfx_target_version 90402"})
    write(nodes, {"1/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {192 * 2**30}"})
    write(nodes, {"2/properties": "gfx_target_version 90010"})
    mi300, mi200 = gpus.amd(nodes, write(tmp_path, {"version": "6.10.5"}) / "version")
    assert mi300 == Gpu("AMD gfx942", "gfx942", 192 * 2**30, "6.10.5")
    assert mi200.arch == "gfx90a"
    assert gpus.amd(tmp_path / "none") == ()


def test_this_machine() -> None:
    start = time.perf_counter()
    here = detect.machine.__wrapped__()
    assert time.perf_counter() - start < 1.0  # 0.02 s; the rest is for a busy machine
    assert here == detect.machine()
    assert here.cores >= 1 and here.memory > 0
    assert Machine.from_json(json.loads(json.dumps(here.to_json()))) == here


names = st.text(min_size=1, max_size=12)
machines = st.builds(
    Machine,
    cpu=names,
    isa=st.lists(st.sampled_from(sorted(MACHINE_ISA)), unique=True).map(tuple),
    caches=st.lists(st.tuples(names, st.integers(0), st.integers(1)), max_size=3).map(tuple),
    cores=st.integers(1),
    memory=st.integers(0),
    numa_nodes=st.integers(1),
    virtual=names,
    gpus=st.lists(st.builds(Gpu, names, names, st.integers(0), names), max_size=2).map(tuple),
    environment=st.builds(Environment, *[names] * 8),
)


@given(machines)
def test_a_machine_survives_json(machine: Machine) -> None:
    again = Machine.from_json(json.loads(json.dumps(machine.to_json())))
    assert again == machine
    assert (again.id, again.environment_id, again.slug) == (machine.id, machine.environment_id, machine.slug)


@given(machines, names)
def test_the_environment_is_not_part_of_the_hardware(machine: Machine, governor: str) -> None:
    other = replace(machine, environment=replace(machine.environment, governor=governor + "!"))
    assert other.id == machine.id
    assert (other.environment_id == machine.environment_id) == (other.environment == machine.environment)
    assert replace(machine, cores=machine.cores + 1).id != machine.id


@given(machines)
def test_slugs_are_safe_names_that_end_in_the_id(machine: Machine) -> None:
    assert set(machine.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert machine.slug.endswith(f"-{machine.id[:4]}")


def test_slug_of_a_guest_and_of_a_gpu_machine() -> None:
    guest = replace(detect.machine(), cpu="Intel Xeon Processor (family 6, model 167)", isa=("avx512", "amx"), cores=2)
    assert replace(guest, gpus=()).slug.startswith("intel-xeon-6-167-2c-avx512-amx-")
    assert replace(guest, isa=("avx2",), gpus=(H200, H200)).slug.startswith("intel-xeon-6-167-2c-avx2-2x-nvidia-h200-")
