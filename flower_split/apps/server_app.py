"""The ready-made ServerApp: hosts the trunk, runs the rounds, saves what came out."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config describes, from the check of its keys to the saved adapter."""
    # Imported late, because `flwr run` imports this module too, only to find `app`.
    from flower_split.apps.server_run import serve_run

    serve_run(grid, context.run_config)
