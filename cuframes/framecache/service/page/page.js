// Shows the slots, and asks for them again every second while the page is visible.
"use strict";

const EVERY_MS = 1000;
const QUIET_S = 2; // a slot with a writer is quiet when no frame has come for this long

const $ = (id) => document.getElementById(id);
const cards = new Map(); // slot_id -> {article, seen, shown, busy}
let token = sessionStorage.getItem("token");

class Refused extends Error {}

async function ask(path) {
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  const answer = await fetch(path, { headers, cache: "no-store" });
  if (answer.status === 401) throw new Refused();
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit++; }
  return `${count.toFixed(unit && count < 100 ? 1 : 0)} ${units[unit]}`;
}

function age(seconds) {
  if (seconds === null) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms ago`;
  if (seconds < 120) return `${seconds.toFixed(1)} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

function rate(slot) {
  const nominal = slot.fps_num / slot.fps_den; // from the file's header, where a C program may have left zeros
  if (!Number.isFinite(nominal)) return "–";
  return Number.isInteger(nominal) ? `${nominal}` : nominal.toFixed(2);
}

// New frames say more than the lock, which a writer in C may not use.
function state(slot) {
  if (slot.last_frame_age_s !== null && slot.last_frame_age_s < QUIET_S) return ["live", "live"];
  if (slot.writer_pid !== null) return ["quiet", "writer, but no frames"];
  return ["off", slot.write_cursor ? "no writer" : "never written"];
}

function newCard(slot) {
  const article = $("card").content.cloneNode(true).firstElementChild;
  article.dataset.slot = slot.slot_id;
  article.querySelector("h2").textContent = slot.slot_id;
  article.querySelector("img").alt = `newest frame of ${slot.slot_id}`;
  const card = { article, inView: true, shown: null, busy: false };
  watcher.observe(article);
  cards.set(slot.slot_id, card);
  return card;
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = cards.get(entry.target.dataset.slot);
    if (card) card.inView = entry.isIntersecting;
  }
});

function fill(card, slot) {
  const [kind, words] = state(slot);
  card.article.className = kind;
  const say = (name, text) => { card.article.querySelector(name).textContent = text; };
  say(".state", words);
  const source = slot.source_type ? `, ${slot.source_type}` : "";
  say(".video", `${slot.pixel_format} ${slot.width}×${slot.height}, ${rate(slot)} fps${source}`);
  say(".fps", slot.fps === null ? "–" : `${slot.fps.toFixed(2)} fps`);
  say(".age", age(slot.last_frame_age_s));
  say(".frames", slot.write_cursor.toLocaleString());
  say(".dropped", slot.dropped_frames.toLocaleString());
  say(".writer", slot.writer_pid === null ? "none" : `pid ${slot.writer_pid || "unknown"}`);
  say(".ring", `${slot.ring_depth} frames, ${bytes(slot.size)}`);
  card.article.querySelector(".dropped").classList.toggle("bad", slot.dropped_frames > 0);
}

async function picture(card, slot) {
  if (!card.inView || card.busy || card.shown === slot.write_cursor || slot.write_cursor === 0) return;
  card.busy = true;
  const image = card.article.querySelector("img");
  try {
    const answer = await ask(`slots/${encodeURIComponent(slot.slot_id)}/thumbnail.jpg`);
    const url = URL.createObjectURL(await answer.blob());
    const before = image.src;
    image.src = url;
    await image.decode();
    image.hidden = false;
    if (before) URL.revokeObjectURL(before);
    card.shown = Number(answer.headers.get("ETag").slice(1, -1)) + 1; // it may be a second old, and is then asked for again
  } catch {
    image.hidden = true; // there is no frame yet, or no picture can be made of it
  } finally {
    card.busy = false;
  }
}

function show(slots) {
  const names = new Set(slots.map((slot) => slot.slot_id));
  for (const [name, card] of cards) {
    if (names.has(name)) continue;
    watcher.unobserve(card.article);
    URL.revokeObjectURL(card.article.querySelector("img").src);
    card.article.remove();
    cards.delete(name);
  }
  slots.forEach((slot, place) => {
    const card = cards.get(slot.slot_id) ?? newCard(slot);
    if ($("slots").children[place] !== card.article) $("slots").insertBefore(card.article, $("slots").children[place]);
    fill(card, slot);
    picture(card, slot);
  });
  $("none").hidden = slots.length > 0;
}

async function update() {
  const summary = $("summary");
  try {
    const slots = await (await ask("slots")).json();
    const health = await (await ask("health")).json();
    $("ask").hidden = true;
    show(slots);
    summary.className = "";
    const count = slots.length === 1 ? "1 slot" : `${slots.length} slots`;
    summary.textContent = `${count}, ${bytes(health.bytes_used)} used, ${bytes(health.bytes_free)} free`;
    if (health.problem !== null) {
      summary.className = "bad";
      summary.textContent += `; ${health.problem}`;
    }
  } catch (problem) {
    summary.className = "bad";
    if (problem instanceof Refused) {
      $("ask").hidden = false;
      show([]);
      $("none").hidden = true;
      summary.textContent = token === null ? "token required" : "the token was refused";
    } else {
      summary.textContent = "the service does not answer; writers and readers continue without it";
    }
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
  update();
});

async function run() {
  if (!document.hidden) await update();
  setTimeout(run, EVERY_MS);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
run();
