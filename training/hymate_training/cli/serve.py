"""`hymate serve`: a fine-tuned model behind HTTP."""

import argparse
import dataclasses
from pathlib import Path

from hymate_training.cli.arguments import add_checkpoint
from hymate_training.serving.guard import ServeLimits
from hymate_training.serving.service import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="Address to listen at (default: 127.0.0.1). One that other machines reach needs the token that clients "
        "must send, in the environment's HYMATE_TOKEN.",
    )
    parser.add_argument("--port", type=int, default=8000, help="Port to listen at (default: 8000).")
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="File of the streams (safetensors), restored at the start and saved at the end and every half minute; "
        "without one they are lost when the service ends.",
    )
    texts = {
        "body_megabytes": "Size of a request at most, in MB",
        "seconds": "Seconds for sending a request, and again for its answer",
        "requests_per_second": "Requests per second of one client's address; twice that in a burst",
        "streams": "Streams held at once",
        "stream_hours": "Hours after which a stream that is not used is forgotten",
    }
    for field in dataclasses.fields(ServeLimits):
        parser.add_argument(
            f"--max-{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            dest=field.name,
            help=f"{texts[field.name]} (default: {field.default:g}).",
        )


def run(args: argparse.Namespace) -> str:
    """Serves until it is interrupted or terminated."""
    limits = ServeLimits(**{field.name: getattr(args, field.name) for field in dataclasses.fields(ServeLimits)})
    serve(args.checkpoint, args.host, args.port, limits=limits, state=args.state)
    return ""
