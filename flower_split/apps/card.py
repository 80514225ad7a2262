"""The model card of what a run has learned, from the run's settings and result."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from flower_split.adapters import AdapterPlan
from flower_split.apps.prompt_format import prompt_format
from flower_split.apps.results import round_result
from flower_split.config.tasks import CAUSAL_LM
from flower_split.lowrank import combined_ranks
from flower_split.reporting.cut_text import layers_at_silos
from flower_split.reporting.model_card import ModelCard, public_name
from flower_split.reporting.report import by_silo, to_markdown
from flower_split.reporting.result import RunResult
from flower_split.strategies import SplitResult


def model_card(
    result: SplitResult,
    *,
    settings: Mapping[str, Any],
    plan: AdapterPlan,
    adapter: Mapping[str, Tensor],
    server_round: int,
    versions: Mapping[str, str],
    privacy: Sequence[str] = (),
) -> ModelCard:
    """The card of the adapter after a round.

    Args:
        result: Of the run, up to that round at least.
        settings: Every run-config key, see `flower_split.config.resuming`.
        plan: Of the adapter.
        adapter: Its tensors, folded ones among them.
        server_round: Whose metrics and silos are told.
        versions: Of the packages that the run used.
        privacy: What may be said of it, sentence by sentence.
    """
    metrics = {
        **(result.train_metrics_clientapp.get(server_round) or {}),
        **(result.evaluate_metrics_clientapp.get(server_round) or {}),
    }
    bottom, top = layers_at_silos(settings)
    return ModelCard(
        base_model=public_name(str(settings["model.name"])),
        revision=str(settings["model.revision"]),
        bottom_layers=bottom,
        top_layers=top,
        trunk_adapters=str(settings["trunk.adapters"]),
        strategy=str(settings["strategy.name"]),
        personal=str(settings.get("strategy.personal") or ""),
        rounds=server_round,
        rank=plan.r,
        alpha=plan.alpha,
        rslora=plan.rslora,
        method=plan.described,
        task=str(settings.get("model.task") or CAUSAL_LM),
        labels=str(settings.get("model.labels") or "").replace(",", ", "),
        module_ranks=set(combined_ranks(adapter).values()) if plan.is_plain else (),
        examples={
            record.silo: int(count)
            for record in result.of("train", server_round)
            if isinstance(count := record.metrics.get("num-examples"), int)
        },
        metrics={name: float(v) for name, v in metrics.items() if not isinstance(v, list)},
        versions=versions,
        results=to_markdown([by_silo(_so_far(result, settings, server_round))]),
        prompt_format=prompt_format(settings),
        privacy=privacy,
    )


def _so_far(result: SplitResult, settings: Mapping[str, Any], server_round: int) -> RunResult:
    """The rounds up to the exported one."""
    numbers = sorted({one.server_round for one in result.history})
    rounds = [round_result(result, number) for number in numbers if number <= server_round]
    return RunResult(rounds=rounds, config=settings)
