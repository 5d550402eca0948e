# SPDX-License-Identifier: Apache-2.0
"""The objects of each instruction set: nothing in them may reach a CPU that lacks it, and the vectors are there."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ("g++", "nm", "objdump")
PREFIX = {"baseline": "", "avx2": "", "avx512": "", "neon": "aarch64-linux-gnu-"}  # of the tools, by level


def has_tools(level: str) -> bool:
    return all(shutil.which(PREFIX[level] + tool) is not None for tool in TOOLS)


with_neon = pytest.mark.skipif(not has_tools("neon"), reason="needs g++-aarch64-linux-gnu")
LEVELS = ["baseline", "avx2", "avx512", pytest.param("neon", marks=with_neon)]

pytestmark = [
    pytest.mark.skipif(not has_tools("baseline"), reason="needs g++, nm and objdump"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 objects"),
]


def flags(level: str) -> list[str]:
    """As cpp/cmake/Isa.cmake, the only place that has them, says."""
    text = (ROOT / "cpp/cmake/Isa.cmake").read_text()
    found = dict(re.findall(r'set\(GOSSAMER_ISA_(\w+)\s+"([^"]*)"\)', text))
    expanded = found.get(level, "").replace("${GOSSAMER_ISA_avx2}", found["avx2"])
    assert level == "baseline" or expanded
    return [flag for flag in expanded.split(";") if flag]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("objects")
    built = {}
    for level in filter(has_tools, PREFIX):
        for kind, optimise in (("debug", ["-O0", "-g"]), ("release", ["-O3"])):
            target = folder / f"{level}-{kind}.o"
            command = [
                f"{PREFIX[level]}g++",
                "-std=c++20",
                *optimise,
                "-ffp-contract=off",
                "-fno-exceptions",
                "-fno-math-errno",
                "-fno-trapping-math",
            ]
            command += [*flags(level), f"-I{ROOT / 'cpp'}", f"-I{ROOT / 'cpp/include'}"]
            subprocess.run([*command, "-c", str(ROOT / f"cpp/isa/{level}.cpp"), "-o", str(target)], check=True)
            built[level, kind] = target
    return built


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("level", LEVELS)
def test_no_weak_symbol_and_one_definition(objects: dict[tuple[str, str], Path], level: str) -> None:
    """An inline function compiled for AVX2 that the linker kept for everyone would crash older CPUs."""
    symbols = [line.split() for line in run(f"{PREFIX[level]}nm", "-C", str(objects[level, "debug"])).splitlines()]
    kinds = {(fields[-2], fields[-1]) for fields in symbols if len(fields) >= 2}
    weak = [name for kind, name in kinds if kind in "WwVvu"]
    assert not weak
    assert [name for kind, name in kinds if kind in "TDBR"] == [f"gossamer::kernels_{level}"]


@pytest.mark.parametrize("level", LEVELS)
def test_calls_nothing_but_the_c_library(objects: dict[tuple[str, str], Path], level: str) -> None:
    undefined = {
        line.split()[-1] for line in run(f"{PREFIX[level]}nm", "-u", str(objects[level, "release"])).splitlines()
    }
    allowed = {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail", "memcpy", "memset", "memmove"}
    allowed |= {"exp", "erfc", "tanh", "__popcountdi2"}
    assert undefined <= allowed


def body(objects: dict[tuple[str, str], Path], level: str, function: str) -> str:
    text = run(f"{PREFIX[level]}objdump", "-dC", "--no-show-raw-insn", str(objects[level, "release"]))
    parts = re.split(r"\n(?=[0-9a-f]{16} <)", text)
    found = [part for part in parts if function in part.split("\n", 1)[0]]
    assert found, f"no {function} in the {level} object"
    return "\n".join(found)


def test_the_baseline_has_no_vex_instruction(objects: dict[tuple[str, str], Path]) -> None:
    text = run("objdump", "-d", "--no-show-raw-insn", str(objects["baseline", "release"]))
    assert not re.search(r"\t(v[a-z]+(ps|pd|ss|sd|dq|q|d)|[a-z]+\s+.*%ymm)", text)


def test_avx2_selects_and_multiplies_in_ymm(objects: dict[tuple[str, str], Path]) -> None:
    stream = body(objects, "avx2", "::stream<gossamer::(anonymous namespace)::Taylor, float, float>")
    assert "vcmpgt_oqps" in stream
    assert "vmulps" in stream
    assert "call" not in stream
    assert "vfmadd" not in stream  # scores round after every operation
    assert re.search(r"vfmadd\d+ps.*%ymm", body(objects, "avx2", "::spmm<float, float, int, 4>"))


def test_avx512_compares_into_mask_registers(objects: dict[tuple[str, str], Path]) -> None:
    stream = body(objects, "avx512", "::stream<gossamer::(anonymous namespace)::Magnitude, float, float>")
    assert re.search(r"vcmp\w*ps.*%zmm\d+,%k\d", stream)
    assert re.search(r"vfmadd\d+ps.*%zmm", body(objects, "avx512", "::spmm<float, float, int, 4>"))
    assert re.search(r"\{%k\d\}\{z\}", body(objects, "avx512", "::apply<float>"))


@pytest.mark.parametrize(("level", "register", "widest"), [("avx2", "ymm", 3), ("avx512", "zmm", 4)])
def test_panels_keep_their_sums_in_registers(
    objects: dict[tuple[str, str], Path], level: str, register: str, widest: int
) -> None:
    """Three loops, of one step or (one vector) of two and one. Where each row has a column of its own, the values are
    loaded once and spread by permutations; no sum goes to the stack."""
    for vectors in range(1, widest + 1):
        kernel = body(objects, level, f"::spmm_panel<gossamer::(anonymous namespace)::VF32, float, {vectors}, float>")
        steps = 3 if vectors == 1 else 1
        assert len(re.findall(rf"vfmadd\d+ps.*%{register}", kernel)) == 3 * steps * 4 * vectors
        assert len(re.findall(rf"vpermilps.*%{register}", kernel)) == 4 * steps
        assert not re.search(rf"%{register}\d+,.*\((%rsp|%rbp)", kernel)


def test_bitmasks_are_expanded_in_registers(objects: dict[tuple[str, str], Path]) -> None:
    kernel = body(objects, "avx512", "::spmv_bitmask<float, float, 1, true>")
    assert re.search(r"vexpandps (%zmm\d+),\1\{%k\d\}\{z\}", kernel)  # into the register it comes from
    assert not re.search(r"vexpandps [^%]*\(", kernel)
    assert "vpermps" in body(objects, "avx2", "::spmv_bitmask<float, float, 1, true>")
    assert "vpshufb" in body(objects, "avx2", "::spmv_bitmask<float, gossamer::BFloat, 1, true>")


def test_16_bit_scores_are_compared_as_integers(objects: dict[tuple[str, str], Path]) -> None:
    """And 16-bit weights of other criteria are widened in registers, by the processor's own instructions."""
    assert re.search(r"vpcmp\w*w .*%zmm\d+,%k\d", body(objects, "avx512", "::stream_16<"))
    assert re.search(r"vpcmpgtw .*%ymm", body(objects, "avx2", "::stream_16<"))
    for level in ("avx2", "avx512"):
        assert "vcvtph2ps" in body(objects, level, "Taylor, float, gossamer::Half>")
        assert "vpmovzxwd" in body(objects, level, "Taylor, float, gossamer::BFloat>")


