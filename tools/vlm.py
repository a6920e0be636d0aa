"""Check a server with vision-language models, or make it download a model.

`check` prints the API, version and models of a server. With --model, it also asks the model about a
drawn example and prints the answer; the exit status is 1 if the answer is not usable. `pull` makes
an Ollama server download a model.

Servers that need a key read it from the environment variable MMJAX_VLM_API_KEY.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("action", choices=("check", "pull"), help="what to do; see above")
    parser.add_argument(
        "--url",
        default="http://localhost:11434",
        metavar="URL",
        help="address of the server (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="NAME", help="the model to try or to download")
    parser.add_argument(
        "--api",
        default="auto",
        choices=("auto", "ollama", "openai"),
        help="API of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=180.0,
        metavar="S",
        help="seconds to wait for an answer, including loading the model (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what the server offers, or pulls the model."""
    from mmjax.diagnostic_text.vlm import check, servers
    from mmjax.diagnostic_text.vlm.settings import Connection
    from mmjax.diagnostic_text.writer import Text
    from mmjax.errors import UserError

    if args.action == "pull":
        if not args.model:
            raise UserError("pull needs --model NAME, the model to download.")
        return _pull(args.url, args.model)
    connection = Connection(timeout=args.timeout)
    print(check.describe_server(servers.inspect(args.url, args.api, connection)))
    if not args.model:
        return 0
    trial = check.try_model(args.url, args.model, args.api, connection)
    if isinstance(trial.result, Text):
        print(f"{args.model} answered in {trial.seconds:.1f} s: {trial.result.text}")
        return 0
    print(f"{args.model} gave no usable answer ({trial.result.reason}): {trial.result.message}")
    return 1


def _pull(url: str, model: str) -> int:
    import tqdm

    from mmjax.diagnostic_text.vlm import servers

    with tqdm.tqdm(unit="B", unit_scale=True) as bar:

        def show(status: str, completed: int, total: int) -> None:
            bar.set_description(status)
            bar.total, bar.n = total or None, completed
            bar.refresh()

        servers.pull(url, model, show)
    print(f"{url} has {model}.")
    return 0
