"""Tables of docs that a proof of each model type makes: read, written, and the command for that."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True, kw_only=True)
class ProvedTable:
    """A table at the end of a page, a line for each model type."""

    command: str
    """The script in `tests/support` that writes it."""
    page: str
    """Its file in `docs`."""
    mark: str
    """The heading above it."""
    types: Sequence[str]
    prove: Callable[[str], str]
    """The line of a type, proved in the process that calls it; a function of a module."""
    render: Callable[[Mapping[str, str]], str]
    """All of it, of its lines by model type."""

    def written(self) -> dict[str, str]:
        """The lines in the docs, by model type."""
        text = (DOCS / self.page).read_text(encoding="utf-8").partition(self.mark)[2]
        lines = re.finditer(r"^\| `([\w-]+)` \|.*$", text, re.M)
        return {match[1]: match[0] for match in lines if match[1] != "model_type"}

    def check(self, types: Sequence[str]) -> None:
        """Fail unless the lines of `types` are proved as they are written."""
        written = self.written()
        for model_type in types:
            command = f"run: python tests/support/{self.command} --write"
            assert self.prove(model_type) == written[model_type], command

    def main(self, arguments: Sequence[str]) -> None:
        """Prove the types named, or all, and print the table, or with `--write` write it."""
        types = [name for name in arguments if name != "--write"]
        lines = self.written() if types else {}
        types = types or list(self.types)
        with ProcessPoolExecutor(2) as pool:
            for model_type, line in zip(types, pool.map(self.prove, types), strict=True):
                print(line, file=sys.stderr, flush=True)
                lines[model_type] = line
        if "--write" not in arguments:
            sys.stdout.write(self.render(lines))
            return
        page = DOCS / self.page
        head = page.read_text(encoding="utf-8").split(self.mark)[0]
        page.write_text(f"{head}{self.mark}\n\n{self.render(lines)}", encoding="utf-8")
