"""Assets that recipes refer to (synonyms, prompts, label maps), importable as `mmjax.assets`.

Datasets that users build belong in `datasets/`.
"""
