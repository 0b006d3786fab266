"""Operations on maps that decide the speed: a plain definition of each, and fast forms beside it.

Every folder is one operation: `reference.py` defines it in plain torch, the other files compute the
same faster, and `README.md` says why. Nothing outside this package imports triton.
"""
