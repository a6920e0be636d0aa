"""Convert published checkpoints to run directories, or export a run for PyTorch.

SOURCE is a TensorFlow checkpoint of VATT, or PyTorch files of TVL, OpenCLIP, FLAIR, LGSSL, a
ResNet, a MobileNetV2 or a segmentation model. The result is a run directory that any task can start
from, with a report of every parameter name. A table of word vectors is converted to an .npz file.
Code in pickles is never run.

With --to, SOURCE is a run and the result is a .safetensors or .pth file.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="TensorFlow checkpoint: its prefix (…/ckpt-500000), .index file or directory; "
        "PyTorch: a .pth, .pt, .bin, .ckpt or .safetensors file of TVL, of OpenCLIP (or both), of "
        "FLAIR, of a segmentation model or of an image backbone; a .pkl file of word embeddings; "
        "with --to: a run directory",
    )
    parser.add_argument(
        "--out", metavar="PATH", help="run directory, .npz, .safetensors or .pth file to write"
    )
    parser.add_argument(
        "--inspect", action="store_true", help="only describe SOURCE and its contents"
    )
    parser.add_argument("--json", action="store_true", help="with --inspect: print JSON")
    parser.add_argument(
        "--to",
        choices=("timm", "tvl", "open_clip", "torchvision", "flair", "segmentation"),
        help="export a run with the parameter names of timm (touch encoder), TVL (touch encoder), "
        "OpenCLIP (other towers), torchvision (image backbone) or FLAIR (a run of --task=flair), "
        "or of the library of a segmentation model, torchvision or segmentation_models_pytorch",
    )
    parser.add_argument(
        "--head-dim",
        type=int,
        metavar="N",
        help="features per attention head (default: from T5's position table, otherwise 64)",
    )
    parser.add_argument(
        "--quick-gelu",
        action="store_true",
        help="CLIP was trained with x·sigmoid(1.702 x) instead of GELU, as OpenAI's models were",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="parameter paths that may be missing, unknown or of a different shape (repeatable)",
    )
    parser.add_argument(
        "--vocab",
        metavar="FILE",
        help="vocabulary that SOURCE was trained with: checked against its token embedding, and "
        "saved with the run (VATT: misc/howto100m_en.txt, CLIP: bpe_simple_vocab_16e6.txt.gz)",
    )


def run(args: argparse.Namespace) -> int:
    """Converts, exports or describes; returns 1 if --inspect finds mismatches."""
    from mmjax.convert import dispatch

    result = dispatch.convert(
        args.sources,
        out=args.out,
        to=args.to,
        inspect=args.inspect,
        as_json=args.json,
        head_dim=args.head_dim,
        quick_gelu=args.quick_gelu,
        allow=args.allow,
        vocab=args.vocab,
    )
    print(result.message)
    return int(result.has_mismatches)
