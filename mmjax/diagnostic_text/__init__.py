"""Diagnostic text: sentences about where and how a predicted mask differs from the true one.

Everything here runs on the host with NumPy and knows no model. `pairs` selects what to describe, a
`writer` describes it (a vision-language model, the rule-based describer, or templates), and
`mask_cache` with `update_policy` decides which pairs need a new text. The losses that use the texts
are in `mmjax.losses`.
"""
