// One page: pick a video, look at its merged regions, ask. All text from the server is set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { key: "", model: "", video: null, strip: null, turns: [], abort: null, loading: 0 };

async function api(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) $("key-form").hidden = false;
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new Error((body.error && body.error.message) || `HTTP ${response.status}`);
  }
  return response;
}

function fail(error) {
  $("error").textContent = error.name === "AbortError" ? "" : error.message;
}

async function start() {
  $("error").textContent = "";
  try {
    const model = (await (await api("/v1/models")).json()).data[0];
    state.model = model.id;
    $("model").textContent = state.model;
    $("notice").textContent = model.notice || "";
    $("notice").hidden = !model.notice;
    $("key-form").hidden = true;
    await search();
  } catch (error) { fail(error); }
}

async function search() {
  const query = new URLSearchParams({ q: $("search").value, limit: "200" });
  const found = await (await api(`/videos?${query}`)).json();
  const list = $("videos");
  list.replaceChildren(...found.data.map((video) => {
    const option = new Option(`${video.name} (${video.tokens_after} of ${video.tokens_before} tokens)`, video.id);
    option.title = video.uri;
    return option;
  }));
  $("found").textContent = `${found.total} videos`;
  if (found.data.length && !state.video) {
    list.selectedIndex = 0;
    await pick(found.data[0].id);
  }
}

async function pick(id) {
  const ticket = ++state.loading;
  try {
    const video = await (await api(`/videos/${encodeURIComponent(id)}`)).json();
    if (ticket !== state.loading) return;
    state.video = video;
    state.strip = null;
    state.turns = [];
    showTurns();
    $("frame").max = video.grid[0] - 1;
    $("frame").value = 0;
    const kept = (100 * video.tokens_after / video.tokens_before).toFixed(0);
    $("about").textContent = `${video.name}: ${video.tokens_after} of ${video.tokens_before} tokens kept (${kept} %), ` +
      `grid ${video.grid.join(" × ")}, cache ${size(video.kv_bytes)}`;
    $("sampled").textContent = sampled(video);
    draw();
    if (video.has_frames) await loadStrip(id, ticket);
  } catch (error) { fail(error); }
}

async function loadStrip(id, ticket) {
  const image = await createImageBitmap(await (await api(`/videos/${encodeURIComponent(id)}/frames`)).blob());
  if (ticket !== state.loading) return;
  state.strip = image;
  draw();
}

// How much of the video was looked at; nothing where the store does not know.
function sampled(video) {
  if (!video.frames || !video.seconds_per_frame) return "";
  const asked = video.frames_asked ? ` of ${video.frames_asked} asked for` : "";
  const thinned = video.thinned ? "; thinned by video.max_frames" : "";
  return `${video.duration_s.toFixed(1)} s, ${video.frames} frames${asked}, ` +
    `one in ${video.seconds_per_frame.toPrecision(3)} s${thinned}`;
}

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

// Brightness of a region from 0 to 1: its number of cells, on a logarithmic scale up to the largest region.
function brightness(cells, largest) {
  return largest > 1 ? Math.log(cells) / Math.log(largest) : 1;
}

