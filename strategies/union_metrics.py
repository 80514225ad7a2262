"""Metrics of all silos' data together, where an average of the silos' own is something else."""

from flwr.app import MetricRecord

from flower_split.config.tasks import CLASSIFYING, MASKED_LM
from flower_split.optimization.label_counts import from_metrics, macro_f1
from flower_split.optimization.loss import perplexity
from flower_split.reporting.result import EVAL_LOSS


def of_union(metrics: MetricRecord, task: str) -> MetricRecord:
    """The averages `metrics`, with F1 and perplexity as they are of the silos' data in one.

    Args:
        metrics: As the inner strategy averaged them, weighted by the numbers of predictions.
        task: The run's.
    """
    counts = from_metrics(metrics) if task in CLASSIFYING else None
    if counts is not None:
        metrics["f1"] = macro_f1(counts)
    loss = metrics.get(EVAL_LOSS)
    if task == MASKED_LM and "perplexity" in metrics and isinstance(loss, float):
        metrics["perplexity"] = perplexity(loss)
    return metrics
