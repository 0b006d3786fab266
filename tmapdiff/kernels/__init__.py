"""Performance-critical operations on maps: a plain definition of each, and fast implementations.

Each folder is one operation: `reference.py` defines it in plain torch, the other files are faster
implementations, and `README.md` derives them. Nothing outside this package imports triton.

The backend is chosen by the argument `backend`, then by the environment variable `TMAPDIFF_BACKEND`
(such as `reference`, or `map_conv=direct,gate=reference`), then by estimate or by timing. Timed
choices are cached in `kernels.json` in the folder `TMAPDIFF_CACHE_DIR`, or in the user's cache.

Fast implementations have a hand-written first gradient. Second and forward derivatives and
`torch.func` use the definition (`_derivatives.py`).
"""
