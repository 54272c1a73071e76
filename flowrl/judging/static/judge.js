"use strict";
// Pairs one after the other; a vote is sent, and only when it is on disk the next pair comes.
const $ = (id) => document.getElementById(id);
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", s: "skip", S: "skip" };
let votes = [], token = "", at = 0, busy = false;

async function ask(address, options) {
  const answer = await fetch(address, options);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function tell(error) {
  $("problem").textContent = error ? String(error.message || error) : "";
  $("problem").hidden = !error;
}

async function guarded(work) {
  if (busy) return;
  busy = true;
  try { await work(); tell(null); } catch (error) { tell(error); }
  busy = false;
}

function shown(side, what) {
  let node;
  if (what.image) {
    node = new Image();
    node.alt = side === "left" ? "left picture" : "right picture";
    node.addEventListener("load", () => node.classList.toggle("tiny", node.naturalWidth <= 128));
    node.src = what.image;
  } else {
    node = document.createElement("pre");
    node.textContent = what.text;
  }
  $(side).querySelector(".shown").replaceChildren(node);
}

async function show(number) {
  const pair = await ask(`pairs/${number}`);
  at = number;
  $("prompt").textContent = pair.prompt;
  shown("left", pair.left);
  shown("right", pair.right);
  const words = { left: "left", right: "right", tie: "equal", skip: "skipped" };
  $("before").textContent = votes[number] ? `your vote: ${words[votes[number]]}` : "";
  $("back").disabled = number === 0;
  $("pair").hidden = false;
  $("results").hidden = true;
  progress();
  const next = votes.findIndex((vote, i) => i > number && vote === null);
  if (next > 0 && pair.left.image) for (const side of ["left", "right"]) new Image().src = `pairs/${next}/${side}`;
}

function progress() {
  $("progress").textContent = `${votes.filter((vote) => vote !== null).length} of ${votes.length} judged`;
}

async function forward() {
  const open = votes.findIndex((vote, i) => i > at && vote === null);
  const next = open >= 0 ? open : votes.indexOf(null);
  if (next >= 0) await show(next); else await conclude();
}

async function conclude() {
  const found = await ask("results");
  $("tables").replaceChildren(...found.tables.map((rows) => {
    const table = document.createElement("table");
    for (const [label, text] of rows) {
      const row = table.insertRow(), head = document.createElement("th");
      head.scope = "row";
      head.textContent = label;
      row.append(head);
      row.insertCell().textContent = text;
    }
    const card = document.createElement("div");
    card.className = "card";
    card.append(table);
    return card;
  }));
  $("notes").replaceChildren(...[...found.notes, `votes: ${found.file}`].map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  $("pair").hidden = true;
  $("results").hidden = false;
  progress();
}

function choose(vote) {
  if ($("pair").hidden) return;
  guarded(async () => {
    const headers = { "content-type": "application/json", "x-flowrl-token": token };
    votes = (await ask("votes", { method: "POST", headers, body: JSON.stringify({ pair: at, vote }) })).votes;
    await forward();
  });
}

function back() {
  const number = $("pair").hidden ? votes.length - 1 : at - 1;
  if (number >= 0) guarded(() => show(number));
}

for (const button of document.querySelectorAll("[data-vote]")) button.addEventListener("click", () => choose(button.dataset.vote));
$("back").addEventListener("click", back);
$("again").addEventListener("click", back);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key in KEYS) { event.preventDefault(); choose(KEYS[event.key]); }
  else if (event.key === "b" || event.key === "B") back();
});
guarded(async () => {
  const state = await ask("state");
  [votes, token, at] = [state.votes, state.token, -1];
  await forward();
});
