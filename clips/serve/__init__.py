"""A trained system behind HTTP: clips in, the answers of `deepintuit predict` out, as whole rows or as they come.

- `batches`  the worker that owns the models, and the line before it
- `http`     addresses, keys, uploads, events

TLS is a proxy's work, and nothing of what was asked is kept. See docs/serve.md.
"""
