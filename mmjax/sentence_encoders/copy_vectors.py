"""Copies existing caption vectors of a .npy file: `mmjax sentences --encoder npy:FILE`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from mmjax import files
from mmjax.data.pipeline import precomputed_features
from mmjax.data.sources import captions
from mmjax.errors import UserError
from mmjax.formats import npy
from mmjax.sentence_encoders import text_features
from mmjax.sentence_encoders.text_features import Result, TextFeatures


def copy_vectors(features: TextFeatures, file: str, *, ids: str | None = None) -> Result:
    """Writes the vectors of a file as the features of a split.

    Args:
      features: The features to write.
      file: A .npy file, floating point [N, D] or [N, K, D].
      ids: A file with the file name of each vector's record, one per line; None if the vectors are
        in the order of the records.

    Raises:
      UserError: A file is missing or has another format, a vector is not finite, or the vectors do
        not fit the records.
    """
    vectors = _open_vectors(file)
    name, count = features.source.name, features.source.num_examples
    notices: list[str] = []
    if ids:
        indices, notices = _match_ids(features, ids, file=file, num_vectors=len(vectors))
    elif len(vectors) != count:
        raise UserError(
            f"{file} has {len(vectors)} vectors, but {name} has {count} records. If the vectors "
            "have another order or belong to other records too, pass the file names of their "
            "records with --ids FILE."
        )
    else:
        indices = np.arange(count)
    shape = (count, *vectors.shape[1:])
    result = precomputed_features.create_array(features.partial_path, shape)
    digest = hashlib.sha256()
    with features.bar(file) as bar:
        for first in range(0, count, text_features.CHUNK):
            part = indices[first : first + text_features.CHUNK]
            values = np.asarray(vectors[part], np.float32)
            values[part < 0] = 0
            finite = np.isfinite(values).reshape(len(part), -1).all(axis=1)
            if not finite.all():
                record = first + int(finite.argmin())
                raise UserError(
                    f"{file}: vector {indices[record]}, for record {record} of {name}, is not "
                    "finite. Compute it again."
                )
            digest.update(values.tobytes())
            result[first : first + len(part)] = values
            bar.update(len(part))
    result.flush()
    features.finish({"encoder": f"npy:{file}", "fingerprint": digest.hexdigest()[:12]})
    return Result(path=features.path, shape=list(shape), notices=notices)


def _match_ids(
    features: TextFeatures, ids: str, *, file: str, num_vectors: int
) -> tuple[np.ndarray, list[str]]:
    """Returns the index of each record's vector, -1 for none, and notices about the others."""
    names, dataset = _read_lines(ids), features.source.name
    if len(names) != num_vectors:
        raise UserError(
            f"--ids {ids} has {len(names)} lines, but {file} has {num_vectors} vectors. Write one "
            "file name per vector."
        )
    index_of = {name: index for index, name in enumerate(names)}
    if len(index_of) != num_vectors:
        duplicate = next(name for index, name in enumerate(names) if index_of[name] != index)
        raise UserError(f"--ids {ids} contains {duplicate!r} twice. Write each file name once.")
    records = range(features.source.num_examples)
    filenames = [name for _, name in captions.read_captions_and_filenames(features.source, records)]
    indices = np.array([index_of.get(name, -1) for name in filenames], np.int64)
    if (indices < 0).all():
        raise UserError(
            f"--ids {ids} contains no file name of {dataset}: its first line is {names[0]!r}, and "
            f"the first record has the file name {filenames[0]!r}."
        )
    notices = []
    if missing := int((indices < 0).sum()):
        first = filenames[int(np.argmax(indices < 0))]
        notices.append(
            f"{missing} of {len(filenames)} records of {dataset} have no vector in {file} (first: "
            f"{first!r}). Their vectors are zeros."
        )
    used = set(indices[indices >= 0].tolist())
    if surplus := num_vectors - len(used):
        first = next(name for index, name in enumerate(names) if index not in used)
        notices.append(
            f"{surplus} of {num_vectors} vectors of {file} match no record of {dataset} (first: "
            f"{first!r}). They are not used."
        )
    return indices, notices


def _open_vectors(file: str) -> np.ndarray:
    if not os.path.isfile(file):
        raise UserError(f"--encoder npy:{file}: no such file.")
    vectors = npy.open_array(file)
    fits = vectors.ndim in (2, 3) and min(vectors.shape) > 0
    if not fits or not np.issubdtype(vectors.dtype, np.floating):
        raise UserError(
            f"{file} contains {vectors.dtype} {list(vectors.shape)}; expected floating point "
            "[N, D] or [N, K, D]."
        )
    return vectors


def _read_lines(path: str) -> Sequence[str]:
    if not os.path.isfile(path):
        raise UserError(f"--ids {path}: no such file.")
    text = files.read_text(path)
    return (text if text.endswith("\n") or not text else f"{text}\n").split("\n")[:-1]
