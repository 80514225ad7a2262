"""A ServerApp whose strategy is the run config's."""

from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from peft import get_peft_model_state_dict

from flower_split import SplitConfig
from flower_split.adapters import save_whole
from flower_split.lowrank import Scaling
from flower_split.strategies import build_inner
from unsplit_lora.model import adapted_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = SplitConfig.from_run_config(context.run_config)
    lora = config.lora
    strategy = build_inner(config.strategy, lora)
    initial = ArrayRecord(get_peft_model_state_dict(adapted_model(config, {})))
    result = strategy.start(grid, initial, num_rounds=config.num_server_rounds)
    if config.output_dir:
        save_whole(
            result.arrays.to_torch_state_dict(),
            Path(config.output_dir, "adapter"),
            scale=Scaling(r=lora.r, alpha=lora.alpha, rslora=lora.rslora).factor,
            base_model=config.model.name,
        )
