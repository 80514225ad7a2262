"""The whole benchmark: every part in a process of its own, one after the other.

The last line of the output is a JSON object with the ratios of all parts; one that a part did not
give is null, and the exit status is then 1.
"""

import json
import subprocess
import sys
from pathlib import Path

import typer
from throughput.part import OUTPUTS, Out, Toy

from flower_split.private_files import make_folder

FOLDER = Path(__file__).parent

RATIOS: dict[str, str] = {
    "split_over_unsplit": "split_over_unsplit",
    "silos8_over_unsplit": "many_silos",
    "batched_over_serial": "many_silos",
    "trunk_memory_32_over_1": "many_silos",
    "int8_bytes_over_fp32": "wires",
    "codec_share_of_step": "wires",
    "wan_over_bound": "slow_networks",
}
"""Every ratio of the last line, and the part that it is from."""
PARTS = (
    "split_over_unsplit",
    "many_silos",
    "against_today",
    "wires",
    "slow_networks",
    "where_time_goes",
)
"""What is run, in this order: scripts of this folder."""


def run_part(name: str, out: Path, *, toy: bool) -> dict[str, float]:
    """The ratios of a part; none where it failed. What it prints is printed."""
    print(f"== {name}", flush=True)
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--out", str(out)]
    last = ""
    with subprocess.Popen(
        [*command, *(["--toy"] if toy else [])], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line
    if process.returncode:
        print(f"{name} failed with status {process.returncode}", flush=True)
        return {}
    ratios: dict[str, float] = json.loads(last)
    return ratios


def main(toy: Toy = False, out: Out = OUTPUTS) -> None:
    """Run every part, and print their ratios together."""
    found: dict[str, float] = {}
    for name in PARTS:
        found |= run_part(name, out, toy=toy)
    ratios = {name: found.get(name) for name in RATIOS}
    make_folder(out)
    (out / "ratios.json").write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(ratios))
    raise typer.Exit(int(None in ratios.values()))


if __name__ == "__main__":
    typer.run(main)
