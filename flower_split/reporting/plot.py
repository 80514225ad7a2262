"""The plot of a run: training and held-out loss by round, one line a silo."""

from io import BytesIO
from pathlib import Path

from flower_split.private_files import make_folder, write_whole
from flower_split.reporting.result import RunResult


def plot_losses(result: RunResult, path: Path) -> None:
    """Draw the losses of `result` into a PNG at `path`, in a folder that is made if missing.

    Solid lines are the federated run, dashed ones each silo alone. Needs no display, and may be
    called from any thread.
    """
    # Imported late: drawing is the last thing a run does, and most runs of a process draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for panel, evaluate in zip(panels, (False, True), strict=True):
        panel.set_title("held-out loss" if evaluate else "training loss")
        panel.set_xlabel("round")
        panel.set_ylabel("nats per token")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        for index, silo in enumerate(result.silos):
            for alone in (False, True):
                points = result.losses(silo, evaluate=evaluate, alone=alone)
                if points:
                    panel.plot(
                        *zip(*points, strict=True),
                        color=f"C{index % 10}",
                        linestyle="--" if alone else "-",
                        marker="o",
                        markersize=4,
                        label=f"silo {silo}" + (", alone" if alone else ""),
                    )
        if panel.lines:
            panel.legend()
    drawn = BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    make_folder(path.parent)
    write_whole(path, drawn.getvalue())
