"""A web page to find moments in videos and transcripts."""

from tmapdiff.demo.limits import DemoLimits
from tmapdiff.demo.server import launch_demo

__all__ = ["DemoLimits", "launch_demo"]
