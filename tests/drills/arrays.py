"""Arrays: .npy and .npz files of features, pairs, groups, word vectors and image sets."""

import pickle

import numpy as np

from tests.drills.kinds import Refused, kind

NO_CHECKSUM = {"*.npy": ".npy has no checksum", "*.json": "JSON has no checksum"}
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(12, 5)).astype(np.float32)


@kind(NO_CHECKSUM)
def npy(directory):
    from mmjax.formats import npy

    np.save(directory / "a.npy", TABLE)
    return lambda where: npy.open_array(where / "a.npy")


@kind()
def npz_images(directory):
    from mmjax.data.sources import registry

    images = RNG.integers(0, 256, (6, 8, 9, 3), np.uint8)
    names = np.array(["cat", "dog"])
    np.savez_compressed(
        directory / "train.npz", images=images, labels=[0, 1] * 3, class_names=names
    )

    def read(where):
        source = registry.open_source(f"npz:{where / 'train.npz'}", split="train")
        return [source.info.class_names, *map(source.fetch, range(source.num_examples))]

    return read


@kind(NO_CHECKSUM)
def pairs(directory):
    from mmjax.data.pairs import pair_files

    class Info:
        name = "toy"

    class Source:
        info, num_examples = Info, 12

    neighbors = (np.arange(12)[:, None] + [1, 2]) % 12
    similarity = np.full((12, 2), 0.5)
    pair_files.write_pairs(directory, neighbors, similarity, dataset="toy", split="train")
    return lambda where: pair_files.open_pairs(where, source=Source, split="train")


@kind(NO_CHECKSUM)
def precomputed_features(directory):
    from mmjax.data.pipeline import precomputed_features
    from mmjax.neighbors import dataset_features

    precomputed_features.write_description(directory, dataset="toy", num_examples={"train": 12})
    (directory / "train").mkdir()
    np.save(directory / "train" / "text.npy", TABLE)

    def read(where):
        opened = dataset_features.open_features(str(where), split="train")
        return opened.features, opened.dataset

    return read


@kind(NO_CHECKSUM)
def groups(directory):
    from mmjax.neighbors import dataset_features

    np.save(directory / "groups.npy", np.arange(12))
    return lambda where: dataset_features.read_groups(str(where / "groups.npy"), count=12)


@kind()
def features_cache(directory):
    from mmjax.evals.features import cache

    outputs, fields = {"image": TABLE}, {"example_id": np.arange(12), "label": np.arange(12) % 3}
    cache.write(directory / "toy.npz", outputs, fields)

    def read(where):
        found = cache.read(where / "toy.npz", ["image"])
        if found is None:
            raise Refused("recomputed")
        return found[0], {name: found[1][name] for name in fields}

    return read


@kind()
def search_snapshot(directory):
    from mmjax.neighbors import search
    from mmjax.neighbors.tile_search import BestTiles

    search._save(directory / "search.npz", "key", 3, BestTiles.empty(5, 2))

    def read(where):
        done, state = search._restore(where / "search.npz", "key")
        if state is None:
            raise Refused("a new search")
        return done, state

    return read


def word_vectors(directory, name, uncovered, write):
    def make(directory):
        from mmjax.formats import word_vectors

        write(directory / name)
        return lambda where: word_vectors.load(where / name)

    make.__name__ = directory
    return kind(uncovered)(make)


def _pickle(path):
    path.write_bytes(pickle.dumps({"word_embeddings": TABLE}, protocol=2))


word_vectors("word_vectors_npz", "words.npz", None, lambda p: np.savez(p, word_embeddings=TABLE))
word_vectors("word_vectors_npy", "words.npy", NO_CHECKSUM, lambda p: np.save(p, TABLE))
word_vectors("word_vectors_pkl", "words.pkl", {"*": "pickles have no checksum"}, _pickle)


@kind({"*": "text has no checksum"})
def word_vectors_vec(directory):
    from mmjax.sentence_encoders.word_vectors import WordVectors

    words = ["red", "blue", "circle"]
    lines = [
        " ".join([word, *(f"{x:.3f}" for x in row)])
        for word, row in zip(words, TABLE[:3], strict=True)
    ]
    (directory / "words.vec").write_text("3 5\n" + "\n".join(lines) + "\n")

    def read(where):
        encoder = WordVectors(str(where / "words.vec"))
        encoder.prepare(words)
        return encoder.embed(words)

    return read


@kind(NO_CHECKSUM)
def copied_vectors(directory):
    from mmjax.sentence_encoders import copy_vectors

    np.save(directory / "v.npy", TABLE)
    return lambda where: copy_vectors._open_vectors(str(where / "v.npy"))
