"""`flower-split trunk`: a trunk as a service, apart from the ServerApp, for several runs."""

from pathlib import Path
from typing import Annotated

import typer

from flower_split.apps.commands.check import Debug
from flower_split.apps.commands.console import errors_once, quiet_libraries, usage

trunk_cli = typer.Typer(no_args_is_help=True, help="A trunk as a service for several runs.")

_LISTENS, _TLS, _BOUNDS = "Where it listens", "TLS", "Bounds"


@trunk_cli.command("serve")
def serve_command(
    model: Annotated[str, typer.Argument(help="As model.name; found by this machine.")],
    bottom: Annotated[int, typer.Option(min=0, help="Layers that silos hold at the bottom.")] = 1,
    top: Annotated[int, typer.Option(min=0, help="Layers that silos hold at the top.")] = 1,
    name: Annotated[str, typer.Option(help="By which runs name the model; as MODEL.")] = "",
    revision: Annotated[str, typer.Option(help="As model.revision.")] = "",
    task: Annotated[str, typer.Option(help="As model.task.")] = "causal-lm",
    labels: Annotated[str, typer.Option(help="As model.labels, with commas.")] = "",
    dtype: Annotated[str, typer.Option(help="Of the weights, as trunk.dtype.")] = "float32",
    attention: Annotated[str, typer.Option(help="As model.attention.")] = "auto",
    quantization: Annotated[str, typer.Option(help="As model.quantization.")] = "none",
    device: Annotated[str, typer.Option(help="As trunk.device.")] = "auto",
    devices: Annotated[
        str, typer.Option(help="As trunk.devices: several, with commas, for one trunk.")
    ] = "",
    host: Annotated[
        str, typer.Option(help="Bound for silos and health.", rich_help_panel=_LISTENS)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="For silos.", rich_help_panel=_LISTENS)
    ] = 9443,
    control_host: Annotated[
        str, typer.Option(help="Bound for strategies; as --host.", rich_help_panel=_LISTENS)
    ] = "",
    control_port: Annotated[
        int, typer.Option(min=0, max=65535, help="For strategies.", rich_help_panel=_LISTENS)
    ] = 9444,
    health_port: Annotated[
        int, typer.Option(min=0, max=65535, help="For health checks.", rich_help_panel=_LISTENS)
    ] = 9445,
    metrics: Annotated[
        str,
        typer.Option(
            help="host:port of Prometheus' metrics; empty for none.", rich_help_panel=_LISTENS
        ),
    ] = "",
    metrics_token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that their readers need, made if missing. Other addresses "
            "than loopback need one always.",
            rich_help_panel=_LISTENS,
        ),
    ] = None,
    advertise: Annotated[
        str, typer.Option(help="host:port that silos are told.", rich_help_panel=_LISTENS)
    ] = "",
    certificate: Annotated[
        str, typer.Option(help="PEM file of the service's own.", rich_help_panel=_TLS)
    ] = "",
    private_key: Annotated[str, typer.Option(help="Its key.", rich_help_panel=_TLS)] = "",
    ca: Annotated[
        str, typer.Option(help="Its CA, which silos are told to trust.", rich_help_panel=_TLS)
    ] = "",
    silo_ca: Annotated[
        str, typer.Option(help="Of silos' certificates, then demanded.", rich_help_panel=_TLS)
    ] = "",
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="PEM file of a strategy's certificate; one for each that may open runs.",
            rich_help_panel=_TLS,
        ),
    ] = None,
    strategy_ca: Annotated[
        str, typer.Option(help="Of strategies' certificates; as --ca.", rich_help_panel=_TLS)
    ] = "",
    max_runs: Annotated[
        int, typer.Option(min=1, help="Open at once.", rich_help_panel=_BOUNDS)
    ] = 8,
    max_sessions: Annotated[
        int, typer.Option(min=1, help="Open at once, of all runs.", rich_help_panel=_BOUNDS)
    ] = 64,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Of a session, at most.", rich_help_panel=_BOUNDS)
    ] = 8,
    max_message_tokens: Annotated[
        int, typer.Option(min=1, help="Of a microbatch, at most.", rich_help_panel=_BOUNDS)
    ] = 65536,
    max_cached_tokens: Annotated[
        int, typer.Option(min=1, help="Of a session, at most.", rich_help_panel=_BOUNDS)
    ] = 262144,
    run_gib: Annotated[
        float,
        typer.Option(min=0.001, help="GiB of adapters that a run has.", rich_help_panel=_BOUNDS),
    ] = 16.0,
    attester: Annotated[
        str, typer.Option(help="As trunk.attester: evidence for silos.", rich_help_panel=_TLS)
    ] = "",
    max_memory: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="GB, as trunk.max-memory, at most; 0 goes by what is free.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 0.0,
    activation_gib: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="GiB of activations that all runs keep; 0 goes by what is free.",
            rich_help_panel=_BOUNDS,
        ),
    ] = 0.0,
    grace_seconds: Annotated[
        float, typer.Option(min=0.0, help="For what is under way as it is told to end.")
    ] = 30.0,
    debug: Debug = False,
) -> None:
    """Serve the trunk of MODEL to the runs of several strategies, until SIGTERM or Ctrl-C."""
    with errors_once(debug=debug):
        quiet_libraries()
        from flower_split.apps.services.trunk_service import (
            ServicePorts,
            TrunkServiceSettings,
            serve_trunk,
        )
        from flower_split.config.address import Address, bare_host
        from flower_split.config.sections import CutConfig, ModelConfig
        from flower_split.config.trunk import check_devices
        from flower_split.control.run_bounds import RunBounds
        from flower_split.control.service_tls import ServiceTls
        from flower_split.errors import ConfigError
        from flower_split.transport.messages import SessionLimits

        several = _names(devices)
        with usage():
            if metrics:
                Address.parse(metrics, what="--metrics")
            check_devices(several, key="--device")
            if several and device != "auto":
                raise ConfigError(
                    f"--device {device} would not be used with --devices: leave one of them out"
                )
        tls = None
        if certificate or private_key:
            tls = ServiceTls.from_files(
                certificate,
                private_key,
                ca=ca,
                silo_ca=silo_ca,
                strategies=strategy or (),
                strategy_ca=strategy_ca,
            )
        elif ca or silo_ca or strategy or strategy_ca:
            raise ConfigError(
                "certificates are checked over TLS, for which the service needs its own: name it "
                "with --certificate and --private-key"
            )
        settings = TrunkServiceSettings(
            model=ModelConfig(
                name=model,
                revision=revision,
                task=task,
                labels=_names(labels),
                dtype=dtype,
                attention=attention,
                quantization=quantization,
            ),
            cuts=CutConfig(bottom_layers=bottom, top_layers=top),
            name=name,
            device=device,
            devices=several,
            ports=ServicePorts(
                data=str(Address(bare_host(host), port)),
                control=str(Address(bare_host(control_host or host), control_port)),
                health_port=health_port,
                advertise=advertise,
                metrics=metrics,
                metrics_token_file=metrics_token_file,
            ),
            tls=tls,
            bounds=RunBounds(
                max_runs=max_runs,
                max_sessions=max_sessions,
                session=SessionLimits(
                    max_in_flight=max_in_flight,
                    max_message_tokens=max_message_tokens,
                    max_cached_tokens=max_cached_tokens,
                ),
                max_bytes=int(run_gib * 2**30),
                max_memory=max_memory,
                max_activation_bytes=int(activation_gib * 2**30),
            ),
            attester=attester,
            grace=grace_seconds,
        )
        serve_trunk(settings)


def _names(text: str) -> tuple[str, ...]:
    """What is between commas."""
    return tuple(one.strip() for one in text.split(",") if one.strip())
