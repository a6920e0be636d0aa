"""Keywords in captions."""

from mmjax.evals import captions


def test_captions_are_split_into_keywords():
    assert captions.keywords("Soft, black ice, and gray.\n") == ["soft", "black ice", "gray"]
    assert captions.keywords("soft, and sandy") == captions.keywords("soft and sandy,")
    assert captions.keywords("sandy, android.") == ["sandy", "android"]
    assert captions.keywords(" .") == []
    assert captions.all_keywords(["b, a", "a - b. c", "a-b"]) == ["a", "a - b c", "a-b", "b"]
    table = captions.keyword_table(["fabric - like, wet", ""], ["fabric-like", "we", "wet"])
    assert table.tolist() == [[True, False, True], [False] * 3]
