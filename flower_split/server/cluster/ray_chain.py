"""A run's trunk on Ray: its stages and replicas are placed, loaded, and ended with it."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from flower_split.config.sections import SplitConfig
from flower_split.errors import ConfigError, TrunkUnavailableError
from flower_split.segments import Cuts, layers_path, load_skeleton
from flower_split.segments.refusals import context_length
from flower_split.server.cluster.cluster import connected, is_simulation
from flower_split.server.cluster.ray_stage import RayStage, Reference
from flower_split.server.cluster.stage_actor import StageActor
from flower_split.server.cluster.stage_job import StageFacts, StageJob
from flower_split.server.handshake import check_wire
from flower_split.server.hosting.resolving import ResolvedRun, engine_settings
from flower_split.server.stages.chain import Chain, ChainModel, StagePlace, check_chain_can
from flower_split.server.stages.chain_limits import chain_limits
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.placement import apportioned, check_stages

logger = logging.getLogger(__name__)

PLACE_SECONDS = 60.0
"""Within which the cluster must have room for a replica."""


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """What an actor reserves."""

    cpus: int
    gpus: int


@contextmanager
def ray_chain(
    config: SplitConfig, resolved: ResolvedRun, *, pack: str = ""
) -> Iterator[Chain[Reference]]:
    """The trunk of a run as actors, which end with the context.

    Args:
        config: The run's.
        resolved: What its adapter is.
        pack: Digest of what is delivered to silos; empty for nothing.

    Raises:
        ConfigError: the cluster is not there, or has no room; or this cannot be done exactly.
        ModelError: a stage cannot load its layers.
        TrunkUnavailableError: a stage ended as it was loaded.
    """
    trunk, cuts = config.trunk, resolved.cuts
    settings = engine_settings(config, resolved, pack=pack)
    check_stages(cuts, trunk.stages, key="trunk.stages")
    parts = apportioned(cuts, [1.0] * trunk.stages)
    count = trunk.stages * trunk.replicas
    with connected(count) as ray:
        # Simulated silos reserve all of their cluster's CPUs.
        needs = _Needs(cpus=0 if is_simulation() else 1, gpus=_gpus(ray, config, count))
        groups: list[Any] = []
        actors: list[Any] = []
        try:
            groups += [_group(ray, needs, trunk.stages) for _ in range(trunk.replicas)]
            _await_groups(ray, groups, needs, count)
            model = config.model
            skeleton = load_skeleton(model.name, revision=model.revision, task=model.as_task())
            jobs = _jobs(config, settings, parts, layers_path(skeleton), needs)
            replicas = [
                [
                    RayStage(
                        _actor(ray, group, number, needs, actors),
                        job,
                        part.trunk_range,
                        patience=trunk.service_timeout,
                    )
                    for number, (job, part) in enumerate(zip(jobs, parts, strict=True))
                ]
                for group in groups
            ]
            yield _chain(config, settings, cuts, skeleton, replicas)
        finally:
            _end(ray, actors, groups)


def _chain(
    config: SplitConfig,
    settings: EngineSettings,
    cuts: Cuts,
    skeleton: PreTrainedModel,
    replicas: Sequence[Sequence[RayStage]],
) -> Chain[Reference]:
    facts = [_first_facts(stage) for stages in replicas for stage in stages]
    for stages in replicas:
        for stage in stages:
            told = stage.facts
            if told is not None:
                logger.info("%s is on %s, %s", stage.name, told.node, told.device)
    terms = settings.terms(
        fingerprint=facts[0].fingerprint, cuts=cuts, weights_dtype=facts[0].dtype
    )
    check_chain_can(terms, replicas=len(replicas))
    if len({one.fingerprint for one in facts}) > 1:
        raise ConfigError(
            "the machines of the cluster have different models under model.name "
            f"{config.model.name!r}: give all of them the same files"
        )
    check_wire(config.wire)
    place = StagePlace(dtype=getattr(torch, facts[0].dtype), device=torch.device("cpu"))
    return Chain(
        replicas,
        ChainModel(
            layers_path=layers_path(skeleton),
            model_type=skeleton.config.model_type,
            hidden_size=int(skeleton.config.hidden_size),
            context_length=context_length(skeleton.config),
            entry=place,
            exit=place,
        ),
        terms,
        limits=chain_limits(
            settings.limits, terms.plan, replicas[0], shares_adapter=settings.shares_adapter
        ),
        keep_optimizer=settings.keep_optimizer,
        patience=config.trunk.service_timeout,
    )


def _first_facts(stage: RayStage) -> StageFacts:
    try:
        facts = stage.load()
    except TrunkUnavailableError as error:
        raise ConfigError(
            f"{stage.name} could not be started on the Ray cluster: see that every machine of it "
            f"has flower-split {version('flower-split')}, memory for the stage, and Ray's own logs"
        ) from error
    if facts.version != version("flower-split"):
        raise ConfigError(
            f"the machine {facts.node} of the Ray cluster has flower-split {facts.version}, and "
            f"this one {version('flower-split')}: install the same on all"
        )
    return facts


def _jobs(
    config: SplitConfig,
    settings: EngineSettings,
    parts: Sequence[Cuts],
    path: str,
    needs: _Needs,
) -> list[StageJob]:
    return [
        StageJob(
            model=config.model,
            dtype=config.trunk.dtype or config.model.dtype,
            autocast=config.trunk.autocast,
            device="cuda" if needs.gpus else "cpu",
            cuts=part,
            is_last=part is parts[-1],
            settings=settings.of_stage(part.trunk_range, path),
            threads=torch.get_num_threads(),
        )
        for part in parts
    ]


def _gpus(ray: Any, config: SplitConfig, count: int) -> int:
    """GPUs of a stage: as `trunk.device` says, or one each where the cluster has so many."""
    device, there = config.trunk.device, int(ray.cluster_resources().get("GPU", 0))
    if device == "auto":
        return int(there >= count)
    if device == "cuda" and there < count:
        raise ConfigError(
            f"trunk.device is 'cuda', and trunk.stages x trunk.replicas is {count} stages with a "
            f"GPU each: the cluster has {there}. Lower them, add machines, or set trunk.device to "
            "'cpu'"
        )
    return int(device == "cuda")


def _group(ray: Any, needs: _Needs, stages: int) -> Any:
    """Room for a replica; None where its stages reserve nothing."""
    wanted: dict[str, float] = {"CPU": needs.cpus, "GPU": needs.gpus}
    bundle = {kind: many for kind, many in wanted.items() if many}
    if not bundle:
        return None
    return ray.util.placement_group([bundle for _ in range(stages)], strategy="PACK")


def _await_groups(ray: Any, groups: Sequence[Any], needs: _Needs, count: int) -> None:
    end = time.monotonic() + PLACE_SECONDS
    for number, group in enumerate(groups):
        if group is None:
            continue
        # A cluster that can never have the room is found out in no time.
        most = ray.cluster_resources()
        wanted = {"CPU": count * needs.cpus, "GPU": count * needs.gpus}
        lacking = [kind for kind, many in wanted.items() if many > most.get(kind, 0)]
        if lacking or not group.wait(max(0.1, end - time.monotonic())):
            free = ray.available_resources()
            told = ", ".join(
                f"{int(most.get(kind, 0))} {kind} of which {int(free.get(kind, 0))} are free"
                for kind in wanted
                if wanted[kind]
            )
            raise ConfigError(
                f"trunk.stages x trunk.replicas is {count} stages, of {needs.cpus} CPU and "
                f"{needs.gpus} GPU each, and the Ray cluster has {told}: replica {number + 1} of "
                f"{len(groups)} finds no place. Lower trunk.stages or trunk.replicas, or add "
                "machines"
            )


def _actor(ray: Any, group: Any, bundle: int, needs: _Needs, actors: list[Any]) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place: Any = "DEFAULT"
    if group is not None:
        place = PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=bundle
        )
    made = (
        ray.remote(StageActor)
        .options(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=1000,
            # Or a backward pass that waits for its gradient holds up the forward pass behind it.
            allow_out_of_order_execution=True,
            scheduling_strategy=place,
        )
        .remote()
    )
    actors.append(made)
    return made


def _end(ray: Any, actors: Sequence[Any], groups: Sequence[Any]) -> None:
    for actor in actors:
        _quietly(lambda actor=actor: ray.kill(actor, no_restart=True))
    for group in filter(None, groups):
        _quietly(lambda group=group: ray.util.remove_placement_group(group))


def _quietly(work: Any) -> None:
    try:
        work()
    except Exception as error:
        logger.info("a part of the trunk on Ray was gone already: %s", type(error).__name__)