function draw() {
  const { video, strip } = state;
  if (!video) return;
  const [frames, rows, columns] = video.grid;
  const t = Number($("frame").value);
  const canvas = $("canvas"), pen = canvas.getContext("2d");
  const sampled = video.seconds.length || frames;
  const perFrame = Math.ceil(sampled / frames); // some families join sampled frames in pairs
  const height = strip ? strip.height / sampled : 0;
  const aspect = strip ? strip.width / height : columns / rows;
  canvas.width = 1120;
  canvas.height = Math.round(1120 / aspect);
  const w = canvas.width / columns, h = canvas.height / rows;
  pen.fillStyle = "#1b1b1f";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (strip) {
    const source = Math.min(sampled - 1, t * perFrame) * height;
    pen.drawImage(strip, 0, source, strip.width, height, 0, 0, canvas.width, canvas.height);
  }
  const largest = Math.max(1, ...video.boxes.map((box) => box[5]));
  const here = video.boxes.filter((box) => box[0] === t);
  if ($("outlines").checked) {
    for (const [, y0, x0, y1, x1, cells] of here) {
      const share = brightness(cells, largest);
      const place = [x0 * w + 1, y0 * h + 1, (x1 - x0) * w - 2, (y1 - y0) * h - 2];
      pen.fillStyle = `rgba(255, 214, 102, ${(strip ? 0.05 + 0.4 * share : 0.08 + 0.87 * share).toFixed(3)})`;
      pen.fillRect(...place);
      pen.lineWidth = 2;
      pen.strokeStyle = "rgba(255, 236, 179, 0.9)";
      pen.strokeRect(...place);
    }
  }
  const seconds = video.seconds[Math.min(sampled - 1, t * perFrame)];
  const time = seconds === undefined ? "" : `, ${seconds.toFixed(1)} s`;
  $("place").textContent = `frame ${t + 1} of ${frames}${time}: ${here.length} tokens`;
  canvas.setAttribute("aria-label", `Merged regions: ${$("place").textContent}`);
}

function showTurns() {
  $("turns").replaceChildren(...state.turns.map((turn) => {
    const box = document.createElement("div");
    box.className = `turn ${turn.role === "user" ? "question" : "answer"}`;
    box.textContent = turn.content;
    return box;
  }));
}

function messages() {
  const [first, ...rest] = state.turns;
  const video = { type: "video", video: state.video.id };
  return [{ role: "user", content: [video, { type: "text", text: first.content }] }, ...rest];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(question) {
  $("error").textContent = "";
  $("timing").textContent = "…";
  state.turns.push({ role: "user", content: question });
  const body = JSON.stringify({ model: state.model, messages: messages(), stream: true });
  const answer = { role: "assistant", content: "" };
  state.turns.push(answer);
  showTurns();
  const box = $("turns").lastElementChild;
  state.abort = new AbortController();
  setBusy(true);
  const began = performance.now();
  let first = 0;
  try {
    const options = { method: "POST", body, headers: { "Content-Type": "application/json" }, signal: state.abort.signal };
    for await (const event of events(await api("/v1/chat/completions", options))) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice && choice.delta.content) {
        first ||= performance.now() - began;
        answer.content += choice.delta.content;
        box.textContent = answer.content;
      }
      if (event.sttm) timings(event.sttm, first, performance.now() - began);
    }
  } catch (error) {
    fail(error);
    $("timing").textContent = "";
    if (!answer.content) state.turns.splice(-2); // without an answer the question can be asked again
    showTurns();
  } finally {
    setBusy(false);
  }
}

function timings(about, first, total) {
  const ms = (seconds) => `${(1000 * seconds).toFixed(0)} ms`;
  $("timing").textContent = `cache loaded after ${ms(about.load_s)}, first token ${ms(about.ttft_s)}, ` +
    `whole answer ${ms(about.total_s)}; in this browser: first ${first.toFixed(0)} ms, all ${total.toFixed(0)} ms; ` +
    `${about.kv_tokens} tokens cached`;
}

function setBusy(busy) {
  $("send").disabled = busy;
  $("stop").disabled = !busy;
  $("clear").disabled = busy;
  $("videos").disabled = busy;
  if (!busy) $("question").focus();
}

function step(by) {
  const frame = $("frame");
  frame.value = Number(frame.value) + by;
  draw();
}

let typing = 0;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => search().catch(fail), 200);
});
$("videos").addEventListener("change", (event) => pick(event.target.value));
$("frame").addEventListener("input", draw);
$("outlines").addEventListener("change", draw);
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
$("stop").addEventListener("click", () => state.abort && state.abort.abort());
$("clear").addEventListener("click", () => { state.turns = []; showTurns(); $("timing").textContent = ""; });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  start();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || !state.video || $("send").disabled) return;
  $("question").value = "";
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.abort) state.abort.abort();
});
start();
