"""Inspection of videos, which decodes every frame."""

from pathlib import Path
from typing import Any

from tmapdiff.data._video_ids import check_video_id
from tmapdiff.errors import TmapdiffError
from tmapdiff.inspection.report import Finding, Inspection, OnItem, about, spread
from tmapdiff.video import VideoInfo, open_video
from tmapdiff.video.extraction import find_videos, list_suffixes


def inspect_videos(path: Path, on_item: OnItem) -> tuple[Inspection, dict[str, float]]:
    """Inspect a video, or all videos in a folder; return their durations too."""
    files, skipped = find_videos(path) if path.is_dir() else ([path], {})
    durations: dict[str, float] = {}
    lasting: list[float] = []  # of all files, as several may have one id
    shown: list[VideoInfo] = []
    findings: list[Finding] = []
    for file in files:
        on_item()
        try:
            check_video_id(str(file), file.stem)
            with open_video(file) as video:
                shown.append(video.info)
                for _ in video.sample(fps=1):
                    pass
                durations[file.stem] = video.duration or 0.0
                lasting.append(durations[file.stem])
                if video.damage:
                    findings.append(Finding("damaged video", f"{file.name}: {video.damage}"))
        except TmapdiffError as error:
            findings.append(Finding("not a video", str(error), (file.stem,)))
    stems = [file.stem for file in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    findings += about("duplicates", "{n} ids belong to several files", twice)
    facts: dict[str, Any] = {
        "videos": len(files),
        "duration": spread(lasting, " s"),
        "frames per second": spread([one.frame_rate for one in shown if one.frame_rate]),
        "size": _counted([f"{one.width} x {one.height}" for one in shown]),
        "rotation": _counted([f"{one.rotation}" for one in shown]),
        "codec": _counted([f"{one.codec}" for one in shown]),
        "bytes": sum(file.stat().st_size for file in files),
    }
    if skipped:
        facts["skipped files"] = list_suffixes(skipped)
    found = Inspection(path, "videos", {path.resolve().name: facts}, tuple(findings))
    return found, durations


def _counted(values: list[str]) -> str:
    kinds = dict.fromkeys(values)
    if len(kinds) == 1:
        return values[0]
    return ", ".join(f"{kind} ({values.count(kind)})" for kind in kinds) or "none"
