"""Vocabularies and synonyms."""

import gzip
import json

from tests.drills.kinds import kind

TEXT = {"*.txt": "text has no checksum", "*.json": "JSON has no checksum"}
CAPTIONS = ["a red circle moves up", "Blue square, down."]


def tokenizer(name, file, write, uncovered=TEXT, merges=""):
    def make(directory):
        from mmjax.data.text import tokenizers

        write(directory)

        def read(where):
            options = {"merges": str(where / merges)} if merges else {}
            made = tokenizers.make_tokenizer(name, vocab=str(where / file), **options)
            return made.vocab_size, made.encode(CAPTIONS)

        return read

    make.__name__ = f"vocabulary_{name}_{file.rpartition('.')[2]}"
    return kind(uncovered)(make)


def _word(directory):
    from mmjax.data.text import word_vocab

    words = word_vocab.build_word_vocab(CAPTIONS)
    word_vocab.write_word_vocab(directory / "vocab.txt", words)


def _bert(directory):
    words = "[PAD] [UNK] [CLS] [SEP] a red blue circle ##s up".split()
    (directory / "bert.txt").write_text("\n".join(words) + "\n")


MERGES = ["r e", "re d</w>", "u p</w>"]


def _letters():
    from mmjax.data.text import clip_bpe

    letters = list(clip_bpe._letter_bytes())
    ends = [letter + "</w>" for letter in letters]
    joined = ["".join(pair.split()) for pair in MERGES]
    return [*letters, *ends, *joined, "<|startoftext|>", "<|endoftext|>"]


def _clip(directory):
    ids = {token: index for index, token in enumerate(_letters())}
    (directory / "vocab.json").write_text(json.dumps(ids))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")


tokenizer("word", "vocab.txt", _word)
tokenizer("bert", "bert.txt", _bert)
tokenizer("clip", "vocab.json", _clip, merges="merges.txt")


@kind()
def clip_gzip(directory):
    from mmjax.data.text import clip_bpe

    with gzip.open(directory / "bpe.txt.gz", "wt") as file:
        lines = [f"{i} {i}" for i in range(60_000)]
        file.write("#version\n" + "\n".join(MERGES + lines) + "\n")
    return lambda where: clip_bpe.read_files(str(where / "bpe.txt.gz"), "")


@kind(TEXT)
def synonyms(directory):
    from mmjax.data.text import synonyms

    table = {"rough": ["coarse", "bumpy"], "soft": ["fluffy"]}
    (directory / "synonyms.json").write_text(json.dumps(table))
    return lambda where: synonyms.load_synonyms(where / "synonyms.json")


@kind({"*": "sentencepiece models have no checksum"})
def sentencepiece(directory):
    import io

    from mmjax.data.text import tokenizers

    spm = __import__("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (directory / "text.model").write_bytes(model.getvalue())

    def read(where):
        made = tokenizers.make_tokenizer("sentencepiece", vocab=str(where / "text.model"))
        return made.vocab_size, made.encode(CAPTIONS)

    return read
