"""`pipeline serve`: serve a verified bundle over HTTP and gRPC.

Takes a bundle and options; needs no torch.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import options
from pipeline.cli.console import Console

if TYPE_CHECKING:
    from deploy.server.one_process import ServeOptions

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("serve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", default="auto", metavar="RUNTIME", show_default=True, help="What runs the model; auto takes the first that can.")
@click.option("--form", type=click.Choice(["auto", "exact", "float32"]), default="auto", help="auto: exact if the bundle has it.")
@click.option("--batching", type=click.Choice(["exact", "fast"]), default="exact", help="fast: in float32, neighbours in a batch may change bits.")
@click.option("--name", help="The model's name for clients.  [default: the network's]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port for HTTP; 0 chooses one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="The port for gRPC; 0 chooses one.")
@click.option("--no-grpc", is_flag=True, help="HTTP only.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Sessions that run side by side in a process.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on the same port.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="Threads of a session.  [default: the cores, shared out]")
@click.option("--max-batch-size", type=click.IntRange(1, 4096), default=64, show_default=True)
@click.option("--max-request-rows", type=click.IntRange(1, 65536), default=1024, show_default=True, help="A larger request is refused.")
@click.option("--max-queue-delay-microseconds", type=click.IntRange(0, 10_000_000), default=0, show_default=True, help="How long to wait for others.")
@click.option("--max-queue-size", type=click.IntRange(1, 1_000_000), default=128, show_default=True, help="Requests that may wait; then 503.")
@click.option("--timeout", type=click.FloatRange(0.001, 3600), default=30.0, show_default=True, help="Seconds until a request gets 504.")
@click.option("--max-connections", type=click.IntRange(1, 65536), default=1024, show_default=True)
@click.option("--recheck", type=click.FloatRange(0, 1), default=0.0, metavar="SHARE", help="Compute this share again, alone, and compare bits.")
@click.option("--watch", is_flag=True, help="Change to a new bundle in the folder, if it verifies.")
@click.option("--unverified", is_flag=True, help="Serve also what does not verify here, and say so in each answer.")
@click.option("--token-file", type=_FILE, help="A file with the bearer token that clients must send.")
@click.option("--tls-certificate", type=_FILE, help="Certificate for HTTPS and gRPC over TLS, with --tls-key.")
@click.option("--tls-key", type=_FILE)
@click.option("--metrics-compat", type=click.Choice(["triton"]), help="Metrics under Triton's names too.")
@click.option("--otlp", metavar="URL", help="Send a trace of each request to this OpenTelemetry collector.")
@click.option("--drain-delay", type=click.FloatRange(0, 3600), default=0.0, help="Seconds from losing readiness to the end of listening.")
@click.option("--drain-timeout", type=click.FloatRange(0, 3600), default=30.0, show_default=True, help="Seconds for the last answers.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
@options.as_json
@click.pass_obj
def serve(console: Console, /, log_level: str, **chosen: Any) -> None:
    """Serve a verified bundle over the Open Inference Protocol."""
    try:
        from deploy.server.logs import start_log
        from deploy.server.processes import Ready
        from deploy.server.processes import serve as serve_bundle
    except ModuleNotFoundError as error:
        from export.errors import NotHereError

        raise NotHereError(f"serving needs {error.name}, which is not installed; pip install 'samegraph[serve]'") from error
    start_log(log_level)
    request = _request(chosen)
    if request.is_open and request.token is None:
        console.say(f"warning: {request.host} can be reached from other machines and no --token-file is given; anybody there can ask")

    def tell(ready: Ready) -> None:
        with suppress(OSError):  # a terminal that is gone or a full disk must not end a server that is ready
            say(ready)

    def say(ready: Ready) -> None:
        verified = "verified here" if ready.verified else "UNVERIFIED"
        console.say(f"serving {ready.name}, {verified}: {ready.why}")
        console.say(f"ready: {ready.url}/v2/models/{ready.name}" + (f", gRPC {ready.grpc}" if ready.grpc else ""))
        console.result({"url": ready.url, "grpc": ready.grpc, **ready.facts}, "")

    serve_bundle(request, tell)


def _request(chosen: dict[str, Any]) -> ServeOptions:
    from deploy.server.http import HttpOptions
    from deploy.server.model import ModelOptions
    from deploy.server.one_process import ServeOptions
    from deploy.server.service import ServiceOptions

    if (chosen["tls_certificate"] is None) != (chosen["tls_key"] is None):
        raise click.UsageError("--tls-certificate and --tls-key go together: give both or neither")
    if chosen["recheck"] and chosen["batching"] == "fast":
        raise click.UsageError("--recheck compares bits, which --batching fast does not keep: leave out one of them")
    if "," in str(chosen["name"] or "") or "/" in str(chosen["name"] or ""):
        raise click.UsageError(f"--name {chosen['name']!r} cannot stand in a path; leave out '/' and ','")
    return ServeOptions(
        bundle=chosen["bundle"],
        model=ModelOptions(
            **{name: chosen[name] for name in ("runtime", "form", "batching", "workers", "threads", "max_batch_size", "unverified", "name")},
            max_rows=chosen["max_request_rows"],
        ),
        service=ServiceOptions(
            max_queue_delay=chosen["max_queue_delay_microseconds"] / 1e6,
            **{name: chosen[name] for name in ("max_queue_size", "timeout", "recheck")},
        ),
        http=HttpOptions(most_connections=chosen["max_connections"]),
        grpc_port=None if chosen["no_grpc"] else chosen["grpc_port"],
        token=None if chosen["token_file"] is None else _token(chosen["token_file"]),
        certificate=None if chosen["tls_key"] is None else (chosen["tls_certificate"], chosen["tls_key"]),
        metrics_compat=chosen["metrics_compat"] == "triton",
        watch=1.0 if chosen["watch"] else None,
        **{name: chosen[name] for name in ("host", "port", "otlp", "drain_delay", "drain_timeout", "processes")},
    )


def _token(path: Path) -> str:
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not token or not token.isascii() or " " in token:
        raise click.UsageError(f"{path} does not hold one token of ASCII characters without spaces")
    return token
