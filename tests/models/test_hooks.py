"""Every leaf that holds weights is called: hooks fire, and what wraps or replaces leaves works."""

from collections import Counter
from functools import cache

import pytest
import torch
from helpers.contracts import draw, randomize_
from torch import nn

from tmapdiff import PRESETS
from tmapdiff.models import MS2DTAN, MapDiffusionDecoder, MomentLocalizer
from tmapdiff.models.map_localizer import MapLocalizer

GRID = {"num_clips": 8, "num_anchors": 3, "num_scales": 2}
