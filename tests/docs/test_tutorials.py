"""The tutorials run to their ends, and print numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(TUTORIALS.glob("*.md")) if page.stem != "index"]
RUN = """
import sys
from pathlib import Path
for path in sys.argv[1:]:
    print(f"<{Path(path).stem[4:]}>", flush=True)
    exec(compile(Path(path).read_text(), path, "exec"), {"__name__": "__main__"})
"""


@pytest.mark.slow
def test_tutorials_run(tmp_path: Path) -> None:
    """All of them in one process, which imports torch and Lightning once."""
    assert len(PAGES) >= 4
    scripts = []
    for page in PAGES:
        cells = CELL.findall(page.read_text())
        assert len(cells) > 2, page
        code = "\n".join(line for line in "".join(cells).splitlines() if not line.startswith("%"))
        script = tmp_path / f"run_{page.stem}.py"  # no module that a tutorial imports
        script.write_text(code)
        scripts.append(str(script))
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *scripts],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    printed = re.split(r"^<(\w+)>$", done.stdout, flags=re.MULTILINE)[1:]
    assert printed[::2] == [page.stem for page in PAGES]
    assert all(re.search(r"\d", text) for text in printed[1::2])