@with_neon
def test_neon_panels_keep_their_sums_in_registers(objects: dict[tuple[str, str], Path]) -> None:
    """Values are multiplied lane by lane; the sums and a row of X take the registers."""
    for scalar, vector in (("float", "VF32"), ("double", "VF64"), ("gossamer::Half", "VF32"), ("signed char", "VF32")):
        number = "double" if scalar == "double" else "float"
        for vectors in (1, 2, 4, 6):
            kernel = body(
                objects,
                "neon",
                f"::spmm_panel<gossamer::(anonymous namespace)::{vector}, {scalar}, {vectors}, {number}>",
            )
            steps = 3 if vectors == 1 else 1
            assert len(re.findall(r"\tfmla\tv", kernel)) == 3 * steps * 4 * vectors
            assert len(re.findall(r"\tfmla\tv.*\.[sd]\[[0-3]\]", kernel)) >= 2 * steps * 4 * vectors
            assert not re.search(r"\tst[rup]+\tq\d+.*\[sp", kernel)


@with_neon
def test_neon_streams_in_registers(objects: dict[tuple[str, str], Path]) -> None:
    for criterion in ("Magnitude, float, float>", "Taylor, float, float>", "Taylor, float, gossamer::Half>"):
        stream = body(objects, "neon", f"::stream<gossamer::(anonymous namespace)::{criterion}")
        assert re.search(r"\tfcmgt\tv\d+\.4s", stream)
        assert "\tbl\t" not in stream
        assert "\tfmla\t" not in stream  # scores round after every operation
        assert not re.search(r"\tst[rup]+\tq\d+.*\[sp", stream)
    assert re.search(r"\tfcvtl\tv\d+\.4s", body(objects, "neon", "Taylor, float, gossamer::Half>"))
    assert re.search(r"\tcmgt\tv\d+\.8h", body(objects, "neon", "::stream_16<"))
    assert re.search(r"\ttbl\tv\d+\.16b", body(objects, "neon", "::spmv_bitmask<float, float, 1, true>"))
