"""Packages that lie outside flower_split and register plug-ins, as pip would leave them."""

from pathlib import Path


def install(folder: Path, name: str, plugins: dict[str, dict[str, str]], code: str = "") -> Path:
    """A module with its metadata in `folder`, which is to be put on the path.

    Args:
        folder: Where packages lie.
        name: Of module and package.
        plugins: By entry-point group: the entries' names and where they lead.
        code: The module's text.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in plugins.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    if code:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder
