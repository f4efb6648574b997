"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch { // pages opened from a file may not write to the clipboard: select and copy the text instead
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
  if (!data.clips.length) return;

  // Small helpers. Text is inserted as text, never as HTML.

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function draw(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function signed(value, digits) {
    const text = Math.abs(value).toFixed(digits);
    return (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;
  }

  // Rounded down, so that a score just below a threshold does not look as if it had reached it.
  const scoreText = (side) => (side.reward === null ? "INVALID" : (Math.floor(side.reward * 1000 + 1e-6) / 1000).toFixed(3));

  function verdictOf(side) {
    if (side.reward === null) return "invalid";
    if (data.threshold === null) return "scored";
    return side.reward >= data.threshold - 1e-9 ? "passed" : "failed";
  }

  function blobOf(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  }

  // One policy's video, with its boxes and curves.

  class Side {
    constructor(side, clip) {
      this.side = side;
      this.frames = side.frames;
      this.shown = -1;
      const label = `${side.policy}: ${scoreText(side)}`;
      this.url = blobOf(side.video);
      this.video = make("video", { playsinline: "", preload: "auto", width: clip.size[0], height: clip.size[1],
        "aria-label": `${label}. ${clip.prompt}` });
      this.video.muted = true;
      this.video.src = this.url;
      this.boxes = draw("svg", { class: "boxes", viewBox: `0 0 ${clip.size.join(" ")}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      this.screen = make("div", { class: "screen" }, this.video, this.boxes);
      const score = make("b", { class: verdictOf(side) }, scoreText(side));
      this.element = make("figure", { class: "side" }, make("figcaption", {}, make("span", {}, side.policy), score), this.screen);
      if (side.reason) this.element.append(make("p", { class: "reason" }, side.reason));
      if (side.grade && side.grade.curves.length) this.element.append(this.curves(side.grade), this.legend(side.grade));
    }

    curves(grade) {
      const across = (frame) => ((frame + 0.5) / grade.frames) * 100;
      const down = (value) => 22 - 20 * value;
      const width = 100 / grade.frames;
      const summaries = grade.curves.map((curve) => `${curve.name} from ${signed(curve.values[0], 2)} to ${signed(curve.values.at(-1), 2)}`);
      const svg = draw("svg", { viewBox: "0 0 100 44", preserveAspectRatio: "none", role: "img", "aria-label": `SSR over time: ${summaries.join("; ")}` });
      for (const [first, last] of grade.averaged) {
        svg.append(draw("rect", { x: first * width, y: 0, width: (last - first + 1) * width, height: 44 }));
      }
      svg.append(draw("line", { class: "zero", x1: 0, x2: 100, y1: 22, y2: 22 }));
      grade.curves.forEach((curve, number) => {
        let points = [];
        grade.counted.forEach((frame, place) => {
          if (place && frame !== grade.counted[place - 1] + 1) points.push(null);
          points.push(`${across(frame).toFixed(2)},${down(curve.values[place]).toFixed(2)}`);
        });
        for (const part of points.join(" ").split("  ")) {
          svg.append(draw("polyline", { class: `line${lineOf(number, grade)}`, points: part }));
        }
      });
      this.cursor = draw("line", { class: "cursor", x1: 0, x2: 0, y1: 0, y2: 44 });
      svg.append(this.cursor);
      const scale = [["+1", "0"], ["0", "calc(50% - .35rem)"], ["\u22121", "calc(100% - .7rem)"]];
      return make("div", { class: "curve" }, ...scale.map(([text, top]) => {
        const label = make("span", { "aria-hidden": "true" }, text);
        label.style.top = top;
        return label;
      }), svg);
    }

    legend(grade) {
      this.values = grade.curves.map(() => make("output", { "aria-live": "off" }));
      return make("ul", { class: "legend" }, ...grade.curves.map((curve, number) =>
        make("li", {}, make("span", {}, make("i", { class: `swatch line${lineOf(number, grade)}` }), curve.name), this.values[number])));
    }

    show() {
      const { currentTime, duration } = this.video;
      if (!duration) return;
      if (this.cursor) {
        const x = Math.min(100, (currentTime / duration) * 100).toFixed(2);
        this.cursor.setAttribute("x1", x);
        this.cursor.setAttribute("x2", x);
      }
      const frame = this.frame();
      if (frame === this.shown) return;
      this.shown = frame;
      this.element.dataset.frame = frame;
      const grade = this.side.grade;
      if (!grade) return;
      this.boxes.replaceChildren();
      Object.values(grade.boxes).forEach((overTime, number) => {
        const box = overTime[frame];
        if (!box) return;
        const [x, y, right, bottom] = box;
        const place = { x, y, width: right - x, height: bottom - y };
        this.boxes.append(draw("rect", { class: "halo", ...place }), draw("rect", { class: `box${number % 2}`, ...place }));
      });
      const place = grade.counted.indexOf(frame);
      this.values?.forEach((output, number) => {
        output.textContent = place < 0 ? "not counted" : signed(grade.curves[number].values[place], 2);
      });
    }

    frame() {
      const { currentTime, duration } = this.video;
      return Math.min(this.frames - 1, Math.floor((currentTime / duration) * this.frames + 1e-3));
    }

    // Seek to the middle of the frame, so that rounding cannot show its neighbour.
    seek(frame) {
      if (this.video.duration) this.video.currentTime = ((Math.min(frame, this.frames - 1) + 0.5) / this.frames) * this.video.duration;
    }

    remove() {
      this.video.pause();
      this.video.removeAttribute("src");
      this.video.load();
      URL.revokeObjectURL(this.url);
    }
  }

  const lineOf = (number, grade) => (number === 0 ? 0 : number === grade.curves.length - 1 ? 1 : 2 + ((number - 1) % 2));

  // All policies' videos of one prompt and seed, which play in sync.

  class Card {
    constructor(clip) {
      this.sides = clip.sides.map((side) => new Side(side, clip));
      this.frames = Math.max(...this.sides.map((side) => side.frames));
      this.master = this.sides.find((side) => side.frames === this.frames);
      this.wanted = null; // whether this card should play; null: like all others
      this.visible = false;
      this.button = make("button", { type: "button" }, "Play");
      this.slider = make("input", { type: "range", min: 0, max: this.frames - 1, value: 0, "aria-label": "frame" });
      this.output = make("output");
      const meta = make("p", { class: "meta" }, [clip.type, clip.prompt_id, `seed ${clip.seed}`].filter(Boolean).join(" \u00b7 "));
      if (clip.change !== null) {
        const direction = clip.change > 0.0005 ? "up" : clip.change < -0.0005 ? "down" : "";
        meta.append(" \u00b7 ", make("span", { class: direction }, `change ${signed(clip.change, 3)}`));
      }
      const labels = Object.keys(clip.sides.find((side) => side.grade)?.grade.boxes ?? {});
      if (labels.length) {
        meta.append(" \u00b7 ", ...labels.flatMap((label, number) => [make("i", { class: `swatch box${number % 2}` }), `${label} `]));
      }
      this.element = make("article", { class: "card", tabindex: 0, "aria-label": clip.prompt },
        make("h3", {}, clip.prompt), meta,
        ...clip.given.map(({ name, image }) => make("figure", { class: "given" },
          make("figcaption", {}, name), make("img", { src: `data:image/webp;base64,${image}`, alt: name }))),
        make("div", { class: "sides" }, ...this.sides.map((side) => side.element)),
        make("div", { class: "controls" }, this.button, this.slider, this.output));
      this.element.dataset.type = clip.type;
      this.element.dataset.clip = clip.number;
      this.button.addEventListener("click", () => this.toggle());
      this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
      for (const side of this.sides) {
        side.screen.addEventListener("click", () => this.toggle());
        side.video.playbackRate = side.video.defaultPlaybackRate = Number(find("speed").value);
      }
      this.element.addEventListener("keydown", (event) => this.key(event));
    }

    get playing() {
      return this.visible && (this.wanted ?? state.playing);
    }

    toggle() {
      this.wanted = !this.playing;
      this.follow();
    }

    seek(frame) {
      this.wanted = false;
      this.follow();
      for (const side of this.sides) side.seek(frame);
    }

    key(event) {
      if (event.target !== this.element) return;
      const steps = { ArrowLeft: -1, ArrowRight: 1 };
      if (event.key === " ") this.toggle();
      else if (event.key in steps) this.seek((this.master.frame() + steps[event.key] + this.frames) % this.frames);
      else return;
      event.preventDefault();
    }

    follow() {
      this.button.textContent = this.playing ? "Pause" : "Play";
      for (const { video } of this.sides) {
        if (!this.playing) video.pause();
        else if (video.paused && !video.ended) video.play().catch(() => {}); // it was paused again before it started
      }
    }

    show() {
      const master = this.master.video;
      if (this.playing) {
        if (master.ended) {
          for (const { video } of this.sides) video.currentTime = 0;
          this.follow();
        }
        for (const { video } of this.sides) {
          const apart = Math.abs(video.currentTime - master.currentTime);
          if (video !== master && !video.ended && !video.seeking && apart > 0.05) video.currentTime = master.currentTime;
        }
      }
      for (const side of this.sides) side.show();
      const frame = master.duration ? this.master.frame() : 0;
      this.output.textContent = `frame ${frame + 1} of ${this.frames}`;
      if (document.activeElement !== this.slider || this.playing) this.slider.value = frame;
    }

    remove() {
      for (const side of this.sides) side.remove();
    }
  }

  // Filters, order and pages. There are pages because browsers limit the number of videos on a page.

  const perPage = Math.max(1, Math.min(12, Math.floor(36 / data.policies.length)));
  const state = { playing: !calm, page: 0, cards: [] };
  const form = find("filters");
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const card = state.cards.find((other) => other.element === entry.target);
      if (!card) continue;
      card.visible = entry.isIntersecting;
      card.follow();
    }
  });

  function options(select, pairs) {
    select.append(...pairs.map(([value, text]) => make("option", { value }, text)));
  }

  const distinct = (values) => [...new Set(values)].filter(Boolean).sort();
  data.clips.forEach((clip, number) => (clip.number = number));
  options(form.type, [["", "all"], ...distinct(data.clips.map((clip) => clip.type)).map((type) => [type, type])]);
  options(form.side, data.policies.map((name) => [name, name]));
  const compared = data.policies.at(-1);
  form.side.querySelector("option:last-child").setAttribute("selected", "");
  form.side.value = compared;
  const reasons = distinct(data.clips.flatMap((clip) => clip.sides.map((side) => side.why)));
  options(form.reason, [["", "any number"], ["none", "none"], ["any", "at least one"], ...reasons.map((why) => [`: ${why}`, why])]);

  const sideOf = (clip, policy) => clip.sides.find((side) => side.policy === policy);
  const rewardOf = (clip, policy) => sideOf(clip, policy)?.reward ?? null;
  const changeOf = (clip) => {
    const policy = form.side.value === data.baseline ? compared : form.side.value;
    const [before, after] = [sideOf(clip, data.baseline), sideOf(clip, policy)];
    return before && after && before !== after ? (after.reward ?? 0) - (before.reward ?? 0) : null; // INVALID counts as 0
  };

  function chosen() {
    const [least, most] = [Number(form.least.value), Number(form.most.value || 1)];
    const everything = least <= 0 && most >= 1;
    const reason = form.reason.value;
    const kept = data.clips.filter((clip) => {
      clip.change = changeOf(clip);
      const reward = rewardOf(clip, form.side.value);
      const why = clip.sides.map((side) => side.why).filter(Boolean);
      if (form.type.value && clip.type !== form.type.value) return false;
      if (!everything && (reward === null || reward < least || reward > most)) return false;
      if (reason === "none" && why.length) return false;
      if (reason === "any" && !why.length) return false;
      return !reason.startsWith(": ") || why.includes(reason.slice(2));
    });
    const byPrompt = (a, b) => a.prompt_id.localeCompare(b.prompt_id) || a.seed - b.seed;
    if (form.order.value === "prompt") return kept.sort(byPrompt);
    const by = {
      improved: (clip) => -(clip.change ?? -9),
      regressed: (clip) => clip.change ?? 9,
      highest: (clip) => -(rewardOf(clip, form.side.value) ?? -9),
      lowest: (clip) => rewardOf(clip, form.side.value) ?? -9,
    }[form.order.value];
    return by ? kept.sort((a, b) => by(a) - by(b) || a.number - b.number) : kept;
  }

  function render() {
    const clips = chosen();
    const pages = Math.max(1, Math.ceil(clips.length / perPage));
    state.page = Math.max(0, Math.min(state.page, pages - 1));
    seen.disconnect();
    for (const card of state.cards) card.remove();
    state.cards = clips.slice(state.page * perPage, (state.page + 1) * perPage).map((clip) => new Card(clip));
    find("cards").replaceChildren(...state.cards.map((card) => card.element));
    for (const card of state.cards) seen.observe(card.element);
    find("count").textContent = `${clips.length} of ${data.clips.length} shown`;
    find("page").textContent = `page ${state.page + 1} of ${pages}`;
    find("previous").disabled = state.page === 0;
    find("next").disabled = state.page === pages - 1;
  }

  function turn(step) {
    state.page += step;
    render();
    form.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  }

  function playAll(playing) {
    state.playing = playing;
    find("play").textContent = playing ? "Pause all" : "Play all";
    find("play").setAttribute("aria-pressed", playing);
    for (const card of state.cards) {
      card.wanted = null;
      card.follow();
    }
  }

  function showBoxes(shown) {
    find("boxes").checked = shown;
    find("cards").classList.toggle("no-boxes", !shown);
  }

  form.addEventListener("input", () => {
    state.page = 0;
    render();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => {
    state.page = 0;
    render();
  }));
  find("previous").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
  find("play").addEventListener("click", () => playAll(!state.playing));
  find("boxes").addEventListener("change", (event) => showBoxes(event.target.checked));
  find("speed").addEventListener("change", (event) => {
    for (const { video } of state.cards.flatMap((card) => card.sides)) video.playbackRate = Number(event.target.value);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key === "b") showBoxes(!find("boxes").checked);
    if (event.key === "p") playAll(!state.playing);
  });

  form.reset(); // browsers may keep the chosen filters when the page is reloaded
  playAll(state.playing);
  render();
  (function tick() {
    for (const card of state.cards) card.show();
    requestAnimationFrame(tick);
  })();
})();
