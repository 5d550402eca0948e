# SPDX-License-Identifier: Apache-2.0
"""The documentation: every Python block runs, every link inside the repository leads somewhere."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from c_api import PREFIXES

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "docs"}
    text = page.read_text()
    for library in ("torch", "jax", "distributed"):
        if re.search(rf"^(import|from) {library}\b", text, re.MULTILINE):
            pytest.importorskip(library)
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        exec(compile("\n" * line + match[1], str(page), "exec"), scope)  # line numbers as on the page


def programs() -> list[tuple[str, str, str]]:
    blocks = re.compile(r"^```(c|cpp)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, *block) for page in PAGES for block in blocks.findall(page.read_text())]


@pytest.mark.parametrize(("page", "language", "text"), programs())
def test_c_blocks_compile_and_run(page: str, language: str, text: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc" if language == "c" else "c++")
    if compiler is None:
        pytest.skip("no compiler")
    source, program = tmp_path / f"{page}.{language}", tmp_path / "program"
    source.write_text(text)
    root = next(prefix for prefix in PREFIXES if (prefix / "lib").is_dir())
    standard = ["-std=c99", "-Wall"] if language == "c" else ["-std=c++17", "-Wall"]
    link = ["-L", root / "lib", "-lgossamer", f"-Wl,-rpath,{root / 'lib'}", "-pthread"]
    subprocess.run([compiler, *standard, "-Werror", "-I", root / "include", source, "-o", program, *link], check=True)
    subprocess.run([program], check=True, timeout=60)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|<img[^>]*src=\"([^\"]+)\"", page.read_text()):
        link = target[0] or target[1]
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / link).exists(), f"{page.name}: {link} does not exist"


def test_no_page_is_missing_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index
