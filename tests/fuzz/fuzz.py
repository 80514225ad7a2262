"""Coverage-guided fuzzing of what reads other people's bytes, with atheris.

::

    python tests/fuzz/fuzz.py --seconds 600           # the time in equal parts for all harnesses
    python tests/fuzz/fuzz.py --seconds 600 requests engine
    python tests/fuzz/fuzz.py --input outputs/fuzz/requests/crash-…  # one input again

Each harness runs in a process of its own, from seeds that are made of real frames and from what
earlier runs left in `outputs/fuzz/<harness>/corpus`. An input that raises anything but a documented
error, takes longer than 30 s, or lets the process grow beyond 4 GiB is left as
`outputs/fuzz/<harness>/crash-…`, and the command fails. A table tells inputs and coverage.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATHS = [ROOT, ROOT / "tests/fuzz", ROOT / "tests/support"]
sys.path[:0] = map(str, PATHS)

from fuzz_harnesses import NAMES, harness, seeds  # noqa: E402

OUT = ROOT / "outputs/fuzz"
HANG_SECONDS, MEMORY_MB, LONGEST = 30, 4096, 2048
MISSING = 3
"""Exit status where atheris is not installed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="harness", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=float, default=60.0, help="for all harnesses together")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer; 0 draws one")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--input", type=Path, help="run this input again, of the harness above it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := {*given.names} - {*NAMES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.input is not None:
        return _again(given.input, given.names)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install -c constraints.txt -e '.[fuzz]'")
        return MISSING
    if given.inside:
        _fuzz(given.names[0], given.out, given.seconds, given.seed)
        return 0
    names = given.names or NAMES
    told = [_run(name, given.out, given.seconds / len(names), given.seed) for name in names]
    width = max(map(len, names))
    print(f"\n{'harness':{width}}  {'inputs':>10}  {'coverage':>8}  finding")
    for name, inputs, coverage, finding in told:
        print(f"{name:{width}}  {inputs:>10,}  {coverage:>8}  {finding or '-'}")
    return any(finding for *_, finding in told)


def _run(name: str, out: Path, seconds: float, seed: int) -> tuple[str, int, str, str]:
    """Inputs, coverage and finding of one harness, in a process of its own."""
    command = [sys.executable, __file__, name, "--inside", "--out", str(out)]
    command += ["--seconds", str(max(1.0, seconds)), "--seed", str(seed)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    log = out / name / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as said:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, check=False
        )
    text = log.read_text(errors="replace")
    counted = re.findall(r"^#(\d+)\s", text, re.MULTILINE)
    covered = re.findall(r"cov: (\d+)", text)
    finding = ""
    if done.returncode:
        written = re.findall(r"Test unit written to (\S+)", text)
        raised = re.findall(
            r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt)\b.*)$", text, re.MULTILINE
        )
        finding = f"{' '.join(raised[:1]) or 'see ' + str(log)} {' '.join(written[-1:])}"
    return name, max(map(int, counted), default=0), covered[-1] if covered else "?", finding


def _fuzz(name: str, out: Path, seconds: float, seed: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["flower_split"]):
        one = harness(name)
    corpus = out / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for content in seeds(name):
        (corpus / hashlib.sha1(content).hexdigest()).write_bytes(content)
    arguments = [
        *(f"-max_total_time={int(seconds)}", f"-timeout={HANG_SECONDS}", f"-seed={seed}"),
        *(f"-rss_limit_mb={MEMORY_MB}", f"-max_len={LONGEST}", f"-artifact_prefix={out / name}/"),
        *("-len_control=0", "-print_final_stats=1", str(corpus)),
    ]
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def _again(path: Path, names: list[str]) -> int:
    name = names[0] if names else path.absolute().parent.name
    harness(name)(path.read_bytes())
    print(f"{name}: nothing is raised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
