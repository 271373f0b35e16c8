// Charts and dialogue browsers of a report. Model text reaches the page only through textContent. After charts.js.
/* ---- charts: (run) => [traces, layout] ---- */

const charts = {
  reward: (run) => [
    heldOut(run).concat(run.agents.flatMap((name, i) => {
      const curve = run.episodes[i];
      const common = { name: label(`${i} ${name}`), legendgroup: i };
      const episodes = curve.average.map((_, k) => k + 1);
      return [
        { ...common, x: curve.x, y: curve.y, mode: "markers", showlegend: false, hoverinfo: "skip",
          marker: { color: colour(i), size: 5, opacity: 0.28 } },
        { ...common, x: episodes, y: curve.average, mode: "lines", line: { color: colour(i), width: 2.5 },
          hovertemplate: "%{y:.2f}" },
      ];
    }), team(run)),
    { xaxis: { title: { text: "episode" } }, yaxis: { title: { text: "reward (scaled)" } } },
  ],
  compare: () => [
    data.runs.flatMap((run, r) => run.agents.map((name, i) => ({
      x: run.episodes[i].average.map((_, k) => k + 1), y: run.episodes[i].average, mode: "lines",
      name: label(`${run.name}: ${i} ${name}`), line: { color: colour(i), width: 2.2, dash: dashes[r % dashes.length] },
      hovertemplate: "%{y:.2f}",
    }))),
    { xaxis: { title: { text: "episode" } }, yaxis: { title: { text: "reward (scaled)" } } },
  ],
  heat: (run) => {
    const cross = run.cross;
    const cells = cross.difference.flat().filter((v) => v !== null).map(Math.abs);
    const extent = Math.max(0.1, ...cells);
    const number = (v) => (v === null ? "–" : (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2));
    return [[{
      type: "heatmap", x: cross.rows.map(label), y: cross.judges.map(label), z: transposed(cross.difference),
      text: transposed(cross.difference).map((row) => row.map(number)), texttemplate: "%{text}",
      customdata: transposed(cross.rows.map((_, i) => cross.judges.map((_, j) =>
        [number(cross.base[i][j]), number(cross.trained[i][j]), number(cross.low[i][j]), number(cross.high[i][j])]))),
      hovertemplate: "%{y} on %{x}: %{text}<br>base %{customdata[0]}, trained %{customdata[1]}" +
        "<br>95% of the difference %{customdata[2]} … %{customdata[3]}<extra></extra>",
      zmin: -extent, zmax: extent, xgap: 2, ygap: 2, showscale: false,
      colorscale: dark() ? [[0, "#b4473b"], [0.5, "#2a2e34"], [1, "#2f86c4"]]
        : [[0, "#d9705f"], [0.5, "#f4f2ee"], [1, "#4a98cf"]],
    }], { yaxis: { autorange: "reversed", automargin: true, ticks: "" }, xaxis: { side: "top" }, hovermode: "closest" }];
  },
  disagreement: (run) => [
    ["before", "after"].map((when, k) => ({
      ...line(run.series[`disagreement_${when}`][0] || [], k), name: `${when} gossip`,
    })),
    { yaxis: { type: "log", exponentformat: "power", nticks: 5 } },
  ],
  td_error: perAgent("td_error"),
  kl: perAgent("kl"),
  entropy: perAgent("entropy"),
};

function heldOut(run) {
  if (!run.held_out.x.length) return [];
  return [{ ...run.held_out, mode: "lines+markers", name: "team, held-out questions", hovertemplate: "%{y:.2f}",
    line: { color: getComputedStyle(document.body).color, width: 2, dash: "dot" } }];
}

function team(run) {
  if (run.agents.length < 2) return [];
  return [{ x: run.team.map((_, k) => k + 1), y: run.team, mode: "lines", name: "team", hovertemplate: "%{y:.2f}",
    line: { color: getComputedStyle(document.body).color, width: 2, dash: "dash" } }];
}

function perAgent(key) {
  return (run) => [run.agents.map((name, i) => ({ ...line(run.series[key][i] || [], i), name: label(`${i} ${name}`) })), {}];
}

function line(values, i) {
  return { x: values.map((_, k) => k), y: values, mode: "lines", line: { color: colour(i), width: 1.6 },
    hovertemplate: "%{y:.3g}" };
}

function transposed(rows) {
  return rows[0].map((_, j) => rows.map((row) => row[j]));
}

/* ---- dialogue browser ---- */

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function formatted(score) {
  return score === null || score === undefined ? "–" : score.toFixed(2);
}

