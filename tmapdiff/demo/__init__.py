"""A page in the browser: a video, a sentence, and the moments on the player's time line."""

from tmapdiff.demo.limits import DemoLimits
from tmapdiff.demo.server import launch_demo

__all__ = ["DemoLimits", "launch_demo"]
