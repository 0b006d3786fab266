"""Operations on maps that decide the speed: a plain definition of each, and fast forms beside it.

Every folder is one operation: `reference.py` defines it in plain torch, the other files compute the
same faster, and `README.md` says why. Nothing outside this package imports triton.

Which one runs is chosen by the argument `backend`, by the environment variable `TMAPDIFF_BACKEND`
(such as `reference`, or `map_conv=direct,gate=reference`), by arithmetic, or by the clock; what the
clock chose is kept in `kernels.json` in the folder `TMAPDIFF_CACHE_DIR`, or in the user's cache.

Fast forms have one gradient, written by hand; second derivatives, forward ones and those of
`torch.func` are what torch derives from the definition (`_derivatives.py`).
"""