/* A training turn is {prompt, responses, cut, scores: [agent], aggregate, fallback}; an evaluated one {base, trained},
   each with scores {judge: [agent]} and aggregate_scores {judge: score}. */
class Browser {
  constructor(box, run, number) {
    [this.box, this.run, this.number] = [box, run, number];
    this.form = box.querySelector("form");
    this.found = [];
    this.at = 0;
    this.turn = 0;
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", (event) => {
      if (event.target.name === "source") this.offerJudges();
      this.search();
    });
    box.querySelectorAll("[data-step]").forEach((b) => b.addEventListener("click", () => this.step(Number(b.dataset.step))));
    box.querySelectorAll("[data-turn]").forEach((b) => b.addEventListener("click", () => this.go(Number(b.dataset.turn))));
    box.addEventListener("keydown", (event) => {
      if (/INPUT|SELECT/.test(event.target.tagName)) return;
      const move = {
        ArrowLeft: () => this.go(-1), ArrowRight: () => this.go(1),
        ArrowUp: () => this.step(-1), ArrowDown: () => this.step(1),
      }[event.key];
      if (!move) return;
      event.preventDefault();
      move();
    });
    this.offerJudges();
    this.search(false);
  }

  get source() { return this.form.elements.source.value; }

  /* Whether the reader has set a filter, or is setting one. */
  get filtering() {
    const { text, agent, low, high } = this.form.elements;
    return this.form.contains(document.activeElement) || agent.value !== "any" || [text, low, high].some((e) => e.value);
  }

  offerJudges() {
    const first = this.run.evaluation[0];
    const names = this.source === "evaluation" && first
      ? Object.keys((first.turns[0].trained || first.turns[0].base).scores) : ["the agent's own reward model"];
    this.form.elements.judge.replaceChildren(...names.map((name) => element("option", "", name)));
  }

  scoresOf(turn) {
    const judge = this.form.elements.judge.value;
    if (this.source === "training") return turn.scores;
    return ((turn.trained || turn.base).scores[judge]) || [];
  }

  matches(dialogue, text, agent, low, high) {
    const bounded = low !== "" || high !== "";
    return dialogue.turns.some((turn) => {
      const said = this.source === "training" ? [turn] : [turn.base, turn.trained].filter(Boolean);
      if (text && !said.some((t) => [t.prompt, t.aggregate, ...t.responses].some((s) => s.toLowerCase().includes(text)))) return false;
      if (!bounded) return true;
      const scores = this.scoresOf(turn);
      return (agent === "any" ? scores : [scores[Number(agent)]]).some((score) =>
        typeof score === "number" && (low === "" || score >= Number(low)) && (high === "" || score <= Number(high)));
    });
  }

  search(record = true) {
    const { text, agent, low, high } = this.form.elements;
    const all = this.run[this.source];
    this.found = [];
    all.forEach((dialogue, i) => {
      if (this.matches(dialogue, text.value.trim().toLowerCase(), agent.value, low.value, high.value)) this.found.push(i);
    });
    this.box.querySelector(".count").textContent = `${this.found.length} of ${all.length} dialogues`;
    [this.at, this.turn] = [0, 0];
    this.show(record);
  }

  step(by) {
    this.at = Math.min(Math.max(this.at + by, 0), Math.max(this.found.length - 1, 0));
    this.turn = 0;
    this.show();
  }

  go(by) {
    const dialogue = this.run[this.source][this.found[this.at]];
    if (!dialogue) return;
    this.turn = Math.min(Math.max(this.turn + by, 0), dialogue.turns.length - 1);
    this.show();
  }

  show(record = true) {
    const place = this.box.querySelector(".dialogue");
    const dialogue = this.run[this.source][this.found[this.at]];
    const disable = (name, by, off) => { this.box.querySelector(`[data-${name}="${by}"]`).disabled = off; };
    disable("step", -1, this.at === 0);
    disable("step", 1, this.at >= this.found.length - 1);
    disable("turn", -1, this.turn === 0);
    disable("turn", 1, !dialogue || this.turn >= dialogue.turns.length - 1);
    if (!dialogue) {
      this.box.querySelector(".where").textContent = "";
      place.replaceChildren(element("p", "empty", "No dialogue matches; widen the search or the score range."));
      return;
    }
    this.box.querySelector(".where").textContent =
      `${this.at + 1} of ${this.found.length}: ${dialogue.title}, turn ${this.turn + 1} of ${dialogue.turns.length}`;
    const turn = dialogue.turns[this.turn];
    const parts = this.source === "training" ? this.spoken(turn)
      : ["base", "trained"].filter((policy) => turn[policy]).flatMap((policy, k) =>
        [...this.spoken(turn[policy], policy, k > 0 && turn.base && turn.trained.prompt === turn.base.prompt)]);
    place.replaceChildren(...parts);
    if (record) history.replaceState(null, "", `#run${this.number}/${this.source}/${this.found[this.at]}/${this.turn}`);
  }

  spoken(turn, policy, samePrompt) {
    const parts = [];
    if (!samePrompt) {
      const prompt = element("div", "prompt");
      prompt.append(element("p", "label", "Prompt"), element("p", "said", turn.prompt));
      parts.push(prompt);
    }
    if (policy) parts.push(element("h3", "policy", policy === "base" ? "Base model" : "Trained agents"));
    const answers = element("div", "answers");
    turn.responses.forEach((text, i) => answers.append(this.answer(`Agent ${i}`, text, turn, i)));
    answers.append(this.answer(turn.fallback ? "Team (the controller fell back)" : "Team", turn.aggregate, turn, -1));
    parts.push(answers);
    return parts;
  }

  answer(who, text, turn, agent) {
    const box = element("div", agent < 0 ? "answer team" : "answer");
    box.append(element("p", "label", turn.cut[agent] ? `${who}, cut at the limit` : who), element("p", "said", text));
    const scores = element("ul", "scores");
    const add = (name, score, chosen) => scores.append(element("li", chosen ? "chosen" : "", `${name} ${formatted(score)}`));
    if (Array.isArray(turn.scores)) {
      if (agent >= 0) add(this.run.agents[agent], turn.scores[agent], true);
    } else {
      for (const judge of Object.keys(turn.scores)) {
        add(judge, agent < 0 ? turn.aggregate_scores[judge] : turn.scores[judge][agent], judge === this.form.elements.judge.value);
      }
    }
    box.append(scores);
    return box;
  }

  open(source, dialogue, turn, scroll) {
    if (!this.run[source] || !this.run[source][dialogue]) return;
    this.form.reset();
    this.form.elements.source.value = source;
    this.offerJudges();
    this.search(false);
    this.at = dialogue;
    this.turn = Math.min(Math.max(turn, 0), this.run[source][dialogue].turns.length - 1);
    this.show(false);
    if (scroll) this.box.scrollIntoView();
  }
}

