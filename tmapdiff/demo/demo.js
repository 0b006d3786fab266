// Draws the map and the timeline from the JSON of tmapdiff/demo/answers.py, without libraries.
window.tmapdiffDemo = (() => {
  "use strict";
  const RAMP = [ // viridis
    [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
    [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
  ];
  let answer = null; // the present answer
  let timeline = null; // the element below the player
  let lines = []; // start, end and element of each line of a transcript
  let stopAt = null; // time in seconds at which the player stops after a jump

  const video = () => document.querySelector("#player video");
  const seconds = (value) => {
    if (answer && answer.duration < 90) return `${value.toFixed(1)} s`;
    const whole = Math.floor(value);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
  };
  const between = (one) => `${seconds(one.start)} – ${seconds(one.end)}`;
  const percent = (value) => `${(100 * value).toFixed(3)}%`;

  function ticks(total, most) {
    const steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600];
    const step = steps.find((one) => total / one <= most) || 7200;
    const label = (time) => (step < 60 ? `${time} s` : `${time / 60} min`);
    const count = Math.floor(total / step) + 1;
    return Array.from({ length: count }, (_, at) => [(at * step) / total, label(at * step)]);
  }

  function make(kind, name, parent, text) {
    const element = document.createElement(kind);
    element.className = name;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function show(moment) { // the lines of a transcript
    const inside = lines.filter((one) => isInside(one, moment));
    for (const one of lines) one.element.classList.toggle("now", inside.includes(one));
    if (inside.length) { // not by scrollIntoView, which would scroll the page
      const [{ element }] = inside;
      element.parentElement.scrollTo({ top: element.offsetTop - 40, behavior: "smooth" });
    }
  }

  function jump(start, end) {
    show({ start, end });
    const player = video();
    if (!player) return;
    stopAt = end;
    player.currentTime = start;
    player.play().catch(() => {});
    follow();
  }

  // Whether a line and a moment overlap by half of either.
  function isInside(line, one) {
    const overlap = Math.min(line.end, one.end) - Math.max(line.start, one.start);
    return 2 * overlap >= Math.min(line.end - line.start, one.end - one.start);
  }

  function highlight() {
    for (const line of lines) {
      const at = answer ? answer.moments.findIndex((one) => isInside(line, one)) : -1;
      line.element.className = at < 0 ? "cue" : "cue found";
      line.element.style.setProperty("--strength", at ? "0.35" : "1");
      line.element.title = at < 0 ? "" : `moment ${at + 1}`;
    }
    const [best] = answer ? answer.moments : [];
    if (best) show(best);
  }

  function color(share) {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
    const low = Math.min(Math.floor(place), RAMP.length - 2);
    return RAMP[low].map((one, at) => Math.round(one + (place - low) * (RAMP[low + 1][at] - one)));
  }

  const decode = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));

  // Timeline -------------------------------------------------------------------------------------

  function follow() {
    const player = video();
    if (!timeline || !player || !answer) return;
    const head = timeline.querySelector(".playhead");
    if (head) head.style.left = percent(Math.min(player.currentTime / answer.duration, 1));
    if (stopAt !== null && player.currentTime >= stopAt) {
      player.pause();
      stopAt = null;
    }
    if (!player.paused) requestAnimationFrame(follow);
  }
  // Media events do not bubble, but can be captured.
  for (const name of ["play", "timeupdate", "seeked"]) document.addEventListener(name, follow, true);
  document.addEventListener("pause", () => { stopAt = null; }, true);

  function bar(track, one, name, label, title) {
    const button = make("button", `bar ${name}`, track);
    button.type = "button";
    button.style.left = percent(one.start / answer.duration);
    button.style.width = percent(Math.max(one.end - one.start, 0) / answer.duration);
    button.title = title;
    button.setAttribute("aria-label", title);
    button.addEventListener("click", () => jump(one.start, one.end));
    if (label) make("span", "rank", button, label);
    return button;
  }

  function annotate(track, one, text) {
    const [left, right] = [one.start / answer.duration, Math.min(one.end / answer.duration, 1)];
    const note = make("span", "note", track);
    note.textContent = text;
    const [wide, rank] = [note.offsetWidth, 20].map((one) => one / (track.offsetWidth || 1));
    if (right + wide <= 1) note.style.left = percent(right);
    else if (left >= wide) note.style.right = percent(1 - left);
    else if (right - left >= wide + rank) {
      note.classList.add("inside");
      note.style.right = percent(1 - right);
    } else { // below the bar
      track.classList.add("two");
      note.style.left = percent(Math.max(0, Math.min(left, 1 - wide)));
    }
  }

  // Draw a step per clip, scaled to the maximum, and return that.
  function drawSaliency(tracks) {
    const most = Math.max(...answer.saliency);
    const track = make("div", "track curve", tracks);
    const image = (name, parent, values) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
      return parent.appendChild(element);
    };
    const peak = answer.saliency.indexOf(most) * answer.clip_seconds;
    const svg = image("svg", track, {
      viewBox: `0 0 ${answer.duration} 1`, preserveAspectRatio: "none", role: "img",
      "aria-label": `probability that each time lies in the answer: at most ${most.toFixed(2)}, `
        + `at ${seconds(peak)}`,
    });
    const steps = answer.saliency.map((one, at) =>
      `V${1 - one / (most || 1)}H${(at + 1) * answer.clip_seconds}`);
    image("path", svg, { d: `M0 1${steps.join("")}V1Z` });
    return most;
  }

  function drawTimeline() {
    if (!timeline) return;
    timeline.replaceChildren();
    timeline.classList.toggle("empty", !answer);
    if (!answer) return;
    const tracks = make("div", "tracks", timeline);
    const grid = make("div", "grid", tracks);
    for (const [share, label] of ticks(answer.duration, 8)) {
      const tick = make("span", "tick", grid);
      tick.style.left = percent(share);
      make("span", "time", tick, label);
    }
    const most = drawSaliency(tracks);
    answer.moments.forEach((one, at) => {
      const track = make("div", "track", tracks);
      // In a set, scores are probabilities, but spreads are of cells of the map.
      const bare = one.spread === null || answer.presence !== null;
      const spread = bare ? "" : ` ± ${one.spread.toFixed(2)}`;
      const score = `${one.score.toFixed(2)}${spread}`;
      const button = bar(track, one, `moment rank-${at + 1}`, String(at + 1),
        `${at + 1}. ${between(one)}, score ${score}`);
      button.style.opacity = String(Math.max(1 - 0.12 * at, 0.5));
      annotate(track, one, `${score}   ${between(one)}`);
    });
    if (answer.presence !== null) {
      const found = answer.moments.length ? "the score of a moment is the probability that it is right"
        : "not found in this video";
      make("span", "caption found", timeline,
        `${found}; in this video with probability ${(100 * answer.presence).toFixed(0)} %`);
    }
    make("span", "caption", timeline,
      `curve: probability that each time lies in the answer${answer.presence === null ? ""
        : ", if there is one"}, at most ${most.toFixed(2)}`);
    if (answer.samples.length) {
      const track = make("div", "track samples", tracks);
      for (const one of answer.samples) {
        bar(track, one, "sample", "", `best moment of one sample: ${between(one)}`);
      }
      make("span", "caption", timeline,
        `lowest row: the best moment of each of ${answer.samples.length} samples, overlaid`);
    }
    if (answer.windows > 1) {
      make("span", "caption", timeline,
        `searched in ${answer.windows} windows, as the video is longer than those of training`);
    }
    if (video()) make("span", "playhead", tracks);
    follow();
  }

  // Map ------------------------------------------------------------------------------------------

  function paint(canvas, cells) {
    const size = answer.clips;
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    for (let start = 0; start < size; start += 1) {
      for (let length = 0; length < size; length += 1) {
        const level = cells[start * size + length];
        const at = 4 * ((size - 1 - start) * size + length); // starts go up
        if (level) {
          image.data.set(color((level - 1) / 254), at);
          image.data[at + 3] = 255;
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  function mark(layer, one, name, label) {
    // In the middle of its cell: columns hold the lengths up to their right end.
    const half = 0.5 / answer.clips;
    const total = answer.clips * answer.clip_seconds;
    const dot = make("span", name, layer, label);
    dot.style.left = percent((one.end - one.start) / total - half);
    dot.style.bottom = percent(one.start / total + half);
  }

  // Steps of starts and lengths in clips, by key.
  const MOVES = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };

  function nextCell(cells, from, [up, right]) {
    // Long moments are only on coarse scales, with gaps between their cells.
    let start = Math.floor(from / answer.clips) + up;
    let length = (from % answer.clips) + right;
    while (Math.min(start, length) >= 0 && Math.max(start, length) < answer.clips) {
      const at = start * answer.clips + length;
      if (cells[at]) return at;
      start += up;
      length += right;
    }
    return from; // there is none
  }

  function bestCell(cells) {
    const [best] = answer.moments;
    if (best) {
      const length = Math.round((best.end - best.start) / answer.clip_seconds) - 1;
      const at = Math.round(best.start / answer.clip_seconds) * answer.clips + length;
      if (cells[at]) return at;
    }
    return cells.findIndex((one) => one > 0);
  }

  function listenToKeys(plot, cells, show, play) {
    let at = bestCell(cells);
    if (at < 0) return;
    plot.addEventListener("focus", () => {
      if (plot.matches(":focus-visible")) show(at); // not after a click
    });
    plot.addEventListener("blur", () => show(null));
    plot.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key in MOVES) at = nextCell(cells, at, MOVES[event.key]);
      else if (event.key === "Enter" || event.key === " ") play(at);
      else return;
      event.preventDefault(); // the page would scroll
      show(at);
    });
  }

  function drawMap(element) {
    const card = element.querySelector(".map-card");
    if (!card) return;
    card.replaceChildren();
    if (!answer) return;
    const figure = make("div", "figure", card);
    make("span", "y-name", figure, "start");
    const plot = make("div", "plot", figure);
    plot.tabIndex = 0;
    plot.setAttribute("role", "application"); // as it handles keys itself
    plot.setAttribute("aria-label", `map of all candidate moments for “${answer.query}”`);
    plot.setAttribute("aria-describedby", "map-keys");
    make("span", "spoken", figure,
      "Right and left arrows change the length, up and down arrows the start; Enter plays.",
    ).id = "map-keys";
    const canvas = make("canvas", "cells", plot);
    const layer = make("div", "layer", plot);
    for (const one of [canvas, layer]) one.setAttribute("aria-hidden", "true");
    const cursor = make("span", "cursor", plot);
    cursor.hidden = true;
    const readout = make("div", "readout", plot);
    const spoken = make("span", "spoken said", plot); // for screen readers
    spoken.setAttribute("role", "status");
    make("span", "x-name", figure, "length");
    const total = answer.clips * answer.clip_seconds;
    for (const [share, label] of ticks(total, 5)) {
      make("span", "x-tick", plot, label).style.left = percent(share);
      if (share) make("span", "y-tick", plot, label).style.bottom = percent(share);
    }

    const final = decode(answer.map);
    let shown = final;
    const momentOf = (at) => {
      const start = Math.floor(at / answer.clips) * answer.clip_seconds;
      return { start, end: start + ((at % answer.clips) + 1) * answer.clip_seconds };
    };
    const scoreOf = (at) => {
      const [low, high] = answer.limits;
      return `score ${(low + ((final[at] - 1) / 254) * (high - low)).toFixed(2)}`;
    };
    const say = (at) => {
      const [best] = answer.moments;
      if (at === null) {
        readout.replaceChildren(make("b", "", null, best ? between(best) : "not found in this video"));
        if (best) make("span", "", readout, `score ${best.score.toFixed(2)}`);
        return;
      }
      readout.replaceChildren(make("b", "", null, between(momentOf(at))));
      make("span", "", readout, scoreOf(at));
    };
    const point = (at) => {
      say(at);
      cursor.hidden = at === null;
      if (at === null) return;
      cursor.style.width = cursor.style.height = percent(1 / answer.clips);
      cursor.style.left = percent((at % answer.clips) / answer.clips);
      cursor.style.bottom = percent(Math.floor(at / answer.clips) / answer.clips);
    };
    const playCell = (at) => {
      const { start, end } = momentOf(at);
      jump(start, Math.min(end, answer.duration));
    };
    const cellAt = (event) => {
      const box = canvas.getBoundingClientRect();
      const length = Math.floor(((event.clientX - box.left) / box.width) * answer.clips);
      const start = Math.floor(((box.bottom - event.clientY) / box.height) * answer.clips);
      const inside = Math.min(length, start) >= 0 && Math.max(length, start) < answer.clips;
      const at = start * answer.clips + length;
      return inside && final[at] ? at : null;
    };
    plot.addEventListener("pointermove", (event) => point(cellAt(event)));
    plot.addEventListener("pointerleave", () => point(null));
    plot.addEventListener("click", (event) => {
      const at = cellAt(event);
      if (at !== null) playCell(at);
    });
    listenToKeys(plot, final, (at) => {
      point(at);
      spoken.textContent = at === null ? "" : `${between(momentOf(at))}, ${scoreOf(at)}`;
    }, playCell);

    const scale = make("div", "scale", card);
    make("span", "", scale, answer.limits[0].toFixed(2));
    const ramp = make("span", "ramp", scale);
    const stops = RAMP.map((one) => `rgb(${one.join()})`).join();
    ramp.style.background = `linear-gradient(90deg, ${stops})`;
    make("span", "", scale, answer.limits[1].toFixed(2));
    make("span", "legend", scale, "score");
    if (answer.samples.length) make("span", "legend dotted", scale, "best of a sample");
    if (final.some((level, at) => !level && at % answer.clips < answer.clips - Math.floor(at / answer.clips))) {
      make("p", "gaps", card, "Gaps are not candidates: long moments start and end at coarser steps. "
        + "Above the diagonal, moments would end after the video.");
    }

    const marks = (visible) => {
      layer.replaceChildren();
      if (!visible) return;
      answer.samples.forEach((one) => mark(layer, one, "sample-dot", ""));
      answer.moments.map((one, at) => [one, at]).reverse()
        .forEach(([one, at]) => mark(layer, one, "disc", String(at + 1)));
    };
    paint(canvas, shown);
    marks(true);
    say(null);
    if (answer.noisy.length) drawRun(card, (cells, last) => {
      shown = cells === null ? final : cells;
      paint(canvas, shown);
      marks(last);
    });
  }

  function drawRun(card, show) {
    const frames = [];
    answer.clean.forEach((clean, at) => {
      const number = `step ${at + 1} of ${answer.clean.length}`;
      if (at + 1 < answer.noisy.length) frames.push([decode(answer.noisy[at]), `${number}: noisy map`]);
      frames.push([decode(clean), `${number}: predicted clean map`]);
    });
    const drawn = answer.samples.length;
    frames.push([null, `result: ${drawn ? `the mean of ${drawn} samples` : "the last clean map"}, `
      + "with the best moments"]);
    const run = make("div", "run", card);
    const play = make("button", "play", run, "Play the denoising");
    play.type = "button";
    const slider = make("input", "frames", run);
    slider.type = "range";
    slider.min = "0";
    slider.max = String(frames.length - 1);
    slider.value = slider.max;
    slider.setAttribute("aria-label", "frame of the denoising run");
    const name = make("span", "frame-name", run, frames[frames.length - 1][1]);
    let timer = null;
    const go = (at) => {
      slider.value = String(at);
      name.textContent = frames[at][1];
      show(frames[at][0], at === frames.length - 1);
    };
    const stop = () => { clearInterval(timer); timer = null; };
    slider.addEventListener("input", () => { stop(); go(Number(slider.value)); });
    play.addEventListener("click", () => {
      stop();
      let at = 0;
      go(at);
      timer = setInterval(() => {
        at += 1;
        go(at);
        if (at === frames.length - 1 || !run.isConnected) stop();
      }, Math.max(160, Math.min(600, 4000 / frames.length)));
    });
  }

  // Called by the page ---------------------------------------------------------------------------

  return {
    timeline(element) {
      timeline = element.querySelector(".timeline");
      drawTimeline();
      let width = 0;
      new ResizeObserver(() => {
        if (timeline.offsetWidth === width) return;
        width = timeline.offsetWidth;
        drawTimeline();
      }).observe(element);
    },
    transcript(element, props, watch) {
      const update = () => {
        const card = element.querySelector(".transcript");
        card.replaceChildren();
        lines = (props.value ? JSON.parse(props.value) : []).map(([start, end, text]) => {
          const line = make("p", "cue", card);
          const second = String(Math.floor(start) % 60).padStart(2, "0");
          make("span", "when", line, `${Math.floor(start / 60)}:${second}`);
          make("span", "", line, text);
          return { start, end, element: line };
        });
      };
      watch("value", update);
      update();
    },
    map(element, props, watch) {
      const update = () => {
        answer = props.value ? JSON.parse(props.value) : null;
        stopAt = null;
        drawMap(element);
        drawTimeline();
        highlight();
      };
      watch("value", update);
      update();
    },
  };
})();
