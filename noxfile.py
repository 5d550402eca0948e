# SPDX-License-Identifier: Apache-2.0
"""What CI runs, session by session: ``nox`` for all, ``nox -s lint`` for one."""

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "native", "aarch64", "package"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PRESETS = ("dev", "asan-ubsan", "tsan")


def build_and_test(session: nox.Session, *presets: str) -> None:
    session.install("cmake", "ninja")
    for preset in presets:
        session.run("cmake", "--preset", preset)
        session.run("cmake", "--build", "--preset", preset)
        session.run("ctest", "--preset", preset, "--parallel", "2")  # most tests have one thread


def run_example(session: nox.Session, prefix: str) -> None:
    """examples/c against an installed library, shared and static; under valgrind where there is one."""
    check = ["valgrind", "-q", "--leak-check=full", "--errors-for-leak-kinds=definite,possible", "--error-exitcode=9"]
    for static in ("OFF", "ON"):
        build = Path(session.create_tmp()).resolve() / f"example-{static}"
        shutil.rmtree(build, ignore_errors=True)
        options = (f"-DCMAKE_PREFIX_PATH={prefix}", f"-DSTATIC={static}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
        warnings = "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"
        session.run("cmake", "-G", "Ninja", "-S", str(ROOT / "examples/c"), "-B", str(build), *options, warnings)
        session.run("cmake", "--build", str(build))
        session.run(str(build / "example"), external=True)
        if shutil.which("valgrind"):  # which does not know every instruction
            session.run(*check, str(build / "example"), external=True, env={"GOSSAMER_ISA": "baseline"})


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite on an installed package."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatters, linter and types, all strict."""
    dependencies = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    session.install(*dependencies, "ruff", "mypy", "nox", "pytest", "clang-format==14.0.6")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    sources = [str(p) for folder in ("cpp", "cuda", "tests", "bench") for p in sorted((ROOT / folder).rglob("*.[ch]*"))]
    sources = [p for p in sources if Path(p).suffix in (".c", ".h", ".cpp", ".hpp")]
    session.run("clang-format", "--dry-run", "-Werror", *sources)


@nox.session
def native(session: nox.Session) -> None:
    """The C++ and C tests: optimised with warnings as errors, then under the sanitizers."""
    build_and_test(session, *(session.posargs or PRESETS))
    if not session.posargs:
        prefix = str(Path(session.create_tmp()).resolve() / "prefix")
        session.run("cmake", "--install", "build/dev", "--prefix", prefix)
        run_example(session, prefix)


@nox.session
def aarch64(session: nox.Session) -> None:
    """The C++ and C tests for AArch64: cross compiled, under an emulator."""
    for program in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(program) is None:
            session.skip(f"needs {program} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    build_and_test(session, "aarch64")


@nox.session
def package(session: nox.Session) -> None:
    """An editable install, an sdist, a wheel from nothing but the sdist, and the installed command."""
    session.install("build", "twine", "cmake", "ninja")
    session.install("-e", ".")
    session.run("gossamer", "info", "--json")
    dist = Path(session.create_tmp()).resolve()
    for old in dist.glob("gossamer*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.glob("gossamer*")))
    session.install("--force-reinstall", "--no-deps", *map(str, dist.glob("*.whl")))
    session.install(*map(str, dist.glob("*.whl")))
    session.chdir(dist)  # not the source tree
    session.run("gossamer", "info")
    session.run("python", "-c", "import gossamer as gs; gs.prune; assert gs.info()['version'] == gs.__version__")
    code = "import gossamer; print(*gossamer.__path__, sep=';')"
    run_example(session, str(session.run("python", "-c", code, silent=True)).strip())
