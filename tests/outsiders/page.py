"""Run all trainings of this folder, and write what came of them into docs/models.md.

``PYTHONPATH=tests python -m outsiders.page`` runs the usual files with the present interpreter, and
each library's file in a virtual environment of its own, which is made where there is none; delete
it to have it made anew. The lines go to ``results.json``, and from there into the page.
``--file NAME...`` runs only these files and keeps the other lines, ``--render`` runs none, and
``--environments FOLDER`` says where the virtual environments are.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results.json"
PAGE = ROOT / "docs" / "models.md"

USUAL = sorted(path.stem for path in FOLDER.glob("usual_*.py"))
LIBRARIES = sorted(
    path.stem for path in FOLDER.glob("*.py") if "\nREQUIREMENTS = " in path.read_text()
)
FILES = (*USUAL, *LIBRARIES)

OPEN, CLOSE = "<!-- outsiders -->", "<!-- /outsiders -->"
HEADING = "## Trainings as others write them"
WANTING = ("no target modes", "not yet", "left aside", "no numbers of the kernel")
"""In messages that say that something was not found or not yet."""

Line = dict[str, Any]


def constant(file: str, name: str, default: Any = None) -> Any:
    """A constant of a library's file, which cannot be imported without the library."""
    for node in ast.parse((FOLDER / f"{file}.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return default


def interpreter(file: str, environments: Path) -> Path:
    """Python for a file; a library's is in an environment of its own, made if there is none.

    Args:
        file: The file's name.
        environments: Where the virtual environments are.

    Returns:
        Its path.

    Raises:
        CalledProcessError: The library could not be installed.
    """
    if file in USUAL:
        return Path(sys.executable)
    folder = environments.absolute() / file
    python = folder / "bin" / "python"
    if python.exists():
        tell(f"{file}: in the environment that is there")
        return python
    tell(f"{file}: installing")
    constraints = ["-c", "constraints.txt"] if constant(file, "CONSTRAINED", True) else []
    pip = [python, "-m", "pip", "install", "-q", *constraints, "-e", "."]
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([*pip, *constant(file, "REQUIREMENTS")], check=True, cwd=ROOT)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return python


def lines(file: str, python: Path) -> list[Line]:
    """What the driver says of the trainings of a file, in a folder that is thrown away.

    Args:
        file: The file's name.
        python: Its interpreter.

    Returns:
        A line for each training, and one more if the driver did not come to its end.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT))),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "outsiders.driver", file]
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    places = [f"{place}/" for place in (folder, python.parents[1], ROOT)]
    printed = [text for text in ended.stdout.splitlines() if text.startswith('{"file": ')]
    found = [kept(json.loads(text), places) for text in printed if text.endswith("}")]
    if ended.returncode:
        tell(ended.stderr[-4000:])
        says = ended.stderr.strip().splitlines()[-1:]
        error = f"the driver ended with {ended.returncode}: {' '.join(says)}"
        found.append(kept({"file": file, "name": "what was left of it", "error": error}, places))
    return found


def kept(line: Line, places: list[str]) -> Line:
    """What of a driver's line goes into the results, without places of this machine."""

    def cut(text: str | None, length: int) -> str | None:
        for place in places if text else ():
            text = text.replace(place, "")
        return text and text[:length].strip()

    def first(text: str | None) -> str | None:
        return cut(text and text.strip().splitlines()[0], 200)

    wanting = [
        message.removeprefix("NTKMonitor: ")
        for message in line.get("messages", ())
        if message.startswith("NTKMonitor: ") and any(text in message for text in WANTING)
    ]
    modes = line.get("target_modes")
    return {
        **{key: line.get(key) for key in ("file", "name", "library", "targets")},
        **{key: line.get(key) for key in ("steps", "probes")},
        "failure": first(line.get("failure")),
        "error": first(line.get("error")),
        **{key: line.get(key) for key in ("state", "state_ok", "modes_ok")},
        "modes": None if modes is None else len(modes),
        "identical": line.get("identical"),
        "remark": cut("; ".join(wanting), 300) or None,
    }


def read() -> list[Line]:
    """The lines of the last time."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def write(results: list[Line]) -> None:
    """Keep the lines, in the order of the files."""
    known = [line for line in results if line["file"] in FILES]
    known.sort(key=lambda line: FILES.index(line["file"]))
    text = ",\n".join(json.dumps(line) for line in known)
    RESULTS.write_text(f"[\n{text}\n]\n")


def run(files: list[str], environments: Path) -> bool:
    """Run files, and write the lines of each when they are there.

    Args:
        files: Which.
        environments: Where the virtual environments are.

    Returns:
        Whether there was an environment for each of them; without one, a file keeps its old lines.
    """
    complete = True
    for file in files:
        try:
            python = interpreter(file, environments)
        except subprocess.CalledProcessError as error:
            tell(f"{file}: not installed, pip or venv ended with {error.returncode}")
            complete = False
            continue
        found = lines(file, python)
        write([line for line in read() if line["file"] != file] + found)
        tell(f"{file}: {sum(not wrong(line) for line in found)} of {len(found)} as expected")
    return complete


def wrong(line: Line) -> list[str]:
    """What is not as expected."""
    if line["error"]:
        return ["an error"]
    if not line["probes"]:
        return ["not probed", *([] if line["identical"] else ["not identical"])]
    found = {
        "another state": line["state_ok"],
        "target modes" if line["modes"] else "no target modes": line["modes_ok"],
        "not identical": line["identical"],
        "a failed probe": not line["failure"],
    }
    return [what for what, right in found.items() if not right]


def section(results: list[Line]) -> str:
    """The section of the page."""
    usual = [line for line in results if line["file"] in USUAL]
    others = [line for line in results if line["file"] in LIBRARIES]
    parts = [summary(results, usual, others)]
    if usual:
        parts += ["### As tutorials and examples write them", table("about", usual)]
    if others:
        parts += ["### Of libraries", table("library", others)]
    unexpected = [line for line in results if wrong(line)]
    if unexpected:
        parts += ["### Not as expected", "\n".join(map(item, unexpected))]
    return "\n\n".join(parts)


def summary(results: list[Line], usual: list[Line], others: list[Line]) -> str:
    """The numbers."""

    def count(holds: Callable[[Line], Any]) -> int:
        return sum(bool(holds(line)) for line in results)

    libraries = len({line["file"] for line in others})
    text = f"""\
What the bare callbacks, `NTKMonitor()` and `StallAlert()`, make of {len(results)} short trainings
whose code knows nothing of them, rendered by `make outsiders`: {len(usual)} as tutorials and
examples write them, and {len(others)} of {libraries} libraries. For each, somebody who knows the
model has named the states to accept, and whether the loss compares outputs with data.
{count(lambda line: line["probes"])} were probed. In {count(lambda line: line["state_ok"])} the
state is one of those named. In {count(lambda line: line["modes_ok"])} there are target modes where
and only where the loss compares something.
{count(lambda line: line["identical"])} end as they do without the callbacks, bit for bit, in
weights, optimizers and random states. All of this, and no failed probe, is said of
{count(lambda line: not wrong(line))}, which are those as expected."""
    return textwrap.fill(" ".join(text.split()), 100)


def table(about: str, results: list[Line]) -> str:
    """The table of a group."""
    head = [about, "training", "what the loss compares", "state found", "target modes"]
    head.append("as expected?")
    rows = [head, ["---"] * len(head), *map(row, results)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def row(line: Line) -> list[str]:
    """The cells of a training."""
    cells = [
        line["library"] or line["file"].removeprefix("usual_"),
        line["name"],
        line["targets"] or "",
        ", ".join(f"`{path}`" for path in line["state"] or ()),
        "" if line["modes"] is None else str(line["modes"]),
        f"no: {', '.join(wrong(line))}" if wrong(line) else "yes",
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def item(line: Line) -> str:
    """The entry of a training that is not as expected, with what was said of it."""
    said = [line["error"], line["failure"], line["remark"]]
    texts = [" ".join(text.replace("`", "'").split()) for text in said if text]
    quoted = "; ".join(f"`{text}`" for text in texts)
    about = f"- {line['library'] or line['file']}, {line['name']}: {', '.join(wrong(line))}"
    return f"{about}. {quoted}" if quoted else f"{about}."


def render() -> None:
    """Write the section between its marks, which are put at the end of a page without them."""
    text = PAGE.read_text()
    if OPEN not in text:
        text = f"{text.rstrip()}\n\n{HEADING}\n\n{OPEN}\n{CLOSE}\n"
    before, _, rest = text.partition(OPEN)
    after = rest.partition(CLOSE)[2]
    PAGE.write_text(f"{before}{OPEN}\n\n{section(read())}\n\n{CLOSE}{after}")


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    """Run what is wanted, and render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", nargs="+", choices=FILES, default=FILES, metavar="NAME")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--environments", type=Path, default=ROOT / ".outsiders", metavar="FOLDER")
    wanted = parser.parse_args()
    complete = wanted.render or run(list(wanted.file), wanted.environments)
    render()
    sys.exit(not complete)


if __name__ == "__main__":
    main()
