"""Data from DMVR factories: `data.train="dmvr:package.module:Factory(base_dir='…')"`.

A factory (github.com/google-deepmind/dmvr) samples, decodes and shuffles by itself and returns a
stream of batches. `construct` makes it for a split, `options` maps the config to its keywords,
`factory` configures and checks it, `batches` converts its batches, and `stream` is the training and
evaluation data. The package `dmvr` itself is never imported.
"""