const browsers = new Map();
document.querySelectorAll("[data-browser]").forEach((box) => {
  const number = Number(box.closest("[data-run]").dataset.run);
  browsers.set(number, new Browser(box, data.runs[number], number));
});

function follow(scroll) {
  const link = /^#run(\d+)\/(training|evaluation)\/(\d+)\/(\d+)$/.exec(location.hash);
  if (link && browsers.has(Number(link[1]))) browsers.get(Number(link[1])).open(link[2], Number(link[3]), Number(link[4]), scroll);
}
addEventListener("hashchange", () => follow(true));
// A reload keeps the scroll position.
follow(performance.getEntriesByType("navigation")[0].type !== "reload");

/* ---- a run that is under way: the page reloads itself ---- */

// A page cannot see that a run was killed; its age tells the reader.
document.querySelectorAll(".written").forEach((one) => { one.textContent = new Date(document.lastModified).toLocaleString(); });

// The address keeps the open dialogue. The rest of the reader's view travels in the history entry.
const details = [...document.querySelectorAll("details")];
const buttons = [...document.querySelectorAll("button")];

function reload() {
  const reading = !getSelection().isCollapsed || [...browsers.values()].some((browser) => browser.filtering);
  if (document.hidden || reading) return;
  history.replaceState({
    theme: document.documentElement.dataset.theme, open: details.map((one) => one.open),
    focused: buttons.indexOf(document.activeElement), top: scrollY,
  }, "");
  history.scrollRestoration = "manual";  // the browser's own comes later, and moves with what it takes for the anchor
  location.reload();
}

if (history.state) {
  if (history.state.theme) document.documentElement.dataset.theme = history.state.theme;
  details.forEach((one, i) => { one.open = history.state.open[i]; });
  buttons[history.state.focused]?.focus({ preventScroll: true });
  scrollTo({ top: history.state.top, behavior: "instant" });
  history.scrollRestoration = "auto";
  history.replaceState(null, "");
}
if (data.reload) setInterval(reload, 1000 * data.reload);
